//! What the daemon keeps for an instance, under another name or under none (R1.9, R1.10).
//!
//! *Race:* the daemon dies between two moves: each is made only where it was not made yet, so the next start ends it.

use std::{path::Path, sync::PoisonError};

use super::Tofu;
use crate::{model::InstanceId, port::TargetError};

/// The folders below the daemon's data that hold something for each instance.
const KEPT: [&str; 3] = ["states", "state-copies", "work"];

impl Tofu {
    /// Moves an own state, the copies of states and the work tree to another name.
    pub(in crate::targets) fn rename(&self, from: &InstanceId, to: &InstanceId) -> Result<(), TargetError> {
        let below = |kept: &str, id: &InstanceId| {
            self.settings.data.join(kept).join(id.environment.as_str()).join(id.component.as_str())
        };
        for kept in KEPT {
            let (old, new) = (below(kept, from), below(kept, to));
            if !old.exists() {
                continue;
            }
            // A work tree is made anew wherever it is missing; a state that stands in the way is somebody's.
            if kept == "work" && new.exists() {
                drop(std::fs::remove_dir_all(&new));
            }
            rename(&old, &new).map_err(|why| {
                let message = format!("could not move what is kept of `{from}` to `{to}` ({kept}): {why}");
                TargetError::new("rename", message)
            })?;
        }
        let mut backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        backends.values_mut().filter(|id| *id == from).for_each(|id| *id = to.clone());
        Ok(())
    }

    /// Forgets where an instance kept its state.
    pub(in crate::targets) fn let_go(&self, id: &InstanceId) {
        self.backends.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, known| known != id);
        let path = self.instance_path(id);
        if path.exists()
            && let Err(error) = std::fs::remove_dir_all(&path)
        {
            tracing::warn!(%error, path = %path.display(), "could not remove a work tree");
        }
    }
}

fn rename(old: &Path, new: &Path) -> Result<(), String> {
    if new.exists() {
        return Err(format!("`{}` is there already", new.display()));
    }
    let folder = new.parent().ok_or("it has no folder")?;
    std::fs::create_dir_all(folder).and_then(|()| std::fs::rename(old, new)).map_err(|error| error.to_string())
}
