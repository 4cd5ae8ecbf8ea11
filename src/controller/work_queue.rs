//! Queues the requests to reconcile, from all sources (R7.5).
//!
//! Equal requests are merged. A request for a subject that is being reconciled starts when that reconciliation ends, so that
//! no change after the start is missed.
//! *Owns:* the waiting and the running requests.
//! *Invariant:* a request carries no facts. The queue has at most one waiting and one running request for each subject.
//!
//! *Race:* a request arrives while its subject is being reconciled: the subject is reconciled once more.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{
    domain::declaration::schema::Verb,
    model::{EnvironmentName, InstanceId, PullNumber, RunId},
};

/// A subject to reconcile. The queue serves requests in the order of the variants.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ReconcileRequest {
    /// Fetch the branch of the state repo.
    Source,
    /// Drive a run.
    Run(RunId),
    /// Start the work that merges authorise in an environment.
    Merges(EnvironmentName),
    /// List the pull requests.
    PullRequests,
    /// Plan a pull request and read its comments.
    PullRequest(PullNumber),
    /// Plan the pending instances of an environment at head.
    HeadPlan(EnvironmentName),
    /// Check an instance for drift.
    Instance(InstanceId),
    /// Propose more capacity for a cluster.
    Capacity(InstanceId),
    /// Update the proposals of an environment.
    Proposals(EnvironmentName),
    /// Deliver the messages in the outbox.
    Outbox,
}

/// Why a request was enqueued.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// The daemon started.
    Start,
    /// The timer of `poll`.
    Poll,
    /// A webhook of the forge.
    Webhook,
    /// The folder of a local repository changed.
    RepositoryChanged,
    /// The head of the branch moved.
    HeadMoved,
    /// The timer of `drift.every`.
    DriftCheckDue,
    /// A Schedule.
    Schedule,
    /// A target reported a change.
    TargetChanged,
    /// A run applied the instance while it was checked.
    AppliedDuringCheck,
    /// The instance is not applied yet.
    NotApplied,
    /// A check found drift, or that drift ended.
    Drift,
    /// Instances are pending.
    Pending,
    /// Head was planned.
    HeadPlanned,
    /// *Applied* advanced to head without an action (R1.5).
    AppliedAdvanced,
    /// A run was authorised.
    RunAuthorised,
    /// A run was in progress when the daemon started.
    RunInProgress,
    /// A run waits for an approval or a command.
    RunWaits,
    /// A run ended.
    RunEnded,
    /// A rollout is in progress.
    Rollout,
    /// The environment of the run changed.
    EnvironmentChanged,
    /// A node of the cluster was drained for another instance.
    NodeDrained,
    /// A drift check ended.
    CheckEnded,
    /// A merge was recorded.
    MergeRecorded,
    /// A remediation was merged.
    RemediationMerged,
    /// The direction of a proposal changed.
    DirectionChanged,
    /// A proposal was opened or updated.
    Proposed,
    /// A pull request changed.
    PullRequestChanged,
    /// A cluster exceeds a capacity rule.
    CapacityExceeded,
    /// A message was put into the outbox.
    MessageQueued,
    /// A message in the outbox is due.
    MessageDue,
    /// A command.
    Command(Verb),
    /// The same request again, in a test.
    Duplicate,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "the daemon started",
            Self::Poll => "poll",
            Self::Webhook => "webhook",
            Self::RepositoryChanged => "the folder of the repository changed",
            Self::HeadMoved => "head moved",
            Self::DriftCheckDue => "drift.every",
            Self::Schedule => "schedule",
            Self::TargetChanged => "the target reported a change",
            Self::AppliedDuringCheck => "it was applied while it was checked",
            Self::NotApplied => "not applied yet",
            Self::Drift => "drift",
            Self::Pending => "pending",
            Self::HeadPlanned => "head was planned",
            Self::AppliedAdvanced => "applied advanced",
            Self::RunAuthorised => "a run was authorised",
            Self::RunInProgress => "a run was in progress at start",
            Self::RunWaits => "a run waits for a command or an approval",
            Self::RunEnded => "a run ended",
            Self::Rollout => "a rollout is in progress",
            Self::EnvironmentChanged => "its environment changed",
            Self::NodeDrained => "a node was drained for another instance",
            Self::CheckEnded => "a drift check ended",
            Self::MergeRecorded => "a merge was recorded",
            Self::RemediationMerged => "a remediation was merged",
            Self::DirectionChanged => "the direction of a proposal changed",
            Self::Proposed => "proposed",
            Self::PullRequestChanged => "a pull request changed",
            Self::CapacityExceeded => "a capacity rule is exceeded",
            Self::MessageQueued => "a message was queued",
            Self::MessageDue => "a message is due",
            Self::Command(verb) => return write!(f, "/{}", verb.name()),
            Self::Duplicate => "the same request again",
        })
    }
}

#[derive(Default)]
struct State {
    waiting: BTreeMap<ReconcileRequest, Reason>,
    running: BTreeSet<ReconcileRequest>,
    /// Requests for running subjects, which start when the running request ends.
    requeued: BTreeMap<ReconcileRequest, Reason>,
    /// The reason of the last request of each instance.
    last: BTreeMap<InstanceId, Reason>,
}

