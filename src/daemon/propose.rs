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

use super::{
    Daemon, Error, Head, Wake, pass,
    remediation::remediation_path,
    snooze::{SNOOZE, Snooze},
};
use crate::{
    desired::schema::DriftMode,
    model::{Digest, EnvironmentName, InstanceId, PullNumber, Revision},
    port::Pull,
    remedy::{self, Drifted, Group},
    render::comment,
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
    pub(super) actions: BTreeMap<InstanceId, Digest>,
}

impl Daemon {
    /// Brings the proposals of an environment in line with its drift.
    pub(super) async fn propose(self: &Arc<Self>, environment: &EnvironmentName) -> Result<(), Error> {
        let _turn = self.proposing.lock().await;
        let (Some(head), Some(_)) = (self.head(), &self.hands.forge) else { return Ok(()) };
        let Some(declared) = head.desired.environments.get(environment) else { return Ok(()) };
        if declared.suspend || self.stopping() || self.token(environment).await?.is_none() {
            return Ok(());
        }
        let groups = remedy::groups(environment, self.drifted(&head, environment).await?);
        for group in &groups {
            self.propose_group(&head, group).await?;
        }
        let roots: BTreeSet<String> = groups.iter().map(|group| format!("{environment}/{}", group.root)).collect();
        let known: Vec<(String, Proposal)> = self.store().list("proposal").await?;
        for (key, proposal) in
            known.into_iter().filter(|(key, _)| key.starts_with(&format!("{environment}/")) && !roots.contains(key))
        {
            self.withdraw(environment, &key, &proposal).await?;
        }
        Ok(())
    }

    /// The instances whose drift is to be proposed: observed, revertible, not held by a run or a merged remediation.
    async fn drifted(self: &Arc<Self>, head: &Head, environment: &EnvironmentName) -> Result<Vec<Drifted>, Error> {
        let observed = self.store().all_observed().await?;
        let open = self.store().open_runs().await?;
        let stalled = self.stalled().await?;
        let snoozes = self.snoozes().await?;
        let mut held: BTreeSet<InstanceId> = BTreeSet::new();
        for (key, merged) in self.held(environment).await? {
            let name = key.rsplit('/').next().and_then(|name| name.parse().ok());
            if let Some((remediation, _)) = name.and_then(|name| head.desired.remediations.get(&name))
                && (merged.waits.is_some() || merged.run.is_some())
            {
                held.extend(remediation.actions.iter().map(|action| action.instance.clone()));
            }
        }
        let mut drifted = vec![];
        for (id, observed) in observed.iter().filter(|(id, _)| id.environment == *environment) {
            let Some(instance) = head.instance(id) else { continue };
            // What a failed run left behind is that run's business, not drift to be proposed (R5.1).
            if stalled.contains_key(id)
                || held.contains(id)
                || open.iter().any(|run| run.holds(id))
                || observed.error.is_some()
                || snoozes.get(id).is_some_and(|snooze| snooze.holds(observed, self.now()))
                || self.mode(head, id) != DriftMode::Propose
            {
                continue;
            }
            if let Some(action) = pass::revert(observed) {
                drifted.push(Drifted { id: id.clone(), action, upstreams: upstreams(head, &instance.id) });
            }
        }
        Ok(drifted)
    }

    pub(super) fn mode(&self, head: &Head, id: &InstanceId) -> DriftMode {
        let own = head.instance(id).and_then(|instance| instance.spec.as_ref()).and_then(|spec| spec.drift.mode);
        let default =
            head.desired.state_repo.as_ref().and_then(|repo| repo.defaults.drift.as_ref()).and_then(|drift| drift.mode);
        own.or(default).unwrap_or_default()
    }

    /// Whether nothing is to be written about a group: it was merged, stands as it is, or somebody works on its branch.
    async fn is_settled(self: &Arc<Self>, group: &Group, key: &str, known: &Proposal) -> Result<bool, Error> {
        let Some(forge) = self.hands.forge.clone() else { return Ok(true) };
        let pull = forge.get_pull(known.pull).await?;
        if pull.merged_as.is_some() {
            // Merged: the remediation decides now, and a later drift is another proposal.
            self.store().remove("proposal", key).await?;
            self.queue.wake(Wake::Git, "a remediation was merged");
            return Ok(true);
        }
        if known.digest == group.digest {
            if !pull.open {
                self.proposal_closed(&pull).await?;
            }
            return Ok(true);
        }
        if pull.open && pull.head != known.pushed {
            tracing::info!(key, "the proposal's branch has somebody's commits and is left alone");
            return Ok(true);
        }
        Ok(false)
    }

