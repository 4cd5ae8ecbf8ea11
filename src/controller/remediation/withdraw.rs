//! Proposals that are over: their drift is gone, snoozed, or part of another proposal; or somebody closed them.
//!
//! *Race:* we close a proposal and its event comes back: it says so in our store before, so that it is nobody's no.

use std::sync::Arc;

use crate::{
    controller::{context::Error, records::Proposal, remediation::Remediations},
    domain::{message::comment, remediation::Group},
    model::{EnvironmentName, InstanceId},
};

impl Remediations {
    /// Closes a proposal whose drift is gone, is snoozed, or is part of another proposal now. What is not known is not
    /// gone.
    pub(super) async fn withdraw(
        self: &Arc<Self>,
        environment: &EnvironmentName,
        key: &str,
        proposal: &Proposal,
        groups: &[Group],
    ) -> Result<(), Error> {
        let Some(forge) = self.context.forge.clone() else { return Ok(()) };
        if forge.get_pull(proposal.pull).await?.merged_as.is_some() {
            return self.drop_proposal(key).await;
        }
        let observed = self.context.store.observed_in(environment).await?;
        let snoozes = self.observer.snoozes().await?;
        let open = self.context.store.open_runs().await?;
        let is_free = |id: &InstanceId| {
            observed.get(id).is_some_and(|observed| observed.error.is_none()) && !open.iter().any(|run| run.holds(id))
        };
        let drifts = |id: &InstanceId| observed.get(id).is_some_and(|observed| !observed.revert_actions().is_empty());
        let snoozed = |id: &InstanceId| {
            observed
                .get(id)
                .zip(snoozes.get(id))
                .is_some_and(|(observed, snooze)| snooze.holds(observed, self.context.now()))
        };
        let root = key.rsplit('/').next().unwrap_or(key);
        let elsewhere =
            groups.iter().find(|group| group.drifted.iter().any(|one| proposal.instances.contains(&one.id)));
        let message = match elsewhere {
            Some(group) => {
                let other: Option<Proposal> = self.context.store.collection::<Proposal>().get(&group.key()).await?;
                let Some(other) = other else { return Ok(()) };
                comment::regrouped(environment, root, group, other.pull)
            }
            None if !proposal.instances.iter().all(|id| is_free(id) && (!drifts(id) || snoozed(id))) => return Ok(()),
            None if proposal.instances.iter().any(snoozed) => comment::snoozed(environment, root),
            None => comment::healed(environment, root),
        };
        let pull = forge.get_pull(proposal.pull).await?;
        if pull.open {
            let withdrawn = Proposal { withdrawn: true, ..proposal.clone() };
            self.notifier.comment_on(proposal.pull, "withdrawn", &message, None).await?;
            self.context.store.collection::<Proposal>().put(&key.to_owned(), self.context.now(), &withdrawn).await?;
        }
        self.close_withdrawn(key, proposal).await
    }

    /// Closes a proposal and forgets it.
    pub(super) async fn close_withdrawn(self: &Arc<Self>, key: &str, proposal: &Proposal) -> Result<(), Error> {
        let Some(forge) = self.context.forge.clone() else { return Ok(()) };
        let pull = forge.get_pull(proposal.pull).await?;
        if pull.open {
            forge.close_pull(proposal.pull).await?;
            // A commit of another author is kept.
            if pull.head == proposal.pushed && !proposal.shared {
                self.context.repository.delete_branch(&pull.branch).await?;
            }
        }
        self.drop_proposal(key).await
    }
}
