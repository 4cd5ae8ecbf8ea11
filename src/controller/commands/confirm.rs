//! Executes `/confirm`: accepts the observed identity of a target (R1.8).
//!
//! *Invariant:* only an identity that was observed before the command is accepted.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    controller::{
        commands::Commands,
        context::Error,
        work_queue::{Reason, ReconcileRequest},
    },
    domain::{
        authorization::Principal,
        declaration::schema::Verb,
        message::{Refusal, answer::Answer},
    },
    model::InstanceId,
};

impl Commands {
    /// `/confirm`: pins the observed identity of the selected instances instead of the recorded identity.
    ///
    /// # Errors
    /// [`Error::Refused`] where no selected instance has another identity; else when the store fails.
    pub(super) async fn confirm(
        self: &Arc<Self>,
        selected: &BTreeSet<InstanceId>,
        principal: &Principal,
    ) -> Result<String, Error> {
        let mut confirmed = vec![];
        for id in selected {
            if self.observer.confirm_identity(id).await? {
                self.context
                    .store
                    .audit(
                        self.context.now(),
                        &principal.name(),
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
