//! The branch: fetched, loaded, compared with what was there.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError},
};

use notify::Watcher;

use super::{Daemon, Error, Head, Wake};
use crate::{
    adapters::git::Tokens,
    domain::declaration::Desired,
    model::{Retry, Revision},
    ports::{Files, RepositoryError},
};

impl Daemon {
    /// Fetches the branch, and loads it where it moved.
    pub(super) async fn look_at_git(self: &Arc<Self>) -> Result<(), Error> {
        let found = self.fetch_head().await;
        *self.head_problem.lock().unwrap_or_else(PoisonError::into_inner) =
            found.as_ref().err().map(|error| crate::error_chain(error));
        let revision = found?;
        if self.head().is_some_and(|head| head.revision == revision) {
            return Ok(());
        }
        let (desired, content) = self.load(&revision).await?;
        tracing::info!(
            revision = revision.short(),
            instances = desired.instances.len(),
            problems = desired.problems.len(),
            "head"
        );
        let head = Arc::new(Head { revision, desired, content });
        self.note_history(&head).await?;
        if let Err(error) = self.know_pulls(&head).await {
            let error = crate::error_chain(&error);
            tracing::warn!(error, "could not list pull requests; nothing is done by a merge until that can be");
        }
        let before = self.head.write().unwrap_or_else(PoisonError::into_inner).replace(Arc::clone(&head));
        let applied = self.store().all_applied().await?;
        for (id, instance) in &head.desired.instances {
            let known = before.as_ref().and_then(|before| before.instance(id));
            let changed = known.is_none_or(|known| known.digest != instance.digest);
            // An instance whose applied digest differs is planned by the looks below; drift is looked for at start.
            if (before.is_none() || changed) && applied.contains_key(id) {
                self.queue.wake(Wake::Instance(id.clone()), "head moved");
            }
        }
        if before.as_ref().is_none_or(|before| before.desired.schedules != head.desired.schedules) {
            self.due_changed.notify_one();
        }
        for environment in head.desired.environments.keys() {
            self.queue.wake(Wake::Decide(environment.clone()), "head moved");
        }
        if self.hands.forge.is_some() {
            self.queue.wake(Wake::Pulls, "head moved");
            if before.is_none() {
                self.wake_known_pulls().await?;
            }
        }
        Ok(())
    }

    /// Makes sure that the pull requests were listed since a head was seen: what was approved of a merge stands there, and
    /// a merge of which that is not known would run as if nobody had looked at it.
    pub(super) async fn know_pulls(self: &Arc<Self>, head: &Head) -> Result<(), Error> {
        let is_known = || {
            let known = self.pulls_known_for.lock().unwrap_or_else(PoisonError::into_inner);
            known.as_ref() == Some(&head.revision)
        };
        if self.hands.forge.is_none() || is_known() {
            return Ok(());
        }
        for number in self.refresh_pulls().await? {
            self.queue.wake(Wake::Pull(number), "pull request changed");
        }
        *self.pulls_known_for.lock().unwrap_or_else(PoisonError::into_inner) = Some(head.revision.clone());
        Ok(())
    }

    async fn fetch_head(&self) -> Result<Revision, Error> {
        self.use_git_token().await?;
        let name = format!("refs/heads/{}", self.settings.branch);
        let found = self.hands.repository.fetch(&name).await?;
        found.ok_or_else(|| {
            let message = format!("there is no branch `{}` in {}", self.settings.branch, self.hands.repository.url());
            RepositoryError { kind: "git-no-branch", message, retry: Retry::WhenInputChanges }.into()
        })
    }

    /// Makes git use the forge's token for the repository's address.
    pub(super) async fn use_git_token(&self) -> Result<(), Error> {
        let url = self.hands.repository.url();
        if let Some(forge) = &self.hands.forge
            && url.starts_with("http")
            && let Some(token) = forge.git_token().await?
        {
            Tokens::global().set(url, token);
        }
        Ok(())
    }

    /// Loads what a revision says.
    pub(super) async fn load(self: &Arc<Self>, revision: &Revision) -> Result<(Arc<Desired>, Arc<dyn Files>), Error> {
        let content = self.hands.repository.files(revision).await?;
        let (daemon, files) = (Arc::clone(self), Arc::clone(&content));
        let loading = tokio::task::spawn_blocking(move || {
            let mut loader = daemon.loader.lock().unwrap_or_else(PoisonError::into_inner);
            loader.load(&*files, &daemon.settings.root)
        });
        let desired = loading.await.map_err(|_| RepositoryError::from(crate::adapters::git::Error::Interrupted))?;
        Ok((desired, content))
    }
}

/// Watches a local repository: every change of its refs is a hint to fetch.
pub(super) fn watch(daemon: &Arc<Daemon>) -> Option<notify::RecommendedWatcher> {
    let folder: PathBuf = daemon.settings.watch.clone()?;
    let git = if folder.join(".git").is_dir() { folder.join(".git") } else { folder };
    let weak = Arc::downgrade(daemon);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if let (Some(daemon), Ok(event)) = (weak.upgrade(), event)
            && event.kind.is_modify() | event.kind.is_create() | event.kind.is_remove()
        {
            daemon.queue.wake(Wake::Git, "the repository's folder changed");
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
            tracing::warn!(%error, folder = %git.display(), "could not watch the repository; it is polled");
            None
        }
    }
}
