//! Creates, updates and withdraws the proposals of an environment, one for each root cause (R4.4).
//!
//! *Invariant:* while an instance is checked for drift, no consequence of its drift is proposed.
//! *Race:* a drift check ends during a request: the end of the check enqueues another request.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Remediations, proposal::ProposalState, publish::Written};
use crate::{
    controller::{
        context::Error,
        records::{Proposal, ProposalDirection},
        source::Head,
    },
    domain::{
        declaration::{Instance, schema::DriftMode},
        message,
        plan::{Applied, Observed, pending::is_pending},
        remediation::{self, Drifted, Group},
    },
    model::{Action, EnvironmentName, InstanceId},
};

/// Whether the pending declaration at head equals the observed drift, as after a merged adoption: then no revert is
/// proposed. `None` while head was not planned with this observation.
pub(crate) fn is_adopted_by_head(
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
    let drifted = observed.drift.iter().filter(|drift| !drift.is_output);
    Some(!drifted.map(|drift| drift.resource.as_str()).any(changes))
}

/// Returns the transitive upstreams of an instance.
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
    /// Updates the proposals of an environment. The queue runs one request of an environment at a time. Returns `false` where
    /// the update is postponed until a drift check ends.
    ///
    /// # Errors
    /// When the forge, the repository or the store fails; the next request continues.
    pub(crate) async fn propose(self: &Arc<Self>, environment: &EnvironmentName) -> Result<bool, Error> {
        let Some(head) = self.source.head() else { return Ok(true) };
        let suspensions = self.source.suspensions(Some(&head)).await?;
        let is_declared = head.desired.environments.contains_key(environment);
        if !is_declared || suspensions.environment(environment).is_some() || self.context.stopping() {
            return Ok(true);
        }
        let mut drifted = self.drifted(&head, environment).await?;
        // A consequence would be proposed as a cause while the check of its cause is in progress.
        let causes = drifted.iter().flat_map(|drift| drift.upstreams.iter().chain([&drift.id]));
        if self.observer.postpones_proposals(environment, &causes.cloned().collect()) {
            return Ok(false);
        }
        let mut reverted = vec![];
        for drift in std::mem::take(&mut drifted) {
            match self.drift_mode_of(&head, &drift.id, &drift.actions).await? {
                DriftMode::Report => {}
                DriftMode::Propose => drifted.push(drift),
                DriftMode::Revert => reverted.push(drift),
            }
        }
        self.start_automatic_reverts(&head, environment, reverted).await?;
        if self.context.forge.is_none() {
            return Ok(true);
        }
        self.recover_pushes(environment).await?;
        let groups = remediation::groups(environment, drifted);
        let existing: Vec<(String, Proposal)> = self.context.store.collection::<Proposal>().all().await?;
        let existing: Vec<_> =
            existing.into_iter().filter(|(key, _)| key.starts_with(&format!("{environment}/"))).collect();
        // A daemon that died had decided to close these proposals. They are closed first, also where their drift returned.
        let (withdrawn, existing): (Vec<_>, Vec<_>) =
            existing.into_iter().partition(|(_, proposal)| proposal.withdrawn);
        for (key, proposal) in withdrawn {
            self.close_withdrawn(&key, &proposal).await?;
        }
        for group in &groups {
            self.propose_group(&head, group, &existing).await?;
        }
        let roots: BTreeSet<String> = groups.iter().map(Group::key).collect();
        for (key, proposal) in existing.into_iter().filter(|(key, _)| !roots.contains(key)) {
            self.withdraw(environment, &key, &proposal, &groups).await?;
        }
        Ok(true)
    }

    /// Returns the instances whose drift is proposed: observed, revertible, and in no open run or merged remediation.
    ///
    /// # Errors
    /// When the store or the repository can't be read.
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
        let awaited = self.awaited_by_remediations(head, environment, &observed).await?;
        let (mut drifted, mut undecided) = (vec![], BTreeSet::new());
        for (id, observed) in observed.iter().filter(|(id, _)| id.environment == *environment) {
            let Some(instance) = head.instance(id) else { continue };
            // The changes of a failed run are reported by that run, and are not proposed as drift (R5.1).
            if suspensions.instance(id).is_some()
                || stalled.contains_key(id)
                || awaited.contains(id)
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
            match is_adopted_by_head(head, instance, &applied, observed) {
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
        // The group of a consequence depends on whether its cause is proposed.
        drifted.retain(|drift| drift.upstreams.is_disjoint(&undecided));
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
        let mut existing = all.iter().find(|(key, _)| *key == group.key()).map(|(_, proposal)| proposal);
        let mut cuts = existing.map(|existing| existing.cuts.clone()).unwrap_or_default();
        let mut onto = None;
        let adopts = self.adopts(&group.key()).await?;
        match existing {
            None => cuts.extend(self.cuts_before(group, all).await?),
            Some(before) => match self.proposal_state(head, group, before, adopts).await? {
                ProposalState::Unchanged => return Ok(()),
                ProposalState::Merged => existing = None,
                ProposalState::Own => {}
                ProposalState::Shared { cuts: removed, onto: branch_head } => {
                    cuts.extend(removed);
                    onto = Some(branch_head);
                }
            },
        }
        for action in group.drifted.iter().flat_map(|drift| &drift.actions) {
            self.context.store.collection::<Action>().put(&action.digest, self.context.now(), action).await?;
        }
        // A removed action stays removed only while it is observed.
        cuts.retain(|digest| group.has(digest));
        let remaining = group.without(&cuts);
        if remaining.drifted.is_empty() {
            return Ok(());
        }
        let mut edits = None;
        if adopts {
            match self.adopt(head, group).await? {
                Ok(found) => edits = Some(found),
                Err(reason) => {
                    self.context.store.collection::<ProposalDirection>().remove(&group.key()).await?;
                    if let Some(existing) = existing {
                        let message = message::adoption::not_adopted(&reason);
                        self.notifier.comment_on(existing.pull, "not-adopted", &message, None).await?;
                    }
                }
            }
        }
        let remaining = if edits.is_some() { group.clone() } else { remaining };
        self.write_proposal(head, group, &remaining, existing, Written { cuts, onto, edits }).await
    }
}
