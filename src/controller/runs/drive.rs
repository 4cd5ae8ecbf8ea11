//! Drives a run until every instance has ended or waits, each instance after its upstreams.
//!
//! *Invariant:* one task at a time drives a run.
//! *Race:* two requests drive one run: the claim admits one task, and the claimant enqueues the run again.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::Pin,
    sync::Arc,
};

use chrono::DateTime;
use futures::future::{FutureExt, Shared, join_all};
use tokio::sync::Mutex;

use super::{Runs, driven::Driven, execute::Effect, prepare::Stop};
use crate::{
    controller::{
        context::Error,
        work_queue::{Reason, ReconcileRequest},
    },
    domain::{
        journal::{Event, RunState, Status},
        message::run::RunReason,
        plan::order,
    },
    model::{InstanceId, WaitingOn},
};

/// The number of new plans after the target reported that a plan was stale.
const STALE_PLANS_MAX: u32 = 3;
/// The interval at which an instance that waits for a command is prepared again without a command.
const COMMAND_WAIT_RECHECK: chrono::Duration = chrono::Duration::minutes(15);

type Step = Shared<Pin<Box<dyn Future<Output = Status> + Send>>>;

impl Runs {
    /// Drives a run until every instance has ended or waits.
    ///
    /// # Errors
    /// When the store or the repository fails; the next request continues the run.
    pub(crate) async fn drive(self: &Arc<Self>, id: crate::model::RunId) -> Result<(), Error> {
        // The task that has claimed the run enqueues the run again.
        let Some(_claim) = self.claims.claim(id) else { return Ok(()) };
        let Some(run) = self.context.store.run(id).await? else { return Ok(()) };
        if matches!(run.state, RunState::Ended { .. }) || self.context.stopping() {
            return Ok(());
        }
        let head = self.source.at(&run.revision).await?;
        // The use of the limits survives a wait and a restart of the daemon.
        let spent = run.instances.iter().filter_map(|(id, instance)| Some((id.clone(), instance.spent?))).collect();
        let driven = Arc::new(Driven {
            run: Mutex::new(run),
            head,
            reported_at: parking_lot::Mutex::new(DateTime::UNIX_EPOCH),
            spent: Mutex::new(spent),
        });
        if let Some(reason) = self.blocked(&driven).await? {
            let waiting: Vec<InstanceId> = driven.run.lock().await.instances.keys().cloned().collect();
            for id in waiting {
                self.fail(&driven, &id, reason.clone()).await?;
            }
        } else {
            self.drive_instances(&driven).await?;
        }
        let mut run = driven.run.lock().await;
        self.conclude(&mut run).await
    }

    async fn drive_instances(self: &Arc<Self>, driven: &Arc<Driven>) -> Result<(), Error> {
        let instances = driven.run.lock().await.instances.clone();
        let edges: BTreeMap<InstanceId, BTreeSet<InstanceId>> =
            instances.iter().map(|(id, instance)| (id.clone(), instance.after.clone())).collect();
        let mut steps: BTreeMap<InstanceId, Step> = BTreeMap::new();
        for (id, _) in order(&edges) {
            let upstreams: Vec<(InstanceId, Step)> =
                edges[&id].iter().filter_map(|up| Some((up.clone(), steps.get(up)?.clone()))).collect();
            let (runs, driven, id_for_task, status) =
                (Arc::clone(self), Arc::clone(driven), id.clone(), instances[&id].status);
            let step = async move {
                if status.ended() {
                    return status;
                }
                let mut unfinished_upstream = None;
                for (upstream, step) in upstreams {
                    let status = step.await;
                    if status != Status::Applied {
                        unfinished_upstream = Some((upstream, status));
                    }
                }
                let task =
                    tokio::spawn(async move { runs.step(&driven, &id_for_task, status, unfinished_upstream).await });
                task.await.unwrap_or(Status::Waiting)
            };
            let step: Pin<Box<dyn Future<Output = Status> + Send>> = Box::pin(step);
            steps.insert(id, step.shared());
        }
        join_all(steps.into_values()).await;
        Ok(())
    }

