//! Whether this store knows the past of its repository (R1.7).
//!
//! Decides once, before the first head is acted on: a store that knows nothing, on a repository that carries our own
//! statuses or remediations, has lost its history. Then every instance is a first contact, also with an empty state, and
//! remediations that are on the branch already count as spent.
//! *Invariant:* while that can't be told, because the forge is out of reach, nothing is acted on.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Daemon, Error, Head, remediation::Merged};

/// How many of the newest commits are asked for our statuses.
const COMMITS_ASKED: usize = 20;

/// What is known of the past.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct History {
    /// Whether there is one that this store does not have.
    lost: bool,
}

impl Daemon {
    /// Whether this store has lost the history of its repository.
    pub(super) async fn history_lost(&self) -> Result<bool, Error> {
        let known: Option<History> = self.store().get("store", "history").await?;
        Ok(known.is_some_and(|known| known.lost))
    }

    /// Decides it, where that was not done yet.
    pub(super) async fn note_history(self: &Arc<Self>, head: &Head) -> Result<(), Error> {
        if self.store().get::<History>("store", "history").await?.is_some() {
            return Ok(());
        }
        let knows = !self.store().all_applied().await?.is_empty() || !self.store().runs(1).await?.is_empty();
        let lost = !knows && self.was_here_before(head).await?;
        if lost {
            tracing::error!(
                "this store knows nothing of a repository that Evenkeel worked on before: restore the store, or look at each plan and say `/apply`"
            );
            for (name, (remediation, file)) in &head.desired.remediations {
                let path = format!("{}/{file}", self.settings.root);
                let commit = self.hands.repository.added_by(&head.revision, &path).await?;
                let merged = Merged { commit, spent: true, ..Merged::default() };
                self.store()
                    .put("remediation", &format!("{}/{name}", remediation.environment), self.now(), &merged)
                    .await?;
            }
            let says = "the store has no history of this repository; everything waits for a word";
            self.store().audit(self.now(), "evenkeel", "history-lost", "store", says).await?;
        }
        Ok(self.store().put("store", "history", self.now(), &History { lost }).await?)
    }

    async fn was_here_before(self: &Arc<Self>, head: &Head) -> Result<bool, Error> {
        if !head.desired.remediations.is_empty() {
            return Ok(true);
        }
        let Some(forge) = &self.hands.forge else { return Ok(false) };
        for commit in self.hands.repository.first_parents(None, &head.revision).await?.iter().take(COMMITS_ASKED) {
            if forge.has_own_status(&commit.revision).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
