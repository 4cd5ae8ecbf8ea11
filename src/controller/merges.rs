//! Starts the work that a merge authorises in an environment (R1.5, R3.1).
//!
//! Starts runs by merge and merged remediations, and enqueues the plan of the pending instances.
//! *Invariant:* decides by records only; the runs observe the targets.
//! *Race:* two merges arrive at the same time: the queue runs one request of an environment at a time, so that one merge
//! creates one run.

use std::sync::Arc;

use super::{
    context::{Context, Error},
    planning::Planner,
    pull_requests::PullRequests,
    remediation::Remediations,
    runs::Runs,
    source::Source,
    work_queue::{Reason, ReconcileRequest},
};
use crate::{domain::declaration::schema::OnMerge, model::EnvironmentName};

/// The controller of merges.
pub(super) struct Merges {
    pub(super) context: Arc<Context>,
    pub(super) source: Arc<Source>,
    pub(super) planner: Arc<Planner>,
    pub(super) runs: Arc<Runs>,
    pub(super) remediations: Arc<Remediations>,
    pub(super) pull_requests: Arc<PullRequests>,
}

impl Merges {
    /// Starts the authorised work of an environment, and enqueues the plan of instances that wait for a command.
    ///
    /// # Errors
    /// When the forge, the repository or the store fails; the timers enqueue the request again.
    pub(crate) async fn reconcile(self: &Arc<Self>, environment: &EnvironmentName) -> Result<(), Error> {
        let Some(head) = self.source.head() else { return Ok(()) };
        let Some(declared) = head.desired.environments.get(environment).cloned() else { return Ok(()) };
        self.runs.rename_instances(&head, environment).await?;
        self.planner.record_settings(&head, environment).await?;
        self.pull_requests.ensure_listed(&head).await?;
        let suspended = self.source.suspensions(Some(&head)).await?.environment(environment).is_some();
        if suspended || self.context.stopping() {
            return Ok(());
        }
        self.remediations.start_merged(&head, environment).await?;
        self.runs.end_outdated(&head, environment).await?;
        let pending = self.planner.pending(&head, environment).await?;
        let open = self.context.store.open_runs().await?;
        let queue = &self.context.queue;
        for run in open.iter().filter(|run| run.environment == *environment) {
            queue.enqueue(ReconcileRequest::Run(run.id), Reason::EnvironmentChanged);
        }
        if pending.is_empty() {
            return Ok(());
        }
        match declared.on_merge {
            OnMerge::Wait if self.planner.is_planned(&head, environment, &pending).await? => {}
            OnMerge::Wait => queue.enqueue(ReconcileRequest::HeadPlan(environment.clone()), Reason::Pending),
            OnMerge::Apply => self.runs.apply_merge(&head, environment, pending, &open).await?,
        }
        Ok(())
    }
}
