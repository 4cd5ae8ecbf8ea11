//! Plans environments, and advances *applied* where a plan is empty (R1.4, R1.5).
//!
//! *Owns:* which environments are planned at head, and the records of applied instances.
//! *Invariant:* a plan changes no target.
//! *Race:* head, an applied record or an input changes while head is planned: that plan advances no instance.

mod environment_plan;
mod orphans;
mod pending;
mod promotion;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use parking_lot::Mutex;

pub(crate) use environment_plan::Scope;
pub(crate) use pending::{environments, matched_nothing, undeclared};

use super::{
    context::{Context, Error},
    observe::Observer,
    records::{Stalled, head_subject},
    source::{Head, Source},
    work_queue::{Reason, ReconcileRequest},
};
use crate::{
    domain::{
        declaration::schema::Component,
        journal::{Run, Status as RunStatus},
        plan::{
            Applied, InstancePlan, Observed, Plan,
            pending::{input_source, sources},
        },
    },
    model::{EnvironmentName, InstanceId, RunId, TargetSpec},
    ports::{Job, RecordedOutput, Use},
    targets,
};

/// The plan of the pending instances of an environment at head.
pub(crate) struct HeadPlan {
    pub(crate) head: Arc<Head>,
    pub(crate) plan: Plan,
    /// Everything that the plan was computed from; [`Planner::head_planned`] records it.
    key: String,
}

/// The controller of plans.
pub(super) struct Planner {
    context: Arc<Context>,
    source: Arc<Source>,
    observer: Arc<Observer>,
    /// By environment: the key of its head plan, where the plan was published and has no problem. An environment without an
    /// entry is planned again.
    planned: Mutex<BTreeMap<EnvironmentName, String>>,
}

impl Planner {
    pub(crate) fn new(context: Arc<Context>, source: Arc<Source>, observer: Arc<Observer>) -> Arc<Self> {
        Arc::new(Self { context, source, observer, planned: Mutex::default() })
    }

