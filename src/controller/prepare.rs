//! Everything before an effect: the run lock, what comes first, a plan under the target's lock, and whether that is what
//! was approved (R2.4, R2.7, R3.3, R3.4).
//!
//! Decides whether an instance of a run may go on; changes nothing but the run lock and the journal's `planned`.
//! *Race:* a newer run of the instance appears while this one waits for the lock: the older one ends as superseded.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{
    Daemon, Error, Head,
    advance::{is_pending, sources},
    identity,
    inputs::declared_job,
    planning::Scope,
    run::Driven,
};
use crate::{
    domain::{
        declaration::schema::Deferred,
        journal::{Approved, Event, Run, Status},
        message,
        plan::{self, Applied, Carried, InstancePlan, Plan, validation},
        remediation,
    },
    model::{Action, InstanceId, Retry, WaitingOn},
    ports::{Job, Prepared, RecordedOutput, Use},
    targets::{self, citus},
};

/// How often what another machine may mend is tried before the instance is stalled.
const ATTEMPTS_MAX: u32 = 3;

/// An instance that is ready for its effect.
pub(super) struct Ready {
    pub(super) job: Job,
    pub(super) prepared: Prepared,
    pub(super) inputs: BTreeMap<String, RecordedOutput>,
    pub(super) actions: Vec<Action>,
    pub(super) carried: Vec<Carried>,
}

/// Why an instance does not get to its effect.
pub(super) enum Stop {
    Waits(WaitingOn, String),
    Fails(String),
    /// Nothing is to do.
    Nothing(Box<Job>, BTreeMap<String, RecordedOutput>, Left),
    /// It was destroyed and forgotten by another run.
    Gone,
    Error(Error),
    /// The daemon stops; the run is taken up again.
    Leaves,
    /// A newer run takes its place.
    Superseded(String),
    /// Somebody said so.
    Cancelled(String),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        match error {
            Error::Target(error) => Self::Fails(error.line()),
            other => Self::Error(other),
        }
    }
}

impl From<crate::adapters::store::Error> for Stop {
    fn from(error: crate::adapters::store::Error) -> Self {
        Self::Error(error.into())
    }
}

impl Daemon {
    /// Why a run may not have its first effect: what is known of it as a whole passes a limit, or is blocked by a fatal
    /// note (R2.6, R3.3). What nobody was shown a plan of is planned for this; what can't be known yet is counted when
    /// its turn comes.
    pub(super) async fn blocked(self: &Arc<Self>, driven: &Driven) -> Result<Option<String>, Error> {
        let run = driven.run.lock().await.clone();
        if !run.instances.values().all(|instance| instance.status == Status::New) {
            return Ok(None);
        }
        let (mut unseen, mut instances) = (BTreeSet::new(), vec![]);
        for id in run.instances.keys() {
            let actions = match self.store().approved(run.id, id).await? {
                Some(Approved::Actions { actions }) => actions,
                Some(Approved::Declaration) => {
                    unseen.insert(id.clone());
                    continue;
                }
                Some(Approved::Remediation) => self.remedied(driven, &run, id).await?,
                Some(Approved::Unknown | Approved::Moves { .. }) | None => continue,
            };
            instances.push(whole(id, actions));
        }
        // What counts is what is protected now, not when it was approved.
        let guards = self.guards(&self.head().unwrap_or_else(|| Arc::clone(&driven.head))).await?;
        for instance in &mut instances {
            plan::mark_protected(&guards.protect(&instance.id), &mut instance.actions);
        }
        if !unseen.is_empty() {
            let scope = Scope {
                instances: unseen.clone(),
                r#use: Use::Head,
                because: format!("run {}", run.id),
                base: None,
                guards: None,
            };
            let (plan, _) = self.plan_environment(&run.environment, &driven.head, &scope).await?;
            let seen = plan.instances.into_iter().filter(|instance| unseen.contains(&instance.id));
            instances.extend(seen.map(|instance| whole(&instance.id, instance.actions)));
        }
        let limits = guards.limits(&run.environment);
        let plan = Plan::new(run.environment.clone(), run.revision.clone(), None, "run".into(), instances);
        let fatal = validation::plan(&plan, &limits).into_iter().find(|note| note.fatal).map(|note| note.says);
        let over = validation::within(&plan.summary, &limits).into_iter().next();
        let over = over.map(|says| format!("{says}; raise the limit in a pull request of its own, or change less"));
        Ok(fatal.or(over))
    }

