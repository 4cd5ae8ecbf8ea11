//! Records the drift checks in progress.
//!
//! While the check of a cause is in progress, its consequences are not proposed (R4.4).
//!
//! *Invariant:* a check that hangs delays only the proposals of the instances that depend on it.
//! *Race:* a proposal is due while its cause is checked: the end of the check enqueues the proposals.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{
    controller::{
        context::Context,
        work_queue::{Reason, ReconcileRequest},
    },
    model::{EnvironmentName, InstanceId},
};

#[derive(Default)]
struct State {
    /// The number of checks of each instance in progress; never 0.
    checks: BTreeMap<InstanceId, usize>,
    /// The environments whose proposals wait for the end of a check.
    postponed: BTreeSet<EnvironmentName>,
}

/// The checks in progress.
pub(super) struct ChecksInProgress {
    context: Arc<Context>,
    state: Mutex<State>,
    ended: Notify,
}

/// A check in progress; dropping it ends the check.
pub(crate) struct CheckInProgress {
    checks: Arc<ChecksInProgress>,
    id: InstanceId,
}

impl ChecksInProgress {
    pub(super) fn new(context: Arc<Context>) -> Arc<Self> {
        Arc::new(Self { context, state: Mutex::default(), ended: Notify::new() })
    }

    pub(super) fn begin(self: &Arc<Self>, id: &InstanceId) -> CheckInProgress {
        *self.state.lock().checks.entry(id.clone()).or_default() += 1;
        CheckInProgress { checks: Arc::clone(self), id: id.clone() }
    }

    /// Whether a check of one of the instances is in progress or enqueued. If so, the end of the next check in the
    /// environment enqueues its proposals.
    pub(super) fn postpones(&self, environment: &EnvironmentName, ids: &BTreeSet<InstanceId>) -> bool {
        let mut state = self.state.lock();
        let queue = &self.context.queue;
        let is_checked = |id: &InstanceId| {
            state.checks.contains_key(id) || queue.is_waiting(&ReconcileRequest::Instance(id.clone()))
        };
        let postponed = ids.iter().any(is_checked);
        if postponed {
            state.postponed.insert(environment.clone());
        }
        postponed
    }

    /// Waits until the proposals of an environment no longer wait for the end of a check.
    pub(super) async fn ended(&self, environment: &EnvironmentName) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if !self.state.lock().postponed.contains(environment) {
                return;
            }
            ended.await;
        }
    }
}

impl Drop for CheckInProgress {
    fn drop(&mut self) {
        let mut state = self.checks.state.lock();
        if let Some(checks) = state.checks.get_mut(&self.id) {
            *checks -= 1;
            if *checks == 0 {
                state.checks.remove(&self.id);
            }
        }
        let postponed = state.postponed.remove(&self.id.environment);
        drop(state);
        self.checks.ended.notify_waiters();
        if postponed {
            let environment = self.id.environment.clone();
            self.checks.context.queue.enqueue(ReconcileRequest::Proposals(environment), Reason::CheckEnded);
        }
    }
}