    async fn propose_group(self: &Arc<Self>, head: &Arc<Head>, group: &Group) -> Result<(), Error> {
        let Some(forge) = self.hands.forge.clone() else { return Ok(()) };
        let key = format!("{}/{}", group.environment, group.root);
        let known: Option<Proposal> = self.store().get("proposal", &key).await?;
        if let Some(known) = &known
            && self.is_settled(group, &key, known).await?
        {
            return Ok(());
        }
        for one in &group.drifted {
            self.store().put("action", &one.action.digest.to_string(), self.now(), &one.action).await?;
        }
        let now = self.now();
        let observed = self.store().all_observed().await?;
        let observed_at =
            group.drifted.iter().filter_map(|one| observed.get(&one.id)).map(|o| o.at).max().unwrap_or(now);
        let name = self.fresh_name(head, group, known.as_ref()).await?;
        let remediation = group.remediation("drift", observed_at, now);
        let text = remedy::write(&name, &remediation).map_err(Error::Refused)?;
        let path = remediation_path(&self.settings.root, &group.environment, &name);
        if self.hands.redactor.redact(&text) != text {
            // Values are masked where they are read; what is left is a secret in a name, and a masked name means another thing.
            return Err(Error::Refused(format!(
                "the drift in `{key}` can't be proposed: an address in it contains a secret"
            )));
        }
        let mut files = vec![(path.clone(), Some(text))];
        files.extend(
            self.spent_files(head, &group.environment)
                .await?
                .into_iter()
                .filter(|spent| *spent != path)
                .map(|spent| (spent, None)),
        );
        let title = comment::proposal_title(group);
        self.use_git_token().await?;
        let branch = group.branch();
        let there = self.hands.repository.fetch(&format!("refs/heads/{branch}")).await?;
        if there.is_some() && there != known.as_ref().map(|known| known.pushed.clone()) && known.is_some() {
            return Ok(());
        }
        let pushed = self.hands.repository.push(&branch, &head.revision, there.as_ref(), files, &title).await?;
        let body = self.hands.redactor.redact(&comment::proposal(
            group,
            &path,
            &format!("at {}", observed_at.format("%Y-%m-%d %H:%M UTC")),
        ));
        let pull = forge.ensure_pull(&branch, &self.settings.branch, &title, &body).await?;
        let instances = group.drifted.iter().map(|one| one.id.clone()).collect();
        let actions = group.drifted.iter().map(|one| (one.id.clone(), one.action.digest)).collect();
        let proposal = Proposal { pull, digest: group.digest, name, pushed, instances, actions };
        self.keep_proposed(&proposal.name, &proposal.actions).await?;
        self.store().put("proposal", &key, now, &proposal).await?;
        self.store().audit(now, "evenkeel", "propose", &format!("pull/{}", pull.0), &title).await?;
        tracing::info!(%key, pull = pull.0, "drift proposed");
        self.queue.wake(Wake::Pull(pull), "proposed");
        Ok(())
    }

    /// A name that no remediation on the branch or in the store has, so that the same drift twice on one day is two.
    async fn fresh_name(&self, head: &Head, group: &Group, known: Option<&Proposal>) -> Result<String, Error> {
        let base = group.name(self.now());
        for number in 1.. {
            let name = if number == 1 { base.clone() } else { format!("{base}-{number}") };
            let merged: Option<super::remediation::Merged> =
                self.store().get("remediation", &format!("{}/{name}", group.environment)).await?;
            let on_branch = name.parse().is_ok_and(|name| head.desired.remediations.contains_key(&name));
            if (merged.is_none() && !on_branch) || known.is_some_and(|known| known.name == name) {
                return Ok(name);
            }
        }
        Ok(base)
    }

    /// The files of remediations of an environment that are spent.
    async fn spent_files(&self, head: &Head, environment: &EnvironmentName) -> Result<Vec<String>, Error> {
        let mut files = vec![];
        for (name, (_, file)) in head.desired.remediations.iter().filter(|(_, (r, _))| r.environment == *environment) {
            let merged: Option<super::remediation::Merged> =
                self.store().get("remediation", &format!("{environment}/{name}")).await?;
            if merged.is_some_and(|merged| merged.spent) {
                files.push(format!("{}/{file}", self.settings.root));
            }
        }
        Ok(files)
    }

    /// Closes a proposal whose drift is gone. What is not known is not gone.
    async fn withdraw(
        self: &Arc<Self>,
        environment: &EnvironmentName,
        key: &str,
        proposal: &Proposal,
    ) -> Result<(), Error> {
        let Some(forge) = self.hands.forge.clone() else { return Ok(()) };
        let observed = self.store().all_observed().await?;
        let open = self.store().open_runs().await?;
        let settled = |id: &InstanceId| {
            observed.get(id).is_some_and(|o| o.error.is_none() && pass::revert(o).is_none())
                && !open.iter().any(|run| run.holds(id))
        };
        if !proposal.instances.iter().all(settled) {
            return Ok(());
        }
        let pull = forge.get_pull(proposal.pull).await?;
        if pull.open {
            let root = key.rsplit('/').next().unwrap_or(key);
            self.say_on(proposal.pull, "healed", &comment::healed(environment, root), None).await?;
            forge.close_pull(proposal.pull).await?;
            self.hands.repository.delete_branch(&pull.branch).await?;
        }
        self.store().remove("proposal", key).await?;
        Ok(())
    }

    /// Notes that somebody closed a proposal unmerged: a no is remembered (R4.5).
    pub(super) async fn proposal_closed(self: &Arc<Self>, pull: &Pull) -> Result<(), Error> {
        if pull.merged_as.is_some() || !pull.branch.starts_with(super::pulls::OWN_BRANCHES) {
            return Ok(());
        }
        let known: Vec<(String, Proposal)> = self.store().list("proposal").await?;
        for (key, proposal) in known.into_iter().filter(|(_, proposal)| proposal.pull == pull.number) {
            for (id, action) in proposal.actions {
                let because = format!("closed {}", pull.number);
                let snooze = Snooze { action, until: self.now() + SNOOZE, by: "somebody".into(), because };
                self.snooze(&id, &snooze).await?;
            }
            self.store().remove("proposal", &key).await?;
        }
        Ok(())
    }
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