    /// The actions that a remediation lets through for an instance, as they were stored when it was proposed.
    pub(super) async fn remedied(&self, driven: &Driven, run: &Run, id: &InstanceId) -> Result<Vec<Action>, Error> {
        let name = run.remediation.as_ref().and_then(|name| name.parse().ok());
        let found = name.and_then(|name| driven.head.desired.remediations.get(&name));
        let mut actions = vec![];
        for action in found.iter().flat_map(|(remediation, _)| &remediation.actions).filter(|a| a.instance == *id) {
            actions.extend(self.store().get::<Action>("action", &action.digest.to_string()).await?);
        }
        Ok(actions)
    }

    /// What is left to do for an instance, apart: what the run is about, and what was cut from it or came since.
    pub(super) async fn business(
        &self,
        driven: &Driven,
        run: &Run,
        id: &InstanceId,
        left: Vec<Action>,
    ) -> Result<(Vec<Action>, Vec<Action>), Error> {
        if !run.reverts() || !left.iter().all(plan::stands_alone) {
            return Ok((left, vec![]));
        }
        if run.rebalance.is_some() {
            return Ok(left.into_iter().partition(citus::plan::is_move));
        }
        let known = match self.store().approved(run.id, id).await? {
            Some(Approved::Actions { actions }) => actions,
            _ => self.remedied(driven, run, id).await?,
        };
        let known: BTreeSet<&str> =
            known.iter().flat_map(|action| &action.resources).map(|change| change.resource.as_str()).collect();
        let is_mine = |action: &Action| action.resources.iter().any(|change| known.contains(change.resource.as_str()));
        Ok(left.into_iter().partition(is_mine))
    }

    /// Everything before the effect.
    pub(super) async fn prepare(self: &Arc<Self>, driven: &Driven, id: &InstanceId) -> Result<Ready, Stop> {
        let run = driven.run.lock().await.clone();
        self.take(&run, id).await?;
        let applied = self.store().applied(id).await?;
        if run.destroys && applied.is_none() {
            return Err(Stop::Gone);
        }
        let (mut job, inputs) = self.job(driven, &run, id, applied.as_ref()).await?;
        self.with_approved_moves(driven, &run, id, &mut job).await?;
        let (job, prepared) = self.prepare_job(&driven.head, &job).await?;
        let observation = &prepared.observation;
        match self.identify(id, observation, applied.is_some()).await {
            Err(Error::Target(error)) if error.kind == identity::ANOTHER => {
                return Err(Stop::Waits(WaitingOn::Confirm, error.line()));
            }
            done => done?,
        }
        // What counts is what is in force now, also for a run that was authorised before (R3.4).
        let guards = match self.head() {
            Some(head) => self.guards(&head).await?.protect(id),
            None => self.guards(&driven.head).await?.protect(id),
        };
        let actions = targets::actions(&job.work, id, observation);
        let (mut actions, carried) = self.with_drains(&driven.head, id, actions, observation).await?;
        plan::mark_protected(&guards, &mut actions);
        let digest = (!actions.is_empty()).then(|| InstancePlan::digest_of(&actions));
        self.record(driven, id, Event::Planned { digest }, None).await?;
        if applied.is_none() && run.by_merge && self.is_first_contact(id, observation.holds_anything).await? {
            let says = if observation.holds_anything {
                "the target already holds something that was never applied from here; look at the plan and say `/apply`"
            } else {
                "this store has no history of a repository that was applied before: restore the store, or look at the plan and say `/apply`"
            };
            let says = says.to_owned();
            return Err(Stop::Waits(WaitingOn::FirstContact, says));
        }
        if actions.is_empty() {
            let left = Left { others: vec![], warnings: observation.warnings.clone() };
            return Err(Stop::Nothing(Box::new(job), inputs, left));
        }
        let fresh = actions.clone();
        if run.by_merge
            && let Some(says) = self.undoes_snoozed(id, &actions).await?
        {
            return Err(Stop::Waits(WaitingOn::Approval { digest: InstancePlan::digest_of(&actions) }, says));
        }
        let actions = self.approve(driven, &run, id, actions).await?;
        let actions = self.throttled(driven, &run, id, actions, observation.layout.as_ref()).await?;
        if actions.is_empty() {
            let left = Left { others: fresh, warnings: prepared.observation.warnings };
            return Err(Stop::Nothing(Box::new(job), inputs, left));
        }
        self.guard(driven, id, &actions, &carried).await?;
        match self.pin_before_effect(id, &prepared.observation).await {
            Err(Error::Refused(says)) => return Err(Stop::Fails(says)),
            done => done?,
        }
        if run.destroys {
            // Planning takes a while, and somebody may have declared it again.
            self.look_at_git().await?;
            self.still_orphaned(driven, &run, id).await?;
        }
        let mut prepared = prepared;
        // What was cut from a remediation is not done.
        let is_meant = |name: &str| actions.iter().flat_map(|action| &action.resources).any(|r| r.resource == name);
        prepared.observation.changes.retain(|change| is_meant(&change.resource));
        Ok(Ready { job, prepared, inputs, actions, carried })
    }

