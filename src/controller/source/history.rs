//! Determines whether this store has the history of its repository (R1.7).
//!
//! The decision is made once, before the first head is used. An empty store has lost its history if the repository has
//! statuses or remediations of Evenkeel. Then every instance is a first contact, also with an empty state, and the
//! remediations on the branch count as spent.
//! *Invariant:* no head is used before the decision, also while the forge is unreachable.
//! *Race:* the daemon dies before the decision is recorded: the next daemon decides again.

use std::sync::Arc;

use crate::controller::{
    records::{MergedRemediation, StoreHistory},
    source::error::Error,
    source::{Head, Source},
};

/// The number of the newest commits that are searched for statuses of Evenkeel.
const COMMITS_SEARCHED: usize = 20;

impl Source {
    /// Whether this store has lost the history of its repository.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(crate) async fn history_lost(&self) -> Result<bool, Error> {
        let stored: Option<StoreHistory> =
            self.context.store.collection::<StoreHistory>().get(&"history".to_owned()).await?;
        Ok(stored.is_some_and(|stored| stored.lost))
    }

    /// Determines and records whether the history is lost, once.
    ///
    /// # Errors
    /// When the forge, the repository or the store fails.
    pub(super) async fn record_history(self: &Arc<Self>, head: &Head) -> Result<(), Error> {
        if self.context.store.collection::<StoreHistory>().get(&"history".to_owned()).await?.is_some() {
            return Ok(());
        }
        let has_records =
            !self.context.store.applied_instances().await?.is_empty() || !self.context.store.runs(1).await?.is_empty();
        let lost = !has_records && self.repository_was_managed(head).await?;
        if lost {
            tracing::error!(
                kind = "no-history",
                "this store has no history of a repository that Evenkeel worked on before: restore the store, or read each plan and comment `/apply`"
            );
            for (name, (remediation, file)) in &head.desired.remediations {
                let path = format!("{}/{file}", self.context.settings.root);
                let commit = self.context.repository.added_by(&head.revision, &path).await?;
                let merged = MergedRemediation { commit, spent: true, ..MergedRemediation::default() };
                self.context
                    .store
                    .collection::<MergedRemediation>()
                    .put(&format!("{}/{name}", remediation.environment), self.context.now(), &merged)
                    .await?;
            }
            let message = "the store has no history of this repository; every instance waits for `/apply`";
            self.context.store.audit(self.context.now(), "evenkeel", "history-lost", "store", message).await?;
        }
        Ok(self
            .context
            .store
            .collection::<StoreHistory>()
            .put(&"history".to_owned(), self.context.now(), &StoreHistory { lost })
            .await?)
    }

    async fn repository_was_managed(self: &Arc<Self>, head: &Head) -> Result<bool, Error> {
        if !head.desired.remediations.is_empty() {
            return Ok(true);
        }
        let Some(forge) = &self.context.forge else { return Ok(false) };
        for commit in self.context.repository.first_parents(None, &head.revision).await?.iter().take(COMMITS_SEARCHED) {
            if forge.has_own_status(&commit.revision).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
