//! Renames or removes the data that the daemon stores for an instance (R1.9, R1.10).
//!
//! *Race:* the daemon stops between two moves. Each move is skipped if it was done before, so the next start completes
//! the rename.

use std::path::Path;

use super::Tofu;
use crate::{
    model::InstanceId,
    ports::{TargetError, TargetErrorKind},
};

/// The folders below the daemon's data that contain data of each instance.
const INSTANCE_FOLDERS: [&str; 3] = ["states", "state-copies", "work"];

impl Tofu {
    /// Moves the local state, the state backups and the work tree to another name.
    pub(super) fn rename_folders(&self, from: &InstanceId, to: &InstanceId) -> Result<(), TargetError> {
        let below = |folder: &str, id: &InstanceId| {
            self.settings.data.join(folder).join(id.environment.as_str()).join(id.component.as_str())
        };
        for folder in INSTANCE_FOLDERS {
            let (old, new) = (below(folder, from), below(folder, to));
            if !old.exists() {
                continue;
            }
            // A work tree is created again when it is missing, and a folder without a state has no owner. An existing
            // state has an owner and is not removed.
            if folder == "work" || folder == "states" && !holds_files(&new) {
                drop(std::fs::remove_dir_all(&new));
            }
            // Backups of an earlier component of that name stay beside the moved ones.
            if folder == "state-copies" && new.exists() {
                move_files(&old, &new).map_err(|error| TargetError::new(TargetErrorKind::Rename, error.to_string()))?;
                continue;
            }
            rename(&old, &new).map_err(|why| {
                let message = format!("could not move what is kept of `{from}` to `{to}` ({folder}): {why}");
                TargetError::new(TargetErrorKind::Rename, message)
            })?;
        }
        let mut backends = self.backends.lock();
        backends.values_mut().filter(|id| *id == from).for_each(|id| *id = to.clone());
        Ok(())
    }

    /// Removes the work tree and the recorded backend location of an instance.
    pub(super) fn remove_work_tree(&self, id: &InstanceId) {
        self.backends.lock().retain(|_, known| known != id);
        let path = self.instance_path(id);
        if path.exists()
            && let Err(error) = std::fs::remove_dir_all(&path)
        {
            tracing::warn!(kind = "work-tree-not-removed", %error, path = %path.display(), "a work tree could not be removed");
        }
    }
}

fn holds_files(folder: &Path) -> bool {
    std::fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() { holds_files(&path) } else { true }
    })
}

fn move_files(old: &Path, new: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(old)?.flatten() {
        std::fs::rename(entry.path(), new.join(entry.file_name()))?;
    }
    std::fs::remove_dir(old)
}

fn rename(old: &Path, new: &Path) -> Result<(), String> {
    if new.exists() {
        return Err(format!("`{}` is there already", new.display()));
    }
    let folder = new.parent().ok_or("it has no folder")?;
    std::fs::create_dir_all(folder).and_then(|()| std::fs::rename(old, new)).map_err(|error| error.to_string())
}
