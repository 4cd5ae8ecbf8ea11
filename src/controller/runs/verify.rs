//! Verifies an effect by a new plan (R2.8), and records the result.
//!
//! *Invariant:* an instance is applied only where the new plan shows no action of the run and the checks succeed.
//! *Race:* the live objects change between the effect and the new plan: the instance fails, and reports the remaining change.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    controller::{
        context::Error,
        runs::{Runs, driven::Driven, prepare::Remaining},
    },
    domain::{journal::Status, message::run::RunReason},
    model::{Action, InstanceId},
    ports::{Job, RecordedOutput, TargetError, TargetErrorKind},
    targets,
};

impl Runs {
    /// Checks that a new plan shows no action of the run, and that the checks of the instance succeed (R2.8).
    ///
    /// # Errors
    /// When the store fails.
    pub(super) async fn verify(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        job: &Job,
        inputs: BTreeMap<String, RecordedOutput>,
    ) -> Result<Status, Error> {
        let observation = match self.observer.observe_job(&driven.head, job).await {
            Ok(observation) => observation,
            Err(error) => {
                return self.fail(driven, id, RunReason::NotObservedAfter(error.line())).await;
            }
        };
        if let Err(error) = self.observer.identify(id, &observation, true).await {
            return self.fail(driven, id, RunReason::AppliedBut(crate::error_chain(&error))).await;
        }
        let run = driven.run.lock().await.clone();
        let remaining = targets::kind(&job.target)?.actions(id, &observation);
        let (selected, unselected) = self.partition_actions(driven, &run, id, remaining).await?;
        // Writes to the tables change the moves for the balance: the remaining moves are drift, or part of the next window.
        let rebalances = run.kind.rebalance().is_some();
        let is_deferrable = |action: &Action| action.effect.deferrable || rebalances && action.effect.relocates;
        let (deferred, selected): (Vec<Action>, Vec<Action>) = selected.into_iter().partition(is_deferrable);
        let actions = unselected.into_iter().chain(deferred).collect();
        if let Some(change) = selected.first().and_then(|action| action.resources.first()) {
            let reason = RunReason::NotEmptyAfter { change: change.change, resource: change.resource.clone() };
            return self.fail(driven, id, reason).await;
        }
        self.complete(driven, id, job, inputs, Remaining { actions, warnings: observation.warnings }, true).await
    }

    /// Records the applied declaration. A remediation keeps that record, and records the drift that it did not revert.
    ///
    /// # Errors
    /// When the store or the target fails.
    pub(super) async fn record_result(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        job: &Job,
        inputs: BTreeMap<String, RecordedOutput>,
        remaining: Remaining,
    ) -> Result<(), TargetError> {
        let Remaining { actions, warnings } = remaining;
        let run = driven.run.lock().await.clone();
        let store_error = |error: Error| error.into_target(TargetErrorKind::Record);
        if run.kind.destroys() {
            return self.planner.forget(id).await.map_err(store_error);
        }
        if !run.reverts() {
            let head = &driven.head;
            return self
                .planner
                .record_applied(head, id, inputs, job, warnings, Some(run.id))
                .await
                .map_err(store_error);
        }
        if let Some(mut record) = self.context.store.applied(id).await?.filter(|_| job.refresh) {
            // The state changed, and the outputs that are computed from it may have changed as well.
            let outputs = self.context.target.outputs(job).await?;
            let outputs =
                outputs.iter().filter_map(|(name, output)| Some((name.clone(), output.record(&self.context.seal)?)));
            record.outputs = outputs.collect();
            self.context.store.set_applied(id, &record).await?;
        }
        if let Some(mut observed) = self.context.store.observed(id).await? {
            let remains = |name: &str| actions.iter().flat_map(|action| &action.resources).any(|r| r.resource == name);
            observed.drift.retain(|drift| remains(&drift.resource));
            observed.revert = actions;
            observed.warnings = warnings;
            observed.error = None;
            observed.at = self.context.now();
            self.context.store.set_observed(id, &observed).await?;
            self.observer.end_snooze(id, &observed).await.map_err(store_error)?;
        }
        Ok(())
    }
}
