//! Prepares an instance for its effect: lock, upstreams, plan, approval (R2.4, R2.7, R3.3, R3.4).
//!
//! Plans under the target's lock, and compares the planned actions with the approved actions.
//! *Invariant:* changes no target. Writes only the run lock, the identity, the selected moves, and the `planned` record.
//! *Race:* a newer run of the instance appears while a run waits for the lock: the older run ends as superseded.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    controller::{
        context::Error,
        observe::declared_job,
        runs::{Runs, driven::Driven},
        source::Head,
    },
    domain::{
        declaration::schema::Deferred,
        journal::{Approved, Event, Run, RunKind},
        message::run::RunReason,
        plan::{self, Applied, HostedNode, InstancePlan},
        remediation,
    },
    model::{Action, InstanceId, Retry, WaitingOn},
    ports::{Job, Prepared, RecordedOutput, TargetErrorKind, Use},
    targets,
};

/// The number of attempts to plan an instance after retryable errors, before the instance is stalled.
const ATTEMPTS_MAX: u32 = 3;

/// An instance that is ready for its effect.
pub(super) struct Ready {
    pub(crate) job: Job,
    pub(crate) prepared: Prepared,
    pub(crate) inputs: BTreeMap<String, RecordedOutput>,
    pub(crate) actions: Vec<Action>,
    pub(crate) hosted_nodes: Vec<HostedNode>,
}

/// The reason why the effect of an instance does not begin.
pub(super) enum Stop {
    Waits(WaitingOn, RunReason),
    Fails(RunReason),
    /// No action is selected.
    Unchanged(Box<Job>, BTreeMap<String, RecordedOutput>, Remaining),
    /// Another run destroyed and forgot the instance.
    Destroyed,
    Error(Error),
    /// The daemon stops; the next daemon resumes the run.
    ShuttingDown,
    /// A newer run replaces this run.
    Superseded(RunReason),
    /// A principal cancelled the instance.
    Cancelled(RunReason),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        match error {
            Error::Target(error) => Self::Fails(RunReason::Reported(error.line())),
            other => Self::Error(other),
        }
    }
}

impl From<crate::controller::source::Error> for Stop {
    fn from(error: crate::controller::source::Error) -> Self {
        Self::Error(error.into())
    }
}

impl From<crate::adapters::store::Error> for Stop {
    fn from(error: crate::adapters::store::Error) -> Self {
        Self::Error(error.into())
    }
}

/// The planned actions of an instance that the run does not execute.
pub(super) struct Remaining {
    /// Planned actions that are not part of the run.
    pub(crate) actions: Vec<Action>,
    /// The warnings of the observation.
    pub(crate) warnings: Vec<String>,
}

impl Runs {
    /// Runs every step before the effect: lock, job, plan, identity, approval, and limits.
    ///
    /// # Errors
    /// The reason why the effect does not begin.
    pub(super) async fn prepare(self: &Arc<Self>, driven: &Driven, id: &InstanceId) -> Result<Ready, Stop> {
        let run = driven.run.lock().await.clone();
        self.acquire_run_lock(&run, id).await?;
        let applied = self.context.store.applied(id).await?;
        if run.kind.destroys() && applied.is_none() {
            return Err(Stop::Destroyed);
        }
        let (mut job, inputs) = self.job(driven, &run, id, applied.as_ref()).await?;
        self.restore_approved_moves(driven, &run, id, &mut job).await?;
        let (job, prepared) = self.prepare_job(&driven.head, &job).await?;
        let observation = &prepared.observation;
        match self.observer.identify(id, observation, applied.is_some()).await {
            Err(Error::Target(error)) if error.kind == TargetErrorKind::Identity => {
                return Err(Stop::Waits(WaitingOn::Confirm, RunReason::Reported(error.line())));
            }
            identified => identified?,
        }
        // The current guards apply, also to a run that was authorised earlier (R3.4).
        let guards = match self.source.head() {
            Some(head) => self.source.guards(&head).await?.protect(id),
            None => self.source.guards(&driven.head).await?.protect(id),
        };
        let actions = targets::kind(&job.target).map_err(Error::from)?.actions(id, observation);
        let (mut actions, hosted_nodes) =
            self.observer.with_drain_actions(&driven.head, id, actions, observation).await?;
        plan::mark_protected(&guards, &mut actions);
        let digest = (!actions.is_empty()).then(|| InstancePlan::digest_of(&actions));
        self.record(driven, id, Event::Planned { digest }, None).await?;
        if applied.is_none()
            && run.kind.by_merge()
            && self.planner.is_first_contact(id, observation.holds_anything).await?
        {
            let holds_anything = observation.holds_anything;
            let reason = if holds_anything { RunReason::FirstContact } else { RunReason::NoHistory };
            return Err(Stop::Waits(WaitingOn::FirstContact, reason));
        }
        if actions.is_empty() {
            let remaining = Remaining { actions: vec![], warnings: observation.warnings.clone() };
            return Err(Stop::Unchanged(Box::new(job), inputs, remaining));
        }
        let planned = actions.clone();
        if run.kind.by_merge()
            && let Some(message) = self.observer.reverts_snoozed(id, &actions).await?
        {
            return Err(Stop::Waits(WaitingOn::Approval { digest: InstancePlan::digest_of(&actions) }, message));
        }
        let actions = self.approve(driven, &run, id, actions).await?;
        let actions = self.select_within_limits(driven, &run, id, actions, observation.layout.as_ref()).await?;
        if actions.is_empty() {
            let remaining = Remaining { actions: planned, warnings: prepared.observation.warnings };
            return Err(Stop::Unchanged(Box::new(job), inputs, remaining));
        }
        self.guard(driven, id, &actions, &hosted_nodes).await?;
        match self.observer.pin_before_effect(id, &prepared.observation).await {
            Err(Error::Refused(refusal)) => return Err(Stop::Fails(RunReason::Reported(refusal.to_string()))),
            identified => identified?,
        }
        let mut prepared = prepared;
        // Actions that were removed from a remediation are not executed.
        let is_selected = |name: &str| actions.iter().flat_map(|action| &action.resources).any(|r| r.resource == name);
        prepared.observation.changes.retain(|change| is_selected(&change.resource));
        Ok(Ready { job, prepared, inputs, actions, hosted_nodes })
    }

