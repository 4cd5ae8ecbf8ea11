//! What is pending at head, its plan, and how *applied* advances (R1.4, R1.5).
//!
//! Decides by what is recorded. *Race:* anything moves while head is planned: then nothing advances by that plan.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Daemon, Error, Head, Wake, decide::Stalled, orphans::to_destroy, planning::Scope, rename::former};
use crate::{
    domain::{
        declaration::{
            kubernetes::Kubernetes,
            schema::{Citus, Component},
        },
        journal::{Run, Status as RunStatus},
        plan::{Applied, Observed, Plan},
    },
    model::{ComponentName, EnvironmentName, InstanceId, RunId},
    ports::{Job, RecordedOutput, Use},
};

impl Daemon {
    /// What the plan of an environment at head depends on, so that it is not made again while nothing changed.
    pub(super) async fn plan_key(
        &self,
        head: &Head,
        environment: &EnvironmentName,
        pending: &BTreeSet<InstanceId>,
    ) -> Result<String, Error> {
        let applied = self.store().all_applied().await?;
        let parts: Vec<String> = applied
            .iter()
            .filter(|(id, _)| id.environment == *environment)
            .map(|(id, record)| format!("{id} {}", record.at))
            .collect();
        // A run that failed may have done a part, so that what is left is another plan (R5.1).
        let stalled: Vec<(String, Stalled)> = self.store().list("stalled").await?;
        let stalled: Vec<String> = stalled.iter().map(|(id, stalled)| format!("{id} {}", stalled.run)).collect();
        Ok(format!("{} {pending:?} {parts:?} {stalled:?}", head.revision))
    }

    pub(super) async fn is_planned(
        &self,
        head: &Head,
        environment: &EnvironmentName,
        pending: &BTreeSet<InstanceId>,
    ) -> Result<bool, Error> {
        let key = self.plan_key(head, environment, pending).await?;
        Ok(self.planned_for.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(environment) == Some(&key))
    }

    /// The instances of an environment whose head is not what is applied.
    pub(super) async fn pending(
        &self,
        head: &Head,
        environment: &EnvironmentName,
    ) -> Result<BTreeSet<InstanceId>, Error> {
        let applied = self.store().all_applied().await?;
        let stalled: BTreeMap<String, Stalled> = self.store().list("stalled").await?.into_iter().collect();
        let mut pending: BTreeSet<InstanceId> = head
            .environment(environment)
            .filter(|instance| instance.problems.is_empty() && former(instance, &applied).is_none())
            .filter(|instance| stalled.contains_key(&instance.id.to_string()) || is_pending(instance, &applied))
            .map(|instance| instance.id.clone())
            .collect();
        pending.extend(to_destroy(head, &applied).into_iter().filter(|id| id.environment == *environment));
        Ok(pending)
    }

