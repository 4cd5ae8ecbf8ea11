//! What an environment may do by itself: merges where they are the authority, merged remediations, and the plan of what
//! waits (R1.5, R3.1).
//!
//! Decides by what is recorded; the world is looked at by the run. Decisions take turns, so that no two runs are made
//! for one merge.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{Daemon, Error, Head, Wake, orphans::users, pulls::Seen};
use crate::{
    domain::{
        authorization::{self, Principal},
        declaration::schema::{OnMerge, Team},
        journal::{Approved, Event, Rebalance, Run, RunInstance, RunState, Status as RunStatus},
        plan::order,
    },
    model::{Digest, EnvironmentName, InstanceId, PullNumber, Revision, RunId},
};

/// An instance whose last run failed (R5.1).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stalled {
    /// The run.
    pub(super) run: RunId,
    /// In a sentence.
    pub(super) says: String,
    /// The component digest that it could not apply.
    pub(super) digest: Option<Digest>,
    /// Whether somebody said so, rather than that it failed (R5.5).
    #[serde(default)]
    pub(super) cancelled: bool,
}

/// A run that is to be made.
pub(super) struct Authorised {
    pub(super) environment: EnvironmentName,
    pub(super) instances: BTreeSet<InstanceId>,
    pub(super) approved: BTreeMap<InstanceId, Approved>,
    pub(super) because: String,
    pub(super) principal: String,
    /// The word that it is obeyed by, once; nothing where it is authorised by what is recorded.
    pub(super) word: Option<String>,
    pub(super) by_merge: bool,
    pub(super) pull: Option<PullNumber>,
    pub(super) remediation: Option<String>,
    /// Whether it destroys what is no longer declared.
    pub(super) destroys: bool,
    /// Whether it reverts drift by the declaration's own word.
    pub(super) by_drift: bool,
    /// Whether it moves shards for the balance, and until when.
    pub(super) rebalance: Option<Rebalance>,
}

impl Daemon {
    /// Starts what needs nobody's word, and plans what waits for one.
    pub(super) async fn decide(self: &Arc<Self>, environment: &EnvironmentName) -> Result<(), Error> {
        let _turn = self.deciding.lock().await;
        let Some(head) = self.head() else { return Ok(()) };
        let Some(declared) = head.desired.environments.get(environment).cloned() else { return Ok(()) };
        self.take_over_names(&head).await?;
        self.take_over_policy(&head, environment).await?;
        self.know_pulls(&head).await?;
        if self.suspensions(Some(&head)).await?.environment(environment).is_some() || self.stopping() {
            return Ok(());
        }
        self.take_remediations(&head, environment).await?;
        self.end_outdated(&head, environment).await?;
        let pending = self.pending(&head, environment).await?;
        let open = self.store().open_runs().await?;
        for run in open.iter().filter(|run| run.environment == *environment) {
            self.queue.wake(Wake::Run(run.id), "something changed");
        }
        if pending.is_empty() {
            return Ok(());
        }
        match declared.on_merge {
            OnMerge::Wait if self.is_planned(&head, environment, &pending).await? => {}
            OnMerge::Wait => self.queue.wake(Wake::Plan(environment.clone()), "pending"),
            OnMerge::Apply => self.apply_merge(&head, environment, pending, &open).await?,
        }
        Ok(())
    }

