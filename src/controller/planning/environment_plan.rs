//! Plans one environment at a revision, in order, with the planned outputs of upstreams (R2.5).
//!
//! *Flow:* each instance is planned as soon as its upstreams are planned. Where the outputs of an upstream are unknown, its
//! dependents are *known after*.
//! *Invariant:* a plan changes no target. A slow instance delays only its dependents. An instance that can't be planned is in
//! the plan with the reason, and blocks the plan.
//! *Race:* a target changes after its observation: the run plans again, and compares its plan with the approved one.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::Pin,
    sync::Arc,
};

use futures::future::{FutureExt, Shared, join_all};

use crate::{
    controller::{
        context::Error,
        observe::{Inputs, Planned, declared_job},
        planning::Planner,
        source::Head,
    },
    domain::{
        authorization::guards::InForce,
        declaration::Instance,
        plan::{Applied, InstancePlan, Plan, Protection, mark_drifted, mark_protected, order, pending::dependents},
    },
    model::{EnvironmentName, InstanceId, Revision, WaitingOn},
    ports::{Job, Observation, Output, RecordedOutput, TargetErrorKind, Use},
    targets,
};

/// The scope of a plan.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    /// The instances to plan.
    pub instances: BTreeSet<InstanceId>,
    /// The content of the work trees.
    pub r#use: Use,
    /// The cause of the plan.
    pub because: String,
    /// The base revision, for a pull request.
    pub base: Option<Revision>,
    /// The guards for a pull request; `None` for the guards in force.
    pub guards: Option<InForce>,
}

/// The result of planning one instance.
#[derive(Clone, Default)]
pub(crate) struct Outcome {
    /// The plan; absent where the instance is not affected.
    pub(crate) plan: Option<InstancePlan>,
    /// The planned outputs; absent where the recorded outputs do not change.
    pub(crate) outputs: Option<BTreeMap<String, Output>>,
    /// The inputs, as they would be recorded.
    pub(crate) inputs: BTreeMap<String, RecordedOutput>,
    /// The observed job.
    pub(crate) job: Option<Job>,
    /// Whether the target has objects that this store never applied (R1.6).
    pub(crate) first_contact: bool,
}

type Planning = Shared<Pin<Box<dyn Future<Output = Arc<Outcome>> + Send>>>;

/// Records why an instance has no plan: it is known after an upstream that creates a missing object, or planning failed.
fn not_planned(plan: &mut InstancePlan, error: &Error, changing: &[InstanceId]) {
    match (error, changing.first()) {
        (Error::Target(error), Some(upstream)) if error.kind == TargetErrorKind::NotThereYet => {
            plan.waiting_on.push(WaitingOn::KnownAfter { instance: upstream.clone() });
        }
        (Error::Target(error), _) => plan.problem = Some(error.whole()),
        (other, _) => plan.problem = Some(crate::error_chain(other)),
    }
}

/// The request to plan one instance.
struct PlanRequest<'a> {
    id: &'a InstanceId,
    step: usize,
    /// Whether the scope contains the instance, and not only its upstream.
    is_in_scope: bool,
    r#use: Use,
    applied: Option<&'a Applied>,
    drifted: &'a [String],
    protect: &'a Protection,
    blocked: Option<InstanceId>,
    /// The upstreams that the same plan changes.
    changing: Vec<InstanceId>,
    /// The applied name of a renamed instance.
    formerly: Option<InstanceId>,
}

/// Returns the planned outputs of the upstreams, the first upstream with unknown outputs, and the upstreams with work.
async fn upstream_plans(upstreams: Vec<(InstanceId, Planning)>) -> (Planned, Option<InstanceId>, Vec<InstanceId>) {
    let (mut planned, mut blocked, mut changing) = (Planned::new(), None, vec![]);
    for (upstream, planning) in upstreams {
        let outcome = planning.await;
        if outcome.plan.as_ref().is_some_and(|plan| !plan.actions.is_empty()) {
            changing.push(upstream.clone());
        }
        if outcome.plan.as_ref().is_some_and(|plan| plan.problem.is_some()) {
            blocked = Some(upstream.clone());
        }
        if let Some(outputs) = &outcome.outputs {
            planned.insert(upstream, outputs.clone());
        } else if outcome.plan.as_ref().is_some_and(|plan| plan.digest.is_none()) {
            planned.insert(upstream, BTreeMap::new());
            blocked = blocked.or_else(|| planned.keys().last().cloned());
        }
    }
    (planned, blocked, changing)
}

