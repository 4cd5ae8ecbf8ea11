//! Executes `/forget`: removes the records of orphans and keeps their resources (R1.9).
//!
//! *Invariant:* a declared instance is never forgotten.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    controller::{commands::Commands, context::Error, source::Head},
    domain::{
        authorization::Principal,
        declaration::schema::Verb,
        message::{Refusal, answer::Answer},
    },
    model::InstanceId,
};

impl Commands {
    /// `/forget`: removes the records of the selected orphans. Their resources still exist and are no longer managed.
    ///
    /// # Errors
    /// [`Error::Refused`] where an instance is declared or in an open run; else when the store fails.
    pub(super) async fn forget(
        self: &Arc<Self>,
        head: &Arc<Head>,
        selected: &BTreeSet<InstanceId>,
        principal: &Principal,
    ) -> Result<String, Error> {
        self.planner.ensure_orphans(head, selected).await?;
        if let Some(run) =
            self.context.store.open_runs().await?.iter().find(|run| selected.iter().any(|id| run.holds(id)))
        {
            return Err(Error::Refused(Refusal::RunInProgress { verb: Verb::Forget, run: run.id, id: None }));
        }
        for id in selected {
            self.planner.forget(id).await?;
            self.context
                .store
                .audit(
                    self.context.now(),
                    &principal.name(),
                    "forget",
                    &id.to_string(),
                    "forgotten; its resources still exist",
                )
                .await?;
        }
        Ok(Answer::Forgotten(selected.clone()).to_string())
    }
}
