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

use super::{Daemon, Error, Head, Wake, planning::Scope, pulls::Seen};
use crate::{
    authority::{self, Principal},
    desired::schema::{Component, OnMerge, Remediation, Verb},
    journal::{Approved, Event, Run, RunInstance, RunState, Status as RunStatus},
    model::{ComponentName, Digest, EnvironmentName, InstanceId, PullNumber, Revision, RunId},
    plan::{Applied, Guards, Observed, Plan, order},
    port::{Job, RecordedOutput, Use},
    remedy,
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
}

/// A merged remediation and what came of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Merged {
    /// The commit that added it.
    pub(super) commit: Option<Revision>,
    /// The run that runs it.
    pub(super) run: Option<RunId>,
    /// Why it waits.
    pub(super) waits: Option<String>,
    /// Whether it is spent.
    pub(super) spent: bool,
    /// The pull request that brought it.
    pub(super) pull: Option<PullNumber>,
}

/// A run that is to be made.
pub(super) struct Authorised {
    pub(super) environment: EnvironmentName,
    pub(super) instances: BTreeSet<InstanceId>,
    pub(super) approved: BTreeMap<InstanceId, Approved>,
    pub(super) because: String,
    pub(super) principal: String,
    pub(super) by_merge: bool,
    pub(super) pull: Option<PullNumber>,
    pub(super) remediation: Option<String>,
}

