//! Drift to pull requests: one for each cause, updated in place, closed when it heals (R4.4).
//!
//! Never overwrites a branch that somebody else committed to, and never proposes again what somebody closed, until the
//! observation changes (R4.5). *Race:* somebody merges while we update: the push is refused, since the branch moved or
//! is gone, and the next look sees the merge.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{Daemon, Error, Head, Wake, advance::is_pending, pass, publish::Written};
use crate::{
    domain::{
        declaration::{Instance, schema::DriftMode},
        plan::{Applied, Observed},
        remediation::{self, Drifted, Group},
    },
    model::{Action, ComponentName, Digest, EnvironmentName, InstanceId, PullNumber, Revision},
    ports::Pull,
};

/// A pull request that proposes to revert drift.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Proposal {
    /// The pull request.
    pub(super) pull: PullNumber,
    /// The drift that it is about.
    pub(super) digest: Digest,
    /// The name of the remediation.
    pub(super) name: String,
    /// The head that we pushed.
    pub(super) pushed: Revision,
    /// The instances that it is about.
    pub(super) instances: BTreeSet<InstanceId>,
    /// The actions that it proposes.
    #[serde(default)]
    pub(super) actions: BTreeMap<InstanceId, BTreeSet<Digest>>,
    /// The actions that somebody cut from it, for as long as the observation is the same.
    #[serde(default)]
    pub(super) cuts: BTreeSet<Digest>,
    /// Whether somebody's commits are on its branch: then we write on top of it.
    #[serde(default)]
    pub(super) shared: bool,
    /// Whether we are about to close it: that is nobody's no.
    #[serde(default)]
    pub(super) withdrawn: bool,
    /// Whether it edits the declarations (R4.3).
    #[serde(default)]
    pub(super) adopts: bool,
}

/// How long a merge may take from the forge to the branch that we fetch.
const MERGE_ARRIVES: chrono::Duration = chrono::Duration::hours(1);

/// Where the proposal of a group stands.
enum Stand {
    /// It says what there is to say, is on its way into head, or is somebody's work that is left alone.
    Settled,
    /// It is merged and over: what is there now is another proposal.
    Over,
    /// Nobody but us wrote on its branch.
    Ours,
    /// Somebody cut actions from it.
    Cut { cuts: BTreeSet<Digest>, onto: Revision },
}

impl Daemon {
    /// Brings the proposals of an environment in line with its drift.
    pub(super) async fn propose(self: &Arc<Self>, environment: &EnvironmentName) -> Result<(), Error> {
        self.propose_now(environment).await.map(drop)
    }

