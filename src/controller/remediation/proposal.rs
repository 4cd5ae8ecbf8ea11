//! Determines the state of a proposal from its pull request and its branch.
//!
//! *Invariant:* a branch with edits other than removed actions is left unchanged.
//! *Race:* the pull request moves while its head is read: the request is refused, and the next request reads the new head.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    controller::{
        context::Error,
        records::{OWN_BRANCHES, Proposal, ProposalDirection, SNOOZE, Snooze},
        remediation::Remediations,
        source::Head,
        work_queue::{Reason, ReconcileRequest},
    },
    domain::{
        message::Refusal,
        remediation::{Group, Unusable},
    },
    model::{ComponentName, Digest, PullNumber, Revision},
    ports::Pull,
};

/// The time in which a merge reported by the forge arrives at the fetched branch.
const MERGE_ARRIVES_WITHIN: chrono::Duration = chrono::Duration::hours(1);

/// The state of the proposal of a group.
pub(super) enum ProposalState {
    /// The proposal is current, its merge is not at head yet, or another author edited its branch. It is left unchanged.
    Unchanged,
    /// The proposal was merged and forgotten: the drift becomes another proposal.
    Merged,
    /// Its branch has no commit of another author.
    Own,
    /// The branch has commits of another author, such as a reviewer who removed actions.
    Shared { cuts: BTreeSet<Digest>, onto: Revision },
}

impl Remediations {
    /// Returns the state of the proposal of a group, with the actions that reviewers removed.
    ///
    /// # Errors
    /// When the forge, the repository or the store fails.
    pub(super) async fn proposal_state(
        self: &Arc<Self>,
        head: &Head,
        group: &Group,
        existing: &Proposal,
        adopts: bool,
    ) -> Result<ProposalState, Error> {
        let Some(forge) = self.context.forge.clone() else { return Ok(ProposalState::Unchanged) };
        let pull = forge.get_pull(existing.pull).await?;
        if let Some(merged) = &pull.merged_as {
            // The merged remediation is handled on its own, and later drift becomes another proposal. The proposal is kept
            // until head contains the merge, or can't: the branch was rewritten, or the base is another branch.
            let is_unreachable = pull.base != self.context.settings.branch
                || self.context.now() - pull.updated_at > MERGE_ARRIVES_WITHIN;
            if is_unreachable || self.context.repository.contains(&head.revision, merged).await? {
                self.remove_proposal(&group.key()).await?;
                return Ok(ProposalState::Merged);
            }
            self.context.queue.enqueue(ReconcileRequest::Source, Reason::RemediationMerged);
            return Ok(ProposalState::Unchanged);
        }
        if existing.digest == group.digest && existing.adopts == adopts {
            if !pull.open {
                self.proposal_closed(&pull).await?;
            }
            return Ok(ProposalState::Unchanged);
        }
        if !pull.open {
            return Ok(ProposalState::Own);
        }
        if pull.head == existing.pushed || self.is_interrupted_push(&group.branch(), &pull.head).await? {
            let shared = ProposalState::Shared { cuts: BTreeSet::new(), onto: pull.head };
            return Ok(if existing.shared { shared } else { ProposalState::Own });
        }
        if existing.adopts {
            tracing::info!(
                kind = "proposal-branch-shared",
                pull = pull.number.0,
                "the branch of the proposal has commits of another author and is not changed"
            );
            return Ok(ProposalState::Unchanged);
        }
        match self.cuts(&pull, existing).await? {
            Ok(cuts) => Ok(ProposalState::Shared { cuts, onto: pull.head }),
            Err(reason) => {
                tracing::info!(
                    kind = "proposal-branch-shared",
                    pull = pull.number.0,
                    %reason,
                    "the branch of the proposal has commits of another author and is not changed"
                );
                Ok(ProposalState::Unchanged)
            }
        }
    }

