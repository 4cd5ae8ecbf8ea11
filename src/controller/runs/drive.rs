//! Drives a run as far as it goes by itself, each instance after its upstreams.

use crate::domain::message::run::RunReason;
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
    controller::{context::Error, work_queue::Reason, work_queue::ReconcileRequest},
    domain::{
        journal::{Event, RunState, Status},
        plan::order,
    },
    model::{InstanceId, WaitingOn},
};

/// How often a plan is tried again when the state moved under it.
const STALE_PLANS_MAX: u32 = 3;
/// How often what waits for somebody's word is looked at without one.
const WORD_AGAIN: chrono::Duration = chrono::Duration::minutes(15);

type Step = Shared<Pin<Box<dyn Future<Output = Status> + Send>>>;

impl Runs {
    /// Takes a run as far as it goes by itself.
    pub(crate) async fn drive(self: &Arc<Self>, id: crate::model::RunId) -> Result<(), Error> {
        // Whoever has claimed the run enqueues it again afterwards.
        let Some(_claim) = self.claims.claim(id) else { return Ok(()) };
        let Some(run) = self.context.store.run(id).await? else { return Ok(()) };
        if matches!(run.state, RunState::Ended { .. }) || self.context.stopping() {
            return Ok(());
        }
        let head = self.source.at(&run.revision).await?;
        // The limits that it used before it waited, or before the daemon died, stay used.
        let spent = run.instances.iter().filter_map(|(id, instance)| Some((id.clone(), instance.spent?))).collect();
        let driven = Arc::new(Driven {
            run: Mutex::new(run),
            head,
            said_at: parking_lot::Mutex::new(DateTime::UNIX_EPOCH),
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
            let (daemon, driven, id_for_task, status) =
                (Arc::clone(self), Arc::clone(driven), id.clone(), instances[&id].status);
            let step = async move {
                if status.ended() {
                    return status;
                }
                let mut in_the_way = None;
                for (upstream, step) in upstreams {
                    let status = step.await;
                    if status != Status::Applied {
                        in_the_way = Some((upstream, status));
                    }
                }
                let task = tokio::spawn(async move { daemon.step(&driven, &id_for_task, status, in_the_way).await });
                task.await.unwrap_or(Status::Waiting)
            };
            let step: Pin<Box<dyn Future<Output = Status> + Send>> = Box::pin(step);
            steps.insert(id, step.shared());
        }
        join_all(steps.into_values()).await;
        Ok(())
    }

    /// One instance, with everything that goes wrong turned into where it stands.
    async fn step(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        status: Status,
        in_the_way: Option<(InstanceId, Status)>,
    ) -> Status {
        let done = match in_the_way {
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
        match done {
            Ok(status) => status,
            Err(error) => {
                self.leader.check(&error);
                tracing::error!(kind = "run-interrupted", instance = %id, error = crate::error_chain(&error), "a run was interrupted; it is resumed");
                driven.run.lock().await.instances.get(id).map_or(Status::Waiting, |instance| instance.status)
            }
        }
    }

    async fn attempt(self: &Arc<Self>, driven: &Driven, id: &InstanceId, status: Status) -> Result<Status, Error> {
        if matches!(status, Status::Running | Status::Effected)
            && let Effect::Ended(status) = self.take_up(driven, id, status).await?
        {
            return Ok(status);
        }
        let run = driven.run.lock().await.clone();
        if let Some(status) = self.already_gone(driven, &run, id, status).await? {
            return Ok(status);
        }
        if let Some(status) = self.still_rolling(driven, &run, id).await? {
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
                // The daemon died before it showed what the word would be about.
                self.context.queue.enqueue(ReconcileRequest::HeadPlan(id.environment.clone()), Reason::RunWaits);
            }
            return Ok(Status::Waiting);
        }
        let mut attempt = 0;
        loop {
            let ready = match self.prepare(driven, id).await {
                // Planning takes a while; the instance may be declared again by now.
                Ok(ready) if run.kind.destroys() => {
                    self.still_orphaned_at_branch(driven, &run, id).await.map(|()| ready)
                }
                prepared => prepared,
            };
            let ready = match ready {
                Ok(ready) => ready,
                Err(Stop::Waits(on, message)) => return self.wait(driven, id, on, message).await,
                Err(Stop::Fails(message)) => return self.fail(driven, id, message).await,
                Err(Stop::Nothing(job, inputs, left)) => {
                    return self.arrive(driven, id, &job, inputs, left, false).await;
                }
                Err(Stop::Gone) => return Ok(self.already_gone(driven, &run, id, status).await?.unwrap_or(status)),
                Err(Stop::Error(error)) => return Err(error),
                Err(Stop::Leaves) => return Ok(Status::Waiting),
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

    /// Whether an instance waits for somebody's word and was looked at a short while ago: only a word, which makes another
    /// run, or the world can change that.
    async fn waits_for_command(&self, driven: &Driven, id: &InstanceId) -> bool {
        driven.run.lock().await.instances.get(id).is_some_and(|instance| {
            let on_word = matches!(instance.waiting_on, Some(WaitingOn::Approval { .. } | WaitingOn::FirstContact));
            instance.status == Status::Waiting
                && on_word
                && instance.waiting_since.is_some_and(|since| self.context.now() - since < WORD_AGAIN)
        })
    }
}
