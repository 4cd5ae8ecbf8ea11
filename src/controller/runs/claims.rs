//! Records which runs are claimed.
//!
//! *Invariant:* only the task that claimed a run changes the document of that run.

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::Mutex;

use crate::model::RunId;

/// The claimed runs.
#[derive(Default)]
pub(super) struct RunClaims {
    /// Contains a run while a task of this process may change its document.
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