    /// Returns the job of an instance: the declaration, or the applied record for a remediation.
    async fn job(
        self: &Arc<Self>,
        driven: &Driven,
        run: &Run,
        id: &InstanceId,
        applied: Option<&Applied>,
    ) -> Result<(Job, BTreeMap<String, RecordedOutput>), Stop> {
        if run.kind.destroys() {
            return self.destroy_job(driven, run, id).await;
        }
        if run.reverts() {
            let Some(record) = applied else {
                return Err(Stop::Fails(RunReason::NotApplied(id.clone())));
            };
            return Ok((self.observer.remediation_job(run, id, record, &driven.head).await?, record.inputs.clone()));
        }
        let head = &driven.head;
        let Some(instance) = head.instance(id) else {
            return Err(Stop::Fails(RunReason::NotDeclared(id.clone(), head.revision.clone())));
        };
        if let Some(problem) = instance.problems.first() {
            return Err(Stop::Fails(RunReason::DeclarationProblem(problem.to_string())));
        }
        if let Some(on) = self.planner.promotion(head, id).await? {
            return Err(Stop::Waits(on.clone(), RunReason::Waits(on)));
        }
        if let Some(upstream) = self.unfinished_upstream(head, instance).await? {
            let reason = RunReason::UpstreamPending(upstream.clone());
            return Err(Stop::Waits(WaitingOn::Upstream { instance: upstream }, reason));
        }
        let inputs = self.observer.inputs(head, id, &instance.references, &BTreeMap::new()).await?;
        if let Some(on) = inputs.waiting_on.first() {
            return Err(Stop::Waits(on.clone(), RunReason::Waits(on.clone())));
        }
        let job = declared_job(instance, Use::Head, Arc::clone(&head.content), &inputs, head.consumed(id))
            .map_err(|error| Stop::Fails(RunReason::Reported(error.line())))?;
        Ok((job, inputs.recorded))
    }

    /// Returns the job that destroys an orphan, if the instance is an orphan at head and no other instance uses it.
    async fn destroy_job(
        self: &Arc<Self>,
        driven: &Driven,
        run: &Run,
        id: &InstanceId,
    ) -> Result<(Job, BTreeMap<String, RecordedOutput>), Stop> {
        let head = self.still_orphaned(driven, run, id).await?;
        Ok((self.observer.destroy_job(id, &head).await?, BTreeMap::new()))
    }

    /// Returns the head, if an instance that a run destroys is an orphan there and no other instance uses it.
    async fn still_orphaned(self: &Arc<Self>, driven: &Driven, run: &Run, id: &InstanceId) -> Result<Arc<Head>, Stop> {
        let head = self.source.head().unwrap_or_else(|| Arc::clone(&driven.head));
        if !self.planner.orphans(&head).await?.contains_key(id) {
            return Err(Stop::Fails(RunReason::NotOrphaned));
        }
        if let Some((user, message)) = self.planner.in_use(&head, id, &run.instances.keys().cloned().collect()).await? {
            return Err(Stop::Waits(WaitingOn::Upstream { instance: user }, message));
        }
        Ok(head)
    }

