//! Cancels runs at their next safe point (`/cancel`, R5.5).
//!
//! *Owns:* the stored cancellations.
//! *Invariant:* an effect is never killed. The controller asks the tool of the effect for an orderly end, and records the
//! completed work.
//! *Race:* an effect ends while it is cancelled: the completed effect is verified. *Race:* the daemon dies after the command:
//! the cancellation is stored, and the resumed run finds it.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    controller::{
        context::Error,
        records::Cancellation,
        runs::{Runs, driven::Driven},
        work_queue::{Reason, ReconcileRequest},
    },
    domain::{
        authorization::Principal,
        declaration::schema::Verb,
        journal::{Event, Run, Status},
        message::{Refusal, answer::Answer, run::RunReason},
    },
    model::{InstanceId, RunId},
};

/// The interval between two interrupts of an effect that has not ended.
const INTERRUPT_EVERY: std::time::Duration = std::time::Duration::from_millis(200);

fn cancellation_key(run: RunId, id: &InstanceId) -> String {
    format!("{run}/{id}")
}

impl Runs {
    /// `/cancel`: cancels the selected instances in every open run.
    ///
    /// # Errors
    /// [`Error::Refused`] where no open run contains a selected instance; else when the store fails.
    pub(crate) async fn cancel(
        self: &Arc<Self>,
        selected: &BTreeSet<InstanceId>,
        principal: &Principal,
    ) -> Result<String, Error> {
        let mut messages = vec![];
        for run in self.context.store.open_runs().await? {
            let instances: Vec<&InstanceId> = selected.iter().filter(|id| run.holds(id)).collect();
            if instances.is_empty() {
                continue;
            }
            let reason = RunReason::Cancelled(principal.mention()).to_string();
            let mut interrupted = vec![];
            for id in instances {
                self.context
                    .store
                    .audit(self.context.now(), &principal.name(), "cancel", &id.to_string(), &format!("run {}", run.id))
                    .await?;
                self.context
                    .store
                    .collection::<Cancellation>()
                    .put(&cancellation_key(run.id, id), self.context.now(), &Cancellation(reason.clone()))
                    .await?;
                if run.instances[id].status == Status::Running {
                    let (runs, id, run) = (Arc::clone(self), id.clone(), run.id);
                    interrupted.push(id.clone());
                    self.context.tasks.spawn(async move { runs.interrupt(run, &id).await });
                }
            }
            self.changed.notify_waiters();
            self.context.queue.enqueue(ReconcileRequest::Run(run.id), Reason::Command(Verb::Cancel));
            messages.push(Answer::Cancels(run.id, interrupted).to_string());
        }
        if messages.is_empty() {
            return Err(Error::Refused(Refusal::NoRun));
        }
        Ok(messages.join(" "))
    }

    /// Interrupts the effect of an instance until the instance is no longer running, also before the effect begins.
    async fn interrupt(&self, run: RunId, id: &InstanceId) {
        let is_running = |run: Run| run.instances.get(id).is_some_and(|instance| instance.status == Status::Running);
        while self.context.store.run(run).await.ok().flatten().is_some_and(is_running) {
            match self.context.target.interrupt(id).await {
                Ok(true) => return,
                // A drain of a cluster may be in progress for the instance.
                Ok(false) => {
                    for cluster in self.observer.drained_for(id) {
                        drop(self.context.target.interrupt(&cluster).await);
                    }
                }
                Err(error) => {
                    tracing::warn!(kind = "interrupt-failed", instance = %id, error = error.line(), "the effect could not be interrupted")
                }
            }
            tokio::time::sleep(INTERRUPT_EVERY).await;
        }
    }

    /// Returns the reason of the cancellation of an instance of a run, if it is cancelled.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(crate) async fn cancelled(&self, run: RunId, id: &InstanceId) -> Result<Option<RunReason>, Error> {
        Ok(self
            .context
            .store
            .collection::<Cancellation>()
            .get(&cancellation_key(run, id))
            .await?
            .map(|cancellation| RunReason::Reported(cancellation.0)))
    }

    /// Ends a cancelled instance of a run. The instance is stalled until a command.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) async fn end_cancelled(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        reason: RunReason,
    ) -> Result<Status, Error> {
        let message = reason.to_string();
        self.stall(driven, id, &message, true).await?;
        self.record(driven, id, Event::Cancelled { message }, None).await
    }

    /// Removes the cancellations of a run that has ended.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) async fn remove_cancellations(&self, run: &Run) -> Result<(), Error> {
        for id in run.instances.keys() {
            if self.cancelled(run.id, id).await?.is_some() {
                self.context.store.collection::<Cancellation>().remove(&cancellation_key(run.id, id)).await?;
            }
        }
        Ok(())
    }
}
