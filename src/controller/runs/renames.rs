//! Moves the records, ownership and state of a renamed component to its new name (R1.10).
//!
//! The move happens at the merge of the new name.
//!
//! *Invariant:* until the move is complete, the new name has no plan, no run and no record.
//! *Race:* the daemon dies during the move: the state of the target moves first and the records last, each at most once, so
//! that the next request completes the move. *Race:* an effect on the old name is in progress: the move waits for its end.

use std::sync::Arc;

use super::Runs;
use crate::{
    controller::{context::Error, records::FailedRename, source::Head},
    domain::{declaration::Instance, message::run::RunReason, plan::pending::former_name},
    model::EnvironmentName,
};

impl Runs {
    /// Moves the records of the instances of an environment that a head renames. An instance that can't be moved is
    /// stalled; the moves of the other instances continue.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn rename_instances(
        self: &Arc<Self>,
        head: &Head,
        environment: &EnvironmentName,
    ) -> Result<(), Error> {
        let renamed: Vec<&Arc<Instance>> =
            head.environment(environment).filter(|instance| instance.renamed_from.is_some()).collect();
        if renamed.is_empty() {
            return Ok(());
        }
        let applied = self.context.store.applied_in(environment).await?;
        for instance in renamed {
            let Some(old) = former_name(instance, &applied).filter(|old| head.instance(old).is_none()) else {
                continue;
            };
            let id = &instance.id;
            for run in self.context.store.open_runs().await?.into_iter().filter(|run| run.holds(old)) {
                self.end_waiting(run, vec![old.clone()], &RunReason::Renamed(id.component.clone())).await?;
            }
            if self.context.store.open_runs().await?.iter().any(|run| run.holds(old)) {
                tracing::info!(kind = "rename-waits", from = %old, to = %id, "the rename waits for a run in progress");
                continue;
            }
            if let Err(error) = self.context.target.rename(old, id).await {
                tracing::error!(kind = "rename-failed", from = %old, to = %id, error = error.line(), "the rename failed");
                self.context
                    .store
                    .collection::<FailedRename>()
                    .put(id, self.context.now(), &FailedRename(error.line()))
                    .await?;
                continue;
            }
            self.context.store.rename(old, id).await?;
            self.context.store.collection::<FailedRename>().remove(id).await?;
            self.context
                .store
                .audit(self.context.now(), "evenkeel", "rename", &id.to_string(), &format!("renamed from {old}"))
                .await?;
            tracing::info!(kind = "renamed", from = %old, to = %id, "renamed");
        }
        Ok(())
    }
}
