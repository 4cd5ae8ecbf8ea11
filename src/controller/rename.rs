//! Components under a new name (R1.10): what is remembered and kept moves with them at the merge.
//!
//! *Guarantees:* before the move is made, nothing is planned, applied or recorded under the new name.
//! *Race:* the daemon dies in the middle: what is kept moves first and what is remembered last, each at most once, so the
//! next decision ends it. *Race:* an effect on the old name is under way: the move waits for its end.

use std::{collections::BTreeMap, sync::Arc};

use super::{Daemon, Error, Head};
use crate::{
    domain::{declaration::Instance, plan::Applied},
    model::InstanceId,
};

/// The name under which an instance is still remembered, before its move is made.
pub(super) fn former<'i>(instance: &'i Instance, applied: &BTreeMap<InstanceId, Applied>) -> Option<&'i InstanceId> {
    let old = instance.renamed_from.as_ref()?;
    (applied.contains_key(old) && !applied.contains_key(&instance.id)).then_some(old)
}

impl Daemon {
    /// Moves what is remembered of components that a head renamed; what can't be moved is stalled, and the rest goes on.
    pub(super) async fn take_over_names(self: &Arc<Self>, head: &Head) -> Result<(), Error> {
        let renamed: Vec<&Arc<Instance>> =
            head.desired.instances.values().filter(|instance| instance.renamed_from.is_some()).collect();
        if renamed.is_empty() {
            return Ok(());
        }
        let applied = self.store().all_applied().await?;
        for instance in renamed {
            let Some(old) = former(instance, &applied).filter(|old| head.instance(old).is_none()) else { continue };
            let id = &instance.id;
            for run in self.store().open_runs().await?.into_iter().filter(|run| run.holds(old)) {
                self.end_waiting(run, vec![old.clone()], &format!("superseded: it is `{}` now", id.component)).await?;
            }
            if self.store().open_runs().await?.iter().any(|run| run.holds(old)) {
                tracing::info!(from = %old, to = %id, "is renamed when the run of it has ended");
                continue;
            }
            if let Err(error) = self.hands.target.rename(old, id).await {
                tracing::error!(from = %old, to = %id, error = error.line(), "could not be renamed");
                self.store().put("unmoved", &id.to_string(), self.now(), &error.line()).await?;
                continue;
            }
            self.store().rename(old, id).await?;
            self.store().remove("unmoved", &id.to_string()).await?;
            self.store()
                .audit(self.now(), "evenkeel", "rename", &id.to_string(), &format!("renamed from {old}"))
                .await?;
            tracing::info!(from = %old, to = %id, "renamed");
        }
        Ok(())
    }
}