/// Returns the instances and their transitive downstreams by references.
pub(crate) fn with_downstream(
    head: &Head,
    environment: &EnvironmentName,
    instances: &BTreeSet<InstanceId>,
) -> BTreeSet<InstanceId> {
    let mut all = instances.clone();
    loop {
        let downstream: Vec<InstanceId> = head
            .environment(environment)
            .filter(|instance| !all.contains(&instance.id))
            .filter(|instance| {
                instance.references.iter().any(|r| {
                    r.component != instance.id.component && all.contains(&InstanceId::new(environment, &r.component))
                })
            })
            .map(|instance| instance.id.clone())
            .collect();
        if downstream.is_empty() {
            return all;
        }
        all.extend(downstream);
    }
}

/// Returns the instances of a plan in order. The steps start at 1, and only upstreams within the plan count.
fn in_order(mut instances: Vec<InstancePlan>) -> Vec<InstancePlan> {
    let ids: BTreeSet<InstanceId> = instances.iter().map(|instance| instance.id.clone()).collect();
    for instance in &mut instances {
        instance.after.retain(|upstream| ids.contains(upstream));
    }
    let edges: BTreeMap<InstanceId, BTreeSet<InstanceId>> =
        instances.iter().map(|i| (i.id.clone(), i.after.iter().cloned().collect())).collect();
    let steps: BTreeMap<InstanceId, usize> = order(&edges).into_iter().collect();
    for instance in &mut instances {
        instance.order = steps[&instance.id];
    }
    instances.sort_by(|left, right| (left.order, &left.id).cmp(&(right.order, &right.id)));
    instances
}

