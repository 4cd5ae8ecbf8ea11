//! Executes commands from comments, the command line and the API (R6.9). One file for each command.
//!
//! A command resolves its selector, checks the permissions of the principal, and calls another controller.
//!
//! *Invariant:* no command acts before the authorization controller allows it. Every refusal contains a reason and a hint,
//! and is never reported as a success (R6.10).
//! *Race:* the daemon dies after it executed a command: the command ID finds its runs and its audit records.

mod apply;
mod comments;
mod confirm;
mod destroy;
mod drift;
mod forget;
mod plan;
mod propose;
mod rebalance;
mod remediation;
mod snooze;
mod suspend;
mod unlock;

use std::{collections::BTreeSet, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    authorization::Authorization,
    context::{Context, Error},
    notifier::Notifier,
    observe::{CheckInProgress, Observer},
    planning::{Planner, environments, matched_nothing, undeclared},
    pull_requests::PullRequests,
    records::TrackedPullRequest,
    remediation::Remediations,
    runs::Runs,
    source::{Head, Source},
    status::StatusReader,
};
use crate::{
    domain::{
        authorization::Principal,
        command::Command,
        declaration::{Selector, schema::Verb},
        message::Refusal,
        plan::Plan,
    },
    model::{EnvironmentName, InstanceId, RunId},
};

/// The shortest prefix of a digest that pins a plan.
const DIGEST_LENGTH_MIN: usize = 6;

/// The outcome of a command.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CommandOutcome {
    /// The message to the principal.
    #[serde(rename = "says")]
    pub message: String,
    /// The plans that are executed once the command names their digest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plans: Vec<Plan>,
    /// The runs that the command created.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<RunId>,
}

fn missing_selector(command: &Command) -> Error {
    Error::Refused(Refusal::NoSelector(command.verb))
}

/// The controller of commands.
pub struct Commands {
    pub(super) context: Arc<Context>,
    pub(super) notifier: Arc<Notifier>,
    pub(super) source: Arc<Source>,
    pub(super) authorization: Arc<Authorization>,
    pub(super) observer: Arc<Observer>,
    pub(super) planner: Arc<Planner>,
    pub(super) runs: Arc<Runs>,
    pub(super) remediations: Arc<Remediations>,
    pub(super) pull_requests: Arc<PullRequests>,
    pub(super) status: Arc<StatusReader>,
}

