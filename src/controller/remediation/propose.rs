//! Brings the proposals of an environment in line with its drift: one for each root cause (R4.4).

use crate::domain::message;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Remediations, proposal::Stand, publish::Written};
use crate::{
    controller::{
        context::Error,
        records::{Proposal, ProposalDirection},
        source::Head,
    },
    domain::{
        declaration::{Instance, schema::DriftMode},
        plan::{Applied, Observed, pending::is_pending},
        remediation::{self, Drifted, Group},
    },
    model::{Action, EnvironmentName, InstanceId},
};

/// Whether what is pending at head declares what was observed, as after a merged adoption: then nothing is to be undone.
/// Nothing while head was not planned with the world as it was observed.
pub(crate) fn takes_over(
    head: &Head,
    instance: &Instance,
    applied: &BTreeMap<InstanceId, Applied>,
    observed: &Observed,
) -> Option<bool> {
    if !is_pending(instance, applied) || observed.head_problem.is_some() {
        return Some(false);
    }
    if observed.planned_at.is_none() || observed.head.as_ref() != Some(&head.revision) {
        return None;
    }
    let changes = |name: &str| observed.pending.iter().any(|change| change.resource == name);
    let drifted = observed.drift.iter().filter(|drift| !drift.resource.starts_with("output "));
    Some(!drifted.map(|drift| drift.resource.as_str()).any(changes))
}

/// Everything upstream of an instance.
fn upstreams(head: &Head, id: &InstanceId) -> BTreeSet<InstanceId> {
    let mut all = BTreeSet::new();
    let mut next = vec![id.clone()];
    while let Some(id) = next.pop() {
        for upstream in head.instance(&id).map(|instance| instance.upstreams.clone()).unwrap_or_default() {
            if all.insert(upstream.clone()) {
                next.push(upstream);
            }
        }
    }
    all
}

impl Remediations {
    /// Brings the proposals of an environment in line with its drift. The queue runs this once at a time for each
    /// environment. Returns whether it was done; `false` where it is postponed until a drift check ends.
    ///
    /// # Errors
    /// When the forge, the repository or the store does not answer; the next request goes on from there.
    pub(crate) async fn propose(self: &Arc<Self>, environment: &EnvironmentName) -> Result<bool, Error> {
        let Some(head) = self.source.head() else { return Ok(true) };
        let suspensions = self.source.suspensions(Some(&head)).await?;
        let is_declared = head.desired.environments.contains_key(environment);
        if !is_declared || suspensions.environment(environment).is_some() || self.context.stopping() {
            return Ok(true);
        }
        let mut drifted = self.drifted(&head, environment).await?;
        // While a cause may just be found, its consequences would be taken for causes.
        let causes = drifted.iter().flat_map(|one| one.upstreams.iter().chain([&one.id]));
        if self.observer.postpones_proposals(environment, &causes.cloned().collect()) {
            return Ok(false);
        }
        let mut repaired = vec![];
        for one in std::mem::take(&mut drifted) {
            match self.drift_mode_of(&head, &one.id, &one.actions).await? {
                DriftMode::Report => {}
                DriftMode::Propose => drifted.push(one),
                DriftMode::Revert => repaired.push(one),
            }
        }
        self.repair(&head, environment, repaired).await?;
        if self.context.forge.is_none() {
            return Ok(true);
        }
        self.recover_pushes(environment).await?;
        let groups = remediation::groups(environment, drifted);
        let known: Vec<(String, Proposal)> = self.context.store.collection::<Proposal>().all().await?;
        let known: Vec<_> = known.into_iter().filter(|(key, _)| key.starts_with(&format!("{environment}/"))).collect();
        // One that we were about to close when the daemon died, or its drift came back, is closed first.
        let (gone, known): (Vec<_>, Vec<_>) = known.into_iter().partition(|(_, proposal)| proposal.withdrawn);
        for (key, proposal) in gone {
            self.close_withdrawn(&key, &proposal).await?;
        }
        for group in &groups {
            self.propose_group(&head, group, &known).await?;
        }
        let roots: BTreeSet<String> = groups.iter().map(Group::key).collect();
        for (key, proposal) in known.into_iter().filter(|(key, _)| !roots.contains(key)) {
            self.withdraw(environment, &key, &proposal, &groups).await?;
        }
        Ok(true)
    }

