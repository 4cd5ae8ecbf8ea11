//! Waits until applied objects become ready, and until destroyed objects are deleted.
//!
//! *Flow:* after an apply the controller asks the target for the health of the applied objects. A rollout in progress makes
//! the instance wait without a task. The health is checked again every [`CHECK_EVERY`] until the timeout of the declaration.
//! *Invariant:* an instance is never applied while a rollout with a timeout is in progress. A rollout that fails or times
//! out fails the instance with a reason.
//! *Race:* a newer run or `/cancel` arrives during the wait: the wait ends.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::{
    controller::{
        context::Error,
        runs::{Runs, driven::Driven, prepare::Remaining},
        work_queue::{Reason, ReconcileRequest},
    },
    domain::{
        journal::{Event, Run, Status},
        message::run::{Rollout, RunReason},
    },
    model::{InstanceId, WaitingOn},
    ports::{Health, Job, RecordedOutput},
    targets,
};

/// The interval between two checks of a rollout.
const CHECK_EVERY: Duration = Duration::from_secs(1);

impl Runs {
    /// Returns the failed checks of an instance as one message.
    async fn failed_checks_message(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
    ) -> Result<Option<String>, Error> {
        let Some(spec) = driven.head.instance(id).and_then(|instance| instance.spec.clone()) else { return Ok(None) };
        let failed = self.observer.failed_checks(id, &spec).await?;
        Ok((!failed.is_empty()).then(|| failed.join("; ")))
    }

    /// Ends an instance without remaining actions: records the result, runs the checks, and waits for the rollout. A
    /// destroyed instance is forgotten only after its objects are deleted.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) async fn complete(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        job: &Job,
        inputs: BTreeMap<String, RecordedOutput>,
        remaining: Remaining,
        changed: bool,
    ) -> Result<Status, Error> {
        let destroys = driven.run.lock().await.kind.destroys();
        if destroys && let Some(status) = self.rollout(driven, id, job).await? {
            return Ok(status);
        }
        if let Err(error) = self.record_result(driven, id, job, inputs, remaining).await {
            return self.fail(driven, id, RunReason::Reported(error.line())).await;
        }
        if let Some(message) = self.failed_checks_message(driven, id).await? {
            let reason = if changed { RunReason::AppliedBut(message) } else { RunReason::UnchangedBut(message) };
            return self.fail(driven, id, reason).await;
        }
        if !destroys && let Some(status) = self.rollout(driven, id, job).await? {
            return Ok(status);
        }
        self.record(driven, id, Event::Applied { changed }, None).await
    }

    /// Checks whether the applied objects are ready, or the destroyed objects are deleted. Returns the status of the
    /// instance if not, and `None` if so.
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
                    // The soak time begins when the rollout is complete (R3.5).
                    self.context.store.restart_soak(id, self.context.now()).await?;
                }
                Ok(None)
            }
            Ok(Health::Failed(reason)) => self.fail(driven, id, RunReason::Unhealthy(rollout, reason)).await.map(Some),
            // The run does not wait for objects that are being deleted.
            Ok(Health::InProgress(_)) if wait.is_zero() => Ok(None),
            Ok(Health::InProgress(reason)) if self.context.now() >= waits_until => {
                self.fail(driven, id, RunReason::TimedOut(rollout, wait, reason)).await.map(Some)
            }
            Ok(Health::InProgress(reason)) => {
                if let Some(instance) = driven.run.lock().await.instances.get_mut(id) {
                    instance.rollout_until = Some(waits_until);
                }
                self.check_rollout_soon(driven.run.lock().await.id);
                let on = WaitingOn::Rollout { until: waits_until };
                self.wait(driven, id, on, RunReason::InProgress(rollout, reason)).await.map(Some)
            }
            Err(error) => self.fail(driven, id, RunReason::NotObserved(rollout, error.line())).await.map(Some),
        }
    }

    /// Ends an instance that was destroyed and forgotten, where the daemon died before it recorded the end.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) async fn already_destroyed(
        self: &Arc<Self>,
        driven: &Driven,
        run: &Run,
        id: &InstanceId,
        status: Status,
    ) -> Result<Option<Status>, Error> {
        let is_not_started = matches!(status, Status::New | Status::Planned | Status::Waiting);
        if !run.kind.destroys() || !is_not_started || self.context.store.applied(id).await?.is_some() {
            return Ok(None);
        }
        if status != Status::Planned {
            self.record(driven, id, Event::Planned { digest: None }, None).await?;
        }
        self.record(driven, id, Event::Applied { changed: false }, None).await.map(Some)
    }

    /// Returns the status of an instance whose rollout is in progress; a newer run or `/cancel` ends the wait. `None` where
    /// the instance does not wait for a rollout.
    ///
    /// # Errors
    /// When the store fails, or the job can't be made.
    pub(super) async fn rollout_in_progress(
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
            // The end of the rollout is handled when the instance is prepared again.
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
        let runs = Arc::clone(self);
        self.context.tasks.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(CHECK_EVERY) => {}
                () = runs.context.stopped() => return,
            }
            runs.rollouts.lock().remove(&run);
            runs.context.queue.enqueue(ReconcileRequest::Run(run), Reason::Rollout);
        });
    }
}
