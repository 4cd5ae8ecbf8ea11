//! Admits runs and instances: checks limits, validates plans, and acquires the run lock (R2.6, R3.3).
//!
//! *Invariant:* no effect begins before the independent checker accepts its plan.
//! *Race:* two runs claim one instance: the store grants the run lock to one run, and the other waits for its release.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use crate::{
    controller::{
        context::Error,
        planning::Scope,
        runs::{Runs, driven::Driven, prepare::Stop},
    },
    domain::{
        journal::{Approved, Run, Status},
        message::run::RunReason,
        plan::{
            self, HostedNode, InstancePlan, Plan,
            validation::{self, Violation},
        },
    },
    model::{Action, InstanceId, WaitingOn},
    ports::Use,
};

/// Returns the plan of one instance without dependencies, for the checker.
fn instance_plan(id: &InstanceId, actions: Vec<Action>) -> InstancePlan {
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
    /// Returns the reason why a run may not begin: its actions exceed a limit or violate a fatal rule (R2.6, R3.3). Plans
    /// the instances that were approved without a plan. Actions that depend on unknown outputs are counted when their
    /// instance is prepared.
    ///
    /// # Errors
    /// When the store, the repository or a target fails.
    pub(super) async fn blocked(self: &Arc<Self>, driven: &Driven) -> Result<Option<RunReason>, Error> {
        let run = driven.run.lock().await.clone();
        if !run.instances.values().all(|instance| instance.status == Status::New) {
            return Ok(None);
        }
        let (mut unplanned, mut instances) = (BTreeSet::new(), vec![]);
        for id in run.instances.keys() {
            let actions = match self.context.store.approved(run.id, id).await? {
                Some(Approved::Actions { actions }) => actions,
                Some(Approved::Declaration) => {
                    unplanned.insert(id.clone());
                    continue;
                }
                Some(Approved::Remediation) => self.proposed_actions(driven, &run, id).await?,
                Some(Approved::Unknown | Approved::Moves { .. }) | None => continue,
            };
            instances.push(instance_plan(id, actions));
        }
        // The present protection counts, not that at the time of the approval.
        let guards = self.source.guards(&self.source.head().unwrap_or_else(|| Arc::clone(&driven.head))).await?;
        for instance in &mut instances {
            plan::mark_protected(&guards.protect(&instance.id), &mut instance.actions);
        }
        if !unplanned.is_empty() {
            let scope = Scope {
                instances: unplanned.clone(),
                r#use: Use::Head,
                because: format!("run {}", run.id),
                base: None,
                guards: None,
            };
            let (plan, _) = self.planner.plan_environment(&run.environment, &driven.head, &scope).await?;
            let planned = plan.instances.into_iter().filter(|instance| unplanned.contains(&instance.id));
            instances.extend(planned.map(|instance| instance_plan(&instance.id, instance.actions)));
        }
        let limits = guards.limits(&run.environment);
        let plan = Plan::new(run.environment.clone(), run.revision.clone(), None, "run".into(), instances);
        let fatal = validation::plan(&plan, &limits).into_iter().find(Violation::is_fatal);
        let exceeded = validation::within(&plan.summary, &limits).into_iter().next();
        Ok(fatal.or(exceeded).map(RunReason::Invalid))
    }

    /// Splits the remaining actions of an instance into those that the run executes, and those that were removed from it or
    /// appeared later.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(super) async fn partition_actions(
        &self,
        driven: &Driven,
        run: &Run,
        id: &InstanceId,
        remaining: Vec<Action>,
    ) -> Result<(Vec<Action>, Vec<Action>), Error> {
        if !run.reverts() || remaining.iter().any(|action| action.effect.atomic) {
            return Ok((remaining, vec![]));
        }
        if run.kind.rebalance().is_some() {
            return Ok(remaining.into_iter().partition(|action: &Action| action.effect.relocates));
        }
        let approved = match self.context.store.approved(run.id, id).await? {
            Some(Approved::Actions { actions }) => actions,
            _ => self.proposed_actions(driven, run, id).await?,
        };
        let approved: BTreeSet<&str> =
            approved.iter().flat_map(|action| &action.resources).map(|change| change.resource.as_str()).collect();
        let is_selected =
            |action: &Action| action.resources.iter().any(|change| approved.contains(change.resource.as_str()));
        Ok(remaining.into_iter().partition(is_selected))
    }

    /// The newer run of the same kind that applies an instance (R5.3).
    pub(super) async fn superseded_by(&self, run: &Run, id: &InstanceId) -> Result<Option<RunReason>, Error> {
        let newer = self.context.store.runs_after(run.id).await?;
        let is_newer_run = |newer: &&Run| newer.reverts() == run.reverts() && newer.instances.contains_key(id);
        Ok(newer.iter().find(is_newer_run).map(|newer| RunReason::SupersededByRun(newer.id)))
    }

    /// Acquires the run lock of an instance. Waits while another run executes an effect on the instance.
    ///
    /// # Errors
    /// The reason why the instance does not continue: superseded, suspended, cancelled, or the daemon stops.
    pub(super) async fn acquire_run_lock(self: &Arc<Self>, run: &Run, id: &InstanceId) -> Result<(), Stop> {
        loop {
            let changed = self.changed.notified();
            if self.context.stopping() {
                return Err(Stop::ShuttingDown);
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

    /// Checks the actions of an instance with the independent checker, and adds them to the use of the limits of the run.
    ///
    /// # Errors
    /// [`Stop::Fails`] where the checker rejects the actions or a limit is exceeded.
    pub(super) async fn guard(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        actions: &[Action],
        hosted_nodes: &[HostedNode],
    ) -> Result<(), Stop> {
        let head = self.source.head().unwrap_or_else(|| Arc::clone(&driven.head));
        let limits = self.source.guards(&head).await?.limits(&id.environment);
        let instance = InstancePlan { carried: hosted_nodes.to_vec(), ..instance_plan(id, actions.to_vec()) };
        let summary = instance.summary();
        let plan = Plan::new(id.environment.clone(), driven.head.revision.clone(), None, "run".into(), vec![instance]);
        if let Some(violation) = validation::plan(&plan, &limits).into_iter().find(Violation::is_fatal) {
            return Err(Stop::Fails(RunReason::Invalid(violation)));
        }
        let mut spent = driven.spent.lock().await;
        let total = spent.iter().filter(|(other, _)| *other != id).fold(summary, |sum, (_, other)| sum.plus(other));
        if let Some(violation) = validation::within(&total, &limits).into_iter().next() {
            return Err(Stop::Fails(RunReason::Invalid(violation)));
        }
        spent.insert(id.clone(), summary);
        if let Some(instance) = driven.run.lock().await.instances.get_mut(id) {
            instance.spent = Some(summary);
        }
        Ok(())
    }
}
