//! Verifies an effect by planning again (R2.8), and records the result.

use crate::domain::message::run::RunReason;
use std::{collections::BTreeMap, sync::Arc};

use crate::{
    controller::{
        context::Error,
        runs::{Runs, driven::Driven, prepare::Left},
    },
    domain::journal::Status,
    model::{Action, InstanceId},
    ports::{Job, RecordedOutput, TargetError, TargetErrorKind},
    targets,
};

impl Runs {
    /// Planning again is empty over what the run was to do, and the checks answer (R2.8).
    pub(super) async fn verify(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        job: &Job,
        inputs: BTreeMap<String, RecordedOutput>,
    ) -> Result<Status, Error> {
        let again = match self.observer.observe_job(&driven.head, job).await {
            Ok(again) => again,
            Err(error) => {
                return self.fail(driven, id, RunReason::NotObservedAfter(error.line())).await;
            }
        };
        if let Err(error) = self.observer.identify(id, &again, true).await {
            return self.fail(driven, id, RunReason::AppliedBut(crate::error_chain(&error))).await;
        }
        let run = driven.run.lock().await.clone();
        let left = targets::kind(&job.target)?.actions(id, &again);
        let (mine, others) = self.business(driven, &run, id, left).await?;
        // The moves for the balance change with every row that is written; they are drift if they remain.
        // In a window it is left for the next one.
        let rebalances = run.kind.rebalance().is_some();
        let can_wait = |action: &Action| action.effect.deferrable || rebalances && action.effect.relocates;
        let (later, mine): (Vec<Action>, Vec<Action>) = mine.into_iter().partition(can_wait);
        let others = others.into_iter().chain(later).collect();
        if let Some(left) = mine.first().and_then(|action| action.resources.first()) {
            let reason = RunReason::NotEmptyAfter { change: left.change, resource: left.resource.clone() };
            return self.fail(driven, id, reason).await;
        }
        self.arrive(driven, id, job, inputs, Left { others, warnings: again.warnings }, true).await
    }

    /// Records what is applied now; a remediation leaves that record as it is, and what was none of its business.
    pub(super) async fn settle(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        job: &Job,
        inputs: BTreeMap<String, RecordedOutput>,
        left: Left,
    ) -> Result<(), TargetError> {
        let Left { others, warnings } = left;
        let run = driven.run.lock().await.clone();
        let refused = |error: Error| error.into_target(TargetErrorKind::Record);
        if run.kind.destroys() {
            return self.planner.let_go(id).await.map_err(refused);
        }
        if !run.reverts() {
            let head = &driven.head;
            return self.planner.record_applied(head, id, inputs, job, warnings, Some(run.id)).await.map_err(refused);
        }
        if let Some(mut record) = self.context.store.applied(id).await?.filter(|_| job.refresh) {
            // The state says something else now, and so may the outputs that are made from it.
            let live = self.context.target.outputs(job).await?;
            let outputs =
                live.iter().filter_map(|(name, output)| Some((name.clone(), output.record(&self.context.seal)?)));
            record.outputs = outputs.collect();
            self.context.store.set_applied(id, &record).await?;
        }
        if let Some(mut observed) = self.context.store.observed(id).await? {
            let left = |name: &str| others.iter().flat_map(|action| &action.resources).any(|r| r.resource == name);
            observed.drift.retain(|drift| left(&drift.resource));
            observed.revert = others;
            observed.warnings = warnings;
            observed.error = None;
            observed.at = self.context.now();
            self.context.store.set_observed(id, &observed).await?;
            self.observer.end_snooze(id, &observed).await.map_err(refused)?;
        }
        Ok(())
    }
}
