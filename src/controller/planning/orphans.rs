//! What is applied and no longer declared (R1.9): shown, destroyed by a word or by its own declaration, or let go.
//!
//! Never counts as removed what a file that can't be read may declare. *Race:* it is declared again while it is about to
//! be destroyed: the run stops before its first effect.

use crate::domain::message::Refusal;
use crate::domain::message::run::RunReason;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    controller::{context::Error, planning::Planner, source::Head},
    domain::{
        declaration::schema::OnDelete,
        message::comment,
        plan::{Applied, InstancePlan, Plan, Protection, mark_protected, order, pending::dependents},
    },
    model::{EnvironmentName, InstanceId},
    targets,
};

/// Whether what is applied is surely no longer declared.
fn is_orphan(head: &Head) -> impl Fn(&InstanceId) -> bool + '_ {
    let renamed: BTreeSet<&InstanceId> =
        head.desired.instances.values().filter_map(|instance| instance.renamed_from.as_ref()).collect();
    move |id| head.desired.complete && head.instance(id).is_none() && !renamed.contains(id)
}

/// The orphans among these that go by their own declaration (`onDelete: destroy`).
pub(super) fn to_destroy(head: &Head, applied: &BTreeMap<InstanceId, Applied>) -> BTreeSet<InstanceId> {
    let (is_orphan, goes) = (is_orphan(head), |record: &Applied| record.spec.on_delete == OnDelete::Destroy);
    applied.iter().filter(|(id, record)| goes(record) && is_orphan(id)).map(|(id, _)| id.clone()).collect()
}

impl Planner {
    /// Returns the instances that are applied and no longer declared, if every file can be read.
    pub(crate) async fn orphans(&self, head: &Head) -> Result<BTreeMap<InstanceId, Applied>, Error> {
        let mut applied = self.context.store.all_applied().await?;
        let is_orphan = is_orphan(head);
        applied.retain(|id, _| is_orphan(id));
        Ok(applied)
    }

    /// Why an instance can't be destroyed now, in a sentence.
    pub(crate) async fn in_use(
        &self,
        head: &Head,
        id: &InstanceId,
        together: &BTreeSet<InstanceId>,
    ) -> Result<Option<(InstanceId, RunReason)>, Error> {
        let applied = self.context.store.applied_in(&id.environment).await?;
        let user = dependents(id, &applied).into_iter().find(|user| !together.contains(user));
        Ok(user.map(|user| {
            let is_declared = head.instance(&user).is_some();
            let reason = RunReason::InUse { id: id.clone(), user: user.clone(), is_declared };
            (user, reason)
        }))
    }

    /// The plan of destroying one instance.
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
        let looked = async {
            let job = self.observer.destroy_job(id, head).await?;
            let observation = self.observer.observe_job(head, &job).await?;
            self.observer.identify(id, &observation, true).await?;
            Ok::<_, Error>((
                job.target.kind.clone(),
                targets::kind(&job.target)?.actions(id, &observation),
                observation,
            ))
        };
        match looked.await {
            Ok((kind, mut actions, observation)) => {
                mark_protected(protect, &mut actions);
                (plan.kind, plan.actions) = (kind, actions);
                plan.digest = Some(InstancePlan::digest_of(&plan.actions));
                // Only where nothing at all is left of it, there is nothing to do.
                plan.problem = observation.left.first().filter(|_| plan.actions.is_empty()).cloned();
                plan.warnings = observation.warnings;
            }
            Err(error) => plan.problem = Some(self.context.redactor.redact(&crate::error_chain(&error))),
        }
        plan
    }

    /// The plan of destroying orphans of one environment, dependents first.
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

    /// Forgets an instance that is destroyed or let go.
    pub(crate) async fn let_go(self: &Arc<Self>, id: &InstanceId) -> Result<(), Error> {
        self.context.target.release(id).await;
        self.observer.release_identity(id).await?;
        Ok(self.context.store.let_go(id, self.context.now()).await?)
    }

    /// Refuses what is declared, or may be.
    pub(crate) async fn only_orphans(&self, head: &Head, meant: &BTreeSet<InstanceId>) -> Result<(), Error> {
        if !head.desired.complete {
            return Err(Error::Refused(Refusal::OrphansUnknown));
        }
        let orphans = self.orphans(head).await?;
        match meant.iter().find(|id| !orphans.contains_key(*id)) {
            Some(id) => Err(Error::Refused(Refusal::StillDeclared(id.clone()))),
            None => Ok(()),
        }
    }

    /// Whether `onDelete: destroy` needs somebody's word although merges are the authority: where nothing of the
    /// environment is left.
    pub(crate) fn waits_for_command(&self, head: &Head, environment: &EnvironmentName) -> bool {
        head.environment(environment).next().is_none()
    }
}