    async fn apply_merge(
        self: &Arc<Self>,
        head: &Arc<Head>,
        environment: &EnvironmentName,
        pending: BTreeSet<InstanceId>,
        open: &[Run],
    ) -> Result<(), Error> {
        let stalled: BTreeMap<String, Stalled> = self.store().list("stalled").await?.into_iter().collect();
        let fresh: BTreeSet<InstanceId> = pending
            .into_iter()
            .filter(|id| {
                let digest = head.instance(id).and_then(|instance| instance.digest);
                let held = open.iter().any(|run| run.holds(id) && !run.reverts() && run.instances[id].digest == digest);
                // After a failure only another content is a newer merge; the same one waits for `/apply`.
                let failed = stalled.get(&id.to_string()).is_some_and(|stalled| stalled.digest == digest);
                !held && !failed
            })
            .collect();
        let suspensions = self.suspensions(Some(head)).await?;
        let mut fresh = without_stalled_upstreams(head, fresh, &stalled);
        fresh.retain(|id| suspensions.instance(id).is_none());
        if self.waits_for_word(head, environment) {
            fresh.retain(|id| head.instance(id).is_some());
        }
        if fresh.is_empty() {
            return Ok(());
        }
        let (mut approved, pull) = self.approved_by_merge(head, environment, &fresh).await?;
        if let Some(number) = pull {
            let free = |id: &InstanceId| {
                !open.iter().any(|run| run.holds(id))
                    && !stalled.contains_key(&id.to_string())
                    && suspensions.instance(id).is_none()
            };
            let shown = self.shown_downstream(head, environment, number, &fresh).await?;
            for (id, what) in shown.into_iter().filter(|(id, _)| free(id)) {
                fresh.insert(id.clone());
                approved.insert(id, what);
            }
        }
        let because = match pull {
            Some(pull) => format!("the merge of {pull} (`onMerge: apply`)"),
            None => format!("the merge of `{}` (`onMerge: apply`)", head.revision.short()),
        };
        let authorised = Authorised {
            environment: environment.clone(),
            instances: fresh,
            approved,
            because,
            principal: "merge".into(),
            word: None,
            by_merge: true,
            pull,
            remediation: None,
            destroys: false,
            by_drift: false,
            rebalance: None,
        };
        self.create_runs(head, authorised).await.map(drop)
    }

    /// What was shown of each instance on the merged pull requests since it was applied last, the newest first.
    async fn approved_by_merge(
        self: &Arc<Self>,
        head: &Head,
        environment: &EnvironmentName,
        instances: &BTreeSet<InstanceId>,
    ) -> Result<(BTreeMap<InstanceId, Approved>, Option<PullNumber>), Error> {
        let mut approved: BTreeMap<InstanceId, Approved> =
            instances.iter().map(|id| (id.clone(), Approved::Declaration)).collect();
        let merged = self.merged_pulls(head).await?;
        let applied = self.store().all_applied().await?;
        let mut carrier = None;
        for id in instances {
            for (number, commit) in &merged {
                if let Some(applied) = applied.get(id)
                    && self.hands.repository.contains(&applied.revision, commit).await?
                {
                    break;
                }
                let Some((plan, _)) = self.store().last_plan(&pull_subject(*number, environment), None).await? else {
                    continue;
                };
                let Some(shown) = plan.instance(id) else { continue };
                // A later commit without a pull request changed it again: that commit is the declaration (R6.7).
                if !self.is_as_merged(head, id, commit).await? {
                    break;
                }
                let what = if shown.digest.is_some() {
                    Approved::Actions { actions: shown.actions.clone() }
                } else {
                    Approved::Unknown
                };
                approved.insert(id.clone(), what);
                carrier = carrier.max(Some(*number));
                break;
            }
        }
        Ok((approved, carrier))
    }

    /// What the plan of a pull request showed downstream of what it changes, which follows in the same run.
    async fn shown_downstream(
        self: &Arc<Self>,
        head: &Head,
        environment: &EnvironmentName,
        number: PullNumber,
        changed: &BTreeSet<InstanceId>,
    ) -> Result<BTreeMap<InstanceId, Approved>, Error> {
        let mut shown = BTreeMap::new();
        let Some((plan, _)) = self.store().last_plan(&pull_subject(number, environment), None).await? else {
            return Ok(shown);
        };
        // In the order of the plan each comes after what it depends on.
        for instance in plan.instances.iter().filter(|instance| !changed.contains(&instance.id)) {
            let Some(declared) = head.instance(&instance.id) else { continue };
            let follows = |up: &InstanceId| changed.contains(up) || shown.contains_key(up);
            if declared.upstreams.iter().any(follows) && instance.problem.is_none() {
                let what = match instance.digest {
                    Some(_) => Approved::Actions { actions: instance.actions.clone() },
                    None => Approved::Unknown,
                };
                shown.insert(instance.id.clone(), what);
            }
        }
        Ok(shown)
    }

    /// The merged pull requests along the branch, newest first, with the commit that each was merged as.
    pub(super) async fn merged_pulls(&self, head: &Head) -> Result<Vec<(PullNumber, Revision)>, Error> {
        let seen: Vec<(String, Seen)> = self.store().list("pull").await?;
        let commits = self.hands.repository.first_parents(None, &head.revision).await?;
        let at = |revision: &Revision| commits.iter().position(|commit| commit.revision == *revision);
        let mut merged: Vec<(usize, PullNumber, Revision)> = seen
            .iter()
            .filter_map(|(_, seen)| {
                let revision = seen.pull.merged_as.clone()?;
                Some((at(&revision)?, seen.pull.number, revision))
            })
            .collect();
        merged.sort();
        Ok(merged.into_iter().map(|(_, number, revision)| (number, revision)).collect())
    }

