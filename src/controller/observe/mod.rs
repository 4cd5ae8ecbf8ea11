//! Checks instances for drift: compares the target with the applied declaration (R1.4).
//!
//! *Flow:* observe, compare, run the checks, record the observation, and enqueue proposals or a plan.
//! *Owns:* the observations, the identities of targets, the snoozes, and the drains in progress.
//! *Invariant:* an incomplete observation is recorded as unknown, never as empty.
//! *Race:* a run changes the instance during the check: the observation is discarded, and the end of the run enqueues a check.

mod checks;
mod drains;
mod hosts;
mod identity;
mod in_progress;
mod inputs;
mod owners;
mod snoozes;

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
};

use drains::Drains;
use in_progress::ChecksInProgress;

pub(crate) use drains::DrainInProgress;
pub(crate) use in_progress::CheckInProgress;
pub(crate) use inputs::{Inputs, Planned, declared_job};

use super::{
    context::{Context, Error},
    records::CapacityExceeded,
    source::{Head, Source},
    work_queue::{Reason, ReconcileRequest},
};
use crate::{
    domain::{
        journal::Status as RunStatus,
        kind::TargetKind,
        plan::{self, Applied, InstancePlan, Observed, ObservedError, Protection, pending::is_pending},
    },
    model::{Drift, DriftField, DriftKind, EnvironmentName, InstanceId},
    ports::{Job, Observation, TargetError, TargetErrorKind},
    targets,
};

/// The kinds of errors that may end without a change of declarations.
const TRANSIENT_KINDS: [TargetErrorKind; 5] = [
    TargetErrorKind::Unreachable,
    TargetErrorKind::Conflict,
    TargetErrorKind::StateLocked,
    TargetErrorKind::StateMoved,
    TargetErrorKind::Lanes,
];

/// Returns the record of an error of a target.
fn recorded_error(error: &TargetError) -> ObservedError {
    let transient = TRANSIENT_KINDS.contains(&error.kind);
    ObservedError { kind: error.kind.name().to_owned(), message: error.line(), transient }
}

/// The controller of drift checks, identities and inputs.
pub(super) struct Observer {
    context: Arc<Context>,
    source: Arc<Source>,
    checks: Arc<ChecksInProgress>,
    drains: Arc<Drains>,
}

impl Observer {
    pub(crate) fn new(context: Arc<Context>, source: Arc<Source>) -> Arc<Self> {
        let checks = ChecksInProgress::new(Arc::clone(&context));
        Arc::new(Self { context, source, checks, drains: Arc::default() })
    }

    /// Counts an instance as being checked until the result is dropped.
    pub(crate) fn begin_check(&self, id: &InstanceId) -> CheckInProgress {
        self.checks.begin(id)
    }

    /// Whether a check of one of the instances is in progress or enqueued. If so, the end of the next check in the
    /// environment enqueues its proposals.
    pub(crate) fn postpones_proposals(&self, environment: &EnvironmentName, ids: &BTreeSet<InstanceId>) -> bool {
        self.checks.postpones(environment, ids)
    }

    /// Waits until the proposals of an environment no longer wait for the end of a check.
    pub(crate) async fn check_ended(&self, environment: &EnvironmentName) {
        self.checks.ended(environment).await;
    }

    /// Waits until no drain of a cluster is in progress, and begins a drain for an instance.
    pub(crate) async fn begin_drain(&self, cluster: &InstanceId, host: &InstanceId) -> DrainInProgress {
        self.drains.begin(cluster, host).await
    }

    /// Returns the clusters that are being drained for an instance.
    pub(crate) fn drained_for(&self, id: &InstanceId) -> Vec<InstanceId> {
        self.drains.clusters_of(id)
    }

