//! Executes `/drift` and `evenkeel drift`: checks the selected instances for drift.
//!
//! *Invariant:* a drift check changes no target.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use crate::{
    controller::{
        commands::Commands,
        context::Error,
        planning::{environments, matched_nothing},
        records::TrackedPullRequest,
        source::Head,
        work_queue::ReconcileRequest,
    },
    domain::{
        authorization::Principal,
        command::Command,
        declaration::{Selector, schema::Verb},
        message::{Refusal, comment},
    },
    model::InstanceId,
};

/// How long a request for proposals waits for drift checks of their causes.
const PROPOSE_WAIT: Duration = Duration::from_secs(60);

impl Commands {
    /// `/drift`: checks the selected instances and returns their verdicts.
    ///
    /// # Errors
    /// [`Error::Refused`] with the reason; else when the store fails.
    pub(super) async fn check_drift(
        self: &Arc<Self>,
        head: &Arc<Head>,
        tracked: &TrackedPullRequest,
        principal: &Principal,
        command: &Command,
    ) -> Result<String, Error> {
        let changed = self.source.changed_by(tracked).await?;
        let mut selected = self.planner.select(head, command.selector.as_ref(), &changed).await?;
        if command.selector.is_none() && !tracked.environments.is_empty() {
            selected.retain(|id| tracked.environments.contains(&id.environment));
        }
        if selected.is_empty() {
            return Err(Error::Refused(Refusal::Empty(matched_nothing(head, command.selector.as_ref()))));
        }
        self.authorization.allow(head, principal, Verb::Drift, &environments(&selected)).await?;
        self.check_all(&selected).await?;
        let mut rows = vec![];
        for status in self.status.read().await?.instances.into_iter().filter(|status| selected.contains(&status.id)) {
            rows.push((status.id.clone(), status.verdict, status.message()));
        }
        Ok(comment::drift(&rows))
    }

    /// Checks the selected instances for drift, and plans their environments, for the API.
    ///
    /// # Errors
    /// [`Error::Refused`] with the reason; else when the repository or the store fails.
    pub async fn check_drift_of(
        self: &Arc<Self>,
        selector: Option<&Selector>,
        principal: &Principal,
    ) -> Result<BTreeSet<InstanceId>, Error> {
        let (_, selected) = self.resolve_allowed(selector, Verb::Drift, principal).await?;
        self.check_all(&selected).await?;
        for environment in environments(&selected) {
            self.pull_requests.plan_head(&environment).await?;
        }
        Ok(selected)
    }

    /// Updates the proposals of the environments of instances. Returns when the proposals are updated, or when a drift check
    /// of a possible cause takes longer than `PROPOSE_WAIT`.
    ///
    /// # Errors
    /// When the forge or the store fails.
    pub async fn propose_drift(self: &Arc<Self>, instances: &BTreeSet<InstanceId>) -> Result<(), Error> {
        let until = tokio::time::Instant::now() + PROPOSE_WAIT;
        for environment in environments(instances) {
            loop {
                let done = {
                    let request = ReconcileRequest::Proposals(environment.clone());
                    let _proposals = self.context.queue.take(request).await;
                    self.remediations.propose(&environment).await?
                };
                let ended = self.observer.check_ended(&environment);
                if done || tokio::time::timeout_at(until, ended).await.is_err() {
                    break;
                }
            }
        }
        Ok(())
    }
}
