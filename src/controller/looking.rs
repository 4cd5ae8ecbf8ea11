//! Which instances are being looked at, so that a consequence is not proposed before its cause is seen (R4.4).
//!
//! *Race:* a proposal is due while a cause is being looked at: it is made when that look ends. A look that hangs holds
//! back the proposals of what depends on its instance, and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Notify;

use super::{Daemon, Queue, Wake};
use crate::model::{EnvironmentName, InstanceId};

#[derive(Default)]
struct State {
    looks: BTreeMap<InstanceId, usize>,
    postponed: BTreeSet<EnvironmentName>,
}

/// The looks that are under way, and the end of each.
#[derive(Default)]
pub(super) struct Looking(Mutex<State>, pub(super) Notify);

/// A look, for as long as it lives.
pub(super) struct Look(Arc<Daemon>, InstanceId);

impl Looking {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one of these is being looked at, or is about to be: then the end of a look hints at the proposals of their
    /// environment.
    pub(super) fn holds_back(&self, environment: &EnvironmentName, ids: &BTreeSet<InstanceId>, queue: &Queue) -> bool {
        let mut state = self.state();
        let held = ids.iter().any(|id| state.looks.contains_key(id) || queue.waits(&Wake::Instance(id.clone())));
        if held {
            state.postponed.insert(environment.clone());
        }
        held
    }
}

impl Look {
    pub(super) fn new(daemon: &Arc<Daemon>, id: &InstanceId) -> Self {
        *daemon.looking.state().looks.entry(id.clone()).or_default() += 1;
        Self(Arc::clone(daemon), id.clone())
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        let mut state = self.0.looking.state();
        if let Some(looks) = state.looks.get_mut(&self.1) {
            *looks -= 1;
            if *looks == 0 {
                state.looks.remove(&self.1);
            }
        }
        let postponed = state.postponed.remove(&self.1.environment);
        drop(state);
        self.0.looking.1.notify_waiters();
        if postponed {
            self.0.queue.wake(Wake::Propose(self.1.environment.clone()), "a look ended");
        }
    }
}
