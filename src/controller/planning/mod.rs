//! Plans of environments: what is pending at head, in order, and how *applied* advances (R1.4, R1.5).
//!
//! Owns which environments' heads are planned. Changes no target.
//! *Race:* anything moves while head is planned: then nothing advances by that plan.

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

/// The plan of what is pending in an environment at head.
pub(crate) struct HeadPlan {
    pub(crate) head: Arc<Head>,
    pub(crate) plan: Plan,
    /// The inputs of the plan, for [`Planner::head_planned`].
    key: String,
}

/// The controller of plans.
pub(super) struct Planner {
    context: Arc<Context>,
    source: Arc<Source>,
    observer: Arc<Observer>,
    /// By environment: what its head plan depended on, where the plan was shown and has no problem. An environment
    /// without an entry is planned again.
    planned: Mutex<BTreeMap<EnvironmentName, String>>,
}

impl Planner {
    pub(crate) fn new(context: Arc<Context>, source: Arc<Source>, observer: Arc<Observer>) -> Arc<Self> {
        Arc::new(Self { context, source, observer, planned: Mutex::default() })
    }

    /// The instances whose last run failed or was cancelled.
    pub(crate) async fn stalled(&self) -> Result<BTreeMap<InstanceId, Stalled>, Error> {
        Ok(self.context.store.collection::<Stalled>().all().await?.into_iter().collect())
    }

    /// Makes the next request plan the head of an environment again, whatever it depends on.
    pub(crate) fn invalidate(&self, environment: &EnvironmentName) {
        self.planned.lock().remove(environment);
    }

    /// Records that the plan of an environment's head was shown, so that it is not made again while nothing changed.
    pub(crate) fn head_planned(&self, planned: &HeadPlan) {
        if planned.plan.instances.iter().all(|instance| instance.problem.is_none()) {
            self.planned.lock().insert(planned.plan.environment.clone(), planned.key.clone());
        }
    }

    /// Whether a plan of an environment's head was shown since the process started or the environment was invalidated.
    pub(crate) fn has_head_plan(&self, environment: &EnvironmentName) -> bool {
        self.planned.lock().contains_key(environment)
    }

    /// What the plan of an environment at head depends on, so that it is not made again while nothing changed.
    async fn plan_key(
        &self,
        head: &Head,
        environment: &EnvironmentName,
        pending: &BTreeSet<InstanceId>,
    ) -> Result<String, Error> {
        let applied = self.context.store.applied_in(environment).await?;
        let parts: Vec<String> = applied.iter().map(|(id, record)| format!("{id} {}", record.at)).collect();
        // A run that failed may have done a part, so that what is left is another plan (R5.1).
        let stalled: Vec<String> =
            self.stalled().await?.iter().map(|(id, stalled)| format!("{id} {}", stalled.run)).collect();
        Ok(format!("{} {pending:?} {parts:?} {stalled:?}", head.revision))
    }

    pub(crate) async fn is_planned(
        &self,
        head: &Head,
        environment: &EnvironmentName,
        pending: &BTreeSet<InstanceId>,
    ) -> Result<bool, Error> {
        let key = self.plan_key(head, environment, pending).await?;
        Ok(self.planned.lock().get(environment) == Some(&key))
    }

    /// Plans what waits at head, shows it, and lets *applied* advance where there is nothing to do (R1.5).
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
        // What somebody's word is about is planned again when that is done.
        let in_flight = |run: &Run| {
            let moves = |id: &InstanceId| run.holds(id) && run.instances[id].status != RunStatus::Waiting;
            !run.kind.by_merge() && instances.iter().any(moves)
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
                let is_held = self.context.store.open_runs().await?.iter().any(|run| run.holds(&instance.id));
                let nothing = instance.digest.is_some() && instance.actions.is_empty() && instance.problem.is_none();
                if nothing && !is_held {
                    self.let_go(&instance.id).await?;
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
            let nothing = instance.digest.is_some() && instance.actions.is_empty() && instance.problem.is_none();
            let still = nothing
                && instances.contains(&instance.id)
                && self.is_as_planned(&head, &instance.id, &before, &outcome.inputs).await?;
            if still
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
        // What head declares decides whether drift is still to be undone.
        self.context.queue.enqueue(ReconcileRequest::Proposals(environment.clone()), Reason::HeadPlanned);
        if plan.has_work() {
            self.context.store.record_plan(&head_subject(environment), &plan, self.context.now()).await?;
        }
        Ok(Some(HeadPlan { head, plan, key }))
    }

    /// Whether nothing moved while an instance was planned: head, what is applied, its inputs as they are recorded, and
    /// no run holds it.
    async fn is_as_planned(
        &self,
        head: &Head,
        id: &InstanceId,
        before: &BTreeMap<InstanceId, Applied>,
        inputs: &BTreeMap<String, RecordedOutput>,
    ) -> Result<bool, Error> {
        let mut now = BTreeMap::new();
        for upstream in sources(id, inputs) {
            now.extend(self.context.store.applied(&upstream).await?.map(|record| (upstream, record)));
        }
        let same_head = self.source.head().is_some_and(|now| now.revision == head.revision);
        let same_record =
            self.context.store.applied(id).await?.map(|record| record.at) == before.get(id).map(|record| record.at);
        let recorded = inputs.iter().all(|(key, value)| {
            input_source(id, key).is_some_and(|(upstream, name)| {
                now.get(&upstream).and_then(|record| record.outputs.get(name)) == Some(value)
            })
        });
        let held = self.context.store.open_runs().await?.iter().any(|run| run.holds(id));
        Ok(same_head && same_record && recorded && !held)
    }

    /// Records what head would change, for `status` and `explain`.
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

    /// Records that an instance is what head says.
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
        let fresh = Observed { warnings, ..Observed::new(self.context.now(), Some(head.revision.clone())) };
        self.context.store.advance(id, &applied, &fresh).await?;
        self.observer.end_snooze(id, &fresh).await?;
        self.context.due_changed.notify_one();
        Ok(())
    }

    /// Takes over what a merge changed of an applied instance without changing what it is made from: drift policy,
    /// checks, edges.
    pub(crate) async fn take_over_policy(&self, head: &Head, environment: &EnvironmentName) -> Result<(), Error> {
        let applied = self.context.store.applied_in(environment).await?;
        for instance in head.environment(environment) {
            let (Some(mut record), Some(spec), Some(digest)) =
                (applied.get(&instance.id).cloned(), &instance.spec, instance.digest)
            else {
                continue;
            };
            // What it is made from stays as it was applied, with the revision that holds it.
            let Some(kind) = targets::kinds().of(&record.spec.target) else { continue };
            let declared = kind.with_settings(&record.spec.target.declared, &spec.target.declared);
            let target = TargetSpec { kind: record.spec.target.kind.clone(), declared };
            let loosened = Component { target, ..(**spec).clone() };
            if record.digest == digest && record.spec != loosened {
                record.spec = loosened;
                self.context.store.set_applied(&instance.id, &record).await?;
            }
        }
        Ok(())
    }
}