    /// The same; answers whether it was done, and not put off until a look ends.
    pub(super) async fn propose_now(self: &Arc<Self>, environment: &EnvironmentName) -> Result<bool, Error> {
        let _turn = self.proposing.lock().await;
        let Some(head) = self.head() else { return Ok(true) };
        let suspensions = self.suspensions(Some(&head)).await?;
        let is_declared = head.desired.environments.contains_key(environment);
        if !is_declared || suspensions.environment(environment).is_some() || self.stopping() {
            return Ok(true);
        }
        let mut drifted = self.drifted(&head, environment).await?;
        // While a cause may just be found, its consequences would be taken for causes.
        let causes = drifted.iter().flat_map(|one| one.upstreams.iter().chain([&one.id]));
        if self.looking.holds_back(environment, &causes.cloned().collect(), &self.queue) {
            return Ok(false);
        }
        let mut repaired = vec![];
        for one in std::mem::take(&mut drifted) {
            match self.remedy_for(&head, &one.id, &one.actions).await? {
                DriftMode::Report => {}
                DriftMode::Propose => drifted.push(one),
                DriftMode::Revert => repaired.push(one),
            }
        }
        self.repair(&head, environment, repaired).await?;
        if self.hands.forge.is_none() {
            return Ok(true);
        }
        self.remember_cut_off().await?;
        let groups = remediation::groups(environment, drifted);
        let known: Vec<(String, Proposal)> = self.store().list("proposal").await?;
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
        let observed = self.store().all_observed().await?;
        let applied = self.store().all_applied().await?;
        let open = self.store().open_runs().await?;
        let stalled = self.stalled().await?;
        let snoozes = self.snoozes().await?;
        let suspensions = self.suspensions(Some(head)).await?;
        let held = self.held_by_remediations(head, environment, &observed).await?;
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
            let snoozed = |action: &&Action| snoozes.get(id).is_some_and(|snooze| snooze.covers(action, self.now()));
            let actions: Vec<Action> =
                pass::revert(observed).iter().filter(|action| !snoozed(action)).cloned().collect();
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

    pub(super) fn mode(&self, head: &Head, id: &InstanceId) -> DriftMode {
        let own = head.instance(id).and_then(|instance| instance.spec.as_ref()).and_then(|spec| spec.drift.mode);
        let default =
            head.desired.state_repo.as_ref().and_then(|repo| repo.defaults.drift.as_ref()).and_then(|drift| drift.mode);
        own.or(default).unwrap_or_default()
    }

    /// Where the proposal of a group stands: whether there is anything to write, and what somebody cut from it.
    async fn stand(
        self: &Arc<Self>,
        head: &Head,
        group: &Group,
        known: &Proposal,
        adopts: bool,
    ) -> Result<Stand, Error> {
        let Some(forge) = self.hands.forge.clone() else { return Ok(Stand::Settled) };
        let pull = forge.get_pull(known.pull).await?;
        if let Some(merged) = &pull.merged_as {
            // Merged: the remediation decides now, and a later drift is another proposal. This one stands until head has
            // it, or never will: its branch was rewritten, or it was merged somewhere else.
            let never = pull.base != self.settings.branch || self.now() - pull.updated_at > MERGE_ARRIVES;
            if never || self.hands.repository.contains(&head.revision, merged).await? {
                self.drop_proposal(&group.key()).await?;
                return Ok(Stand::Over);
            }
            self.queue.wake(Wake::Git, "a remediation was merged");
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
        if pull.head == known.pushed || self.is_cut_off(&group.branch(), &pull.head).await? {
            let on_top = Stand::Cut { cuts: BTreeSet::new(), onto: pull.head };
            return Ok(if known.shared { on_top } else { Stand::Ours });
        }
        if known.adopts {
            tracing::info!(pull = pull.number.0, "the proposal's branch has somebody's commits and is left alone");
            return Ok(Stand::Settled);
        }
        match self.cuts(&pull, known).await? {
            Ok(cuts) => Ok(Stand::Cut { cuts, onto: pull.head }),
            Err(why) => {
                tracing::info!(
                    pull = pull.number.0,
                    why,
                    "the proposal's branch has somebody's commits and is left alone"
                );
                Ok(Stand::Settled)
            }
        }
    }

    /// What somebody's commits cut from a proposal; in a sentence, what else they did (R4.1).
    pub(super) async fn cuts(
        self: &Arc<Self>,
        pull: &Pull,
        known: &Proposal,
    ) -> Result<Result<BTreeSet<Digest>, String>, Error> {
        self.use_git_token().await?;
        let fetched = self.hands.repository.fetch(&format!("refs/pull/{}/head", pull.number.0)).await?;
        let Some(fetched) = fetched.filter(|fetched| *fetched == pull.head) else {
            return Err(Error::Refused(format!("{} moved while it was looked at", pull.number)));
        };
        let (desired, _) = self.load(&fetched).await?;
        let found = known.name.parse().ok().and_then(|name: ComponentName| desired.remediations.get(&name).cloned());
        let Some((remediation, _)) = found else {
            return Ok(Err(format!("the remediation `{}` can't be read any more", known.name)));
        };
        if let Some(says) = self.edited(&known.name, &remediation).await? {
            return Ok(Err(says));
        }
        let left = |digest: &&Digest| remediation.actions.iter().any(|action| action.digest == **digest);
        Ok(Ok(known.actions.values().flatten().filter(|digest| !left(digest)).copied().collect()))
    }

    /// What was cut from proposals that this group takes the place of.
    async fn cuts_before(
        self: &Arc<Self>,
        group: &Group,
        known: &[(String, Proposal)],
    ) -> Result<BTreeSet<Digest>, Error> {
        let Some(forge) = self.hands.forge.clone() else { return Ok(BTreeSet::new()) };
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
                Stand::Cut { cuts: more, onto: theirs } => {
                    cuts.extend(more);
                    onto = Some(theirs);
                }
            },
        }
        for action in group.drifted.iter().flat_map(|one| &one.actions) {
            self.store().put("action", &action.digest.to_string(), self.now(), action).await?;
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
                    self.store().remove("direction", &group.key()).await?;
                    if let Some(known) = known {
                        let says = format!("Not adopted any more: {why}. Merging this reverts the drift.");
                        self.say_on(known.pull, "not-adopted", &says, None).await?;
                    }
                }
            }
        }
        let left = if edits.is_some() { group.clone() } else { left };
        self.write_proposal(head, group, &left, known, Written { cuts, onto, edits }).await
    }
}

/// Whether what is pending at head declares what was observed, as after a merged adoption: then nothing is to be undone.
/// Nothing while head was not planned with the world as it was observed.
pub(super) fn takes_over(
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
