//! At start: what was under way goes on (R7.1).
//!
//! Every `started` without its `finished` is looked at again and becomes done, redo or stalled; every open run is
//! driven on. Nothing is assumed from what the store says about the world.

use std::{collections::BTreeMap, sync::Arc};

use chrono::DateTime;
use tokio::sync::Mutex;

use super::{Daemon, Error, Wake, inputs::declared_job, prepare::Stop, run::Driven};
use crate::{
    journal::{Approved, Event, Outcome, Recovery, Run, Status, recovery},
    model::{Action, InstanceId},
    plan,
    port::{Job, Use},
    targets::tofu,
};

impl Daemon {
    /// Takes up the runs that did not end.
    pub(super) async fn recover(self: &Arc<Self>) -> Result<(), Error> {
        self.store().unlock_all().await?;
        for mut run in self.store().open_runs().await? {
            let begun: Vec<_> = run
                .instances
                .iter()
                .filter(|(_, i)| matches!(i.status, Status::Running | Status::Effected))
                .map(|(id, _)| id.clone())
                .collect();
            for id in begun {
                tracing::warn!(run = run.id.0, instance = %id, "was under way when the daemon stopped; looking at it again");
                if let Err(error) = self.take_up(&mut run, &id).await {
                    tracing::error!(run = run.id.0, instance = %id, error = crate::error_chain(&error), "could not be looked at again; it is tried at the next start");
                }
            }
            self.queue.wake(Wake::Run(run.id), "was under way at start");
        }
        Ok(())
    }

    /// The job of an effect that was begun; what came in its way since then is no reason not to look.
    async fn begun_job(self: &Arc<Self>, driven: &Driven, run: &Run, id: &InstanceId) -> Result<Job, Error> {
        if run.destroys {
            return self.destroy_job(id, &driven.head).await;
        }
        if run.reverts() {
            let record = self
                .store()
                .applied(id)
                .await?
                .ok_or_else(|| Error::Refused(format!("`{id}` is not applied any more")))?;
            return self.remedy_job(run, id, &record, &driven.head).await;
        }
        let instance = driven
            .head
            .instance(id)
            .ok_or_else(|| Error::Refused(format!("`{id}` is not declared at `{}`", driven.head.revision.short())))?;
        let inputs = self.inputs(&driven.head, id, &instance.references, &BTreeMap::new()).await?;
        Ok(declared_job(instance, Use::Head, Arc::clone(&driven.head.content), &inputs, driven.head.consumed(id))?)
    }

    /// Decides what was started and not finished by looking again (R7.1).
    pub(super) async fn take_up(self: &Arc<Self>, run: &mut Run, id: &InstanceId) -> Result<(), Error> {
        let Some(token) = self.token(&run.environment).await? else { return Ok(()) };
        let head = self.head_of(run).await?;
        let driven = Driven {
            run: Mutex::new(run.clone()),
            head,
            token,
            said_at: std::sync::Mutex::new(DateTime::UNIX_EPOCH),
            spent: Mutex::default(),
        };
        if run.destroys && self.store().applied(id).await?.is_none() {
            // It was destroyed and forgotten; only that was not said any more.
            if driven.run.lock().await.instances.get(id).is_some_and(|i| i.status == Status::Running) {
                self.record(&driven, id, Event::Finished { outcome: Outcome::Done }, None).await?;
            }
            self.record(&driven, id, Event::Applied { changed: true }, None).await?;
            *run = driven.run.lock().await.clone();
            return Ok(());
        }
        // An effect that failed before the daemon stopped is no authority to try again (R3.1).
        let last = self
            .store()
            .journal(Some(run.id), u32::MAX)
            .await?
            .into_iter()
            .rev()
            .find(|record| record.instance == *id)
            .map(|record| record.event);
        if let Some(Event::Finished { outcome: Outcome::Failed { says } }) = last {
            self.fail(&driven, id, says).await?;
            *run = driven.run.lock().await.clone();
            return Ok(());
        }
        let decision = match self.begun_job(&driven, run, id).await {
            Ok(job) => match self.prepare_job(&job).await {
                Ok(prepared) => {
                    let actions: Vec<Action> =
                        tofu::plan::action(id, &prepared.observation, &[], &[]).into_iter().collect();
                    let covered = match self.store().approved(run.id, id).await? {
                        Some(Approved::Declaration) => true,
                        Some(Approved::Actions { actions: approved }) => plan::covers(&approved, &actions).is_ok(),
                        // What was begun under a filter or a deferral is compared again when the instance is planned.
                        _ => true,
                    };
                    recovery(actions.first().map(|action| &action.digest), covered)
                }
                Err(Stop::Fails(says)) => Recovery::Stalled { says },
                Err(_) => return Ok(()),
            },
            Err(error) => Recovery::Stalled { says: crate::error_chain(&error) },
        };
        let status = driven.run.lock().await.instances.get(id).map(|i| i.status).unwrap_or_default();
        if status == Status::Running {
            let outcome = match &decision {
                Recovery::Done => Outcome::Done,
                Recovery::Redo => Outcome::Interrupted {
                    says: "the daemon stopped in the middle; what is left is covered and goes on".into(),
                },
                Recovery::Stalled { says } => Outcome::Failed { says: says.clone() },
            };
            self.record(&driven, id, Event::Finished { outcome }, None).await?;
        }
        if let Recovery::Stalled { says } = decision {
            self.fail(&driven, id, says).await?;
        }
        *run = driven.run.lock().await.clone();
        Ok(())
    }
}
