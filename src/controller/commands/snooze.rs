//! Executes `/snooze`: excludes the observed drift from proposals (R4.5).
//!
//! *Invariant:* a snooze covers only the actions that were observed at the time of the command.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    controller::{
        commands::Commands,
        context::Error,
        planning::environments,
        records::{SNOOZE, Snooze},
        work_queue::{Reason, ReconcileRequest},
    },
    domain::{
        authorization::Principal,
        command::Command,
        declaration::schema::Verb,
        message::{Refusal, answer::Answer},
        plan::Observed,
    },
    model::InstanceId,
};

impl Commands {
    /// `/snooze`: excludes the observed drift of the selected instances from proposals, for a time.
    ///
    /// # Errors
    /// [`Error::Refused`] where no selected instance drifts; else when the store fails.
    pub(super) async fn snooze_drift(
        self: &Arc<Self>,
        selected: &BTreeSet<InstanceId>,
        command: &Command,
        principal: &Principal,
    ) -> Result<String, Error> {
        let lasting = command.lasting.and_then(|lasting| chrono::Duration::from_std(lasting.std()).ok());
        let until = self.context.now() + lasting.unwrap_or(SNOOZE);
        let mut snoozed = vec![];
        for id in selected {
            let observed = self.context.store.observed(id).await?;
            let actions: BTreeSet<_> = observed
                .as_ref()
                .map(Observed::revert_actions)
                .unwrap_or_default()
                .iter()
                .map(|action| action.digest)
                .collect();
            if actions.is_empty() {
                continue;
            }
            let snooze = Snooze { actions, until, by: principal.name(), because: "`/snooze`".into() };
            self.observer.snooze(id, snooze).await?;
            snoozed.push(id.to_string());
        }
        if snoozed.is_empty() {
            return Err(Error::Refused(Refusal::NothingToSnooze));
        }
        for environment in environments(selected) {
            self.context.queue.enqueue(ReconcileRequest::Proposals(environment), Reason::Command(Verb::Snooze));
        }
        Ok(Answer::Snoozed(until, snoozed).to_string())
    }
}
