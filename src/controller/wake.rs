//! The queue of wakes: hints to look, from every source alike (R7.5).
//!
//! Decides that equal hints are one, and that a hint for something that is being looked at leads to one more look.
//! Never carries a fact, and never grows: there are as many wakes as there are things to look at.
//! *Race:* a hint arrives while its thing is being looked at: it is kept and starts when that look ends, so no change
//! after the look began is missed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use tokio::sync::Notify;

use crate::model::{EnvironmentName, InstanceId, PullNumber, RunId};

/// Something to look at. The order is that of the queue.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Wake {
    /// The branch of the state repo.
    Git,
    /// A run.
    Run(RunId),
    /// What an environment may do by itself.
    Decide(EnvironmentName),
    /// The list of pull requests.
    Pulls,
    /// A pull request.
    Pull(PullNumber),
    /// What an environment would do at head.
    Plan(EnvironmentName),
    /// An instance.
    Instance(InstanceId),
    /// The drift of an environment, to be proposed.
    Propose(EnvironmentName),
    /// What is to be said.
    Outbox,
}

#[derive(Default)]
struct State {
    waiting: BTreeMap<Wake, String>,
    running: BTreeSet<Wake>,
    again: BTreeMap<Wake, String>,
    last: BTreeMap<InstanceId, String>,
}

/// The queue.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    changed: Notify,
}

impl Queue {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a hint, with what gave it.
    pub fn wake(&self, wake: Wake, because: &str) {
        {
            let mut state = self.state();
            if let Wake::Instance(id) = &wake {
                state.last.insert(id.clone(), because.to_owned());
            }
            if state.running.contains(&wake) {
                state.again.insert(wake, because.to_owned());
            } else {
                state.waiting.entry(wake).or_insert_with(|| because.to_owned());
            }
        }
        self.changed.notify_waiters();
    }

    /// The next hint, if there is one; it counts as running until [`Queue::done`].
    pub fn next_now(&self) -> Option<(Wake, String)> {
        let mut state = self.state();
        let (wake, because) = state.waiting.pop_first()?;
        state.running.insert(wake.clone());
        Some((wake, because))
    }

    /// Any of the hints that wait, by a number: for a world in which events come in another order.
    pub fn any_now(&self, number: usize) -> Option<(Wake, String)> {
        let mut state = self.state();
        let wake = state.waiting.keys().nth(number.checked_rem(state.waiting.len())?)?.clone();
        let because = state.waiting.remove(&wake)?;
        state.running.insert(wake.clone());
        Some((wake, because))
    }

    /// The next hint; it counts as running until [`Queue::done`].
    pub async fn next(&self) -> (Wake, String) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(next) = self.next_now() {
                return next;
            }
            changed.await;
        }
    }

    /// Says that a look has ended.
    pub fn done(&self, wake: &Wake) {
        {
            let mut state = self.state();
            state.running.remove(wake);
            if let Some(because) = state.again.remove(wake) {
                state.waiting.insert(wake.clone(), because);
            }
        }
        self.changed.notify_waiters();
    }

    /// Waits until nothing waits and nothing runs.
    pub async fn quiet(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let state = self.state();
                if state.waiting.is_empty() && state.running.is_empty() {
                    return;
                }
            }
            changed.await;
        }
    }

    /// Whether a hint waits.
    pub fn waits(&self, wake: &Wake) -> bool {
        let state = self.state();
        state.waiting.contains_key(wake) || state.again.contains_key(wake)
    }

    /// What woke an instance last.
    pub fn last(&self, id: &InstanceId) -> Option<String> {
        self.state().last.get(id).cloned()
    }

    /// How many hints wait and how many run.
    pub fn depth(&self) -> (usize, usize) {
        let state = self.state();
        (state.waiting.len() + state.again.len(), state.running.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn r7_5_equal_hints_are_one_and_a_hint_during_a_look_is_kept() {
        let queue = Queue::default();
        queue.wake(Wake::Git, "poll");
        queue.wake(Wake::Git, "webhook");
        assert_eq!(queue.next().await, (Wake::Git, "poll".into()));
        queue.wake(Wake::Git, "push");
        queue.wake(Wake::Git, "push again");
        assert_eq!(queue.depth(), (1, 1));
        queue.done(&Wake::Git);
        assert_eq!(queue.next().await, (Wake::Git, "push again".into()));
        queue.done(&Wake::Git);
        queue.quiet().await;
    }
}