    /// By which newer run of the same sort an instance is done, in a sentence (R5.3).
    pub(super) async fn newer_than(&self, run: &Run, id: &InstanceId) -> Result<Option<String>, Error> {
        let newer = self.store().runs_after(run.id).await?;
        let same = |newer: &&Run| newer.reverts() == run.reverts() && newer.instances.contains_key(id);
        Ok(newer.iter().find(same).map(|newer| format!("superseded by run {}", newer.id)))
    }

    /// Takes the run lock, behind a run whose effect is in flight.
    async fn take(self: &Arc<Self>, run: &Run, id: &InstanceId) -> Result<(), Stop> {
        loop {
            let changed = self.run_changed.notified();
            if self.stopping() {
                return Err(Stop::Leaves);
            }
            if let Some(says) = self.newer_than(run, id).await? {
                return Err(Stop::Superseded(says));
            }
            if let Some(says) = self.suspensions(self.head().as_deref()).await?.instance(id) {
                return Err(Stop::Waits(WaitingOn::Suspended, says));
            }
            if let Some(says) = self.cancelled(run.id, id).await? {
                return Err(Stop::Cancelled(says));
            }
            if self.store().lock_instance(id, run.id).await? == run.id {
                return Ok(());
            }
            tokio::select! {
                () = changed => {}
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep(Duration::from_secs(5)) => {}
            }
        }
    }