    /// Fetches the branch and checks again that an instance is an orphan.
    ///
    /// # Errors
    /// [`Stop::Fails`] where the instance is declared, [`Stop::Waits`] where another instance uses it.
    pub(super) async fn still_orphaned_at_branch(
        self: &Arc<Self>,
        driven: &Driven,
        run: &Run,
        id: &InstanceId,
    ) -> Result<(), Stop> {
        self.source.refresh().await?;
        self.still_orphaned(driven, run, id).await.map(drop)
    }

    /// Plans a job under the lock of its target, and retries retryable errors.
    ///
    /// # Errors
    /// [`Stop::Fails`] after a permanent error or [`ATTEMPTS_MAX`] attempts.
    pub(super) async fn prepare_job(self: &Arc<Self>, head: &Head, job: &Job) -> Result<(Job, Prepared), Stop> {
        let mut attempt = 0;
        loop {
            match self.observer.prepare_job_with_owners(head, job).await {
                Ok(prepared) => return Ok(prepared),
                Err(error) => match error.retry {
                    Retry::After(backoff) if attempt + 1 < ATTEMPTS_MAX => {
                        attempt += 1;
                        tokio::select! {
                            () = tokio::time::sleep(backoff.wait(attempt).std()) => {}
                            () = self.context.stopped() => return Err(Stop::ShuttingDown),
                        }
                    }
                    _ => return Err(Stop::Fails(RunReason::Reported(error.line()))),
                },
            }
        }
    }

    /// Returns the planned actions that may be executed: the approved ones (R2.4), or those that a remediation
    /// selects.
    async fn approve(
        self: &Arc<Self>,
        driven: &Driven,
        run: &Run,
        id: &InstanceId,
        actions: Vec<Action>,
    ) -> Result<Vec<Action>, Stop> {
        let digest = InstancePlan::digest_of(&actions);
        let awaits_approval = |reason: RunReason| Stop::Waits(WaitingOn::Approval { digest }, reason);
        match self.context.store.approved(run.id, id).await?.unwrap_or(Approved::Unknown) {
            Approved::Declaration => Ok(actions),
            Approved::Actions { actions: approved } if run.kind == RunKind::Revert => {
                match plan::covers(&approved, &actions) {
                    Ok(()) => Ok(actions),
                    Err(_) if !actions.iter().any(|action| action.effect.atomic) => {
                        // Later drift and snoozed drift are not part of this run.
                        let (selected, _) = self.partition_actions(driven, run, id, actions).await?;
                        plan::covers(&approved, &selected).map_err(|gap| Stop::Fails(RunReason::DriftChanged(gap)))?;
                        Ok(selected)
                    }
                    Err(gap) => Err(Stop::Fails(RunReason::DriftChanged(gap))),
                }
            }
            Approved::Actions { actions: approved } => match plan::covers(&approved, &actions) {
                Ok(()) => Ok(actions),
                Err(gap) => Err(awaits_approval(RunReason::NotCovered(gap))),
            },
            Approved::Unknown => {
                let deferred =
                    driven.head.desired.environments.get(&run.environment).map(|e| e.deferred).unwrap_or_default();
                match deferred {
                    Deferred::Apply => Ok(actions),
                    Deferred::Wait => Err(awaits_approval(RunReason::WasUnknown)),
                }
            }
            Approved::Moves { .. } => Ok(actions.into_iter().filter(|action| action.effect.relocates).collect()),
            Approved::Remediation => {
                let name = run.kind.remediation().unwrap_or_default();
                let Ok(name) = name.parse() else {
                    return Err(Stop::Fails(RunReason::RemediationMissing(name.to_owned())));
                };
                let Some((remediation, _)) = driven.head.desired.remediations.get(&name) else {
                    return Err(Stop::Fails(RunReason::RemediationMissing(name.to_string())));
                };
                let stored = self.stored_actions(remediation).await?;
                if let Some(reason) = self.edited(name.as_str(), remediation).await? {
                    return Err(Stop::Fails(RunReason::RemediationUnusable(reason)));
                }
                let selected =
                    remediation::lets_through(remediation, id, &|digest| stored.get(digest).cloned(), &actions)
                        .map_err(|reason| Stop::Fails(RunReason::RemediationUnusable(reason)))?;
                Ok(selected)
            }
        }
    }
}
