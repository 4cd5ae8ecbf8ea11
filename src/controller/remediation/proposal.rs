//! The state of a proposal: what its branch holds now, and what people cut from it.

use crate::domain::message::Refusal;
use crate::domain::remediation::Unusable;
use std::{collections::BTreeSet, sync::Arc};

use crate::{
    controller::{
        context::Error,
        records::{OWN_BRANCHES, Proposal, ProposalDirection, SNOOZE, Snooze},
        remediation::Remediations,
        source::Head,
        work_queue::{Reason, ReconcileRequest},
    },
    domain::remediation::Group,
    model::{ComponentName, Digest, PullNumber, Revision},
    ports::Pull,
};

/// How long a merge may take from the forge to the branch that we fetch.
const MERGE_ARRIVES: chrono::Duration = chrono::Duration::hours(1);

/// Where the proposal of a group stands.
pub(super) enum Stand {
    /// It says what there is to say, is on its way into head, or is somebody's work that is left alone.
    Settled,
    /// It is merged and over: what is there now is another proposal.
    Over,
    /// Its branch has no commit of another author.
    Ours,
    /// A reviewer removed actions from it.
    CrashPoint { cuts: BTreeSet<Digest>, onto: Revision },
}

impl Remediations {
    /// Where the proposal of a group stands: whether there is anything to write, and what somebody cut from it.
    pub(super) async fn stand(
        self: &Arc<Self>,
        head: &Head,
        group: &Group,
        known: &Proposal,
        adopts: bool,
    ) -> Result<Stand, Error> {
        let Some(forge) = self.context.forge.clone() else { return Ok(Stand::Settled) };
        let pull = forge.get_pull(known.pull).await?;
        if let Some(merged) = &pull.merged_as {
            // MergedRemediation: the remediation decides now, and a later drift is another proposal. This one stands until head has
            // it, or never will: its branch was rewritten, or it was merged somewhere else.
            let never =
                pull.base != self.context.settings.branch || self.context.now() - pull.updated_at > MERGE_ARRIVES;
            if never || self.context.repository.contains(&head.revision, merged).await? {
                self.drop_proposal(&group.key()).await?;
                return Ok(Stand::Over);
            }
            self.context.queue.enqueue(ReconcileRequest::Source, Reason::RemediationMerged);
            return Ok(Stand::Settled);
        }
        if known.digest == group.digest && known.adopts == adopts {
            if !pull.open {
                self.proposal_closed(&pull).await?;
            }
            return Ok(Stand::Settled);
        }
        if !pull.open {
            return Ok(Stand::Ours);
        }
        if pull.head == known.pushed || self.is_interrupted_push(&group.branch(), &pull.head).await? {
            let on_top = Stand::CrashPoint { cuts: BTreeSet::new(), onto: pull.head };
            return Ok(if known.shared { on_top } else { Stand::Ours });
        }
        if known.adopts {
            tracing::info!(
                kind = "proposal-branch-shared",
                pull = pull.number.0,
                "the branch of the proposal has commits of another author and is not changed"
            );
            return Ok(Stand::Settled);
        }
        match self.cuts(&pull, known).await? {
            Ok(cuts) => Ok(Stand::CrashPoint { cuts, onto: pull.head }),
            Err(reason) => {
                tracing::info!(
                    kind = "proposal-branch-shared",
                    pull = pull.number.0,
                    %reason,
                    "the branch of the proposal has commits of another author and is not changed"
                );
                Ok(Stand::Settled)
            }
        }
    }

    /// What somebody's commits cut from a proposal; in a sentence, what else they did (R4.1).
    pub(crate) async fn cuts(
        self: &Arc<Self>,
        pull: &Pull,
        known: &Proposal,
    ) -> Result<Result<BTreeSet<Digest>, Unusable>, Error> {
        self.source.use_git_token().await?;
        let fetched = self.context.repository.fetch(&format!("refs/pull/{}/head", pull.number.0)).await?;
        let Some(fetched) = fetched.filter(|fetched| *fetched == pull.head) else {
            return Err(Error::Refused(Refusal::PullRequestMoved(pull.number)));
        };
        let (desired, _) = self.source.load(&fetched).await?;
        let found = known.name.parse().ok().and_then(|name: ComponentName| desired.remediations.get(&name).cloned());
        let Some((remediation, _)) = found else {
            return Ok(Err(Unusable::Unreadable(known.name.clone())));
        };
        if let Some(reason) = self.runs.edited(&known.name, &remediation).await? {
            return Ok(Err(reason));
        }
        let left = |digest: &&Digest| remediation.actions.iter().any(|action| action.digest == **digest);
        Ok(Ok(known.actions.values().flatten().filter(|digest| !left(digest)).copied().collect()))
    }

    /// Returns the actions that were removed from the proposals that this group replaces.
    pub(super) async fn cuts_before(
        self: &Arc<Self>,
        group: &Group,
        known: &[(String, Proposal)],
    ) -> Result<BTreeSet<Digest>, Error> {
        let Some(forge) = self.context.forge.clone() else { return Ok(BTreeSet::new()) };
        let mut all = BTreeSet::new();
        for (key, before) in known {
            if *key != group.key() && group.drifted.iter().any(|one| before.instances.contains(&one.id)) {
                all.extend(before.cuts.clone());
                let pull = forge.get_pull(before.pull).await?;
                if pull.open && pull.head != before.pushed {
                    all.extend(self.cuts(&pull, before).await?.unwrap_or_default());
                }
            }
        }
        Ok(all)
    }

    /// Whether the proposals of a cause adopt.
    pub(super) async fn adopts(&self, key: &str) -> Result<bool, Error> {
        Ok(self.context.store.collection::<ProposalDirection>().get(&key.to_owned()).await?.is_some())
    }

    /// Forgets a proposal that is over, with its direction.
    pub(super) async fn drop_proposal(&self, key: &str) -> Result<(), Error> {
        self.context.store.collection::<ProposalDirection>().remove(&key.to_owned()).await?;
        Ok(self.context.store.collection::<Proposal>().remove(&key.to_owned()).await?)
    }

    /// The proposal that a pull request of ours is.
    pub(crate) async fn proposal_of(&self, number: PullNumber) -> Result<Option<Proposal>, Error> {
        let known: Vec<(String, Proposal)> = self.context.store.collection::<Proposal>().all().await?;
        Ok(known.into_iter().map(|(_, proposal)| proposal).find(|proposal| proposal.pull == number))
    }

    /// Notes that somebody closed a proposal unmerged: a no is remembered (R4.5).
    pub(crate) async fn proposal_closed(self: &Arc<Self>, pull: &Pull) -> Result<(), Error> {
        if pull.merged_as.is_some() || !pull.branch.starts_with(OWN_BRANCHES) {
            return Ok(());
        }
        let known: Vec<(String, Proposal)> = self.context.store.collection::<Proposal>().all().await?;
        for (key, proposal) in known.into_iter().filter(|(_, proposal)| proposal.pull == pull.number) {
            for (id, actions) in proposal.actions.into_iter().filter(|_| !proposal.withdrawn) {
                let because = format!("closed {}", pull.number);
                let snooze = Snooze { actions, until: self.context.now() + SNOOZE, by: "somebody".into(), because };
                self.observer.snooze(&id, snooze).await?;
            }
            self.drop_proposal(&key).await?;
        }
        Ok(())
    }
}