    /// The job of an instance: as declared, or as applied for a remediation.
    async fn job(
        self: &Arc<Self>,
        driven: &Driven,
        run: &Run,
        id: &InstanceId,
        applied: Option<&Applied>,
    ) -> Result<(Job, BTreeMap<String, RecordedOutput>), Stop> {
        if run.destroys {
            return self.job_of_destroying(driven, run, id).await;
        }
        if run.reverts() {
            let Some(record) = applied else {
                return Err(Stop::Fails(format!("`{id}` is not applied, so there is nothing to return to")));
            };
            return Ok((self.remedy_job(run, id, record, &driven.head).await?, record.inputs.clone()));
        }
        let head = &driven.head;
        let Some(instance) = head.instance(id) else {
            return Err(Stop::Fails(format!("`{id}` is not declared at `{}`", head.revision.short())));
        };
        if let Some(problem) = instance.problems.first() {
            return Err(Stop::Fails(format!("its declaration has a problem: {problem}")));
        }
        if let Some(on) = self.promotion(head, id).await? {
            let says = message::comment::waiting(&on);
            return Err(Stop::Waits(on, says));
        }
        // What comes first is measured by the branch as it is now, not as it was when this run was authorised.
        let now = self.head().unwrap_or_else(|| Arc::clone(head));
        let stalled = self.stalled().await?;
        let mut applied = BTreeMap::new();
        for upstream in &instance.upstreams {
            let Some(record) = self.store().applied(upstream).await? else { continue };
            for source in sources(upstream, &record.inputs) {
                applied.extend(self.store().applied(&source).await?.map(|record| (source, record)));
            }
            applied.insert(upstream.clone(), record);
        }
        let open = self.store().open_runs().await?;
        let is_rolling = |upstream: &InstanceId| {
            let waits =
                |run: &Run| run.instances.get(upstream).is_some_and(|i| i.rollout_until.is_some() && !i.status.ended());
            open.iter().any(waits)
        };
        let behind = |upstream: &&InstanceId| {
            let declared = now.instance(upstream);
            is_rolling(upstream)
                || stalled.contains_key(*upstream)
                || declared.is_none_or(|declared| !declared.problems.is_empty() || is_pending(declared, &applied))
        };
        if let Some(upstream) = instance.upstreams.iter().find(behind) {
            return Err(Stop::Waits(
                WaitingOn::Upstream { instance: upstream.clone() },
                format!("`{upstream}` comes first, and is not what the branch says yet"),
            ));
        }
        let inputs = self.inputs(head, id, &instance.references, &BTreeMap::new()).await?;
        if let Some(on) = inputs.waiting_on.first() {
            return Err(Stop::Waits(on.clone(), message::comment::waiting(on)));
        }
        let job = declared_job(instance, Use::Head, Arc::clone(&head.content), &inputs, head.consumed(id))
            .map_err(|error| Stop::Fails(error.line()))?;
        Ok((job, inputs.recorded))
    }

    /// The job of destroying an orphan, if it still is one and nothing uses it.
    async fn job_of_destroying(
        self: &Arc<Self>,
        driven: &Driven,
        run: &Run,
        id: &InstanceId,
    ) -> Result<(Job, BTreeMap<String, RecordedOutput>), Stop> {
        let now = self.still_orphaned(driven, run, id).await?;
        Ok((self.destroy_job(id, &now).await?, BTreeMap::new()))
    }

    /// The head, if an instance that a run destroys is an orphan there and nothing uses it.
    async fn still_orphaned(self: &Arc<Self>, driven: &Driven, run: &Run, id: &InstanceId) -> Result<Arc<Head>, Stop> {
        let now = self.head().unwrap_or_else(|| Arc::clone(&driven.head));
        if !self.orphans(&now).await?.contains_key(id) {
            let says = "it is declared, or a file that may declare it can't be read; nothing was destroyed";
            return Err(Stop::Fails(says.into()));
        }
        if let Some((user, says)) = self.in_use(&now, id, &run.instances.keys().cloned().collect()).await? {
            return Err(Stop::Waits(WaitingOn::Upstream { instance: user }, says));
        }
        Ok(now)
    }

    pub(super) async fn prepare_job(self: &Arc<Self>, head: &Head, job: &Job) -> Result<(Job, Prepared), Stop> {
        let mut attempt = 0;
        loop {
            match self.prepare_with_owners(head, job).await {
                Ok(prepared) => return Ok(prepared),
                Err(error) => match error.retry {
                    Retry::After(backoff) if attempt + 1 < ATTEMPTS_MAX => {
                        attempt += 1;
                        tokio::select! {
                            () = tokio::time::sleep(backoff.wait(attempt).std()) => {}
                            () = self.stop.cancelled() => return Err(Stop::Leaves),
                        }
                    }
                    _ => return Err(Stop::Fails(error.line())),
                },
            }
        }
    }