/// The queue.
#[derive(Default)]
pub struct WorkQueue {
    /// A request is in at most one of `waiting` and `running`; `requeued` contains only requests in `running`.
    state: Mutex<State>,
    changed: Notify,
}

impl WorkQueue {
    /// Adds a request, unless an equal request waits.
    pub fn enqueue(&self, request: ReconcileRequest, reason: Reason) {
        {
            let mut state = self.state.lock();
            if let ReconcileRequest::Instance(id) = &request {
                state.last.insert(id.clone(), reason);
            }
            if state.running.contains(&request) {
                state.requeued.insert(request, reason);
            } else {
                state.waiting.entry(request).or_insert(reason);
            }
        }
        self.changed.notify_waiters();
    }

    /// Removes the next request, if there is one. The request runs until [`WorkQueue::done`].
    pub fn next_now(&self) -> Option<(ReconcileRequest, Reason)> {
        let mut state = self.state.lock();
        let (request, reason) = state.waiting.pop_first()?;
        state.running.insert(request.clone());
        Some((request, reason))
    }

    /// Removes the waiting request at an index modulo the length, for tests that deliver events in another order.
    pub fn any_now(&self, index: usize) -> Option<(ReconcileRequest, Reason)> {
        let mut state = self.state.lock();
        let request = state.waiting.keys().nth(index.checked_rem(state.waiting.len())?)?.clone();
        let reason = state.waiting.remove(&request)?;
        state.running.insert(request.clone());
        Some((request, reason))
    }

    /// Waits for the next request and removes it. The request runs until [`WorkQueue::done`].
    ///
    /// *Cancel safety:* safe; a request is removed only when it is returned.
    pub async fn next(&self) -> (ReconcileRequest, Reason) {
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

    /// Waits until a request does not run, and marks it as running, whether or not it waits. The request runs until the
    /// result is dropped. For a caller that needs the result of the work under the exclusion of the queue.
    ///
    /// *Cancel safety:* safe.
    pub async fn take(&self, request: ReconcileRequest) -> RunningRequest<'_> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.state.lock();
                if !state.running.contains(&request) {
                    state.waiting.remove(&request);
                    state.running.insert(request.clone());
                    return RunningRequest { queue: self, request };
                }
            }
            changed.await;
        }
    }

    /// Ends a request that is running.
    pub fn done(&self, request: &ReconcileRequest) {
        {
            let mut state = self.state.lock();
            state.running.remove(request);
            if let Some(reason) = state.requeued.remove(request) {
                state.waiting.insert(request.clone(), reason);
            }
        }
        self.changed.notify_waiters();
    }

    /// Waits until no request waits or runs.
    pub async fn idle(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let state = self.state.lock();
                if state.waiting.is_empty() && state.running.is_empty() {
                    return;
                }
            }
            changed.await;
        }
    }

    /// Whether a request waits.
    pub fn is_waiting(&self, request: &ReconcileRequest) -> bool {
        let state = self.state.lock();
        state.waiting.contains_key(request) || state.requeued.contains_key(request)
    }

    /// Why an instance was requested last.
    pub fn last_reason(&self, id: &InstanceId) -> Option<Reason> {
        self.state.lock().last.get(id).copied()
    }

    /// Returns the number of waiting and of running requests.
    pub fn depth(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.waiting.len() + state.requeued.len(), state.running.len())
    }
}

/// A request that is running; dropping it ends the request, also after a panic.
pub struct RunningRequest<'q> {
    pub(super) queue: &'q WorkQueue,
    pub(super) request: ReconcileRequest,
}

impl Drop for RunningRequest<'_> {
    fn drop(&mut self) {
        self.queue.done(&self.request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn r7_5_equal_requests_are_one_and_a_request_for_what_runs_is_kept() {
        let queue = WorkQueue::default();
        queue.enqueue(ReconcileRequest::Source, Reason::Poll);
        queue.enqueue(ReconcileRequest::Source, Reason::Webhook);
        assert_eq!(queue.next().await, (ReconcileRequest::Source, Reason::Poll));
        queue.enqueue(ReconcileRequest::Source, Reason::Webhook);
        queue.enqueue(ReconcileRequest::Source, Reason::RepositoryChanged);
        assert_eq!(queue.depth(), (1, 1));
        queue.done(&ReconcileRequest::Source);
        assert_eq!(queue.next().await, (ReconcileRequest::Source, Reason::RepositoryChanged));
        queue.done(&ReconcileRequest::Source);
        queue.idle().await;
    }

    #[tokio::test]
    async fn a_request_that_is_taken_excludes_the_queue() {
        let queue = WorkQueue::default();
        queue.enqueue(ReconcileRequest::Source, Reason::Poll);
        let running = queue.take(ReconcileRequest::Source).await;
        assert_eq!(queue.next_now(), None, "it was waiting, and runs now");
        queue.enqueue(ReconcileRequest::Source, Reason::Webhook);
        assert_eq!(queue.next_now(), None, "it runs once at a time");
        drop(running);
        assert_eq!(queue.next_now(), Some((ReconcileRequest::Source, Reason::Webhook)));
    }
}
