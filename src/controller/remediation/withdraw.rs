//! Withdraws proposals whose drift ended, is snoozed, or is part of another proposal.
//!
//! *Invariant:* a proposal is not withdrawn while the drift of one of its instances is unknown.
//! *Race:* the forge reports the closed pull request of a withdrawn proposal: the proposal was recorded as withdrawn before,
//! so that the close is not handled as a rejection by a reviewer.

use std::sync::Arc;

use crate::{
    controller::{context::Error, records::Proposal, remediation::Remediations},
    domain::{message::comment, remediation::Group},
    model::{EnvironmentName, InstanceId},
};

impl Remediations {
    /// Closes a proposal whose drift ended, is snoozed, or is part of another proposal. Unknown drift has not ended.
    ///
    /// # Errors
    /// When the forge, the repository or the store fails.
    pub(super) async fn withdraw(
        self: &Arc<Self>,
        environment: &EnvironmentName,
        key: &str,
        proposal: &Proposal,
        groups: &[Group],
    ) -> Result<(), Error> {
        let Some(forge) = self.context.forge.clone() else { return Ok(()) };
        if forge.get_pull(proposal.pull).await?.merged_as.is_some() {
            return self.remove_proposal(key).await;
        }
        let observed = self.context.store.observed_in(environment).await?;
        let snoozes = self.observer.snoozes().await?;
        let open = self.context.store.open_runs().await?;
        let is_known = |id: &InstanceId| {
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
            groups.iter().find(|group| group.drifted.iter().any(|drift| proposal.instances.contains(&drift.id)));
        let message = match elsewhere {
            Some(group) => {
                let other: Option<Proposal> = self.context.store.collection::<Proposal>().get(&group.key()).await?;
                let Some(other) = other else { return Ok(()) };
                comment::regrouped(environment, root, group, other.pull)
            }
            None if !proposal.instances.iter().all(|id| is_known(id) && (!drifts(id) || snoozed(id))) => return Ok(()),
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

    /// Closes the pull request of a proposal and removes the proposal.
    ///
    /// # Errors
    /// When the forge, the repository or the store fails.
    pub(super) async fn close_withdrawn(self: &Arc<Self>, key: &str, proposal: &Proposal) -> Result<(), Error> {
        let Some(forge) = self.context.forge.clone() else { return Ok(()) };
        let pull = forge.get_pull(proposal.pull).await?;
        if pull.open {
            forge.close_pull(proposal.pull).await?;
            // A branch with a commit of another author is not deleted.
            if pull.head == proposal.pushed && !proposal.shared {
                self.context.repository.delete_branch(&pull.branch).await?;
            }
        }
        self.remove_proposal(key).await
    }
}