    /// Makes a run of what is declared, and another of what is to be destroyed.
    pub(super) async fn create_runs(
        self: &Arc<Self>,
        head: &Arc<Head>,
        authorised: Authorised,
    ) -> Result<RunId, Error> {
        let (declared, gone): (BTreeSet<InstanceId>, BTreeSet<InstanceId>) =
            authorised.instances.iter().cloned().partition(|id| head.instance(id).is_some());
        let of = |ids: &BTreeSet<InstanceId>, destroys: bool| Authorised {
            environment: authorised.environment.clone(),
            instances: ids.clone(),
            approved: authorised
                .approved
                .iter()
                .filter(|(id, _)| ids.contains(*id))
                .map(|(id, what)| (id.clone(), what.clone()))
                .collect(),
            because: authorised.because.clone(),
            principal: authorised.principal.clone(),
            word: authorised.word.clone(),
            remediation: authorised.remediation.clone(),
            destroys,
            ..authorised
        };
        let first = if declared.is_empty() { None } else { Some(self.create_run(head, of(&declared, false)).await?) };
        if gone.is_empty() {
            return first.ok_or_else(|| Error::Refused("there is nothing to do".into()));
        }
        let second = self.create_run(head, of(&gone, true)).await?;
        Ok(first.unwrap_or(second))
    }

    /// Numbers a run, takes the place of runs that wait for the same instances (R5.3), and starts it.
    pub(super) async fn create_run(self: &Arc<Self>, head: &Arc<Head>, authorised: Authorised) -> Result<RunId, Error> {
        let Authorised {
            environment,
            instances,
            approved,
            because,
            principal,
            word,
            by_merge,
            pull,
            remediation,
            destroys,
            by_drift,
            rebalance,
        } = authorised;
        let known = match &word {
            Some(word) => self.store().runs_by_word(word).await?,
            None => vec![],
        };
        if let Some(run) = known.into_iter().find(|run| run.environment == environment && run.destroys == destroys) {
            // The daemon died after it made this run, and before it remembered that it had obeyed.
            self.supersede(&run).await?;
            self.queue.wake(Wake::Run(run.id), "authorised");
            return Ok(run.id);
        }
        let applied = self.store().all_applied().await?;
        let first = |id: &InstanceId| match head.instance(id) {
            Some(instance) => instance.upstreams.clone(),
            None => users(id, &applied),
        };
        let edges: BTreeMap<InstanceId, BTreeSet<InstanceId>> =
            instances.iter().map(|id| (id.clone(), first(id).intersection(&instances).cloned().collect())).collect();
        let rows = order(&edges).into_iter().map(|(id, order)| {
            let digest = head.instance(&id).and_then(|instance| instance.digest);
            let after = edges[&id].clone();
            (id, RunInstance { order, digest, after, ..RunInstance::default() })
        });
        let mut run = Run {
            id: RunId(0),
            environment: environment.clone(),
            revision: head.revision.clone(),
            state: RunState::Open,
            because,
            principal,
            word,
            by_merge,
            pull,
            remediation,
            by_drift,
            rebalance,
            destroys,
            instances: rows.collect(),
            created_at: self.now(),
            ended_at: None,
        };
        self.store().create_run(&mut run, &approved).await?;
        self.store()
            .audit(
                self.now(),
                &run.principal,
                "run",
                &format!("run/{}", run.id),
                &format!("{} instances of {environment} at {}", run.instances.len(), run.revision.short()),
            )
            .await?;
        tracing::info!(run = run.id.0, %environment, because = run.because, instances = run.instances.len(), "run authorised");
        self.supersede(&run).await?;
        self.counters.runs_started.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.queue.wake(Wake::Run(run.id), "authorised");
        Ok(run.id)
    }

    /// Ends what older runs of the same sort still wait to do with the instances of a newer one. A run that is being
    /// driven finds the newer one by itself, before it takes an instance.
    async fn supersede(self: &Arc<Self>, newer: &Run) -> Result<(), Error> {
        for older in self.store().open_runs().await? {
            if older.id < newer.id && older.reverts() == newer.reverts() {
                let ids = older.instances.keys().filter(|id| newer.instances.contains_key(*id)).cloned().collect();
                self.end_waiting(older, ids, &format!("superseded by run {}", newer.id)).await?;
            }
        }
        Ok(())
    }

