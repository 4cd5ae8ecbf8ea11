//! Proposals that are over: their drift is gone, snoozed, or part of another proposal; or somebody closed them.
//!
//! *Race:* we close a proposal and its event comes back: it says so in our store before, so that it is nobody's no.

use std::sync::Arc;

use super::{
    Daemon, Error, pass,
    propose::Proposal,
    pulls::OWN_BRANCHES,
    snooze::{SNOOZE, Snooze},
};
use crate::{
    domain::{message::comment, remediation::Group},
    model::{EnvironmentName, InstanceId},
    ports::Pull,
};

impl Daemon {
    /// Closes a proposal whose drift is gone, is snoozed, or is part of another proposal now. What is not known is not
    /// gone.
    pub(super) async fn withdraw(
        self: &Arc<Self>,
        environment: &EnvironmentName,
        key: &str,
        proposal: &Proposal,
        groups: &[Group],
    ) -> Result<(), Error> {
        let Some(forge) = self.hands.forge.clone() else { return Ok(()) };
        if forge.get_pull(proposal.pull).await?.merged_as.is_some() {
            return self.drop_proposal(key).await;
        }
        let observed = self.store().all_observed().await?;
        let snoozes = self.snoozes().await?;
        let open = self.store().open_runs().await?;
        let is_free = |id: &InstanceId| {
            observed.get(id).is_some_and(|observed| observed.error.is_none()) && !open.iter().any(|run| run.holds(id))
        };
        let drifts = |id: &InstanceId| observed.get(id).is_some_and(|observed| !pass::revert(observed).is_empty());
        let snoozed = |id: &InstanceId| {
            observed.get(id).zip(snoozes.get(id)).is_some_and(|(observed, snooze)| snooze.holds(observed, self.now()))
        };
        let root = key.rsplit('/').next().unwrap_or(key);
        let elsewhere =
            groups.iter().find(|group| group.drifted.iter().any(|one| proposal.instances.contains(&one.id)));
        let says = match elsewhere {
            Some(group) => {
                let other: Option<Proposal> = self.store().get("proposal", &group.key()).await?;
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
            self.say_on(proposal.pull, "withdrawn", &says, None).await?;
            self.store().put("proposal", key, self.now(), &withdrawn).await?;
        }
        self.close_withdrawn(key, proposal).await
    }

    /// Closes a proposal and forgets it.
    pub(super) async fn close_withdrawn(self: &Arc<Self>, key: &str, proposal: &Proposal) -> Result<(), Error> {
        let Some(forge) = self.hands.forge.clone() else { return Ok(()) };
        let pull = forge.get_pull(proposal.pull).await?;
        if pull.open {
            forge.close_pull(proposal.pull).await?;
            // What somebody else committed is theirs.
            if pull.head == proposal.pushed && !proposal.shared {
                self.hands.repository.delete_branch(&pull.branch).await?;
            }
        }
        self.drop_proposal(key).await
    }

    /// Notes that somebody closed a proposal unmerged: a no is remembered (R4.5).
    pub(super) async fn proposal_closed(self: &Arc<Self>, pull: &Pull) -> Result<(), Error> {
        if pull.merged_as.is_some() || !pull.branch.starts_with(OWN_BRANCHES) {
            return Ok(());
        }
        let known: Vec<(String, Proposal)> = self.store().list("proposal").await?;
        for (key, proposal) in known.into_iter().filter(|(_, proposal)| proposal.pull == pull.number) {
            for (id, actions) in proposal.actions.into_iter().filter(|_| !proposal.withdrawn) {
                let because = format!("closed {}", pull.number);
                let snooze = Snooze { actions, until: self.now() + SNOOZE, by: "somebody".into(), because };
                self.snooze(&id, snooze).await?;
            }
            self.drop_proposal(&key).await?;
        }
        Ok(())
    }
}