    /// Returns the instances whose last run failed or was cancelled.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(crate) async fn stalled(&self) -> Result<BTreeMap<InstanceId, Stalled>, Error> {
        Ok(self.context.store.collection::<Stalled>().all().await?.into_iter().collect())
    }

    /// Makes the next request plan the head of an environment again, also if its key is unchanged.
    pub(crate) fn invalidate(&self, environment: &EnvironmentName) {
        self.planned.lock().remove(environment);
    }

    /// Records that the head plan of an environment was published, so that it is not repeated while its key is unchanged.
    pub(crate) fn head_planned(&self, planned: &HeadPlan) {
        if planned.plan.instances.iter().all(|instance| instance.problem.is_none()) {
            self.planned.lock().insert(planned.plan.environment.clone(), planned.key.clone());
        }
    }

    /// Whether a head plan of an environment was published since the process started or the environment was invalidated.
    pub(crate) fn has_head_plan(&self, environment: &EnvironmentName) -> bool {
        self.planned.lock().contains_key(environment)
    }

    /// Returns the key of the head plan of an environment: the facts that the plan depends on.
    async fn plan_key(
        &self,
        head: &Head,
        environment: &EnvironmentName,
        pending: &BTreeSet<InstanceId>,
    ) -> Result<String, Error> {
        let applied = self.context.store.applied_in(environment).await?;
        let parts: Vec<String> = applied.iter().map(|(id, record)| format!("{id} {}", record.at)).collect();
        // A failed run may have applied a part of its actions, so that the remaining plan is another one (R5.1).
        let stalled: Vec<String> =
            self.stalled().await?.iter().map(|(id, stalled)| format!("{id} {}", stalled.run)).collect();
        Ok(format!("{} {pending:?} {parts:?} {stalled:?}", head.revision))
    }

    /// Whether the head plan of an environment was published with the same key.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(crate) async fn is_planned(
        &self,
        head: &Head,
        environment: &EnvironmentName,
        pending: &BTreeSet<InstanceId>,
    ) -> Result<bool, Error> {
        let key = self.plan_key(head, environment, pending).await?;
        Ok(self.planned.lock().get(environment) == Some(&key))
    }

    /// Plans the pending instances at head, records the plan, and advances *applied* where a plan is empty (R1.5).
    ///
    /// # Errors
    /// When the store, the repository or a target fails.
    pub(crate) async fn plan_head(self: &Arc<Self>, environment: &EnvironmentName) -> Result<Option<HeadPlan>, Error> {
        self.invalidate(environment);
        let Some(head) = self.source.head() else { return Ok(None) };
        let pending = self.pending(&head, environment).await?;
        let open = self.context.store.open_runs().await?;
        let instances: BTreeSet<InstanceId> = pending
            .into_iter()
            .filter(|id| {
                !open
                    .iter()
                    .any(|run| run.holds(id) && run.kind.by_merge() && run.instances[id].status != RunStatus::Waiting)
            })
            .collect();
        // The end of a run by a command enqueues another plan.
        let in_flight = |run: &Run| {
            let is_in_progress = |id: &InstanceId| run.holds(id) && run.instances[id].status != RunStatus::Waiting;
            !run.kind.by_merge() && instances.iter().any(is_in_progress)
        };
        if instances.is_empty() || open.iter().any(in_flight) {
            return Ok(None);
        }
        let key = self.plan_key(&head, environment, &instances).await?;
        let before = self.context.store.applied_in(environment).await?;
        let scope =
            Scope { instances: instances.clone(), r#use: Use::Head, because: "head".into(), base: None, guards: None };
        let (plan, outcomes) = self.plan_environment(environment, &head, &scope).await?;
        let stalled = self.stalled().await?;
        let mut advanced = false;
        for instance in &plan.instances {
            let outcome = &outcomes[&instance.id];
            if head.instance(&instance.id).is_none() {
                let in_open_run = self.context.store.open_runs().await?.iter().any(|run| run.holds(&instance.id));
                let is_empty = instance.digest.is_some() && instance.actions.is_empty() && instance.problem.is_none();
                if is_empty && !in_open_run {
                    self.forget(&instance.id).await?;
                    self.context
                        .store
                        .audit(
                            self.context.now(),
                            "evenkeel",
                            "let-go",
                            &instance.id.to_string(),
                            "nothing is left of it",
                        )
                        .await?;
                }
                continue;
            }
            self.record_pending(&head, instance).await?;
            let is_empty = instance.digest.is_some() && instance.actions.is_empty() && instance.problem.is_none();
            let is_current = is_empty
                && instances.contains(&instance.id)
                && self.is_as_planned(&head, &instance.id, &before, &outcome.inputs).await?;
            if is_current
                && !outcome.first_contact
                && !stalled.contains_key(&instance.id)
                && let Some(job) = &outcome.job
            {
                let warnings = instance.warnings.clone();
                self.record_applied(&head, &instance.id, outcome.inputs.clone(), job, warnings, None).await?;
                self.context
                    .store
                    .audit(self.context.now(), "evenkeel", "advance", &instance.id.to_string(), "nothing to do")
                    .await?;
                tracing::info!(kind = "applied-advances", instance = %instance.id, revision = head.revision.short(), "applied advances to head without an apply");
                advanced = true;
            }
        }
        if advanced {
            self.context.queue.enqueue(ReconcileRequest::Merges(environment.clone()), Reason::AppliedAdvanced);
        }
        // The plan of head decides whether drift is proposed.
        self.context.queue.enqueue(ReconcileRequest::Proposals(environment.clone()), Reason::HeadPlanned);
        if plan.has_work() {
            self.context.store.record_plan(&head_subject(environment), &plan, self.context.now()).await?;
        }
        Ok(Some(HeadPlan { head, plan, key }))
    }

    /// Whether head, the applied record and the recorded inputs of an instance are unchanged since it was planned, and no
    /// open run contains the instance.
    async fn is_as_planned(
        &self,
        head: &Head,
        id: &InstanceId,
        before: &BTreeMap<InstanceId, Applied>,
        inputs: &BTreeMap<String, RecordedOutput>,
    ) -> Result<bool, Error> {
        let mut applied = BTreeMap::new();
        for upstream in sources(id, inputs) {
            applied.extend(self.context.store.applied(&upstream).await?.map(|record| (upstream, record)));
        }
        let same_head = self.source.head().is_some_and(|current| current.revision == head.revision);
        let same_record =
            self.context.store.applied(id).await?.map(|record| record.at) == before.get(id).map(|record| record.at);
        let recorded = inputs.iter().all(|(key, value)| {
            input_source(id, key).is_some_and(|(upstream, name)| {
                applied.get(&upstream).and_then(|record| record.outputs.get(name)) == Some(value)
            })
        });
        let in_open_run = self.context.store.open_runs().await?.iter().any(|run| run.holds(id));
        Ok(same_head && same_record && recorded && !in_open_run)
    }

    /// Records the changes that an apply of head would make, for `status` and `explain`.
    async fn record_pending(&self, head: &Head, instance: &InstancePlan) -> Result<(), Error> {
        let mut observed =
            self.context.store.observed(&instance.id).await?.unwrap_or_else(|| Observed::new(self.context.now(), None));
        observed.head = Some(head.revision.clone());
        observed.pending = instance.actions.iter().flat_map(|action| action.resources.clone()).collect();
        observed.waiting_on.clone_from(&instance.waiting_on);
        observed.planned_at = Some(self.context.now());
        observed.head_problem = instance.problem.clone().filter(|_| observed.against.is_some());
        if observed.against.is_none() {
            observed.at = self.context.now();
            observed.error = instance.problem.as_ref().map(|message| crate::domain::plan::ObservedError {
                kind: "plan-failed".into(),
                message: message.clone(),
                transient: false,
            });
        }
        self.context.store.set_observed(&instance.id, &observed).await?;
        Ok(())
    }

    /// Records that an instance is applied as head declares it.
    ///
    /// # Errors
    /// When the store or the target fails.
    pub(crate) async fn record_applied(
        self: &Arc<Self>,
        head: &Head,
        id: &InstanceId,
        inputs: BTreeMap<String, RecordedOutput>,
        job: &Job,
        warnings: Vec<String>,
        run: Option<RunId>,
    ) -> Result<(), Error> {
        let Some(instance) = head.instance(id) else { return Ok(()) };
        let (Some(spec), Some(digest)) = (&instance.spec, instance.digest) else { return Ok(()) };
        let outputs = self.context.target.outputs(job).await?;
        let outputs = outputs
            .iter()
            .filter_map(|(name, output)| Some((name.clone(), output.record(&self.context.seal)?)))
            .collect();
        let applied = Applied {
            revision: head.revision.clone(),
            digest,
            spec: (**spec).clone(),
            files: instance.closure.files.clone(),
            declares_backend: instance.closure.declares_backend,
            inputs,
            outputs,
            run,
            at: self.context.now(),
        };
        let observed = Observed { warnings, ..Observed::new(self.context.now(), Some(head.revision.clone())) };
        self.context.store.advance(id, &applied, &observed).await?;
        self.observer.end_snooze(id, &observed).await?;
        self.context.due_changed.notify_one();
        Ok(())
    }

    /// Records the settings of applied instances that a merge changed without a change of their digest: drift policy, checks
    /// and edges.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn record_settings(&self, head: &Head, environment: &EnvironmentName) -> Result<(), Error> {
        let applied = self.context.store.applied_in(environment).await?;
        for instance in head.environment(environment) {
            let (Some(mut record), Some(spec), Some(digest)) =
                (applied.get(&instance.id).cloned(), &instance.spec, instance.digest)
            else {
                continue;
            };
            // The content of the instance stays as it was applied, with the applied revision.
            let Some(kind) = targets::kinds().of(&record.spec.target) else { continue };
            let declared = kind.with_settings(&record.spec.target.declared, &spec.target.declared);
            let target = TargetSpec { kind: record.spec.target.kind.clone(), declared };
            let with_settings = Component { target, ..(**spec).clone() };
            if record.digest == digest && record.spec != with_settings {
                record.spec = with_settings;
                self.context.store.set_applied(&instance.id, &record).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