impl Planner {
    /// Plans instances of an environment as a revision declares them, and the downstreams that their plans change.
    ///
    /// # Errors
    /// When the store or the repository fails. An instance that can't be planned is in the plan with the reason.
    pub(crate) async fn plan_environment(
        self: &Arc<Self>,
        environment: &EnvironmentName,
        head: &Arc<Head>,
        scope: &Scope,
    ) -> Result<(Plan, BTreeMap<InstanceId, Arc<Outcome>>), Error> {
        let applied = Arc::new(self.context.store.applied_in(environment).await?);
        let observed = self.context.store.observed_in(environment).await?;
        let guards = match &scope.guards {
            Some(guards) => guards.clone(),
            None => self.source.guards(head).await?,
        };
        let considered = with_downstream(head, environment, &scope.instances);
        let predecessors = |id: &InstanceId| match head.instance(id) {
            Some(instance) => instance.upstreams.clone(),
            // A destroyed instance follows all its users.
            None => dependents(id, &applied).intersection(&considered).cloned().collect(),
        };
        let edges: BTreeMap<InstanceId, BTreeSet<InstanceId>> =
            considered.iter().map(|id| (id.clone(), predecessors(id))).collect();
        let ordered = order(&edges);
        let mut plannings: BTreeMap<InstanceId, Planning> = BTreeMap::new();
        for (id, step) in &ordered {
            let upstreams: Vec<(InstanceId, Planning)> =
                edges[id].iter().filter_map(|up| Some((up.clone(), plannings.get(up)?.clone()))).collect();
            let is_in_scope = scope.instances.contains(id);
            let protect = guards.protect(id);
            let drifted: Vec<String> =
                observed.get(id).map(|o| o.drift.iter().map(|d| d.resource.clone()).collect()).unwrap_or_default();
            let (planner, head, applied, id_for_task, step, r#use) =
                (Arc::clone(self), Arc::clone(head), Arc::clone(&applied), id.clone(), *step, scope.r#use);
            let after: Vec<InstanceId> = edges[id].iter().cloned().collect();
            let planning = async move {
                if head.instance(&id_for_task).is_none() {
                    let plan = InstancePlan {
                        order: step,
                        after,
                        ..planner.plan_destroy(&head, &id_for_task, &protect).await
                    };
                    return Arc::new(Outcome { plan: Some(plan), ..Outcome::default() });
                }
                let (planned, blocked, changing) = upstream_plans(upstreams).await;
                let formerly = head.instance(&id_for_task).and_then(|instance| instance.renamed_from.clone());
                let formerly = formerly.filter(|old| !applied.contains_key(&id_for_task) && applied.contains_key(old));
                let request = PlanRequest {
                    id: &id_for_task,
                    step,
                    is_in_scope,
                    r#use,
                    applied: applied.get(&id_for_task).or_else(|| applied.get(formerly.as_ref()?)),
                    formerly,
                    drifted: &drifted,
                    protect: &protect,
                    blocked,
                    changing,
                };
                Arc::new(planner.plan_instance(&head, request, &planned).await)
            };
            let planning: Pin<Box<dyn Future<Output = Arc<Outcome>> + Send>> = Box::pin(planning);
            plannings.insert(id.clone(), planning.shared());
        }
        let outcomes: Vec<(InstanceId, Arc<Outcome>)> =
            join_all(plannings.into_iter().map(|(id, planning)| async move { (id, planning.await) })).await;
        let instances = in_order(outcomes.iter().filter_map(|(_, outcome)| outcome.plan.clone()).collect());
        let plan =
            Plan::new(environment.clone(), head.revision.clone(), scope.base.clone(), scope.because.clone(), instances);
        Ok((plan, outcomes.into_iter().collect()))
    }

    async fn plan_instance(self: &Arc<Self>, head: &Arc<Head>, request: PlanRequest<'_>, planned: &Planned) -> Outcome {
        let id = request.id;
        let none = Outcome::default();
        let Some(instance) = head.instance(id) else { return none };
        let mut plan = InstancePlan {
            id: id.clone(),
            kind: instance.kind.to_owned(),
            digest: None,
            order: request.step,
            after: instance.upstreams.iter().cloned().collect(),
            waiting_on: vec![],
            actions: vec![],
            problem: None,
            warnings: vec![],
            layout: None,
            carried: vec![],
        };
        if let Some(problem) = instance.problems.first() {
            plan.problem = Some(problem.to_string());
            return Outcome { plan: request.is_in_scope.then_some(plan), ..none };
        }
        if let Some(upstream) = request.blocked {
            plan.waiting_on.push(WaitingOn::KnownAfter { instance: upstream });
            return Outcome { plan: Some(plan), ..none };
        }
        let inputs = match self.observer.inputs(head, id, &instance.references, planned).await {
            Ok(inputs) => inputs,
            Err(error) => {
                plan.problem = Some(self.context.redactor.redact(&crate::error_chain(&error)));
                return Outcome { plan: Some(plan), ..none };
            }
        };
        let changed = request
            .applied
            .is_none_or(|applied| inputs.recorded.iter().any(|(key, value)| applied.inputs.get(key) != Some(value)));
        if !request.is_in_scope && inputs.waiting_on.is_empty() && !changed {
            return none;
        }
        if !inputs.waiting_on.is_empty() {
            plan.waiting_on.clone_from(&inputs.waiting_on);
            return Outcome { plan: Some(plan), ..none };
        }
        match self.promotion(head, id).await {
            Ok(on) => plan.waiting_on.extend(on),
            Err(error) => {
                plan.problem = Some(crate::error_chain(&error));
                return Outcome { plan: Some(plan), ..none };
            }
        }
        let (job, observation) = match self.observe_declared(head, instance, &request, &inputs).await {
            Ok(observed) => observed,
            Err(error) => {
                not_planned(&mut plan, &error, &request.changing);
                return Outcome { plan: Some(plan), ..none };
            }
        };
        if let Err(error) = self.fill(head, &request, &mut plan, &job, &observation).await {
            plan.problem = Some(crate::error_chain(&error));
            return Outcome { plan: Some(plan), ..none };
        }
        let first_contact =
            request.applied.is_none() && self.is_first_contact(id, observation.holds_anything).await.unwrap_or(true);
        if first_contact {
            plan.waiting_on.push(WaitingOn::FirstContact);
        }
        let outputs = (!observation.changes.is_empty() || request.applied.is_none()).then_some(observation.outputs);
        Outcome { plan: Some(plan), outputs, inputs: inputs.recorded, job: Some(job), first_contact }
    }

    /// Fills a plan from an observation.
    async fn fill(
        self: &Arc<Self>,
        head: &Head,
        request: &PlanRequest<'_>,
        plan: &mut InstancePlan,
        job: &Job,
        observation: &Observation,
    ) -> Result<(), Error> {
        let actions = targets::kind(&job.target)?.actions(request.id, observation);
        (plan.actions, plan.carried) = self.observer.with_drain_actions(head, request.id, actions, observation).await?;
        mark_protected(request.protect, &mut plan.actions);
        mark_drifted(request.drifted, &mut plan.actions);
        plan.digest = Some(InstancePlan::digest_of(&plan.actions));
        plan.problem.clone_from(&observation.refused);
        plan.warnings.clone_from(&observation.warnings);
        plan.layout.clone_from(&observation.layout);
        Ok(())
    }

    async fn observe_declared(
        self: &Arc<Self>,
        head: &Head,
        instance: &Instance,
        request: &PlanRequest<'_>,
        inputs: &Inputs,
    ) -> Result<(Job, Observation), Error> {
        let job = declared_job(instance, request.r#use, Arc::clone(&head.content), inputs, head.consumed(request.id))?;
        let job = Job { formerly: request.formerly.clone(), ..job };
        let observation = self.observer.observe_job(head, &job).await?;
        let name = request.formerly.as_ref().unwrap_or(request.id);
        let remembers = !matches!(request.r#use, Use::Pull(_));
        self.observer.identify_for(name, &observation, request.applied.is_some(), remembers).await?;
        Ok((job, observation))
    }
}