    /// Checks one instance for drift. Returns the observation; `None` where a run changes the instance.
    ///
    /// # Errors
    /// When the store fails. A target that fails is recorded as unknown.
    pub(crate) async fn check_drift(self: &Arc<Self>, id: &InstanceId) -> Result<Option<Observed>, Error> {
        let _check = self.begin_check(id);
        let Some(head) = self.source.head() else { return Ok(None) };
        let Some(applied) = self.context.store.applied(id).await? else {
            self.context.queue.enqueue(ReconcileRequest::HeadPlan(id.environment.clone()), Reason::NotApplied);
            return Ok(None);
        };
        if self.is_in_flight(id).await? {
            return Ok(None);
        }
        let observed = self.observe(&head, id, &applied).await?;
        self.context.metrics.drift_checks.fetch_add(1, Ordering::Relaxed);
        if observed.error.is_some() {
            self.context.metrics.drift_checks_failed.fetch_add(1, Ordering::Relaxed);
        }
        // A run may have begun, or begun and ended, during the observation. Its changes are not drift.
        if self.is_in_flight(id).await? {
            return Ok(None);
        }
        match self.context.store.applied(id).await? {
            Some(current) if current.at == applied.at => {}
            Some(_) => {
                self.context.queue.enqueue(ReconcileRequest::Instance(id.clone()), Reason::AppliedDuringCheck);
                return Ok(None);
            }
            None => return Ok(None),
        }
        let before = self.context.store.observed(id).await?;
        let mut observed = observed;
        if let Some(before) = &before {
            observed.head.clone_from(&before.head);
            observed.pending.clone_from(&before.pending);
            observed.waiting_on.clone_from(&before.waiting_on);
            observed.head_problem.clone_from(&before.head_problem);
            // After other drift, a plan of head would have other actions.
            let digest = |observed: &Observed| InstancePlan::digest_of(&observed.revert);
            observed.planned_at = before.planned_at.filter(|_| digest(before) == digest(&observed));
        }
        let drifted = before.is_some_and(|before| !before.drift.is_empty()) || !observed.drift.is_empty();
        self.context.store.set_observed(id, &observed).await?;
        if observed.error.is_none() {
            self.end_snooze(id, &observed).await?;
        }
        if !observed.failed_checks.is_empty() {
            self.context.store.restart_soak(id, self.context.now()).await?;
        }
        if drifted && observed.planned_at.is_none() && self.is_pending_at_head(&head, id).await? {
            self.context.queue.enqueue(ReconcileRequest::HeadPlan(id.environment.clone()), Reason::Drift);
        }
        if drifted {
            self.context.queue.enqueue(ReconcileRequest::Proposals(id.environment.clone()), Reason::Drift);
        }
        Ok(Some(observed))
    }

    async fn is_pending_at_head(&self, head: &Head, id: &InstanceId) -> Result<bool, Error> {
        let applied = self.context.store.applied_in(&id.environment).await?;
        Ok(head.instance(id).is_some_and(|instance| is_pending(instance, &applied)))
    }

    /// Whether a run changes an instance.
    async fn is_in_flight(&self, id: &InstanceId) -> Result<bool, Error> {
        // A cluster that is drained for another instance is changed by the run of that instance.
        if self.drains.is_drained(id) {
            return Ok(true);
        }
        let runs = self.context.store.open_runs().await?;
        Ok(runs.iter().any(|run| {
            run.instances
                .get(id)
                .is_some_and(|i| matches!(i.status, RunStatus::Running | RunStatus::Effected | RunStatus::Planned))
        }))
    }

