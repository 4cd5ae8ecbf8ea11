//! Which runs are claimed: the document of a claimed run is changed by the task that claimed it alone.

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::Mutex;

use crate::model::RunId;

/// The claimed runs.
#[derive(Default)]
pub(super) struct RunClaims {
    /// A run is in here while a task of this process may change its document.
    claimed: Mutex<BTreeSet<RunId>>,
}

/// A claim on a run; dropping it releases the run.
pub(super) struct RunClaim {
    claims: Arc<RunClaims>,
    run: RunId,
}

impl RunClaims {
    /// Claims a run; `None` where another task has claimed it.
    pub(super) fn claim(self: &Arc<Self>, run: RunId) -> Option<RunClaim> {
        self.claimed.lock().insert(run).then(|| RunClaim { claims: Arc::clone(self), run })
    }
}

impl Drop for RunClaim {
    fn drop(&mut self) {
        self.claims.claimed.lock().remove(&self.run);
    }
}