    /// Plans what waits at head, shows it, and lets *applied* advance where there is nothing to do (R1.5).
    pub(super) async fn plan_head(self: &Arc<Self>, environment: &EnvironmentName) -> Result<Option<Plan>, Error> {
        let Some(head) = self.head() else { return Ok(None) };
        let pending = self.pending(&head, environment).await?;
        let open = self.store().open_runs().await?;
        let instances: BTreeSet<InstanceId> = pending
            .into_iter()
            .filter(|id| {
                !open.iter().any(|run| run.holds(id) && run.by_merge && run.instances[id].status != RunStatus::Waiting)
            })
            .collect();
        // What somebody's word is about is planned again when that is done.
        let in_flight = |run: &Run| {
            let moves = |id: &InstanceId| run.holds(id) && run.instances[id].status != RunStatus::Waiting;
            !run.by_merge && instances.iter().any(moves)
        };
        if instances.is_empty() || open.iter().any(in_flight) {
            return Ok(None);
        }
        let key = self.plan_key(&head, environment, &instances).await?;
        let before = self.store().all_applied().await?;
        let scope =
            Scope { instances: instances.clone(), r#use: Use::Head, because: "head".into(), base: None, guards: None };
        let (plan, outcomes) = self.plan_environment(environment, &head, &scope).await?;
        let stalled: BTreeMap<String, Stalled> = self.store().list("stalled").await?.into_iter().collect();
        let mut advanced = false;
        for instance in &plan.instances {
            let outcome = &outcomes[&instance.id];
            if head.instance(&instance.id).is_none() {
                let is_held = self.store().open_runs().await?.iter().any(|run| run.holds(&instance.id));
                let nothing = instance.digest.is_some() && instance.actions.is_empty() && instance.problem.is_none();
                if nothing && !is_held {
                    self.let_go(&instance.id).await?;
                    self.store()
                        .audit(self.now(), "evenkeel", "let-go", &instance.id.to_string(), "nothing is left of it")
                        .await?;
                }
                continue;
            }
            self.note_pending(&head, instance).await?;
            let nothing = instance.digest.is_some() && instance.actions.is_empty() && instance.problem.is_none();
            let still = nothing
                && instances.contains(&instance.id)
                && self.is_as_planned(&head, &instance.id, &before, &outcome.inputs).await?;
            if still
                && !outcome.first_contact
                && !stalled.contains_key(&instance.id.to_string())
                && let Some(job) = &outcome.job
            {
                let warnings = instance.warnings.clone();
                self.record_applied(&head, &instance.id, outcome.inputs.clone(), job, warnings, None).await?;
                self.store()
                    .audit(self.now(), "evenkeel", "advance", &instance.id.to_string(), "nothing to do")
                    .await?;
                tracing::info!(instance = %instance.id, revision = head.revision.short(), "nothing to do: applied advances to head");
                advanced = true;
            }
        }
        if advanced {
            self.queue.wake(Wake::Decide(environment.clone()), "applied advanced");
        }
        // What head declares decides whether drift is still to be undone.
        self.queue.wake(Wake::Propose(environment.clone()), "head was planned");
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
    async fn is_as_planned(
        &self,
        head: &Head,
        id: &InstanceId,
        before: &BTreeMap<InstanceId, Applied>,
        inputs: &BTreeMap<String, RecordedOutput>,
    ) -> Result<bool, Error> {
        let mut now = BTreeMap::new();
        for upstream in sources(id, inputs) {
            now.extend(self.store().applied(&upstream).await?.map(|record| (upstream, record)));
        }
        let same_head = self.head().is_some_and(|now| now.revision == head.revision);
        let same_record =
            self.store().applied(id).await?.map(|record| record.at) == before.get(id).map(|record| record.at);
        let recorded = inputs.iter().all(|(key, value)| {
            let upstream = key
                .split_once(".outputs.")
                .and_then(|(component, name)| Some((InstanceId::new(&id.environment, &component.parse().ok()?), name)));
            upstream.is_some_and(|(upstream, name)| {
                now.get(&upstream).and_then(|record| record.outputs.get(name)) == Some(value)
            })
        });
        let held = self.store().open_runs().await?.iter().any(|run| run.holds(id));
        Ok(same_head && same_record && recorded && !held)
    }

    /// Records what head would change, for `status` and `explain`.
    async fn note_pending(&self, head: &Head, instance: &crate::domain::plan::InstancePlan) -> Result<(), Error> {
        let mut observed =
            self.store().observed(&instance.id).await?.unwrap_or_else(|| Observed::new(self.now(), None));
        observed.head = Some(head.revision.clone());
        observed.pending = instance.actions.iter().flat_map(|action| action.resources.clone()).collect();
        observed.waiting_on.clone_from(&instance.waiting_on);
        observed.planned_at = Some(self.now());
        observed.head_problem = instance.problem.clone().filter(|_| observed.against.is_some());
        if observed.against.is_none() {
            observed.at = self.now();
            observed.error = instance.problem.as_ref().map(|says| crate::domain::plan::ObservedError {
                kind: "plan-failed".into(),
                says: says.clone(),
                passes: false,
            });
        }
        self.store().set_observed(&instance.id, &observed).await?;
        Ok(())
    }

    /// Records that an instance is what head says.
    pub(super) async fn record_applied(
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
        let outputs = self.hands.target.outputs(job).await?;
        let outputs = outputs
            .iter()
            .filter_map(|(name, output)| Some((name.clone(), output.record(&self.hands.seal)?)))
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
            at: self.now(),
        };
        let fresh = Observed { warnings, ..Observed::new(self.now(), Some(head.revision.clone())) };
        self.store().advance(id, &applied, &fresh).await?;
        self.end_snooze(id, &fresh).await?;
        self.due_changed.notify_one();
        Ok(())
    }

    /// Takes over what a merge changed of an applied instance without changing what it is made from: drift policy,
    /// checks, edges.
    pub(super) async fn take_over_policy(&self, head: &Head, environment: &EnvironmentName) -> Result<(), Error> {
        let applied = self.store().all_applied().await?;
        for instance in head.environment(environment) {
            let (Some(mut record), Some(spec), Some(digest)) =
                (applied.get(&instance.id).cloned(), &instance.spec, instance.digest)
            else {
                continue;
            };
            // What it is made from stays as it was applied, with the revision that holds it.
            let kubernetes = record.spec.kubernetes.clone().zip(spec.kubernetes.as_ref()).map(|(applied, spec)| {
                let Kubernetes { force, health, wait, .. } = spec.clone();
                Kubernetes { force, health, wait, ..applied }
            });
            let citus = record.spec.citus.clone().zip(spec.citus.as_ref()).map(|(applied, spec)| {
                let Citus { moves, allow_rewrite, capacity, .. } = spec.clone();
                Citus { moves, allow_rewrite, capacity, ..applied }
            });
            let loosened = Component { tofu: record.spec.tofu.clone(), kubernetes, citus, ..(**spec).clone() };
            if record.digest == digest && record.spec != loosened {
                record.spec = loosened;
                self.store().set_applied(&instance.id, &record).await?;
            }
        }
        Ok(())
    }
}

/// What an instance's inputs come from.
pub(super) fn sources(id: &InstanceId, inputs: &BTreeMap<String, RecordedOutput>) -> BTreeSet<InstanceId> {
    let of = |key: &String| Some(InstanceId::new(&id.environment, &key.split_once(".outputs.")?.0.parse().ok()?));
    inputs.keys().filter_map(of).collect()
}

/// Whether digest or inputs at head differ from what is applied (R1.4).
pub(super) fn is_pending(
    instance: &crate::domain::declaration::Instance,
    applied: &BTreeMap<InstanceId, Applied>,
) -> bool {
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
