//! Records the events of a run: in the journal, in the document of the run, and in its comment.

use std::sync::Arc;

use super::{Runs, driven::Driven};
use crate::{
    controller::{
        context::Error,
        work_queue::{Reason, ReconcileRequest},
    },
    domain::{
        journal::{Event, Status, next_status},
        message::run::RunReason,
    },
    model::{InstanceId, WaitingOn},
};

/// The minimal interval between two edits of the comment of a run in progress.
const COMMENT_EVERY: chrono::Duration = chrono::Duration::seconds(5);

impl Runs {
    /// Records that an instance waits, once for each reason.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) async fn wait(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        on: WaitingOn,
        reason: RunReason,
    ) -> Result<Status, Error> {
        let is_recorded =
            driven.run.lock().await.instances.get(id).is_some_and(|instance| {
                instance.status == Status::Waiting && instance.waiting_on.as_ref() == Some(&on)
            });
        if is_recorded {
            return Ok(Status::Waiting);
        }
        if matches!(on, WaitingOn::Approval { .. } | WaitingOn::FirstContact) {
            // The command that ends the wait refers to this plan.
            self.context.queue.enqueue(ReconcileRequest::HeadPlan(id.environment.clone()), Reason::RunWaits);
        }
        if let Some(instance) = driven.run.lock().await.instances.get_mut(id) {
            instance.waiting_since = Some(self.context.now());
        }
        self.record(driven, id, Event::Waits { on: on.clone(), message: reason.to_string() }, Some(on)).await
    }

    /// Records that an instance failed, and stalls the instance.
    ///
    /// # Errors
    /// When the store fails.
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

    /// Journals an event, and updates the document and the comment of the run. Returns the status after the event.
    ///
    /// # Errors
    /// When the store fails, or the event is not legal in the current status.
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
        let is_due = {
            let mut reported_at = driven.reported_at.lock();
            let is_due = self.context.now() - *reported_at >= COMMENT_EVERY;
            if is_due {
                *reported_at = self.context.now();
            }
            is_due
        };
        if is_due {
            self.comment_run(&run).await?;
        }
        Ok(status)
    }
}
