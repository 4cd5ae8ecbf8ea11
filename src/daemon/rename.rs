//! Components under a new name (R1.10): what is remembered and kept moves with them at the merge.
//!
//! *Race:* the daemon dies in the middle: what is kept moves first and what is remembered last, each at most once, so the
//! next look at the head ends it. *Race:* an effect on the old name is under way: the move waits for its end.

use std::sync::Arc;

use super::{Daemon, Error, Head};

impl Daemon {
    /// Moves what is remembered of components that a head renamed.
    pub(super) async fn take_over_names(self: &Arc<Self>, head: &Head) -> Result<(), Error> {
        for (id, instance) in &head.desired.instances {
            let Some(old) = instance.renamed_from.as_ref().filter(|old| head.instance(old).is_none()) else { continue };
            if self.store().applied(id).await?.is_some() || self.store().applied(old).await?.is_none() {
                continue;
            }
            for run in self.store().open_runs().await?.into_iter().filter(|run| run.holds(old)) {
                self.end_waiting(run, vec![old.clone()], &format!("superseded: it is `{}` now", id.component)).await?;
            }
            if self.store().open_runs().await?.iter().any(|run| run.holds(old)) {
                tracing::info!(from = %old, to = %id, "is renamed when the run of it has ended");
                continue;
            }
            self.hands.target.rename(old, id).await?;
            self.store().rename(old, id).await?;
            self.store()
                .audit(self.now(), "evenkeel", "rename", &id.to_string(), &format!("renamed from {old}"))
                .await?;
            tracing::info!(from = %old, to = %id, "renamed");
        }
        Ok(())
    }
}