    /// Drives one instance and returns its status. Reports an error and keeps the recorded status.
    async fn step(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        status: Status,
        unfinished_upstream: Option<(InstanceId, Status)>,
    ) -> Status {
        let result = match unfinished_upstream {
            Some((upstream, status)) if status.ended() => {
                self.record(
                    driven,
                    id,
                    Event::Skipped { message: RunReason::UpstreamNotApplied(upstream).to_string() },
                    None,
                )
                .await
            }
            Some((upstream, _)) => {
                self.wait(
                    driven,
                    id,
                    WaitingOn::Upstream { instance: upstream.clone() },
                    RunReason::UpstreamFirst(upstream),
                )
                .await
            }
            None => self.attempt(driven, id, status).await,
        };
        match result {
            Ok(status) => status,
            Err(error) => {
                if let Error::Store(error) = &error {
                    self.leader.check(error);
                }
                tracing::error!(kind = "run-interrupted", instance = %id, error = crate::error_chain(&error), "a run was interrupted; it is resumed");
                driven.run.lock().await.instances.get(id).map_or(Status::Waiting, |instance| instance.status)
            }
        }
    }

    async fn attempt(self: &Arc<Self>, driven: &Driven, id: &InstanceId, status: Status) -> Result<Status, Error> {
        if matches!(status, Status::Running | Status::Effected)
            && let Effect::Ended(status) = self.resume_effect(driven, id, status).await?
        {
            return Ok(status);
        }
        let run = driven.run.lock().await.clone();
        if let Some(status) = self.already_destroyed(driven, &run, id, status).await? {
            return Ok(status);
        }
        if let Some(status) = self.rollout_in_progress(driven, &run, id).await? {
            return Ok(status);
        }
        if self.waits_for_command(driven, id).await {
            if let Some(message) = self.cancelled(run.id, id).await? {
                return self.end_cancelled(driven, id, message).await;
            }
            if let Some(reason) = self.superseded_by(&run, id).await? {
                return self.record(driven, id, Event::Superseded { message: reason.to_string() }, None).await;
            }
            if !self.planner.has_head_plan(&id.environment) {
                // The daemon died before it published the plan that the command refers to.
                self.context.queue.enqueue(ReconcileRequest::HeadPlan(id.environment.clone()), Reason::RunWaits);
            }
            return Ok(Status::Waiting);
        }
        let mut attempt = 0;
        loop {
            let ready = match self.prepare(driven, id).await {
                // A commit may have declared the instance again while it was planned.
                Ok(ready) if run.kind.destroys() => {
                    self.still_orphaned_at_branch(driven, &run, id).await.map(|()| ready)
                }
                prepared => prepared,
            };
            let ready = match ready {
                Ok(ready) => ready,
                Err(Stop::Waits(on, message)) => return self.wait(driven, id, on, message).await,
                Err(Stop::Fails(message)) => return self.fail(driven, id, message).await,
                Err(Stop::Unchanged(job, inputs, remaining)) => {
                    return self.complete(driven, id, &job, inputs, remaining, false).await;
                }
                Err(Stop::Destroyed) => {
                    return Ok(self.already_destroyed(driven, &run, id, status).await?.unwrap_or(status));
                }
                Err(Stop::Error(error)) => return Err(error),
                Err(Stop::ShuttingDown) => return Ok(Status::Waiting),
                Err(Stop::Cancelled(message)) => return self.end_cancelled(driven, id, message).await,
                Err(Stop::Superseded(reason)) => {
                    return self.record(driven, id, Event::Superseded { message: reason.to_string() }, None).await;
                }
            };
            match self.effect(driven, id, ready).await? {
                Effect::Ended(status) => return Ok(status),
                Effect::Stale if attempt < STALE_PLANS_MAX => attempt += 1,
                Effect::Stale => {
                    return self.fail(driven, id, RunReason::StateKeepsChanging).await;
                }
            }
        }
    }

    /// Whether an instance waits for a command and was prepared recently. Only a command, which creates another run, or a
    /// change of the target ends the wait.
    async fn waits_for_command(&self, driven: &Driven, id: &InstanceId) -> bool {
        driven.run.lock().await.instances.get(id).is_some_and(|instance| {
            let awaits_command =
                matches!(instance.waiting_on, Some(WaitingOn::Approval { .. } | WaitingOn::FirstContact));
            instance.status == Status::Waiting
                && awaits_command
                && instance.waiting_since.is_some_and(|since| self.context.now() - since < COMMAND_WAIT_RECHECK)
        })
    }
}