impl Daemon {
    /// Starts what needs nobody's word, and plans what waits for one.
    pub(super) async fn decide(self: &Arc<Self>, environment: &EnvironmentName) -> Result<(), Error> {
        let _turn = self.deciding.lock().await;
        let Some(head) = self.head() else { return Ok(()) };
        let Some(declared) = head.desired.environments.get(environment).cloned() else { return Ok(()) };
        self.loosen_guards(&head, environment).await?;
        if declared.suspend || self.stopping() || self.token(environment).await?.is_none() {
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

    async fn apply_merge(self: &Arc<Self>, head: &Arc<Head>, environment: &EnvironmentName, pending: BTreeSet<InstanceId>, open: &[Run]) -> Result<(), Error> {
        let stalled: BTreeMap<String, Stalled> = self.store().list("stalled").await?.into_iter().collect();
        let fresh: BTreeSet<InstanceId> = pending
            .into_iter()
            .filter(|id| {
                let digest = head.instance(id).and_then(|instance| instance.digest);
                let held = open.iter().any(|run| run.holds(id) && run.remediation.is_none() && run.instances[id].digest == digest);
                // After a failure only another content is a newer merge; the same one waits for `/apply`.
                let failed = stalled.get(&id.to_string()).is_some_and(|stalled| stalled.digest == digest);
                !held && !failed
            })
            .collect();
        if fresh.is_empty() {
            return Ok(());
        }
        let (approved, pull) = self.approved_by_merge(head, environment, &fresh).await?;
        let because = match pull {
            Some(pull) => format!("the merge of {pull} (`onMerge: apply`)"),
            None => format!("the merge of `{}` (`onMerge: apply`)", head.revision.short()),
        };
        let authorised = Authorised { environment: environment.clone(), instances: fresh, approved, because, principal: "merge".into(), by_merge: true, pull, remediation: None };
        self.create_run(head, authorised).await.map(drop)
    }

    /// What was shown of each instance on the merged pull requests since it was applied last, the newest first.
    async fn approved_by_merge(self: &Arc<Self>, head: &Head, environment: &EnvironmentName, instances: &BTreeSet<InstanceId>) -> Result<(BTreeMap<InstanceId, Approved>, Option<PullNumber>), Error> {
        let mut approved: BTreeMap<InstanceId, Approved> = instances.iter().map(|id| (id.clone(), Approved::Declaration)).collect();
        let merged = self.merged_pulls(head).await?;
        let applied = self.store().all_applied().await?;
        let mut carrier = None;
        for id in instances {
            for (number, commit) in &merged {
                if let Some(applied) = applied.get(id)
                    && self.hands.mirror.contains(&applied.revision, commit).await?
                {
                    break;
                }
                let Some((plan, _)) = self.store().last_plan(&pull_subject(*number, environment), None).await? else { continue };
                let Some(shown) = plan.instance(id) else { continue };
                // A later commit without a pull request changed it again: that commit is the declaration (R6.7).
                let (then, _) = self.load(commit).await?;
                if then.instances.get(id).and_then(|i| i.digest) != head.instance(id).and_then(|i| i.digest) {
                    break;
                }
                let what = if shown.digest.is_some() { Approved::Actions { actions: shown.actions.clone() } } else { Approved::Unknown };
                approved.insert(id.clone(), what);
                carrier = carrier.max(Some(*number));
                break;
            }
        }
        Ok((approved, carrier))
    }

    /// The merged pull requests along the branch, newest first, with the commit that each was merged as.
    pub(super) async fn merged_pulls(&self, head: &Head) -> Result<Vec<(PullNumber, Revision)>, Error> {
        let seen: Vec<(String, Seen)> = self.store().list("pull").await?;
        let commits = self.hands.mirror.first_parents(None, &head.revision).await?;
        let at = |revision: &Revision| commits.iter().position(|commit| commit.revision == *revision);
        let mut merged: Vec<(usize, PullNumber, Revision)> = seen.iter().filter_map(|(_, seen)| {
            let revision = seen.pull.merged_as.clone()?;
            Some((at(&revision)?, seen.pull.number, revision))
        }).collect();
        merged.sort();
        Ok(merged.into_iter().map(|(_, number, revision)| (number, revision)).collect())
    }

    /// Numbers a run, takes the place of runs that wait for the same instances (R5.3), and starts it.
    pub(super) async fn create_run(self: &Arc<Self>, head: &Arc<Head>, authorised: Authorised) -> Result<RunId, Error> {
        let Authorised { environment, instances, approved, because, principal, by_merge, pull, remediation } = authorised;
        let edges: BTreeMap<InstanceId, BTreeSet<InstanceId>> = instances.iter().map(|id| (id.clone(), head.instance(id).map(|i| i.upstreams.clone()).unwrap_or_default())).collect();
        let rows = order(&edges).into_iter().map(|(id, order)| {
            let digest = head.instance(&id).and_then(|instance| instance.digest);
            (id, RunInstance { order, digest, ..RunInstance::default() })
        });
        let mut run = Run {
            id: RunId(0),
            environment: environment.clone(),
            revision: head.revision.clone(),
            state: RunState::Open,
            because,
            principal,
            by_merge,
            pull,
            remediation,
            instances: rows.collect(),
            created_at: self.now(),
            ended_at: None,
        };
        self.store().create_run(&mut run, &approved).await?;
        self.store().audit(self.now(), &run.principal, "run", &format!("run/{}", run.id), &format!("{} instances of {environment} at {}", run.instances.len(), run.revision.short())).await?;
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
            if older.id < newer.id && older.remediation.is_some() == newer.remediation.is_some() {
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
                let other = |id: &InstanceId| head.instance(id).and_then(|instance| instance.digest) != run.instances[id].digest;
                let ids: Vec<InstanceId> = run.instances.keys().filter(|id| other(id)).cloned().collect();
                self.end_waiting(run, ids, "superseded: the branch says something else by now").await?;
            }
        }
        Ok(())
    }

    async fn end_waiting(self: &Arc<Self>, mut run: Run, ids: Vec<InstanceId>, says: &str) -> Result<(), Error> {
        let _turn = self.taking_up.lock().await;
        if self.driving.lock().unwrap_or_else(std::sync::PoisonError::into_inner).contains(&run.id) {
            return Ok(());
        }
        let token = self.token(&run.environment).await?.unwrap_or(0);
        let mut ended = false;
        for id in ids {
            let Some(instance) = run.instances.get_mut(&id).filter(|i| matches!(i.status, RunStatus::New | RunStatus::Waiting)) else { continue };
            instance.status = RunStatus::Superseded;
            says.clone_into(&mut instance.says);
            instance.waiting_on = None;
            self.store().append(&run, &id, token, &Event::Superseded { says: says.to_owned() }, self.now()).await?;
            ended = true;
        }
        if ended {
            self.conclude(&mut run).await?;
        }
        Ok(())
    }

    /// What the plan of an environment at head depends on, so that it is not made again while nothing changed.
    async fn plan_key(&self, head: &Head, environment: &EnvironmentName, pending: &BTreeSet<InstanceId>) -> Result<String, Error> {
        let applied = self.store().all_applied().await?;
        let parts: Vec<String> = applied.iter().filter(|(id, _)| id.environment == *environment).map(|(id, record)| format!("{id} {}", record.at)).collect();
        Ok(format!("{} {pending:?} {parts:?}", head.revision))
    }

    async fn is_planned(&self, head: &Head, environment: &EnvironmentName, pending: &BTreeSet<InstanceId>) -> Result<bool, Error> {
        let key = self.plan_key(head, environment, pending).await?;
        Ok(self.planned_for.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(environment) == Some(&key))
    }

    /// The instances of an environment whose head is not what is applied.
    pub(super) async fn pending(&self, head: &Head, environment: &EnvironmentName) -> Result<BTreeSet<InstanceId>, Error> {
        let applied = self.store().all_applied().await?;
        let stalled: BTreeMap<String, Stalled> = self.store().list("stalled").await?.into_iter().collect();
        Ok(head
            .environment(environment)
            .filter(|instance| instance.problems.is_empty())
            .filter(|instance| stalled.contains_key(&instance.id.to_string()) || is_pending(instance, &applied))
            .map(|instance| instance.id.clone())
            .collect())
    }

    /// Plans what waits at head, shows it, and lets *applied* advance where there is nothing to do (R1.5).
    pub(super) async fn plan_head(self: &Arc<Self>, environment: &EnvironmentName) -> Result<Option<Plan>, Error> {
        let Some(head) = self.head() else { return Ok(None) };
        let pending = self.pending(&head, environment).await?;
        let open = self.store().open_runs().await?;
        let instances: BTreeSet<InstanceId> = pending.into_iter().filter(|id| !open.iter().any(|run| run.holds(id) && run.by_merge && run.instances[id].status != RunStatus::Waiting)).collect();
        if instances.is_empty() {
            return Ok(None);
        }
        let key = self.plan_key(&head, environment, &instances).await?;
        let before = self.store().all_applied().await?;
        let scope = Scope { instances: instances.clone(), r#use: Use::Head, because: "head".into(), base: None };
        let (plan, outcomes) = self.plan_environment(environment, &head, &scope).await?;
        let stalled: BTreeMap<String, Stalled> = self.store().list("stalled").await?.into_iter().collect();
        let mut advanced = false;
        for instance in &plan.instances {
            let outcome = &outcomes[&instance.id];
            self.note_pending(&head, instance).await?;
            let nothing = instance.digest.is_some() && instance.actions.is_empty() && instance.problem.is_none();
            let still = nothing && instances.contains(&instance.id) && self.is_as_planned(&head, &instance.id, &before, &outcome.inputs).await?;
            if still && !outcome.first_contact && !stalled.contains_key(&instance.id.to_string()) && let Some(job) = &outcome.job {
                self.record_applied(&head, &instance.id, outcome.inputs.clone(), job, None).await?;
                self.store().audit(self.now(), "evenkeel", "advance", &instance.id.to_string(), "nothing to do").await?;
                tracing::info!(instance = %instance.id, revision = head.revision.short(), "nothing to do: applied advances to head");
                advanced = true;
            }
        }
        if advanced {
            self.queue.wake(Wake::Decide(environment.clone()), "applied advanced");
        }
        if plan.has_work() {
            self.store().keep_plan(&format!("head/{environment}"), &plan, self.now()).await?;
            self.show_head_plan(&head, &plan).await?;
        }
        if plan.instances.iter().all(|instance| instance.problem.is_none()) {
            self.planned_for.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(environment.clone(), key);
        }
        Ok(Some(plan))
    }

    /// Whether nothing moved while an instance was planned: head, what is applied, its inputs as they are recorded, and
    /// no run holds it.
    async fn is_as_planned(&self, head: &Head, id: &InstanceId, before: &BTreeMap<InstanceId, Applied>, inputs: &BTreeMap<String, RecordedOutput>) -> Result<bool, Error> {
        let mut now = BTreeMap::new();
        for upstream in sources(id, inputs) {
            now.extend(self.store().applied(&upstream).await?.map(|record| (upstream, record)));
        }
        let same_head = self.head().is_some_and(|now| now.revision == head.revision);
        let same_record = self.store().applied(id).await?.map(|record| record.at) == before.get(id).map(|record| record.at);
        let recorded = inputs.iter().all(|(key, value)| {
            let upstream = key.split_once(".outputs.").and_then(|(component, name)| Some((InstanceId::new(&id.environment, &component.parse().ok()?), name)));
            upstream.is_some_and(|(upstream, name)| now.get(&upstream).and_then(|record| record.outputs.get(name)) == Some(value))
        });
        let held = self.store().open_runs().await?.iter().any(|run| run.holds(id));
        Ok(same_head && same_record && recorded && !held)
    }

    /// Records what head would change, for `status` and `explain`.
    async fn note_pending(&self, head: &Head, instance: &crate::plan::InstancePlan) -> Result<(), Error> {
        let mut observed = self.store().observed(&instance.id).await?.unwrap_or_else(|| Observed::new(self.now(), None));
        observed.head = Some(head.revision.clone());
        observed.pending = instance.actions.iter().flat_map(|action| action.resources.clone()).collect();
        observed.waiting_on.clone_from(&instance.waiting_on);
        if observed.against.is_none() {
            observed.at = self.now();
            observed.error = instance.problem.as_ref().map(|says| crate::plan::ObservedError { kind: "plan-failed".into(), says: says.clone() });
        }
        self.store().set_observed(&instance.id, &observed).await?;
        Ok(())
    }

    /// Records that an instance is what head says.
    pub(super) async fn record_applied(self: &Arc<Self>, head: &Head, id: &InstanceId, inputs: BTreeMap<String, RecordedOutput>, job: &Job, run: Option<RunId>) -> Result<(), Error> {
        let Some(instance) = head.instance(id) else { return Ok(()) };
        let (Some(spec), Some(digest)) = (&instance.spec, instance.digest) else { return Ok(()) };
        let outputs = self.hands.target.outputs(job).await?;
        let outputs = outputs.iter().filter_map(|(name, output)| Some((name.clone(), output.record(&self.hands.seal)?))).collect();
        let applied = Applied {
            revision: head.revision.clone(),
            digest,
            spec: (**spec).clone(),
            files: instance.closure.files.clone(),
            declares_backend: instance.closure.declares_backend,
            inputs,
            outputs,
            guards: Guards { protect: spec.protect.clone(), since: Some(head.revision.clone()) },
            run,
            at: self.now(),
        };
        let fresh = Observed::new(self.now(), Some(head.revision.clone()));
        Ok(self.store().advance(id, &applied, &fresh).await?)
    }

    /// Takes over what a merge changed of an applied instance without changing what it is made from: guards, drift
    /// policy, checks, edges. A merge that changes more doesn't loosen a guard (R3.4).
    async fn loosen_guards(&self, head: &Head, environment: &EnvironmentName) -> Result<(), Error> {
        let applied = self.store().all_applied().await?;
        for instance in head.environment(environment) {
            let (Some(mut record), Some(spec), Some(digest)) = (applied.get(&instance.id).cloned(), &instance.spec, instance.digest) else { continue };
            // What it is made from stays as it was applied, with the revision that holds it.
            let loosened = Component { tofu: record.spec.tofu.clone(), ..(**spec).clone() };
            if record.digest == digest && record.spec != loosened {
                record.spec = loosened;
                record.guards = Guards { protect: spec.protect.clone(), since: Some(head.revision.clone()) };
                self.store().set_applied(&instance.id, &record).await?;
            }
        }
        Ok(())
    }

    /// Makes runs of merged remediations that may run, and says why others wait.
    async fn take_remediations(self: &Arc<Self>, head: &Arc<Head>, environment: &EnvironmentName) -> Result<(), Error> {
        let now = self.now();
        for (name, (remediation, file)) in head.desired.remediations.iter().filter(|(_, (r, _))| r.environment == *environment) {
            let path = format!("{}/{file}", self.settings.root);
            let Some(commit) = self.hands.mirror.added_by(&head.revision, &path).await? else { continue };
            let key = format!("{environment}/{name}");
            let mut merged: Merged = self.store().get("remediation", &key).await?.unwrap_or_default();
            // Spent by name and the commit that added it: the same file added again is another remediation.
            if merged.commit.as_ref() == Some(&commit) && (merged.spent || merged.run.is_some()) {
                continue;
            }
            if merged.commit.as_ref() != Some(&commit) {
                merged = Merged { commit: Some(commit.clone()), ..Merged::default() };
            }
            // A date that somebody moved does not make it an authority for longer.
            let expires_at = remediation.expires_at.min(remediation.observed_at + chrono::Duration::days(remedy::EXPIRES_AFTER_DAYS + 1));
            let over = if expires_at < now { Some(format!("it expired at {expires_at}")) } else { remediation.actions.is_empty().then(|| "every action was cut from it, so there is nothing to run".to_owned()) };
            if let Some(says) = over {
                merged.spent = true;
                merged.waits = Some(says);
                self.store().put("remediation", &key, now, &merged).await?;
                continue;
            }
            if let Err(error) = self.take_remediation(head, name, remediation, &commit, merged).await {
                tracing::warn!(%name, error = crate::error_chain(&error), "could not take a merged remediation up; it is tried again");
            }
        }
        Ok(())
    }

    async fn take_remediation(self: &Arc<Self>, head: &Arc<Head>, name: &ComponentName, remediation: &Remediation, commit: &Revision, mut merged: Merged) -> Result<(), Error> {
        let environment = &remediation.environment;
        let pull = self.pull_merged_as(commit).await?;
        let who = match pull.as_ref().and_then(|pull| pull.merged_by.clone()) {
            Some(login) => Some(self.person(head, &login).await?),
            None => None,
        };
        let state_repo = head.desired.state_repo.as_deref();
        merged.pull = pull.as_ref().map(|pull| pull.number);
        let refused = match &who {
            Some(who) if authority::may(state_repo, who, Verb::Apply, environment) => None,
            Some(who) => Some(authority::refusal(state_repo, who, Verb::Apply, environment)),
            None => Some(format!("it did not come by a pull request, so nobody's word stands for it; say `evenkeel apply {environment} --remediation {name}`")),
        };
        merged.waits = refused.clone();
        if let Some(says) = refused {
            if let Some(number) = merged.pull {
                let says = format!("Merged and waiting: {says} Somebody who may says `/apply` here.");
                self.say_on(number, &format!("remediation-waits name={name}"), &says, None).await?;
            }
        } else if let Some(who) = who {
            let because = format!("the merge of {} by {}", merged.pull.map_or_else(|| "a remediation".into(), |n| n.to_string()), who.name().replace("user:", "@"));
            merged.run = Some(self.run_remediation(head, name, remediation, because, who.name(), merged.pull).await?);
        }
        self.store().put("remediation", &format!("{environment}/{name}"), self.now(), &merged).await?;
        Ok(())
    }

    /// Makes the run of a merged remediation.
    pub(super) async fn run_remediation(self: &Arc<Self>, head: &Arc<Head>, name: &ComponentName, remediation: &Remediation, because: String, principal: String, pull: Option<PullNumber>) -> Result<RunId, Error> {
        let instances: BTreeSet<InstanceId> = remediation.actions.iter().map(|action| action.instance.clone()).filter(|id| id.environment == remediation.environment).collect();
        let approved = instances.iter().map(|id| (id.clone(), Approved::Remediation)).collect();
        let authorised = Authorised { environment: remediation.environment.clone(), instances, approved, because, principal, by_merge: false, pull, remediation: Some(name.to_string()) };
        self.create_run(head, authorised).await
    }

    /// The remediations that are merged and not spent, by environment.
    pub(super) async fn held(&self, environment: &EnvironmentName) -> Result<Vec<(String, Merged)>, Error> {
        let all: Vec<(String, Merged)> = self.store().list("remediation").await?;
        Ok(all.into_iter().filter(|(key, merged)| key.starts_with(&format!("{environment}/")) && !merged.spent).collect())
    }

    /// Somebody on the forge, as far as permissions ask.
    pub(super) async fn person(&self, head: &Head, login: &str) -> Result<Principal, Error> {
        let Some(forge) = &self.hands.forge else { return Err(Error::Refused("there is no forge to ask who somebody is".into())) };
        let level = authority::Level::parse(&forge.get_permission(login).await?);
        let mut teams = BTreeSet::new();
        for (name, team) in head.desired.state_repo.as_ref().map(|repo| repo.teams.clone()).unwrap_or_default() {
            let listed = team.users.iter().any(|user| user.eq_ignore_ascii_case(login));
            let member = match &team.github {
                Some(team) if !listed => forge.is_member(team, login).await?,
                _ => false,
            };
            if listed || member {
                teams.insert(name);
            }
        }
        Ok(Principal::User { login: login.to_owned(), level, teams })
    }
}

/// What plans on a pull request are kept under.
pub(super) fn pull_subject(number: PullNumber, environment: &EnvironmentName) -> String {
    format!("pull/{}/{environment}", number.0)
}

/// What an instance's inputs come from.
pub(super) fn sources(id: &InstanceId, inputs: &BTreeMap<String, RecordedOutput>) -> BTreeSet<InstanceId> {
    let of = |key: &String| Some(InstanceId::new(&id.environment, &key.split_once(".outputs.")?.0.parse().ok()?));
    inputs.keys().filter_map(of).collect()
}

/// Whether digest or inputs at head differ from what is applied (R1.4).
pub(super) fn is_pending(instance: &crate::desired::Instance, applied: &BTreeMap<InstanceId, Applied>) -> bool {
    let Some(record) = applied.get(&instance.id) else { return true };
    if Some(record.digest) != instance.digest {
        return true;
    }
    record.inputs.iter().any(|(key, value)| {
        let Some((component, name)) = key.split_once(".outputs.") else { return false };
        let Ok(component) = component.parse::<ComponentName>() else { return false };
        let upstream = InstanceId::new(&instance.id.environment, &component);
        applied.get(&upstream).and_then(|upstream| upstream.outputs.get(name)).is_some_and(|now| now != value)
    })
}

/// The path of a remediation's file in the repository.
pub(super) fn remediation_path(root: &str, environment: &EnvironmentName, name: &str) -> String {
    format!("{root}/{}", remedy::path(environment, name))
}