    /// Ends runs by merge that wait with content that is no longer head's: a revert, or a newer merge that another run
    /// applies, is the declaration now.
    async fn end_outdated(self: &Arc<Self>, head: &Head, environment: &EnvironmentName) -> Result<(), Error> {
        for run in self.store().open_runs().await? {
            if run.environment == *environment && run.by_merge && run.revision != head.revision {
                let other = |id: &InstanceId| {
                    head.instance(id).and_then(|instance| instance.digest) != run.instances[id].digest
                };
                let ids: Vec<InstanceId> = run.instances.keys().filter(|id| other(id)).cloned().collect();
                self.end_waiting(run, ids, "superseded: the branch says something else by now").await?;
            }
        }
        Ok(())
    }

    pub(super) async fn end_waiting(self: &Arc<Self>, run: Run, ids: Vec<InstanceId>, says: &str) -> Result<(), Error> {
        let _turn = self.taking_up.lock().await;
        // As it is now: it may have been driven since it was listed.
        let Some(mut run) = self.store().run(run.id).await?.filter(|run| run.state == RunState::Open) else {
            return Ok(());
        };
        if self.driving.lock().unwrap_or_else(std::sync::PoisonError::into_inner).contains(&run.id) {
            return Ok(());
        }
        let mut ended = false;
        for id in ids {
            let Some(instance) =
                run.instances.get_mut(&id).filter(|i| matches!(i.status, RunStatus::New | RunStatus::Waiting))
            else {
                continue;
            };
            instance.status = RunStatus::Superseded;
            says.clone_into(&mut instance.says);
            instance.waiting_on = None;
            self.store().append(&run, &id, &Event::Superseded { says: says.to_owned() }, self.now()).await?;
            ended = true;
        }
        if ended {
            self.conclude(&mut run).await?;
        }
        Ok(())
    }

    /// Each team, by all of its definitions that are in force.
    async fn teams(self: &Arc<Self>, head: &Head) -> Result<BTreeMap<String, Vec<Team>>, Error> {
        let mut teams: BTreeMap<String, Vec<Team>> = BTreeMap::new();
        let declared = head.desired.state_repo.iter().flat_map(|repo| repo.teams.clone());
        let held = self.guards(head).await?.rights.into_values().flatten().flat_map(|held| held.guard.teams);
        for (name, team) in declared.chain(held) {
            let known = teams.entry(name).or_default();
            if !known.contains(&team) {
                known.push(team);
            }
        }
        Ok(teams)
    }

    /// Somebody on the forge, as far as permissions ask.
    pub(super) async fn person(self: &Arc<Self>, head: &Head, login: &str) -> Result<Principal, Error> {
        let Some(forge) = &self.hands.forge else {
            return Err(Error::Refused("there is no forge to ask who somebody is".into()));
        };
        let level = authorization::Level::parse(&forge.get_permission(login).await?);
        let mut teams = BTreeSet::new();
        for (name, definitions) in self.teams(head).await? {
            let mut is_in = true;
            for team in definitions {
                let listed = team.users.iter().any(|user| user.eq_ignore_ascii_case(login));
                let member = match &team.github {
                    Some(team) if !listed => forge.is_member(team, login).await?,
                    _ => false,
                };
                is_in &= listed || member;
            }
            if is_in {
                teams.insert(name);
            }
        }
        Ok(Principal::User { login: login.to_owned(), level, teams, word: None })
    }
}

/// What plans on a pull request are kept under.
pub(super) fn pull_subject(number: PullNumber, environment: &EnvironmentName) -> String {
    format!("pull/{}/{environment}", number.0)
}

/// What can be applied before its upstreams are mended, or with them.
fn without_stalled_upstreams(
    head: &Head,
    mut fresh: BTreeSet<InstanceId>,
    stalled: &BTreeMap<String, Stalled>,
) -> BTreeSet<InstanceId> {
    loop {
        let blocked = |id: &&InstanceId| {
            let upstreams = head.instance(id).map(|instance| &instance.upstreams);
            upstreams.into_iter().flatten().any(|up| stalled.contains_key(&up.to_string()) && !fresh.contains(up))
        };
        let blocked: Vec<InstanceId> = fresh.iter().filter(blocked).cloned().collect();
        if blocked.is_empty() {
            return fresh;
        }
        fresh.retain(|id| !blocked.contains(id));
    }
}
