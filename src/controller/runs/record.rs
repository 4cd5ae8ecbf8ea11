//! Records what becomes of an instance of a run: in the journal, in the document of the run, in its comment.

use crate::domain::message::run::RunReason;
use std::sync::Arc;

use super::{Runs, driven::Driven};
use crate::{
    controller::{
        context::Error,
        work_queue::{Reason, ReconcileRequest},
    },
    domain::journal::{Event, Status, next_status},
    model::{InstanceId, WaitingOn},
};

/// The comment of a run is edited at most this often while it runs.
const PROGRESS_EVERY: chrono::Duration = chrono::Duration::seconds(5);

impl Runs {
    pub(super) async fn wait(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        on: WaitingOn,
        reason: RunReason,
    ) -> Result<Status, Error> {
        let known =
            driven.run.lock().await.instances.get(id).is_some_and(|instance| {
                instance.status == Status::Waiting && instance.waiting_on.as_ref() == Some(&on)
            });
        if known {
            return Ok(Status::Waiting);
        }
        if matches!(on, WaitingOn::Approval { .. } | WaitingOn::FirstContact) {
            // Whoever is asked for a word has to be shown what it would be about.
            self.context.queue.enqueue(ReconcileRequest::HeadPlan(id.environment.clone()), Reason::RunWaits);
        }
        if let Some(instance) = driven.run.lock().await.instances.get_mut(id) {
            instance.waiting_since = Some(self.context.now());
        }
        self.record(driven, id, Event::Waits { on: on.clone(), message: reason.to_string() }, Some(on)).await
    }

    pub(super) async fn fail(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        reason: RunReason,
    ) -> Result<Status, Error> {
        let message = self.context.redactor.redact(&reason.to_string());
        self.stall(driven, id, &message, false).await?;
        self.record(driven, id, Event::Failed { message }, None).await
    }

    /// Journals an event, and brings the run's document and comment up to date.
    pub(super) async fn record(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        event: Event,
        on: Option<WaitingOn>,
    ) -> Result<Status, Error> {
        let mut run = driven.run.lock().await;
        let mut next = run.clone();
        if let Some(instance) = next.instances.get_mut(id) {
            instance.status = next_status(id, instance.status, &event).map_err(crate::adapters::store::Error::from)?;
            instance.waiting_on = on;
            instance.message = match &event {
                Event::Waits { message, .. }
                | Event::Failed { message }
                | Event::Skipped { message }
                | Event::Cancelled { message }
                | Event::Step { message }
                | Event::Superseded { message } => message.clone(),
                _ => String::new(),
            };
        }
        let status = self.context.store.append(&next, id, &event, self.context.now()).await?;
        *run = next;
        if status.ended() || status == Status::Waiting {
            self.changed.notify_waiters();
            self.enqueue_missed_change(id);
        }
        let due = {
            let mut said_at = driven.said_at.lock();
            let due = self.context.now() - *said_at >= PROGRESS_EVERY;
            if due {
                *said_at = self.context.now();
            }
            due
        };
        if due {
            self.comment_run(&run).await?;
        }
        Ok(status)
    }
}
