//! The effect between its two journal records, and the progress that it reports.

use crate::domain::message::run::RunReason;
use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, atomic::Ordering},
};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::{
    controller::{
        context::Error,
        runs::{Runs, driven::Driven, prepare::Ready},
        work_queue::{Reason, ReconcileRequest},
    },
    domain::{
        journal::{Event, Outcome, Status},
        plan::InstancePlan,
    },
    model::InstanceId,
    ports::{Fence, Job, Progress, ProgressEvent, RecordedOutput, TargetError, TargetErrorKind},
};

/// The outcome of an effect.
pub(super) enum Effect {
    /// The instance stands so now.
    Ended(Status),
    /// It has to be planned again.
    Stale,
}

/// How far an effect is, is written down at most this often.
const NOW_EVERY: chrono::Duration = chrono::Duration::seconds(5);

impl Runs {
    /// The effect, between its two journal records.
    pub(super) async fn effect(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        ready: Ready,
    ) -> Result<Effect, Error> {
        let Ready { job, prepared, inputs, actions, carried } = ready;
        if self.context.stopping() {
            return Ok(Effect::Ended(Status::Waiting));
        }
        let run = driven.run.lock().await.clone();
        if let Some(message) = self.cancelled(run.id, id).await? {
            return self.end_cancelled(driven, id, message).await.map(Effect::Ended);
        }
        let fence = Fence { run: run.id, token: self.context.store.token(&run.environment).await? };
        let digest = InstancePlan::digest_of(&actions);
        self.record(driven, id, Event::Started { digest }, None).await?;
        tracing::info!(kind = "actions-started", instance = %id, actions = actions.len(), digest = digest.short(), "actions started");
        let (progress, told) = Self::progress();
        let doing = async {
            self.vacate(driven, &run, id, (&actions, &carried), fence, &progress).await?;
            if let Ok(Some(message)) = self.cancelled(run.id, id).await {
                return Err(TargetError::new(TargetErrorKind::Interrupted, message.to_string()));
            }
            self.context.target.apply(&job, prepared, fence, Arc::clone(&progress)).await
        };
        let done = self.follow_progress(driven, id, doing, told).await;
        match done {
            // Everything that knew of it was killed, while this daemon lives: the world tells.
            Err(error) if error.kind == TargetErrorKind::EffectLost => {
                self.recover_by_observation(driven, &run, id, &job, inputs).await
            }
            done => self.finish(driven, id, done, &job, inputs).await,
        }
    }

    /// Records how an effect ended, and looks whether it did what it was to do.
    pub(super) async fn finish(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        done: Result<(), TargetError>,
        job: &Job,
        inputs: BTreeMap<String, RecordedOutput>,
    ) -> Result<Effect, Error> {
        match done {
            Ok(()) => {
                self.context.metrics.actions_applied.fetch_add(1, Ordering::Relaxed);
                if let Some(instance) = driven.run.lock().await.instances.get_mut(id) {
                    instance.changed = true;
                }
                self.record(driven, id, Event::Finished { outcome: Outcome::Done }, None).await?;
                self.verify(driven, id, job, inputs).await.map(Effect::Ended)
            }
            Err(error) if error.kind == TargetErrorKind::PlanStale => {
                self.record(driven, id, Event::Finished { outcome: Outcome::Refused { message: error.line() } }, None)
                    .await?;
                Ok(Effect::Stale)
            }
            Err(error) if error.kind == TargetErrorKind::ApplyStale => {
                if let Some(instance) = driven.run.lock().await.instances.get_mut(id) {
                    instance.changed = true;
                }
                self.record(
                    driven,
                    id,
                    Event::Finished { outcome: Outcome::Interrupted { message: error.line() } },
                    None,
                )
                .await?;
                Ok(Effect::Stale)
            }
            Err(error) if error.kind == TargetErrorKind::Fenced => Err(Error::Target(error)),
            Err(error) => {
                self.context.metrics.actions_failed.fetch_add(1, Ordering::Relaxed);
                let run = driven.run.lock().await.id;
                if let Some(instance) = driven.run.lock().await.instances.get_mut(id) {
                    instance.changed = error.effect_may_have_begun;
                }
                if let Some(message) = self.cancelled(run, id).await? {
                    let outcome = Outcome::Interrupted { message: format!("{message}; {}", error.line()) };
                    self.record(driven, id, Event::Finished { outcome }, None).await?;
                    return self.end_cancelled(driven, id, message).await.map(Effect::Ended);
                }
                self.record(driven, id, Event::Finished { outcome: Outcome::Failed { message: error.line() } }, None)
                    .await?;
                self.fail(driven, id, RunReason::Reported(error.line())).await.map(Effect::Ended)
            }
        }
    }

    /// Where an effect tells what it does, and where that is heard.
    pub(super) fn progress() -> (Progress, UnboundedReceiver<ProgressEvent>) {
        let (say, heard) = unbounded_channel();
        (Arc::new(move |told| drop(say.send(told))), heard)
    }

    /// Hears what an effect tells until it ends.
    pub(super) async fn follow_progress<T>(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        doing: impl Future<Output = T>,
        mut told: UnboundedReceiver<ProgressEvent>,
    ) -> T {
        // Both go on side by side: the effect may be in the middle of a write of its own while its steps are written.
        let (end, mut ended) = tokio::sync::oneshot::channel::<()>();
        let doing = async move {
            let done = doing.await;
            drop(end);
            done
        };
        let hearing = async {
            loop {
                tokio::select! {
                    biased;
                    Some(told) = told.recv() => self.handle_progress(driven, id, told).await,
                    _ = &mut ended => break,
                }
            }
            while let Ok(told) = told.try_recv() {
                self.handle_progress(driven, id, told).await;
            }
        };
        tokio::join!(doing, hearing).0
    }

    async fn handle_progress(self: &Arc<Self>, driven: &Driven, id: &InstanceId, told: ProgressEvent) {
        let written = match told {
            ProgressEvent::Step(message) => {
                tracing::info!(kind = "step", instance = %id, line = message, "step");
                self.record(driven, id, Event::Step { message }, None).await.map(drop)
            }
            ProgressEvent::Now(message) => {
                tracing::info!(kind = "progress", instance = %id, line = message, "progress");
                self.record_progress(driven, id, message).await
            }
        };
        if let Err(error) = written {
            tracing::warn!(kind = "progress-not-recorded", instance = %id, error = crate::error_chain(&error), "the progress of an effect could not be recorded");
        }
    }

    async fn record_progress(self: &Arc<Self>, driven: &Driven, id: &InstanceId, message: String) -> Result<(), Error> {
        {
            let mut said_at = driven.said_at.lock();
            if self.context.now() - *said_at < NOW_EVERY {
                return Ok(());
            }
            *said_at = self.context.now();
        }
        let mut run = driven.run.lock().await;
        if let Some(instance) = run.instances.get_mut(id).filter(|instance| instance.status == Status::Running) {
            instance.message = self.context.redactor.redact(&message);
            self.context.store.set_run(&run).await?;
            self.comment_run(&run).await?;
        }
        Ok(())
    }

    /// Looks at what changed while a run was busy with it, and no pass could be made.
    pub(super) fn enqueue_missed_change(&self, id: &InstanceId) {
        if self.context.target.is_suspect(id) {
            self.context.queue.enqueue(ReconcileRequest::Instance(id.clone()), Reason::TargetChanged);
        }
    }
}