impl Commands {
    /// The proposals of drift, by environment and root cause, as they are stored.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn proposals(&self) -> Result<Vec<(String, serde_json::Value)>, Error> {
        let proposals = self.remediations.proposals().await?;
        Ok(proposals
            .into_iter()
            .map(|(key, proposal)| (key, serde_json::to_value(proposal).unwrap_or_default()))
            .collect())
    }

    /// Executes a command, for the API.
    ///
    /// # Errors
    /// [`Error::Refused`] with the reason; else when the forge, the repository or the store fails.
    pub async fn execute(self: &Arc<Self>, command: &Command, principal: &Principal) -> Result<CommandOutcome, Error> {
        let head = self.source.loaded_head()?;
        self.execute_on(&head, command, principal, None).await
    }

    async fn execute_on(
        self: &Arc<Self>,
        head: &Arc<Head>,
        command: &Command,
        principal: &Principal,
        tracked: Option<&TrackedPullRequest>,
    ) -> Result<CommandOutcome, Error> {
        let selected = self.resolve(head, command, tracked).await?;
        self.authorization.allow(head, principal, command.verb, &environments(&selected)).await?;
        let selector = command.selector.as_ref();
        let pull = tracked.map(|tracked| tracked.pull.number);
        let message = match command.verb {
            Verb::Suspend => self.suspend(&selected, selector, principal).await?,
            Verb::Resume => self.resume(head, &selected, selector, principal).await?,
            Verb::Snooze => self.snooze_drift(&selected, command, principal).await?,
            Verb::Confirm => self.confirm(&selected, principal).await?,
            Verb::Adopt | Verb::Revert => {
                self.remediations.set_direction(head, &selected, command.verb, principal).await?
            }
            Verb::Forget => self.forget(head, &selected, principal).await?,
            Verb::Cancel => self.runs.cancel(&selected, principal).await?,
            Verb::Unlock => self.unlock(head, &selected, principal).await?,
            Verb::Rebalance => {
                let (message, runs) = self.rebalance(head, &selected, principal, pull).await?;
                return Ok(CommandOutcome { message, runs, ..CommandOutcome::default() });
            }
            Verb::Destroy => {
                let digests: Vec<String> = command.digest.iter().cloned().collect();
                let Some(selector) = selector else { return Err(missing_selector(command)) };
                let (message, plans, runs) =
                    self.destroy(head, &selected, &digests, principal, (selector, pull)).await?;
                return Ok(CommandOutcome { message, plans, runs });
            }
            other => return Err(Error::Refused(Refusal::NotImplemented(other))),
        };
        Ok(CommandOutcome { message, ..CommandOutcome::default() })
    }

    /// Resolves the selector of a command to declared instances and orphans. Without a selector, a command on a pull request
    /// selects the instances of that pull request.
    async fn resolve(
        self: &Arc<Self>,
        head: &Head,
        command: &Command,
        tracked: Option<&TrackedPullRequest>,
    ) -> Result<BTreeSet<InstanceId>, Error> {
        let of_pull_request = match tracked {
            Some(tracked) => match self.remediations.proposal_of(tracked.pull.number).await? {
                Some(proposal) => proposal.instances,
                None => self.source.changed_by(tracked).await?,
            },
            None => BTreeSet::new(),
        };
        let Some(selector) = &command.selector else {
            if of_pull_request.is_empty() {
                return Err(missing_selector(command));
            }
            return Ok(of_pull_request);
        };
        let mut selected = self.planner.select(head, Some(selector), &of_pull_request).await?;
        let applied = self.context.store.all_applied().await?;
        let orphans = applied.iter().filter(|(id, _)| head.instance(id).is_none());
        let orphans = orphans.filter(|(id, applied)| {
            selector.selects(&undeclared(id, Some(applied), of_pull_request.contains(*id), false))
        });
        selected.extend(orphans.map(|(id, _)| id.clone()));
        // These commands apply to orphans: where the selector matches an orphan, declared instances are excluded.
        if matches!(command.verb, Verb::Destroy | Verb::Forget) && selected.iter().any(|id| head.instance(id).is_none())
        {
            selected.retain(|id| head.instance(id).is_none());
        }
        if selected.is_empty() {
            Err(Error::Refused(Refusal::Empty(matched_nothing(head, Some(selector)))))
        } else {
            Ok(selected)
        }
    }

    /// Resolves a selector at head, and checks that the principal may use a command on every selected instance.
    async fn resolve_allowed(
        self: &Arc<Self>,
        selector: Option<&Selector>,
        verb: Verb,
        principal: &Principal,
    ) -> Result<(Arc<Head>, BTreeSet<InstanceId>), Error> {
        let head = self.source.loaded_head()?;
        let selected = self.planner.select(&head, selector, &BTreeSet::new()).await?;
        if selected.is_empty() {
            return Err(Error::Refused(Refusal::Empty(matched_nothing(&head, selector))));
        }
        self.authorization.allow(&head, principal, verb, &environments(&selected)).await?;
        Ok((head, selected))
    }

    /// Checks instances for drift. Proposals are postponed until the last check has ended.
    async fn check_all(self: &Arc<Self>, ids: &BTreeSet<InstanceId>) -> Result<(), Error> {
        let _checks: Vec<CheckInProgress> = ids.iter().map(|id| self.observer.begin_check(id)).collect();
        let checks = futures::future::join_all(ids.iter().map(|id| self.observer.check_drift(id))).await;
        checks.into_iter().find_map(Result::err).map_or(Ok(()), Err)
    }

    /// Resolves a selector at head, for the API.
    ///
    /// # Errors
    /// [`Error::Refused`] where no instance matches.
    pub async fn selected(&self, selector: Option<&Selector>) -> Result<BTreeSet<InstanceId>, Error> {
        let head = self.source.loaded_head()?;
        let selected = self.planner.select(&head, selector, &BTreeSet::new()).await?;
        if selected.is_empty() {
            Err(Error::Refused(Refusal::Empty(matched_nothing(&head, selector))))
        } else {
            Ok(selected)
        }
    }

    /// Refuses a selection without a pending upstream of a selected instance (R6.1).
    async fn ensure_upstreams_selected(
        &self,
        head: &Head,
        environment: &EnvironmentName,
        selected: &BTreeSet<InstanceId>,
    ) -> Result<(), Error> {
        let pending = self.planner.pending(head, environment).await?;
        for id in selected {
            if let Some(upstream) = head.instance(id).and_then(|instance| {
                instance.upstreams.iter().find(|up| pending.contains(*up) && !selected.contains(*up))
            }) {
                return Err(Error::Refused(Refusal::UpstreamNotSelected {
                    id: id.clone(),
                    upstream: upstream.clone(),
                }));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