    async fn observe(self: &Arc<Self>, head: &Head, id: &InstanceId, applied: &Applied) -> Result<Observed, Error> {
        let at = self.context.now();
        let started = std::time::Instant::now();
        let mut observed = Observed::new(at, Some(applied.revision.clone()));
        let observation = match self.applied_job(id, applied, head).await {
            Ok(job) => self.observe_job(head, &job).await.map(|observation| (job, observation)),
            Err(Error::Target(error)) => Err(error),
            Err(error) => return Err(error),
        };
        match observation {
            Ok((job, observation)) => {
                if let Err(error) = self.identify(id, &observation, true).await {
                    let Error::Target(error) = error else { return Err(error) };
                    observed.error = Some(recorded_error(&error));
                    return Ok(observed);
                }
                self.record_capacity(id, &observation).await?;
                let protect = self.source.guards(head).await?.protect(id);
                self.compare(targets::kind(&job.target)?, (&job, applied), &observation, &protect, &mut observed);
                let revert = std::mem::take(&mut observed.revert);
                match self.with_drain_actions(head, id, revert.clone(), &observation).await {
                    Ok((revert, _)) => observed.revert = revert,
                    // The drift is proposed, and the plan of the remediation reports the error.
                    Err(Error::Target(error)) => {
                        observed.revert = revert;
                        observed.warnings.push(error.line());
                    }
                    Err(error) => return Err(error),
                }
            }
            Err(error) => observed.error = Some(recorded_error(&error)),
        }
        if observed.error.is_none() {
            observed.failed_checks = self.failed_checks(id, &applied.spec).await?;
        }
        observed.duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(observed)
    }

    /// Records which capacity rules a cluster exceeds, and enqueues a proposal of more nodes.
    async fn record_capacity(&self, id: &InstanceId, observation: &Observation) -> Result<(), Error> {
        let exceeded = CapacityExceeded(observation.capacity.clone());
        let collection = self.context.store.collection::<CapacityExceeded>();
        match collection.get(id).await? {
            Some(_) if exceeded.0.is_empty() => collection.remove(id).await?,
            None if exceeded.0.is_empty() => {}
            Some(stored) if stored == exceeded => {}
            _ => collection.put(id, self.context.now(), &exceeded).await?,
        }
        if !exceeded.0.is_empty() {
            self.context.queue.enqueue(ReconcileRequest::Capacity(id.clone()), Reason::CapacityExceeded);
        }
        Ok(())
    }

    fn compare(
        &self,
        kind: &dyn TargetKind,
        (job, applied): (&Job, &Applied),
        observation: &Observation,
        protect: &Protection,
        observed: &mut Observed,
    ) {
        let strict = applied.spec.drift.strict.unwrap_or(false);
        let id = &job.instance;
        observed.drift = kind.drift(observation);
        observed.warnings.clone_from(&observation.warnings);
        observed.layout.clone_from(&observation.layout);
        if observation.changes.is_empty() {
            // An output that another writer changed is drift of this instance (R1.3).
            for (name, output) in &observation.outputs {
                let live = output.record(&self.context.seal);
                let recorded = applied.outputs.get(name);
                if recorded.is_some() && live.as_ref() != recorded {
                    let field = DriftField {
                        path: String::new(),
                        desired: recorded.and_then(|r| r.value.clone()),
                        observed: live.and_then(|l| l.value),
                    };
                    observed.drift.push(Drift {
                        resource: format!("output {name}"),
                        drift: DriftKind::Changed,
                        revertible: false,
                        fields: vec![field],
                        changed_by: None,
                        changed_at: None,
                        is_output: true,
                    });
                }
            }
        }
        let drifted: Vec<String> = observed.drift.iter().map(|drift| drift.resource.clone()).collect();
        observed.revert = kind.actions(id, observation);
        plan::mark_protected(protect, &mut observed.revert);
        plan::mark_drifted(&drifted, &mut observed.revert);
        if strict && observed.revert.is_empty() {
            // No apply would change the drift: a refresh of the state is proposed.
            observed.revert = kind.refresh(id, observation);
        }
        if !strict && observed.revert.is_empty() {
            // Drift that can only be adopted is reported as a warning.
            let (counted, adopt_only): (Vec<Drift>, Vec<Drift>) =
                std::mem::take(&mut observed.drift).into_iter().partition(|drift| drift.revertible || drift.is_output);
            observed.drift = counted;
            observed.warnings.extend(adopt_only.iter().map(|drift| {
                format!("`{}` differs from the last apply in what the configuration does not set", drift.resource)
            }));
        }
    }
}

#[cfg(test)]
mod tests;
