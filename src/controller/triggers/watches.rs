//! Watches the folder of a local repository, and the changes that targets report.

use std::{path::PathBuf, sync::Arc};

use notify::Watcher;

use super::Triggers;
use crate::controller::work_queue::{Reason, ReconcileRequest};

impl Triggers {
    /// Watches a local repository: every change of its refs enqueues a fetch. Dropping the result ends the watch. Returns
    /// `None` where no folder is configured or the watch fails; the repository is polled in both cases.
    pub(crate) fn watch_repository(&self) -> Option<notify::RecommendedWatcher> {
        let folder: PathBuf = self.context.settings.watch.clone()?;
        let git = if folder.join(".git").is_dir() { folder.join(".git") } else { folder };
        let context = Arc::downgrade(&self.context);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if let (Some(context), Ok(event)) = (context.upgrade(), event)
                && event.kind.is_modify() | event.kind.is_create() | event.kind.is_remove()
            {
                context.queue.enqueue(ReconcileRequest::Source, Reason::RepositoryChanged);
            }
        });
        let watched = watcher.and_then(|mut watcher| {
            watcher.watch(&git.join("refs"), notify::RecursiveMode::Recursive)?;
            watcher.watch(&git, notify::RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        match watched {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                let folder = git.display();
                tracing::warn!(kind = "watch-failed", %error, %folder, "could not watch the repository; it is polled");
                None
            }
        }
    }

    /// Enqueues a drift check of each instance that a target reports as changed, in an endless loop.
    pub(crate) async fn watch_targets(self: Arc<Self>) {
        loop {
            let id = self.context.target.changed().await;
            self.context.queue.enqueue(ReconcileRequest::Instance(id), Reason::TargetChanged);
        }
    }
}
