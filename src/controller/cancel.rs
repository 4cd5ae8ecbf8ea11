//! `/cancel`: a run ends at its next safe point; `/unlock`: a lock that nobody is behind any more is released (R5.5).
//!
//! Decides what a word of that sort means for runs that are under way. Never kills: what is in flight is asked to end the
//! way its tool wants it, and what it did until then is recorded.
//! *Race:* an effect ends while it is cancelled: what is done is done, and is verified as ever. *Race:* the daemon dies
//! after the word: it stands in the store, and the run that is taken up again finds it.

use std::{collections::BTreeSet, sync::Arc};

use super::{Daemon, Error, Head, Wake, inputs::declared_job, run::Driven};
use crate::{
    domain::{
        authorization::Principal,
        journal::{Event, Run, Status},
        message::comment,
    },
    model::{InstanceId, RunId},
    ports::Use,
};

/// The sort of record that says that an instance's part of a run is cancelled.
const CANCEL: &str = "cancel";

/// How often an effect that does not hear is asked again.
const ASK_EVERY: std::time::Duration = std::time::Duration::from_millis(200);

fn name(run: RunId, id: &InstanceId) -> String {
    format!("{run}/{id}")
}

impl Daemon {
    /// `/cancel`: ends what runs still have to do with instances.
    pub(super) async fn cancel(
        self: &Arc<Self>,
        meant: &BTreeSet<InstanceId>,
        who: &Principal,
    ) -> Result<String, Error> {
        let mut said = vec![];
        for run in self.store().open_runs().await? {
            let held: Vec<&InstanceId> = meant.iter().filter(|id| run.holds(id)).collect();
            if held.is_empty() {
                continue;
            }
            let by = format!("cancelled by {}", who.mention());
            let mut asked = vec![];
            for id in held {
                self.store()
                    .audit(self.now(), &who.name(), "cancel", &id.to_string(), &format!("run {}", run.id))
                    .await?;
                self.store().put(CANCEL, &name(run.id, id), self.now(), &by).await?;
                if run.instances[id].status == Status::Running {
                    let (daemon, id, run) = (Arc::clone(self), id.clone(), run.id);
                    asked.push(id.to_string());
                    self.tasks.spawn(async move { daemon.interrupt(run, &id).await });
                }
            }
            self.run_changed.notify_waiters();
            self.queue.wake(Wake::Run(run.id), "/cancel");
            said.push(match asked.is_empty() {
                true => format!("Run {} ends at its next safe point.", run.id),
                false => format!(
                    "Run {} ends at its next safe point; {} was asked to stop and writes down what it did.",
                    run.id,
                    comment::names(asked.into_iter())
                ),
            });
        }
        if said.is_empty() {
            return Err(Error::Refused("Nothing was cancelled: no run of what you mean is under way.".into()));
        }
        Ok(said.join(" "))
    }

    /// Asks an effect to end, also where it is only about to begin, for as long as it is in flight.
    async fn interrupt(&self, run: RunId, id: &InstanceId) {
        let in_flight = |run: Run| run.instances.get(id).is_some_and(|one| one.status == Status::Running);
        while self.store().run(run).await.ok().flatten().is_some_and(in_flight) {
            match self.hands.target.interrupt(id).await {
                Ok(true) => return,
                // A cluster may be about to let go of a node for it.
                Ok(false) => {
                    let vacating =
                        self.vacating.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(id).cloned();
                    if let Some(cluster) = vacating {
                        drop(self.hands.target.interrupt(&cluster).await);
                    }
                }
                Err(error) => tracing::warn!(instance = %id, error = error.line(), "could not interrupt"),
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// By whom an instance's part of a run is cancelled, if it is.
    pub(super) async fn cancelled(&self, run: RunId, id: &InstanceId) -> Result<Option<String>, Error> {
        Ok(self.store().get(CANCEL, &name(run, id)).await?)
    }

    /// Ends an instance's part of a run that was cancelled; it stays as it is until somebody's word.
    pub(super) async fn end_cancelled(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        says: String,
    ) -> Result<Status, Error> {
        self.stall(driven, id, &says, true).await?;
        self.record(driven, id, Event::Cancelled { says }, None).await
    }

    /// Forgets what was said about a run that has ended.
    pub(super) async fn forget_cancelled(&self, run: &Run) -> Result<(), Error> {
        for id in run.instances.keys() {
            if self.cancelled(run.id, id).await?.is_some() {
                self.store().remove(CANCEL, &name(run.id, id)).await?;
            }
        }
        Ok(())
    }

    /// `/unlock`: releases the lock of a target that nobody works on any more.
    pub(super) async fn unlock(
        self: &Arc<Self>,
        head: &Arc<Head>,
        meant: &BTreeSet<InstanceId>,
        who: &Principal,
    ) -> Result<String, Error> {
        let live = |run: &Run, id: &InstanceId| {
            run.holds(id) && !matches!(run.instances[id].status, Status::New | Status::Waiting)
        };
        for run in self.store().open_runs().await? {
            if let Some(id) = meant.iter().find(|id| live(&run, id)) {
                return Err(Error::Refused(format!(
                    "Nothing was unlocked: run {} works on `{id}`; wait for it, or say `/cancel {id}`.",
                    run.id
                )));
            }
        }
        let (mut released, mut free) = (vec![], vec![]);
        for id in meant {
            let Some(instance) = head.instance(id).filter(|instance| instance.problems.is_empty()) else {
                return Err(Error::Refused(format!(
                    "Nothing was unlocked: `{id}` is not declared without a problem, so its lock can't be reached."
                )));
            };
            let inputs = self.inputs(head, id, &instance.references, &std::collections::BTreeMap::new()).await?;
            let job = declared_job(instance, Use::Head, Arc::clone(&head.content), &inputs, head.consumed(id))?;
            match self.hands.target.unlock(&job).await? {
                Some(whose) => {
                    self.store().audit(self.now(), &who.name(), "unlock", &id.to_string(), &whose).await?;
                    self.queue.wake(Wake::Decide(id.environment.clone()), "/unlock");
                    released.push(format!("`{id}` was locked by {whose}, and is not any more."));
                }
                None => free.push(id.to_string()),
            }
        }
        if released.is_empty() {
            return Err(Error::Refused(format!(
                "Nothing was unlocked: nobody has locked {}.",
                comment::names(free.into_iter())
            )));
        }
        Ok(released.join(" "))
    }
}
