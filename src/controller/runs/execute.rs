//! Executes an effect between its two journal records, and records its progress.
//!
//! *Invariant:* `started` is recorded before the effect begins.
//! *Race:* the effect ends while its progress is recorded: the remaining events are recorded before `finished`.

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
        message::run::RunReason,
        plan::InstancePlan,
    },
    model::InstanceId,
    ports::{Fence, Job, Progress, ProgressEvent, RecordedOutput, TargetError, TargetErrorKind},
};

/// The outcome of an effect.
pub(super) enum Effect {
    /// The status of the instance after the effect.
    Ended(Status),
    /// The plan is stale: the instance is planned again.
    Stale,
}

/// The minimal interval between two records of the progress of an effect.
const PROGRESS_EVERY: chrono::Duration = chrono::Duration::seconds(5);

impl Runs {
    /// Executes the effect between its two journal records.
    ///
    /// # Errors
    /// When the store fails, or the fence rejects this daemon.
    pub(super) async fn effect(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        ready: Ready,
    ) -> Result<Effect, Error> {
        let Ready { job, prepared, inputs, actions, hosted_nodes } = ready;
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
        let (progress, events) = Self::progress();
        let effect = async {
            self.drain_hosted_nodes(driven, &run, id, (&actions, &hosted_nodes), fence, &progress).await?;
            if let Ok(Some(message)) = self.cancelled(run.id, id).await {
                return Err(TargetError::new(TargetErrorKind::Interrupted, message.to_string()));
            }
            self.context.target.apply(&job, prepared, fence, Arc::clone(&progress)).await
        };
        let result = self.follow_progress(driven, id, effect, events).await;
        match result {
            // The process of the effect was killed: an observation decides the outcome.
            Err(error) if error.kind == TargetErrorKind::EffectLost => {
                self.recover_by_observation(driven, &run, id, &job, inputs).await
            }
            result => self.finish(driven, id, result, &job, inputs).await,
        }
    }

    /// Records the outcome of an effect, and verifies a successful effect.
    ///
    /// # Errors
    /// When the store fails, or the fence rejects this daemon.
    pub(super) async fn finish(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        result: Result<(), TargetError>,
        job: &Job,
        inputs: BTreeMap<String, RecordedOutput>,
    ) -> Result<Effect, Error> {
        match result {
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

    /// Returns the channel of the progress events of an effect.
    pub(super) fn progress() -> (Progress, UnboundedReceiver<ProgressEvent>) {
        let (sender, receiver) = unbounded_channel();
        (Arc::new(move |event| drop(sender.send(event))), receiver)
    }

    /// Records the progress events of an effect until the effect ends.
    pub(super) async fn follow_progress<T>(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        effect: impl Future<Output = T>,
        mut events: UnboundedReceiver<ProgressEvent>,
    ) -> T {
        // The effect and the records run concurrently: the effect may itself write to the store meanwhile.
        let (end, mut ended) = tokio::sync::oneshot::channel::<()>();
        let effect = async move {
            let output = effect.await;
            drop(end);
            output
        };
        let recording = async {
            loop {
                tokio::select! {
                    biased;
                    Some(event) = events.recv() => self.handle_progress(driven, id, event).await,
                    _ = &mut ended => break,
                }
            }
            while let Ok(event) = events.try_recv() {
                self.handle_progress(driven, id, event).await;
            }
        };
        tokio::join!(effect, recording).0
    }

    async fn handle_progress(self: &Arc<Self>, driven: &Driven, id: &InstanceId, event: ProgressEvent) {
        let recorded = match event {
            ProgressEvent::Step(message) => {
                tracing::info!(kind = "step", instance = %id, line = message, "step");
                self.record(driven, id, Event::Step { message }, None).await.map(drop)
            }
            ProgressEvent::Now(message) => {
                tracing::info!(kind = "progress", instance = %id, line = message, "progress");
                self.record_progress(driven, id, message).await
            }
        };
        if let Err(error) = recorded {
            tracing::warn!(kind = "progress-not-recorded", instance = %id, error = crate::error_chain(&error), "the progress of an effect could not be recorded");
        }
    }

    async fn record_progress(self: &Arc<Self>, driven: &Driven, id: &InstanceId, message: String) -> Result<(), Error> {
        {
            let mut reported_at = driven.reported_at.lock();
            if self.context.now() - *reported_at < PROGRESS_EVERY {
                return Ok(());
            }
            *reported_at = self.context.now();
        }
        let mut run = driven.run.lock().await;
        if let Some(instance) = run.instances.get_mut(id).filter(|instance| instance.status == Status::Running) {
            instance.message = self.context.redactor.redact(&message);
            self.context.store.set_run(&run).await?;
            self.comment_run(&run).await?;
        }
        Ok(())
    }

    /// Enqueues a drift check of an instance that changed during a run, where drift checks are postponed.
    pub(super) fn enqueue_missed_change(&self, id: &InstanceId) {
        if self.context.target.is_suspect(id) {
            self.context.queue.enqueue(ReconcileRequest::Instance(id.clone()), Reason::TargetChanged);
        }
    }
}
