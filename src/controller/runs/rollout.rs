//! What was applied comes up, or doesn't.
//!
//! *Flow:* after an apply the target is asked for the health of what it applied. What is on its way makes the run wait,
//! which holds no task; it is looked at again after a while, up to the time that the declaration gives it.
//! *Guarantees:* a newer run, or `/cancel`, ends the wait; what does not come up is a failure with its reason.

use crate::domain::message::run::{Rollout, RunReason};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::{
    controller::{
        context::Error,
        runs::{Runs, driven::Driven, prepare::Left},
        work_queue::{Reason, ReconcileRequest},
    },
    domain::journal::{Event, Run, Status},
    model::{InstanceId, WaitingOn},
    ports::{Health, Job, RecordedOutput},
    targets,
};

/// How often a rollout is looked at.
const LOOK: Duration = Duration::from_secs(1);

impl Runs {
    /// The checks of an instance that do not answer, in a sentence.
    async fn silent_checks(self: &Arc<Self>, driven: &Driven, id: &InstanceId) -> Result<Option<String>, Error> {
        let Some(spec) = driven.head.instance(id).and_then(|instance| instance.spec.clone()) else { return Ok(None) };
        let failed = self.observer.failed_checks(id, &spec).await?;
        Ok((!failed.is_empty()).then(|| failed.join("; ")))
    }

    /// Ends an instance of which nothing is left to do: what it is now is recorded, its checks answer, and what was applied
    /// came up; what was destroyed is gone before it is forgotten.
    pub(super) async fn arrive(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        job: &Job,
        inputs: BTreeMap<String, RecordedOutput>,
        left: Left,
        changed: bool,
    ) -> Result<Status, Error> {
        let destroys = driven.run.lock().await.kind.destroys();
        if destroys && let Some(status) = self.rollout(driven, id, job).await? {
            return Ok(status);
        }
        if let Err(error) = self.settle(driven, id, job, inputs, left).await {
            return self.fail(driven, id, RunReason::Reported(error.line())).await;
        }
        if let Some(message) = self.silent_checks(driven, id).await? {
            let reason = if changed { RunReason::AppliedBut(message) } else { RunReason::UnchangedBut(message) };
            return self.fail(driven, id, reason).await;
        }
        if !destroys && let Some(status) = self.rollout(driven, id, job).await? {
            return Ok(status);
        }
        self.record(driven, id, Event::Applied { changed }, None).await
    }

    /// Asks whether what was applied came up, or what was destroyed is gone. Answers where the instance stands if not, and
    /// nothing if so.
    async fn rollout(self: &Arc<Self>, driven: &Driven, id: &InstanceId, job: &Job) -> Result<Option<Status>, Error> {
        let destroys = driven.run.lock().await.kind.destroys();
        let rollout = if destroys { Rollout::Destroy } else { Rollout::Apply };
        let wait = targets::kind(&job.target)?.wait(&job.target.declared);
        if wait.is_zero() && !destroys {
            return Ok(None);
        }
        let waits_until = match driven.run.lock().await.instances.get(id).and_then(|i| i.rollout_until) {
            Some(until) => until,
            None => self.context.now() + chrono::Duration::from_std(wait).unwrap_or(chrono::Duration::MAX),
        };
        let job = &match destroys {
            // An object that moves to another instance does not remain with this one.
            true => self.observer.with_owners(&driven.head, job).await.unwrap_or_else(|_| job.clone()),
            false => job.clone(),
        };
        match self.context.target.health(job).await {
            Ok(Health::Current) => {
                if driven.run.lock().await.instances.get_mut(id).is_some_and(|i| i.rollout_until.take().is_some()) {
                    // It is healthy from now on (R3.5).
                    self.context.store.restart_soak(id, self.context.now()).await?;
                }
                Ok(None)
            }
            Ok(Health::Failed(why)) => self.fail(driven, id, RunReason::Unhealthy(rollout, why)).await.map(Some),
            // The run does not wait for objects that are being deleted.
            Ok(Health::InProgress(_)) if wait.is_zero() => Ok(None),
            Ok(Health::InProgress(why)) if self.context.now() >= waits_until => {
                self.fail(driven, id, RunReason::TimedOut(rollout, wait, why)).await.map(Some)
            }
            Ok(Health::InProgress(why)) => {
                if let Some(instance) = driven.run.lock().await.instances.get_mut(id) {
                    instance.rollout_until = Some(waits_until);
                }
                self.check_rollout_soon(driven.run.lock().await.id);
                let on = WaitingOn::Rollout { until: waits_until };
                self.wait(driven, id, on, RunReason::InProgress(rollout, why)).await.map(Some)
            }
            Err(error) => self.fail(driven, id, RunReason::NotObserved(rollout, error.line())).await.map(Some),
        }
    }

    /// Ends an instance that was destroyed and forgotten, where only that was not said any more.
    pub(super) async fn already_gone(
        self: &Arc<Self>,
        driven: &Driven,
        run: &Run,
        id: &InstanceId,
        status: Status,
    ) -> Result<Option<Status>, Error> {
        let is_begun = matches!(status, Status::New | Status::Planned | Status::Waiting);
        if !run.kind.destroys() || !is_begun || self.context.store.applied(id).await?.is_some() {
            return Ok(None);
        }
        if status != Status::Planned {
            self.record(driven, id, Event::Planned { digest: None }, None).await?;
        }
        self.record(driven, id, Event::Applied { changed: false }, None).await.map(Some)
    }

    /// Whether an instance waits for a rollout that is still on its way; a newer run or a word ends the wait.
    pub(super) async fn still_rolling(
        self: &Arc<Self>,
        driven: &Driven,
        run: &Run,
        id: &InstanceId,
    ) -> Result<Option<Status>, Error> {
        let Some(until) = run
            .instances
            .get(id)
            .and_then(|i| i.rollout_until)
            .filter(|_| matches!(run.instances[id].waiting_on, Some(WaitingOn::Rollout { .. })))
        else {
            return Ok(None);
        };
        if let Some(message) = self.cancelled(run.id, id).await? {
            return self.end_cancelled(driven, id, message).await.map(Some);
        }
        if let Some(reason) = self.superseded_by(run, id).await? {
            return self.record(driven, id, Event::Superseded { message: reason.to_string() }, None).await.map(Some);
        }
        let (job, _) = self.started_job(driven, run, id).await?;
        match self.context.target.health(&job).await {
            // Whatever it is now is decided where everything is looked at.
            Ok(Health::InProgress(_)) if self.context.now() < until => {
                self.check_rollout_soon(run.id);
                Ok(Some(Status::Waiting))
            }
            Err(error) if self.context.now() < until => {
                tracing::warn!(kind = "rollout-not-observed", instance = %id, error = error.line(), "a rollout could not be observed");
                self.check_rollout_soon(run.id);
                Ok(Some(Status::Waiting))
            }
            _ => Ok(None),
        }
    }

    fn check_rollout_soon(self: &Arc<Self>, run: crate::model::RunId) {
        if !self.rollouts.lock().insert(run) {
            return;
        }
        let daemon = Arc::clone(self);
        self.context.tasks.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = daemon.context.stopped() => return,
            }
            daemon.rollouts.lock().remove(&run);
            daemon.context.queue.enqueue(ReconcileRequest::Run(run), Reason::Rollout);
        });
    }
}