    /// The instances whose drift is to be proposed: observed, revertible, not held by a run or a merged remediation.
    pub(super) async fn drifted(
        self: &Arc<Self>,
        head: &Head,
        environment: &EnvironmentName,
    ) -> Result<Vec<Drifted>, Error> {
        let observed = self.context.store.observed_in(environment).await?;
        let applied = self.context.store.applied_in(environment).await?;
        let open = self.context.store.open_runs().await?;
        let stalled = self.planner.stalled().await?;
        let snoozes = self.observer.snoozes().await?;
        let suspensions = self.source.suspensions(Some(head)).await?;
        let held = self.awaited_by_remediations(head, environment, &observed).await?;
        let (mut drifted, mut undecided) = (vec![], BTreeSet::new());
        for (id, observed) in observed.iter().filter(|(id, _)| id.environment == *environment) {
            let Some(instance) = head.instance(id) else { continue };
            // What a failed run left behind is that run's business, not drift to be proposed (R5.1).
            if suspensions.instance(id).is_some()
                || stalled.contains_key(id)
                || held.contains(id)
                || open.iter().any(|run| run.holds(id))
                || observed.error.is_some()
                || self.mode(head, id) == DriftMode::Report
            {
                continue;
            }
            let snoozed =
                |action: &&Action| snoozes.get(id).is_some_and(|snooze| snooze.covers(action, self.context.now()));
            let actions: Vec<Action> =
                observed.revert_actions().iter().filter(|action| !snoozed(action)).cloned().collect();
            if actions.is_empty() {
                continue;
            }
            match takes_over(head, instance, &applied, observed) {
                Some(false) => {}
                Some(true) => continue,
                None => {
                    undecided.insert(id.clone());
                    continue;
                }
            }
            let changed_by =
                observed.drift.iter().filter_map(|drift| Some((drift.resource.clone(), drift.by()?))).collect();
            let layout = observed.layout.clone();
            drifted.push(Drifted {
                id: id.clone(),
                actions,
                upstreams: upstreams(head, &instance.id),
                changed_by,
                layout,
            });
        }
        // Whether a cause is proposed decides what its consequences are part of.
        drifted.retain(|one| one.upstreams.is_disjoint(&undecided));
        Ok(drifted)
    }

    pub(crate) fn mode(&self, head: &Head, id: &InstanceId) -> DriftMode {
        let own = head.instance(id).and_then(|instance| instance.spec.as_ref()).and_then(|spec| spec.drift.mode);
        let default =
            head.desired.state_repo.as_ref().and_then(|repo| repo.defaults.drift.as_ref()).and_then(|drift| drift.mode);
        own.or(default).unwrap_or_default()
    }

    async fn propose_group(
        self: &Arc<Self>,
        head: &Arc<Head>,
        group: &Group,
        all: &[(String, Proposal)],
    ) -> Result<(), Error> {
        let mut known = all.iter().find(|(key, _)| *key == group.key()).map(|(_, proposal)| proposal);
        let mut cuts = known.map(|known| known.cuts.clone()).unwrap_or_default();
        let mut onto = None;
        let adopts = self.adopts(&group.key()).await?;
        match known {
            None => cuts.extend(self.cuts_before(group, all).await?),
            Some(before) => match self.stand(head, group, before, adopts).await? {
                Stand::Settled => return Ok(()),
                Stand::Over => known = None,
                Stand::Ours => {}
                Stand::CrashPoint { cuts: more, onto: theirs } => {
                    cuts.extend(more);
                    onto = Some(theirs);
                }
            },
        }
        for action in group.drifted.iter().flat_map(|one| &one.actions) {
            self.context.store.collection::<Action>().put(&action.digest, self.context.now(), action).await?;
        }
        // A cut holds for the observation that it was made for.
        cuts.retain(|digest| group.has(digest));
        let left = group.without(&cuts);
        if left.drifted.is_empty() {
            return Ok(());
        }
        let mut edits = None;
        if adopts {
            match self.adopt(head, group).await? {
                Ok(found) => edits = Some(found),
                Err(why) => {
                    self.context.store.collection::<ProposalDirection>().remove(&group.key()).await?;
                    if let Some(known) = known {
                        let message = message::adoption::not_adopted(&why);
                        self.notifier.comment_on(known.pull, "not-adopted", &message, None).await?;
                    }
                }
            }
        }
        let left = if edits.is_some() { group.clone() } else { left };
        self.write_proposal(head, group, &left, known, Written { cuts, onto, edits }).await
    }
}