    /// Returns the actions that other authors removed from a proposal, or the reason why its file is unusable (R4.1).
    ///
    /// # Errors
    /// When the forge, the repository or the store fails, or the pull request moved meanwhile.
    pub(crate) async fn cuts(
        self: &Arc<Self>,
        pull: &Pull,
        existing: &Proposal,
    ) -> Result<Result<BTreeSet<Digest>, Unusable>, Error> {
        self.source.use_git_token().await?;
        let fetched = self.context.repository.fetch(&format!("refs/pull/{}/head", pull.number.0)).await?;
        let Some(fetched) = fetched.filter(|fetched| *fetched == pull.head) else {
            return Err(Error::Refused(Refusal::PullRequestMoved(pull.number)));
        };
        let (desired, _) = self.source.load(&fetched).await?;
        let found = existing.name.parse().ok().and_then(|name: ComponentName| desired.remediations.get(&name).cloned());
        let Some((remediation, _)) = found else {
            return Ok(Err(Unusable::Unreadable(existing.name.clone())));
        };
        if let Some(reason) = self.runs.edited(&existing.name, &remediation).await? {
            return Ok(Err(reason));
        }
        let remains = |digest: &&Digest| remediation.actions.iter().any(|action| action.digest == **digest);
        Ok(Ok(existing.actions.values().flatten().filter(|digest| !remains(digest)).copied().collect()))
    }

    /// Returns the actions that were removed from the proposals that this group replaces.
    pub(super) async fn cuts_before(
        self: &Arc<Self>,
        group: &Group,
        existing: &[(String, Proposal)],
    ) -> Result<BTreeSet<Digest>, Error> {
        let Some(forge) = self.context.forge.clone() else { return Ok(BTreeSet::new()) };
        let mut all = BTreeSet::new();
        for (key, before) in existing {
            if *key != group.key() && group.drifted.iter().any(|drift| before.instances.contains(&drift.id)) {
                all.extend(before.cuts.clone());
                let pull = forge.get_pull(before.pull).await?;
                if pull.open && pull.head != before.pushed {
                    all.extend(self.cuts(&pull, before).await?.unwrap_or_default());
                }
            }
        }
        Ok(all)
    }

    /// Whether the proposal of a cause adopts the drift.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(super) async fn adopts(&self, key: &str) -> Result<bool, Error> {
        Ok(self.context.store.collection::<ProposalDirection>().get(&key.to_owned()).await?.is_some())
    }

    /// Removes a proposal and its direction.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) async fn remove_proposal(&self, key: &str) -> Result<(), Error> {
        self.context.store.collection::<ProposalDirection>().remove(&key.to_owned()).await?;
        Ok(self.context.store.collection::<Proposal>().remove(&key.to_owned()).await?)
    }

    /// Returns the proposal with a pull request.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(crate) async fn proposal_of(&self, number: PullNumber) -> Result<Option<Proposal>, Error> {
        let existing: Vec<(String, Proposal)> = self.context.store.collection::<Proposal>().all().await?;
        Ok(existing.into_iter().map(|(_, proposal)| proposal).find(|proposal| proposal.pull == number))
    }

    /// Snoozes the drift of a proposal that a reviewer closed unmerged, and removes the proposal (R4.5).
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn proposal_closed(self: &Arc<Self>, pull: &Pull) -> Result<(), Error> {
        if pull.merged_as.is_some() || !pull.branch.starts_with(OWN_BRANCHES) {
            return Ok(());
        }
        let existing: Vec<(String, Proposal)> = self.context.store.collection::<Proposal>().all().await?;
        for (key, proposal) in existing.into_iter().filter(|(_, proposal)| proposal.pull == pull.number) {
            for (id, actions) in proposal.actions.into_iter().filter(|_| !proposal.withdrawn) {
                let because = format!("closed {}", pull.number);
                let snooze =
                    Snooze { actions, until: self.context.now() + SNOOZE, by: "an unknown user".into(), because };
                self.observer.snooze(&id, snooze).await?;
            }
            self.remove_proposal(&key).await?;
        }
        Ok(())
    }
}
