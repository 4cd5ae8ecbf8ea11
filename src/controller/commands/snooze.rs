//! `/snooze`: leaves the drift that is observed alone (R4.5).

use crate::domain::message::Refusal;
use crate::domain::message::answer::Answer;
use std::{collections::BTreeSet, sync::Arc};

use crate::{
    controller::{
        commands::Commands,
        context::Error,
        planning::environments,
        records::{SNOOZE, Snooze},
        work_queue::{Reason, ReconcileRequest},
    },
    domain::{authorization::Principal, command::Command, declaration::schema::Verb, plan::Observed},
    model::InstanceId,
};

impl Commands {
    /// `/snooze`: leaves the drift that is observed alone.
    pub(super) async fn snooze_drift(
        self: &Arc<Self>,
        meant: &BTreeSet<InstanceId>,
        command: &Command,
        who: &Principal,
    ) -> Result<String, Error> {
        let lasting = command.lasting.and_then(|lasting| chrono::Duration::from_std(lasting.std()).ok());
        let until = self.context.now() + lasting.unwrap_or(SNOOZE);
        let mut snoozed = vec![];
        for id in meant {
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
            let snooze = Snooze { actions, until, by: who.name(), because: "`/snooze`".into() };
            self.observer.snooze(id, snooze).await?;
            snoozed.push(id.to_string());
        }
        if snoozed.is_empty() {
            return Err(Error::Refused(Refusal::NothingToSnooze));
        }
        for environment in environments(meant) {
            self.context.queue.enqueue(ReconcileRequest::Proposals(environment), Reason::Command(Verb::Snooze));
        }
        Ok(Answer::Snoozed(until, snoozed).to_string())
    }
}
