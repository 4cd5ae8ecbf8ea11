//! `/confirm`: accepts another identity of a target (R1.8).

use crate::domain::message::Refusal;
use crate::domain::message::answer::Answer;
use std::{collections::BTreeSet, sync::Arc};

use crate::{
    controller::{
        commands::Commands,
        context::Error,
        work_queue::{Reason, ReconcileRequest},
    },
    domain::{authorization::Principal, declaration::schema::Verb},
    model::InstanceId,
};

impl Commands {
    /// `/confirm`: another target than the one that was applied is the right one (R1.8).
    pub(super) async fn confirm(
        self: &Arc<Self>,
        meant: &BTreeSet<InstanceId>,
        who: &Principal,
    ) -> Result<String, Error> {
        let mut confirmed = vec![];
        for id in meant {
            if self.observer.confirm_identity(id).await? {
                self.context
                    .store
                    .audit(
                        self.context.now(),
                        &who.name(),
                        "confirm",
                        &id.to_string(),
                        "another target is the right one",
                    )
                    .await?;
                self.context.queue.enqueue(ReconcileRequest::Instance(id.clone()), Reason::Command(Verb::Confirm));
                self.context
                    .queue
                    .enqueue(ReconcileRequest::Merges(id.environment.clone()), Reason::Command(Verb::Confirm));
                confirmed.push(id.clone());
            }
        }
        if confirmed.is_empty() {
            return Err(Error::Refused(Refusal::NothingToConfirm));
        }
        Ok(Answer::Confirmed(confirmed).to_string())
    }
}
