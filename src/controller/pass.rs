//! One pass: the world against what is applied, for one instance (R1.4).
//!
//! *Flow:* look, compare, probe the checks, record, and hint at what follows: a proposal, a decision.
//! *Guarantees:* what could not be observed completely is recorded as such and never as *nothing*.
//! *Assumptions:* two passes of one instance take turns (the queue sees to it).

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{Daemon, Error, Head, Wake, advance::is_pending, looking::Look};
use crate::{
    domain::{
        declaration::schema::{Check, Component},
        journal::Status as RunStatus,
        plan::{self, Applied, InstancePlan, Observed, ObservedError},
    },
    model::{Action, Drift, DriftField, DriftKind, InstanceId},
    ports::{Job, Observation, TargetError},
    targets,
};

/// What may be over in a moment, without anybody's doing.
const PASSES: [&str; 5] = ["unreachable", "conflict", "state-locked", "state-moved", "lanes"];
/// How long a check may take where it does not say.
const CHECK_TIMEOUT: Duration = Duration::from_secs(30);

impl Daemon {
    /// Looks at one instance; answers what was observed, or nothing where a run is changing it.
    pub(super) async fn pass(self: &Arc<Self>, id: &InstanceId) -> Result<Option<Observed>, Error> {
        let _look = Look::new(self, id);
        let Some(head) = self.head() else { return Ok(None) };
        let Some(applied) = self.store().applied(id).await? else {
            self.queue.wake(Wake::Plan(id.environment.clone()), "not applied yet");
            return Ok(None);
        };
        if self.is_in_flight(id).await? {
            return Ok(None);
        }
        let observed = self.observe(&head, id, &applied).await?;
        self.counters.passes.fetch_add(1, Ordering::Relaxed);
        if observed.error.is_some() {
            self.counters.passes_failed.fetch_add(1, Ordering::Relaxed);
        }
        // A run may have begun, or begun and ended, while we looked; what it changes is not drift.
        if self.is_in_flight(id).await? {
            return Ok(None);
        }
        match self.store().applied(id).await? {
            Some(now) if now.at == applied.at => {}
            Some(_) => {
                self.queue.wake(Wake::Instance(id.clone()), "it was applied while it was looked at");
                return Ok(None);
            }
            None => return Ok(None),
        }
        let before = self.store().observed(id).await?;
        let mut observed = observed;
        if let Some(before) = &before {
            observed.head.clone_from(&before.head);
            observed.pending.clone_from(&before.pending);
            observed.waiting_on.clone_from(&before.waiting_on);
            observed.head_problem.clone_from(&before.head_problem);
            // In another world head would do something else.
            let digest = |observed: &Observed| InstancePlan::digest_of(&observed.revert);
            observed.planned_at = before.planned_at.filter(|_| digest(before) == digest(&observed));
        }
        let drifted = before.is_some_and(|before| !before.drift.is_empty()) || !observed.drift.is_empty();
        self.store().set_observed(id, &observed).await?;
        if observed.error.is_none() {
            self.end_snooze(id, &observed).await?;
        }
        if !observed.failed_checks.is_empty() {
            self.store().restart_soak(id, self.now()).await?;
        }
        if drifted && observed.planned_at.is_none() && self.is_pending_now(&head, id).await? {
            self.planned_for.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&id.environment);
            self.queue.wake(Wake::Plan(id.environment.clone()), "drift");
        }
        if drifted {
            self.queue.wake(Wake::Propose(id.environment.clone()), "drift");
        }
        Ok(Some(observed))
    }

    async fn is_pending_now(&self, head: &Head, id: &InstanceId) -> Result<bool, Error> {
        let applied = self.store().all_applied().await?;
        Ok(head.instance(id).is_some_and(|instance| is_pending(instance, &applied)))
    }

    /// Whether an effect on an instance is under way.
    pub(super) async fn is_in_flight(&self, id: &InstanceId) -> Result<bool, Error> {
        // A cluster that lets go of a node for another instance is being changed by that one's run.
        if self.vacating.lock().unwrap_or_else(std::sync::PoisonError::into_inner).values().any(|cluster| cluster == id)
        {
            return Ok(true);
        }
        let runs = self.store().open_runs().await?;
        Ok(runs.iter().any(|run| {
            run.instances
                .get(id)
                .is_some_and(|i| matches!(i.status, RunStatus::Running | RunStatus::Effected | RunStatus::Planned))
        }))
    }

    async fn observe(self: &Arc<Self>, head: &Head, id: &InstanceId, applied: &Applied) -> Result<Observed, Error> {
        let at = self.now();
        let started = std::time::Instant::now();
        let mut observed = Observed::new(at, Some(applied.revision.clone()));
        let looked = match self.applied_job(id, applied, head).await {
            Ok(job) => self.look_at_job(head, &job).await.map(|observation| (job, observation)),
            Err(Error::Target(error)) => Err(error),
            Err(error) => return Err(error),
        };
        match looked {
            Ok((job, observation)) => {
                if let Err(error) = self.identify(id, &observation, true).await {
                    let Error::Target(error) = error else { return Err(error) };
                    observed.error = Some(unknown(&error));
                    return Ok(observed);
                }
                if let Some(head) = self.head().filter(|_| !observation.capacity.is_empty())
                    && let Err(error) = self.ask_for_capacity(&head, id, &observation.capacity).await
                {
                    tracing::warn!(instance = %id, error = crate::error_chain(&error), "could not ask for more nodes");
                }
                let protect = self.guards(head).await?.protect(id);
                self.compare(&job, applied, &observation, &protect, &mut observed);
                let revert = std::mem::take(&mut observed.revert);
                match self.with_drains(head, id, revert.clone(), &observation).await {
                    Ok((revert, _)) => observed.revert = revert,
                    // It is proposed all the same, and refused where it is planned.
                    Err(Error::Target(error)) => {
                        observed.revert = revert;
                        observed.warnings.push(error.line());
                    }
                    Err(error) => return Err(error),
                }
            }
            Err(error) => observed.error = Some(unknown(&error)),
        }
        if observed.error.is_none() {
            observed.failed_checks = self.failed_checks(id, &applied.spec).await?;
        }
        observed.duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(observed)
    }

    fn compare(
        &self,
        job: &Job,
        applied: &Applied,
        observation: &Observation,
        protect: &[String],
        observed: &mut Observed,
    ) {
        let strict = applied.spec.drift.strict.unwrap_or(false);
        let (id, work) = (&job.instance, &job.work);
        observed.drift = targets::drift(work, observation);
        observed.warnings.clone_from(&observation.warnings);
        observed.layout.clone_from(&observation.layout);
        if observation.changes.is_empty() {
            // Outputs can change by somebody else's hand, and that is drift of this instance (R1.3).
            for (name, output) in &observation.outputs {
                let live = output.record(&self.hands.seal);
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
                    });
                }
            }
        }
        let drifted: Vec<String> = observed.drift.iter().map(|drift| drift.resource.clone()).collect();
        observed.revert = targets::actions(work, id, observation);
        plan::mark_protected(protect, &mut observed.revert);
        plan::mark_drifted(&drifted, &mut observed.revert);
        if strict && observed.revert.is_empty() {
            // No apply would change it, so the state is offered to take it over.
            observed.revert = targets::refresh(work, id, observation);
        }
        if !strict && observed.revert.is_empty() {
            // Adopt-only drift is told in the warnings and does not count.
            let (output, rest): (Vec<Drift>, Vec<Drift>) = std::mem::take(&mut observed.drift)
                .into_iter()
                .partition(|drift| drift.revertible || drift.resource.starts_with("output "));
            observed.drift = output;
            observed.warnings.extend(rest.iter().map(|drift| {
                format!("`{}` differs from the last apply in what the configuration does not set", drift.resource)
            }));
        }
    }

    /// The checks that do not answer, each in a sentence.
    pub(super) async fn failed_checks(
        self: &Arc<Self>,
        id: &InstanceId,
        spec: &Component,
    ) -> Result<Vec<String>, Error> {
        let mut failed = vec![];
        for check in &spec.checks {
            if let Err(why) = self.probe(id, check).await? {
                failed.push(format!("check `{}`: {why}", check.name));
            }
        }
        Ok(failed)
    }

    async fn probe(self: &Arc<Self>, id: &InstanceId, check: &Check) -> Result<Result<(), String>, Error> {
        let is_filled = [&check.http, &check.tcp].into_iter().flatten().any(|address| address.contains("${"));
        let applied = if is_filled { self.store().all_applied().await? } else { std::collections::BTreeMap::new() };
        let output = |reference: &crate::domain::declaration::Reference| {
            let upstream = InstanceId::new(&id.environment, &reference.component);
            let outputs = &applied.get(&upstream)?.outputs;
            let shown: serde_json::Map<_, _> =
                outputs.iter().filter_map(|(name, output)| Some((name.clone(), output.value.clone()?))).collect();
            crate::domain::declaration::resolve::lookup(&shown.into(), &reference.key)
        };
        let text = |address: &Option<String>| match address {
            None => Ok(None),
            Some(address) => crate::domain::declaration::resolve::fill(&address.as_str().into(), &output)
                .map(|value| value.as_str().map(str::to_owned)),
        };
        let timeout = check.timeout.map_or(CHECK_TIMEOUT, crate::model::Duration::std);
        match (text(&check.http), text(&check.tcp)) {
            (Ok(http), Ok(tcp)) => Ok(self.hands.target.probe(http.as_deref(), tcp.as_deref(), timeout).await),
            (Err(why), _) | (_, Err(why)) => Ok(Err(why)),
        }
    }
}

/// An error of a target as it is recorded.
pub(super) fn unknown(error: &TargetError) -> ObservedError {
    let passes = PASSES.contains(&error.kind);
    ObservedError { kind: error.kind.to_owned(), says: error.line(), passes }
}

/// The actions that revert an instance, where its drift can be reverted.
pub(super) fn revert(observed: &Observed) -> &[Action] {
    if observed.drift.is_empty() { &[] } else { &observed.revert }
}
