//! `/cancel`: a run ends at its next safe point; `/unlock`: a lock that nobody is behind any more is released (R5.5).
//!
//! Decides what a word of that sort means for runs that are under way. Never kills: what is in flight is asked to end the
//! way its tool wants it, and what it did until then is recorded.
//! *Race:* an effect ends while it is cancelled: what is done is done, and is verified as ever. *Race:* the daemon dies
//! after the word: it stands in the store, and the run that is taken up again finds it.

use crate::domain::message::Refusal;
use crate::domain::message::answer::Answer;
use crate::domain::message::run::RunReason;
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
    },
    model::{InstanceId, RunId},
};

/// How often an effect that does not hear is asked again.
const ASK_EVERY: std::time::Duration = std::time::Duration::from_millis(200);

fn name(run: RunId, id: &InstanceId) -> String {
    format!("{run}/{id}")
}

impl Runs {
    /// `/cancel`: ends what runs still have to do with instances.
    pub(crate) async fn cancel(
        self: &Arc<Self>,
        meant: &BTreeSet<InstanceId>,
        who: &Principal,
    ) -> Result<String, Error> {
        let mut said = vec![];
        for run in self.context.store.open_runs().await? {
            let held: Vec<&InstanceId> = meant.iter().filter(|id| run.holds(id)).collect();
            if held.is_empty() {
                continue;
            }
            let by = RunReason::Cancelled(who.mention()).to_string();
            let mut asked = vec![];
            for id in held {
                self.context
                    .store
                    .audit(self.context.now(), &who.name(), "cancel", &id.to_string(), &format!("run {}", run.id))
                    .await?;
                self.context
                    .store
                    .collection::<Cancellation>()
                    .put(&name(run.id, id), self.context.now(), &Cancellation(by.clone()))
                    .await?;
                if run.instances[id].status == Status::Running {
                    let (daemon, id, run) = (Arc::clone(self), id.clone(), run.id);
                    asked.push(id.clone());
                    self.context.tasks.spawn(async move { daemon.interrupt(run, &id).await });
                }
            }
            self.changed.notify_waiters();
            self.context.queue.enqueue(ReconcileRequest::Run(run.id), Reason::Command(Verb::Cancel));
            said.push(Answer::Cancels(run.id, asked).to_string());
        }
        if said.is_empty() {
            return Err(Error::Refused(Refusal::NoRun));
        }
        Ok(said.join(" "))
    }

    /// Asks an effect to end, also where it is only about to begin, for as long as it is in flight.
    async fn interrupt(&self, run: RunId, id: &InstanceId) {
        let in_flight = |run: Run| run.instances.get(id).is_some_and(|one| one.status == Status::Running);
        while self.context.store.run(run).await.ok().flatten().is_some_and(in_flight) {
            match self.context.target.interrupt(id).await {
                Ok(true) => return,
                // A cluster may be being drained for it.
                Ok(false) => {
                    for cluster in self.observer.drained_for(id) {
                        drop(self.context.target.interrupt(&cluster).await);
                    }
                }
                Err(error) => {
                    tracing::warn!(kind = "interrupt-failed", instance = %id, error = error.line(), "the effect could not be interrupted")
                }
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// By whom an instance's part of a run is cancelled, if it is.
    pub(crate) async fn cancelled(&self, run: RunId, id: &InstanceId) -> Result<Option<RunReason>, Error> {
        Ok(self
            .context
            .store
            .collection::<Cancellation>()
            .get(&name(run, id))
            .await?
            .map(|cancellation| RunReason::Reported(cancellation.0)))
    }

    /// Ends an instance's part of a run that was cancelled; it stays as it is until somebody's word.
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

    /// Forgets what was said about a run that has ended.
    pub(super) async fn remove_cancellations(&self, run: &Run) -> Result<(), Error> {
        for id in run.instances.keys() {
            if self.cancelled(run.id, id).await?.is_some() {
                self.context.store.collection::<Cancellation>().remove(&name(run.id, id)).await?;
            }
        }
        Ok(())
    }
}
