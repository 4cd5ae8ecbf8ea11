//! Resumes effects that were in progress when a daemon stopped (R7.1).
//!
//! *Flow:* every open run is driven. For an instance with `started` and without `finished`, the controller first attaches
//! to the effect at the target. An effect that survived the daemon is awaited and recorded. Otherwise an observation decides
//! between done, redo, and stalled.
//! *Invariant:* the state of a target is observed, never derived from the store. The same code runs after a crash, after a
//! failed write to the store, and in a daemon that becomes leader.
//! *Race:* the daemon dies during the recovery: the next daemon finds the same records.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    controller::{
        context::Error,
        observe::declared_job,
        runs::{Runs, driven::Driven, execute::Effect, prepare::Stop},
    },
    domain::{
        journal::{Approved, Event, Outcome, Recovery, Run, Status, recovery},
        message::{Refusal, run::RunReason},
        plan,
    },
    model::InstanceId,
    ports::{Attached, Fence, Job, RecordedOutput, Use},
    targets,
};

impl Runs {
    /// Returns the job of a started effect and its inputs. Conditions that would prevent a new effect do not prevent the
    /// recovery.
    ///
    /// # Errors
    /// When the job can't be made from the declaration or the applied record, or the store can't be read.
    pub(super) async fn started_job(
        self: &Arc<Self>,
        driven: &Driven,
        run: &Run,
        id: &InstanceId,
    ) -> Result<(Job, BTreeMap<String, RecordedOutput>), Error> {
        if run.kind.destroys() {
            return Ok((self.observer.destroy_job(id, &driven.head).await?, BTreeMap::new()));
        }
        if run.reverts() {
            let record = self
                .context
                .store
                .applied(id)
                .await?
                .ok_or_else(|| Error::Refused(Refusal::NoLongerApplied(id.clone())))?;
            return Ok((self.observer.remediation_job(run, id, &record, &driven.head).await?, record.inputs));
        }
        let instance = driven.head.instance(id).ok_or_else(|| {
            Error::Refused(Refusal::NotDeclaredAt { id: id.clone(), revision: driven.head.revision.short().to_owned() })
        })?;
        let inputs = self.observer.inputs(&driven.head, id, &instance.references, &BTreeMap::new()).await?;
        let content = Arc::clone(&driven.head.content);
        Ok((declared_job(instance, Use::Head, content, &inputs, driven.head.consumed(id))?, inputs.recorded))
    }

    /// Resumes a started effect and records its outcome.
    ///
    /// # Errors
    /// When the store or the target fails.
    pub(super) async fn resume_effect(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        status: Status,
    ) -> Result<Effect, Error> {
        let run = driven.run.lock().await.clone();
        tracing::warn!(kind = "run-recovered", run = run.id.0, instance = %id, "an effect was in progress when the daemon stopped; it is observed again");
        if run.kind.destroys() && self.context.store.applied(id).await?.is_none() {
            // The instance was destroyed and forgotten; the daemon died before it recorded the outcome.
            if status == Status::Running {
                self.record(driven, id, Event::Finished { outcome: Outcome::Done }, None).await?;
            }
            return self.record(driven, id, Event::Applied { changed: true }, None).await.map(Effect::Ended);
        }
        let records = self.context.store.journal(Some(run.id), u32::MAX).await?;
        let is_step = |event: &Event| matches!(event, Event::Step { .. });
        let mut records = records.into_iter().rev().filter(|record| record.instance == *id && !is_step(&record.event));
        let (mut job, inputs) = match self.started_job(driven, &run, id).await {
            Ok(job) => job,
            Err(error) => return self.stall_started(driven, id, status, crate::error_chain(&error)).await,
        };
        self.restore_approved_moves(driven, &run, id, &mut job).await?;
        match records.next().map(|record| (record.event, record.token)) {
            // A failed effect does not authorise another attempt (R3.1).
            Some((Event::Finished { outcome: Outcome::Failed { message } }, _)) => {
                return self.fail(driven, id, RunReason::Reported(message)).await.map(Effect::Ended);
            }
            Some((Event::Finished { outcome: Outcome::Done }, _)) => {
                return self.verify(driven, id, &job, inputs).await.map(Effect::Ended);
            }
            Some((Event::Started { .. }, token)) => {
                let fence = Fence { run: run.id, token };
                let (progress, events) = Self::progress();
                let attached = self.context.target.attach(&job, fence, progress);
                match self.follow_progress(driven, id, attached, events).await? {
                    Attached::Ended(result) => return self.finish(driven, id, result, &job, inputs).await,
                    Attached::Gone => {}
                }
            }
            // The effect was interrupted: the remaining changes are planned again.
            _ => return Ok(Effect::Stale),
        }
        self.recover_by_observation(driven, &run, id, &job, inputs).await
    }

    /// Decides the outcome of a started effect without a surviving process, by an observation of the target.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) async fn recover_by_observation(
        self: &Arc<Self>,
        driven: &Driven,
        run: &Run,
        id: &InstanceId,
        job: &Job,
        inputs: BTreeMap<String, RecordedOutput>,
    ) -> Result<Effect, Error> {
        let decision = match self.prepare_job(&driven.head, job).await {
            Ok((_, prepared)) => {
                let actions = targets::kind(&job.target)?.actions(id, &prepared.observation);
                let covered = match self.context.store.approved(run.id, id).await? {
                    Some(Approved::Actions { actions: approved }) => {
                        plan::covers(&approved, &actions).map_err(|gap| gap.to_string())
                    }
                    // Actions of a remediation and deferred actions are compared when the instance is planned.
                    _ => Ok(()),
                };
                recovery(actions.first().map(|action| &action.digest), covered)
            }
            Err(Stop::Fails(reason)) => Recovery::Stalled { message: reason.to_string() },
            Err(_) => return Ok(Effect::Ended(Status::Running)),
        };
        match decision {
            Recovery::Done => self.finish(driven, id, Ok(()), job, inputs).await,
            Recovery::Redo => {
                let message = RunReason::Killed.to_string();
                let outcome = Outcome::Interrupted { message };
                self.record(driven, id, Event::Finished { outcome }, None).await?;
                Ok(Effect::Stale)
            }
            Recovery::Stalled { message } => self.stall_started(driven, id, Status::Running, message).await,
        }
    }

    async fn stall_started(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        status: Status,
        message: String,
    ) -> Result<Effect, Error> {
        if status == Status::Running {
            let outcome = Outcome::Failed { message: message.clone() };
            self.record(driven, id, Event::Finished { outcome }, None).await?;
        }
        self.fail(driven, id, RunReason::Reported(message)).await.map(Effect::Ended)
    }
}
