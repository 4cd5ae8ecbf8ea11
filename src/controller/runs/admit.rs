//! Whether a run may have its first effect and an instance its turn: limits, checker, run lock (R2.6, R3.3).

use crate::domain::message::run::RunReason;
use crate::domain::plan::validation::Violation;
use std::{collections::BTreeSet, sync::Arc, time::Duration};

use crate::{
    controller::{
        context::Error,
        planning::Scope,
        runs::{Runs, driven::Driven, prepare::Stop},
    },
    domain::{
        journal::{Approved, Run, Status},
        plan::{self, HostedNode, InstancePlan, Plan, validation},
    },
    model::{Action, InstanceId, WaitingOn},
    ports::Use,
};

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

impl Runs {
    /// Why a run may not have its first effect: what is known of it as a whole passes a limit, or is blocked by a fatal
    /// note (R2.6, R3.3). What nobody was shown a plan of is planned for this; what can't be known yet is counted when
    /// its turn comes.
    pub(super) async fn blocked(self: &Arc<Self>, driven: &Driven) -> Result<Option<RunReason>, Error> {
        let run = driven.run.lock().await.clone();
        if !run.instances.values().all(|instance| instance.status == Status::New) {
            return Ok(None);
        }
        let (mut unseen, mut instances) = (BTreeSet::new(), vec![]);
        for id in run.instances.keys() {
            let actions = match self.context.store.approved(run.id, id).await? {
                Some(Approved::Actions { actions }) => actions,
                Some(Approved::Declaration) => {
                    unseen.insert(id.clone());
                    continue;
                }
                Some(Approved::Remediation) => self.proposed_actions(driven, &run, id).await?,
                Some(Approved::Unknown | Approved::Moves { .. }) | None => continue,
            };
            instances.push(whole(id, actions));
        }
        // The present protection counts, not that at the time of the approval.
        let guards = self.source.guards(&self.source.head().unwrap_or_else(|| Arc::clone(&driven.head))).await?;
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
            let (plan, _) = self.planner.plan_environment(&run.environment, &driven.head, &scope).await?;
            let tracked = plan.instances.into_iter().filter(|instance| unseen.contains(&instance.id));
            instances.extend(tracked.map(|instance| whole(&instance.id, instance.actions)));
        }
        let limits = guards.limits(&run.environment);
        let plan = Plan::new(run.environment.clone(), run.revision.clone(), None, "run".into(), instances);
        let fatal = validation::plan(&plan, &limits).into_iter().find(Violation::is_fatal);
        let over = validation::within(&plan.summary, &limits).into_iter().next();
        Ok(fatal.or(over).map(RunReason::Invalid))
    }

    /// What is left to do for an instance, apart: what the run is about, and what was cut from it or came since.
    pub(super) async fn business(
        &self,
        driven: &Driven,
        run: &Run,
        id: &InstanceId,
        left: Vec<Action>,
    ) -> Result<(Vec<Action>, Vec<Action>), Error> {
        if !run.reverts() || left.iter().any(|action| action.effect.atomic) {
            return Ok((left, vec![]));
        }
        if run.kind.rebalance().is_some() {
            return Ok(left.into_iter().partition(|action: &Action| action.effect.relocates));
        }
        let known = match self.context.store.approved(run.id, id).await? {
            Some(Approved::Actions { actions }) => actions,
            _ => self.proposed_actions(driven, run, id).await?,
        };
        let known: BTreeSet<&str> =
            known.iter().flat_map(|action| &action.resources).map(|change| change.resource.as_str()).collect();
        let is_mine = |action: &Action| action.resources.iter().any(|change| known.contains(change.resource.as_str()));
        Ok(left.into_iter().partition(is_mine))
    }

    /// The newer run of the same kind that applies an instance (R5.3).
    pub(super) async fn superseded_by(&self, run: &Run, id: &InstanceId) -> Result<Option<RunReason>, Error> {
        let newer = self.context.store.runs_after(run.id).await?;
        let same = |newer: &&Run| newer.reverts() == run.reverts() && newer.instances.contains_key(id);
        Ok(newer.iter().find(same).map(|newer| RunReason::SupersededByRun(newer.id)))
    }

    /// Takes the run lock, behind a run whose effect is in flight.
    pub(super) async fn take(self: &Arc<Self>, run: &Run, id: &InstanceId) -> Result<(), Stop> {
        loop {
            let changed = self.changed.notified();
            if self.context.stopping() {
                return Err(Stop::Leaves);
            }
            if let Some(message) = self.superseded_by(run, id).await? {
                return Err(Stop::Superseded(message));
            }
            if let Some(reason) = self.source.suspensions(self.source.head().as_deref()).await?.instance(id) {
                return Err(Stop::Waits(WaitingOn::Suspended, RunReason::Suspended(reason)));
            }
            if let Some(message) = self.cancelled(run.id, id).await? {
                return Err(Stop::Cancelled(message));
            }
            if self.context.store.lock_instance(id, run.id).await? == run.id {
                return Ok(());
            }
            tokio::select! {
                () = changed => {}
                () = self.context.stopped() => {}
                () = tokio::time::sleep(Duration::from_secs(5)) => {}
            }
        }
    }

    /// The independent checker, `protect` and the limits of one run.
    pub(super) async fn guard(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        actions: &[Action],
        carried: &[HostedNode],
    ) -> Result<(), Stop> {
        let head = self.source.head().unwrap_or_else(|| Arc::clone(&driven.head));
        let limits = self.source.guards(&head).await?.limits(&id.environment);
        let instance = InstancePlan { carried: carried.to_vec(), ..whole(id, actions.to_vec()) };
        let summary = instance.summary();
        let whole = Plan::new(id.environment.clone(), driven.head.revision.clone(), None, "run".into(), vec![instance]);
        if let Some(violation) = validation::plan(&whole, &limits).into_iter().find(Violation::is_fatal) {
            return Err(Stop::Fails(RunReason::Invalid(violation)));
        }
        let mut spent = driven.spent.lock().await;
        let together = spent.iter().filter(|(other, _)| *other != id).fold(summary, |sum, (_, other)| sum.plus(other));
        if let Some(violation) = validation::within(&together, &limits).into_iter().next() {
            return Err(Stop::Fails(RunReason::Invalid(violation)));
        }
        spent.insert(id.clone(), summary);
        if let Some(instance) = driven.run.lock().await.instances.get_mut(id) {
            instance.spent = Some(summary);
        }
        Ok(())
    }
}
