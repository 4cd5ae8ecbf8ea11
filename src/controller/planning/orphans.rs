//! Finds and plans orphans: applied instances that are no longer declared (R1.9).
//!
//! An orphan is reported, destroyed by a command or by its own declaration, or forgotten.
//! *Invariant:* no instance is an orphan while a file that may declare it can't be read.
//! *Race:* an orphan is declared again before it is destroyed: the run stops before its first effect.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    controller::{context::Error, planning::Planner, source::Head},
    domain::{
        declaration::schema::OnDelete,
        message::{Refusal, comment, run::RunReason},
        plan::{Applied, InstancePlan, Plan, Protection, mark_protected, order, pending::dependents},
    },
    model::{EnvironmentName, InstanceId},
    targets,
};

/// Returns the predicate that an applied instance is no longer declared.
fn is_orphan(head: &Head) -> impl Fn(&InstanceId) -> bool + '_ {
    let renamed: BTreeSet<&InstanceId> =
        head.desired.instances.values().filter_map(|instance| instance.renamed_from.as_ref()).collect();
    move |id| head.desired.complete && head.instance(id).is_none() && !renamed.contains(id)
}

/// Returns the orphans that their own declaration destroys (`onDelete: destroy`).
pub(super) fn to_destroy(head: &Head, applied: &BTreeMap<InstanceId, Applied>) -> BTreeSet<InstanceId> {
    let (is_orphan, is_destroyed) = (is_orphan(head), |record: &Applied| record.spec.on_delete == OnDelete::Destroy);
    applied.iter().filter(|(id, record)| is_destroyed(record) && is_orphan(id)).map(|(id, _)| id.clone()).collect()
}

impl Planner {
    /// Returns the instances that are applied and no longer declared; none where a file can't be read.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(crate) async fn orphans(&self, head: &Head) -> Result<BTreeMap<InstanceId, Applied>, Error> {
        let mut applied = self.context.store.all_applied().await?;
        let is_orphan = is_orphan(head);
        applied.retain(|id, _| is_orphan(id));
        Ok(applied)
    }

    /// Returns another instance that uses an instance, and the reason why the instance can't be destroyed.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(crate) async fn in_use(
        &self,
        head: &Head,
        id: &InstanceId,
        with: &BTreeSet<InstanceId>,
    ) -> Result<Option<(InstanceId, RunReason)>, Error> {
        let applied = self.context.store.applied_in(&id.environment).await?;
        let user = dependents(id, &applied).into_iter().find(|user| !with.contains(user));
        Ok(user.map(|user| {
            let is_declared = head.instance(&user).is_some();
            let reason = RunReason::InUse { id: id.clone(), user: user.clone(), is_declared };
            (user, reason)
        }))
    }

    /// Plans to destroy one instance.
    pub(super) async fn plan_destroy(
        self: &Arc<Self>,
        head: &Head,
        id: &InstanceId,
        protect: &Protection,
    ) -> InstancePlan {
        let mut plan = InstancePlan {
            id: id.clone(),
            kind: "unknown".into(),
            digest: None,
            order: 1,
            after: vec![],
            waiting_on: vec![],
            actions: vec![],
            problem: None,
            warnings: vec![],
            layout: None,
            carried: vec![],
        };
        let observed = async {
            let job = self.observer.destroy_job(id, head).await?;
            let observation = self.observer.observe_job(head, &job).await?;
            self.observer.identify(id, &observation, true).await?;
            Ok::<_, Error>((
                job.target.kind.clone(),
                targets::kind(&job.target)?.actions(id, &observation),
                observation,
            ))
        };
        match observed.await {
            Ok((kind, mut actions, observation)) => {
                mark_protected(protect, &mut actions);
                (plan.kind, plan.actions) = (kind, actions);
                plan.digest = Some(InstancePlan::digest_of(&plan.actions));
                // Without actions, a remaining object of the target is a problem.
                plan.problem = observation.left.first().filter(|_| plan.actions.is_empty()).cloned();
                plan.warnings = observation.warnings;
            }
            Err(error) => plan.problem = Some(self.context.redactor.redact(&crate::error_chain(&error))),
        }
        plan
    }

    /// Plans to destroy orphans of one environment, dependents first.
    ///
    /// # Errors
    /// When the store or the repository fails.
    pub(crate) async fn plan_destroys(
        self: &Arc<Self>,
        head: &Arc<Head>,
        environment: &EnvironmentName,
        ids: &BTreeSet<InstanceId>,
    ) -> Result<Plan, Error> {
        let applied = self.context.store.applied_in(environment).await?;
        let edges: BTreeMap<InstanceId, BTreeSet<InstanceId>> =
            ids.iter().map(|id| (id.clone(), dependents(id, &applied).intersection(ids).cloned().collect())).collect();
        let guards = self.source.guards(head).await?;
        let planned = order(&edges).into_iter().map(|(id, step)| {
            let (after, protect) = (edges[&id].iter().cloned().collect(), guards.protect(&id));
            async move { InstancePlan { order: step, after, ..self.plan_destroy(head, &id, &protect).await } }
        });
        let instances = futures::future::join_all(planned).await;
        Ok(Plan::new(environment.clone(), head.revision.clone(), None, comment::DESTROY.into(), instances))
    }

    /// Removes the records of an instance that is destroyed or forgotten.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn forget(self: &Arc<Self>, id: &InstanceId) -> Result<(), Error> {
        self.context.target.release(id).await;
        self.observer.release_identity(id).await?;
        Ok(self.context.store.let_go(id, self.context.now()).await?)
    }

    /// Refuses instances that are declared, or may be declared in a file that can't be read.
    ///
    /// # Errors
    /// [`Error::Refused`] with the first such instance; else when the store can't be read.
    pub(crate) async fn ensure_orphans(&self, head: &Head, selected: &BTreeSet<InstanceId>) -> Result<(), Error> {
        if !head.desired.complete {
            return Err(Error::Refused(Refusal::OrphansUnknown));
        }
        let orphans = self.orphans(head).await?;
        match selected.iter().find(|id| !orphans.contains_key(*id)) {
            Some(id) => Err(Error::Refused(Refusal::StillDeclared(id.clone()))),
            None => Ok(()),
        }
    }

    /// Whether `onDelete: destroy` needs a command although merges authorise runs: where the environment has no declared
    /// instance.
    pub(crate) fn waits_for_command(&self, head: &Head, environment: &EnvironmentName) -> bool {
        head.environment(environment).next().is_none()
    }
}
