//! Ends runs: records the end, reports it, and enqueues the work that the end unblocks.
//!
//! *Invariant:* a run ends only after all its instances have ended.
//! *Race:* the daemon dies while it ends a run: the remediation is marked as spent first and the end is recorded last, so
//! that the next daemon ends the run again.

use std::sync::{Arc, atomic::Ordering};

use crate::{
    controller::{
        context::Error,
        records::{MergedRemediation, Stalled},
        runs::{Runs, driven::Driven},
        work_queue::{Reason, ReconcileRequest},
    },
    domain::{
        journal::{Run, RunState, Status},
        message::{self, comment},
    },
    model::InstanceId,
};

impl Runs {
    /// Ends a run whose instances have all ended, and updates its comment.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) async fn conclude(self: &Arc<Self>, run: &mut Run) -> Result<(), Error> {
        if run.instances.values().all(|instance| instance.status.ended()) && matches!(run.state, RunState::Open) {
            run.state = RunState::Ended { message: message::run::ended(run) };
            run.ended_at = Some(self.context.now());
            if let Some(name) = run.kind.remediation() {
                // Before the end, because a remediation that is not spent excludes its drift from proposals.
                let key = format!("{}/{name}", run.environment);
                let mut merged: MergedRemediation =
                    self.context.store.collection::<MergedRemediation>().get(&key).await?.unwrap_or_default();
                (merged.spent, merged.run) = (true, Some(run.id));
                self.context.store.collection::<MergedRemediation>().put(&key, self.context.now(), &merged).await?;
            }
            // The comment is in the outbox before the run ends, so that every end is reported.
            self.set_apply_statuses(run).await?;
            self.comment_run(run).await?;
            self.remove_cancellations(run).await?;
            self.context.store.set_run(run).await?;
            self.context.metrics.runs_ended.fetch_add(1, Ordering::Relaxed);
            tracing::info!(kind = "run-ended", run = run.id.0, environment = %run.environment, "run ended");
            if run.reverts() {
                // The plan of head is stale after the run.
                self.planner.invalidate(&run.environment);
                // Other changes since then were not part of the run, and are observed now.
                for id in run.instances.keys() {
                    self.context.queue.enqueue(ReconcileRequest::Instance(id.clone()), Reason::RunEnded);
                }
            }
            self.context.queue.enqueue(ReconcileRequest::Proposals(run.environment.clone()), Reason::RunEnded);
            self.enqueue_after(run);
        } else {
            self.comment_run(run).await?;
        }
        self.changed.notify_waiters();
        Ok(())
    }

    /// Records that an instance is stalled until a command or another declaration (R5.1).
    ///
    /// # Errors
    /// When the store fails.
    pub(super) async fn stall(
        &self,
        driven: &Driven,
        id: &InstanceId,
        message: &str,
        cancelled: bool,
    ) -> Result<(), Error> {
        let run = driven.run.lock().await.clone();
        let digest = run.instances.get(id).and_then(|instance| instance.digest);
        if !run.reverts() {
            let stalled = Stalled { run: run.id, message: message.to_owned(), digest, cancelled };
            self.context.store.collection::<Stalled>().put(id, self.context.now(), &stalled).await?;
        }
        tracing::warn!(kind = "instance-stalled", instance = %id, run = run.id.0, message, "instance stalled");
        Ok(())
    }

    /// Enqueues the work that the end of a run may have unblocked: its environment and the later ones.
    fn enqueue_after(&self, run: &Run) {
        let Some(head) = self.source.head() else { return };
        for (name, environment) in &head.desired.environments {
            if *name == run.environment
                || environment.after.as_ref().is_some_and(|after| *after.environment() == run.environment)
            {
                self.context.queue.enqueue(ReconcileRequest::Merges(name.clone()), Reason::RunEnded);
            }
        }
    }

    /// Updates the comment with the state of a run on its pull request.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) async fn comment_run(self: &Arc<Self>, run: &Run) -> Result<(), Error> {
        let Some(pull) = run.pull else { return Ok(()) };
        self.notifier.comment_on(pull, &format!("run id={}", run.id), &comment::run(run), None).await?;
        Ok(())
    }

    /// Sets the commit status `evenkeel/apply/<environment>` of the revisions that a run applied.
    async fn set_apply_statuses(self: &Arc<Self>, run: &Run) -> Result<(), Error> {
        let context = format!("evenkeel/apply/{}", run.environment);
        let all_applied = run.instances.values().all(|instance| instance.status == Status::Applied);
        let RunState::Ended { message } = &run.state else { return Ok(()) };
        // A superseded run does not report the work of the newer run.
        let newer = self.context.store.runs_after(run.id).await?;
        if newer.iter().any(|newer| newer.environment == run.environment && newer.pull == run.pull) {
            return Ok(());
        }
        let (state, message) = if all_applied {
            ("success", format!("run {}: applied", run.id))
        } else {
            ("failure", format!("run {}: {message}", run.id))
        };
        let mut revisions = vec![run.revision.clone()];
        if let Some(number) = run.pull
            && let Some(tracked) = self.source.tracked(number).await?
        {
            revisions.push(tracked.pull.head.clone());
            revisions.extend(tracked.pull.merged_as);
        }
        revisions.sort();
        revisions.dedup();
        for revision in revisions {
            self.notifier.set_status(&revision, &context, state, &message).await?;
        }
        Ok(())
    }
}