    /// What may be done of what would be done: what was approved (R2.4), all of it or what a remediation lets through.
    async fn approve(
        self: &Arc<Self>,
        driven: &Driven,
        run: &Run,
        id: &InstanceId,
        actions: Vec<Action>,
    ) -> Result<Vec<Action>, Stop> {
        let digest = InstancePlan::digest_of(&actions);
        let waits = |says: String| Stop::Waits(WaitingOn::Approval { digest }, says);
        match self.store().approved(run.id, id).await?.unwrap_or(Approved::Unknown) {
            Approved::Declaration => Ok(actions),
            Approved::Actions { actions: approved } if run.by_drift => match plan::covers(&approved, &actions) {
                Ok(()) => Ok(actions),
                Err(_) if actions.iter().all(plan::stands_alone) => {
                    // What drifted since, or somebody said no to, is not this run's business.
                    let (mine, _) = self.business(driven, run, id, actions).await?;
                    plan::covers(&approved, &mine)
                        .map_err(|gap| Stop::Fails(format!("the drift changed meanwhile: {}", gap.0)))?;
                    Ok(mine)
                }
                Err(gap) => Err(Stop::Fails(format!("the drift changed meanwhile: {}", gap.0))),
            },
            Approved::Actions { actions: approved } => match plan::covers(&approved, &actions) {
                Ok(()) => Ok(actions),
                Err(gap) => Err(waits(format!("{}; look at the new plan and say `/apply`", gap.0))),
            },
            Approved::Unknown => {
                let deferred =
                    driven.head.desired.environments.get(&run.environment).map(|e| e.deferred).unwrap_or_default();
                match deferred {
                    Deferred::Apply => Ok(actions),
                    Deferred::Wait => Err(waits(
                        "its plan was not known when the run was approved; now it is, and waits for `/apply`".into(),
                    )),
                }
            }
            Approved::Moves { .. } => Ok(actions.into_iter().filter(citus::plan::is_move).collect()),
            Approved::Remediation => {
                let name = run.remediation.clone().unwrap_or_default();
                let Ok(name) = name.parse() else { return Err(Stop::Fails("the remediation has no name".into())) };
                let Some((remediation, _)) = driven.head.desired.remediations.get(&name) else {
                    return Err(Stop::Fails(format!("the remediation `{name}` is not there any more")));
                };
                let stored = self.stored_actions(remediation).await?;
                if let Some(says) = self.edited(name.as_str(), remediation).await? {
                    return Err(Stop::Fails(says));
                }
                let through =
                    remediation::lets_through(remediation, id, &|digest| stored.get(digest).cloned(), &actions)
                        .map_err(Stop::Fails)?;
                Ok(through)
            }
        }
    }

    /// The independent checker, `protect` and the limits of one run.
    async fn guard(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        actions: &[Action],
        carried: &[Carried],
    ) -> Result<(), Stop> {
        let head = self.head().unwrap_or_else(|| Arc::clone(&driven.head));
        let limits = self.guards(&head).await?.limits(&id.environment);
        let instance = InstancePlan { carried: carried.to_vec(), ..whole(id, actions.to_vec()) };
        let summary = instance.summary();
        let whole = Plan::new(id.environment.clone(), driven.head.revision.clone(), None, "run".into(), vec![instance]);
        if let Some(note) = validation::plan(&whole, &limits).into_iter().find(|note| note.fatal) {
            return Err(Stop::Fails(note.says));
        }
        let mut spent = driven.spent.lock().await;
        let together = spent.iter().filter(|(other, _)| *other != id).fold(summary, |sum, (_, other)| sum.plus(other));
        if let Some(says) = validation::within(&together, &limits).into_iter().next() {
            return Err(Stop::Fails(format!("{says}; raise the limit in a pull request of its own, or change less")));
        }
        spent.insert(id.clone(), summary);
        if let Some(instance) = driven.run.lock().await.instances.get_mut(id) {
            instance.spent = Some(summary);
        }
        Ok(())
    }
}

/// What was seen of an instance where it belongs.
pub(super) struct Left {
    /// What would be done, and is none of the run's business.
    pub(super) others: Vec<Action>,
    /// What somebody should know.
    pub(super) warnings: Vec<String>,
}

/// An instance's actions as a plan of their own, for the checker: it depends on nothing.
fn whole(id: &InstanceId, actions: Vec<Action>) -> InstancePlan {
    let digest = Some(InstancePlan::digest_of(&actions));
    InstancePlan {
        id: id.clone(),
        kind: String::new(),
        digest,
        order: 1,
        after: vec![],
        waiting_on: vec![],
        actions,
        problem: None,
        warnings: vec![],
        layout: None,
        carried: vec![],
    }
}
