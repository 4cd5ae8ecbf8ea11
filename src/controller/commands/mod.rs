//! Commands, from comments, the command line and the API alike (R6.9). One file for each command.
//!
//! A command resolves its selector, asks the authorization, and calls a controller. Every refusal says why and what to do,
//! and is never a success (R6.10).

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

use crate::domain::message::Refusal;
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
    /// In a sentence.
    #[serde(rename = "says")]
    pub message: String,
    /// The plans that are executed once the command names their digest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plans: Vec<Plan>,
    /// The runs that it began.
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
    /// When it is refused, in a sentence.
    pub async fn execute(self: &Arc<Self>, command: &Command, who: &Principal) -> Result<CommandOutcome, Error> {
        let head = self.source.loaded_head()?;
        self.execute_on(&head, command, who, None).await
    }

    async fn execute_on(
        self: &Arc<Self>,
        head: &Arc<Head>,
        command: &Command,
        who: &Principal,
        tracked: Option<&TrackedPullRequest>,
    ) -> Result<CommandOutcome, Error> {
        let meant = self.meant(head, command, tracked).await?;
        self.authorization.allow(head, who, command.verb, &environments(&meant)).await?;
        let selector = command.selector.as_ref();
        let pull = tracked.map(|tracked| tracked.pull.number);
        let message = match command.verb {
            Verb::Suspend => self.suspend(&meant, selector, who).await?,
            Verb::Resume => self.resume(head, &meant, selector, who).await?,
            Verb::Snooze => self.snooze_drift(&meant, command, who).await?,
            Verb::Confirm => self.confirm(&meant, who).await?,
            Verb::Adopt | Verb::Revert => self.remediations.turn(head, &meant, command.verb, who).await?,
            Verb::Forget => self.forget(head, &meant, who).await?,
            Verb::Cancel => self.runs.cancel(&meant, who).await?,
            Verb::Unlock => self.unlock(head, &meant, who).await?,
            Verb::Rebalance => {
                let (message, runs) = self.rebalance(head, &meant, who, pull).await?;
                return Ok(CommandOutcome { message, runs, ..CommandOutcome::default() });
            }
            Verb::Destroy => {
                let digests: Vec<String> = command.digest.iter().cloned().collect();
                let Some(selector) = selector else { return Err(missing_selector(command)) };
                let (message, plans, runs) = self.destroy(head, &meant, &digests, who, (selector, pull)).await?;
                return Ok(CommandOutcome { message, plans, runs });
            }
            other => return Err(Error::Refused(Refusal::NotImplemented(other))),
        };
        Ok(CommandOutcome { message, ..CommandOutcome::default() })
    }

    /// The instances that a command means: declared or not, and by itself those that its place is about.
    async fn meant(
        self: &Arc<Self>,
        head: &Head,
        command: &Command,
        tracked: Option<&TrackedPullRequest>,
    ) -> Result<BTreeSet<InstanceId>, Error> {
        let about = match tracked {
            Some(tracked) => match self.remediations.proposal_of(tracked.pull.number).await? {
                Some(proposal) => proposal.instances,
                None => self.source.changed_by(tracked).await?,
            },
            None => BTreeSet::new(),
        };
        let Some(selector) = &command.selector else {
            if about.is_empty() {
                return Err(missing_selector(command));
            }
            return Ok(about);
        };
        let mut meant = self.planner.select(head, Some(selector), &about).await?;
        let applied = self.context.store.all_applied().await?;
        let gone = applied.iter().filter(|(id, _)| head.instance(id).is_none());
        let gone =
            gone.filter(|(id, applied)| selector.selects(&undeclared(id, Some(applied), about.contains(*id), false)));
        meant.extend(gone.map(|(id, _)| id.clone()));
        // What is declared is not meant by what only concerns the rest, where the rest is meant as well.
        if matches!(command.verb, Verb::Destroy | Verb::Forget) && meant.iter().any(|id| head.instance(id).is_none()) {
            meant.retain(|id| head.instance(id).is_none());
        }
        if meant.is_empty() {
            Err(Error::Refused(Refusal::Empty(matched_nothing(head, Some(selector)))))
        } else {
            Ok(meant)
        }
    }

    /// The head, and what a selector means there, if it means anything and the command is allowed on all of it.
    async fn chosen(
        self: &Arc<Self>,
        selector: Option<&Selector>,
        verb: Verb,
        who: &Principal,
    ) -> Result<(Arc<Head>, BTreeSet<InstanceId>), Error> {
        let head = self.source.loaded_head()?;
        let selected = self.planner.select(&head, selector, &BTreeSet::new()).await?;
        if selected.is_empty() {
            return Err(Error::Refused(Refusal::Empty(matched_nothing(&head, selector))));
        }
        self.authorization.allow(&head, who, verb, &environments(&selected)).await?;
        Ok((head, selected))
    }

    /// Looks at instances, and lets nothing be proposed before the last look has ended.
    async fn check_all(self: &Arc<Self>, ids: &BTreeSet<InstanceId>) -> Result<(), Error> {
        let _checks: Vec<CheckInProgress> = ids.iter().map(|id| self.observer.begin_check(id)).collect();
        let checks = futures::future::join_all(ids.iter().map(|id| self.observer.check_drift(id))).await;
        checks.into_iter().find_map(Result::err).map_or(Ok(()), Err)
    }

    /// The instances that a selector means, for the API.
    pub async fn selected(&self, selector: Option<&Selector>) -> Result<BTreeSet<InstanceId>, Error> {
        let head = self.source.loaded_head()?;
        let selected = self.planner.select(&head, selector, &BTreeSet::new()).await?;
        if selected.is_empty() {
            Err(Error::Refused(Refusal::Empty(matched_nothing(&head, selector))))
        } else {
            Ok(selected)
        }
    }

    /// A selection that leaves out a pending upstream is refused (R6.1).
    async fn upstreams_selected(
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
