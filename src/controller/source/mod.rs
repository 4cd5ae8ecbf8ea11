//! Fetches and loads the branch of the state repo, and stores the head that was loaded last.
//!
//! *Owns:* the head, the loader and the guards in force. The history of the branch (renames, merged pull requests,
//! suspensions) is read from the store and the repository each time.
//!
//! *Invariant:* the head is replaced only by a revision that was fetched from the branch and loaded completely.
//! *Race:* the branch moves while a revision is loaded: the next refresh finds the newer head.

mod error;
mod guards;
mod history;
mod merged;
mod suspensions;

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

pub use error::Error;

use super::{
    context::Context,
    work_queue::{Reason, ReconcileRequest},
};
use crate::{
    adapters::git::Tokens,
    domain::{
        authorization::guards::InForce,
        declaration::{Desired, Instance, Loader},
        message::Refusal,
    },
    model::{EnvironmentName, InstanceId, Retry, Revision},
    ports::{Files, RepositoryError},
    targets,
};

/// A revision of the state repo with its declarations, usually the head of the branch.
pub struct Head {
    /// The revision.
    pub revision: Revision,
    /// The declarations.
    pub desired: Arc<Desired>,
    /// The files.
    pub content: Arc<dyn Files>,
}

impl Head {
    /// Returns an instance as this revision declares it.
    pub fn instance(&self, id: &InstanceId) -> Option<&Arc<Instance>> {
        self.desired.instances.get(id)
    }

    /// Returns the instances of an environment.
    pub fn environment(&self, name: &EnvironmentName) -> impl Iterator<Item = &Arc<Instance>> {
        self.desired.instances.values().filter(move |instance| instance.id.environment == *name)
    }

    /// Whether another instance uses the outputs of an instance.
    pub fn consumed(&self, id: &InstanceId) -> bool {
        self.environment(&id.environment).any(|other| {
            other.id != *id && other.references.iter().any(|reference| reference.component == id.component)
        })
    }
}

/// The controller of the state repo.
pub struct Source {
    context: Arc<Context>,
    /// The head that was loaded last.
    head: RwLock<Option<Arc<Head>>>,
    /// The error of the last refresh; `None` after a refresh that succeeded.
    problem: Mutex<Option<String>>,
    /// Reuses the declarations that two revisions have in common.
    loader: Mutex<Loader>,
    /// The guards of the record `guards/in-force`, as read or written last by this process, which is the only writer.
    in_force: Mutex<Option<InForce>>,
}

impl Source {
    pub(crate) fn new(context: Arc<Context>) -> Arc<Self> {
        Arc::new(Self {
            context,
            head: RwLock::default(),
            problem: Mutex::default(),
            loader: Mutex::new(Loader::new(targets::kinds())),
            in_force: Mutex::default(),
        })
    }

    /// Returns the head that was loaded last.
    pub fn head(&self) -> Option<Arc<Head>> {
        self.head.read().clone()
    }

    /// Returns the head that was loaded last.
    ///
    /// # Errors
    /// [`Error::NotLoaded`] with the reason where none was loaded yet.
    pub(crate) fn loaded_head(&self) -> Result<Arc<Head>, Error> {
        self.head().ok_or_else(|| Error::NotLoaded(Refusal::NoHead { reason: self.problem() }))
    }

    /// Returns the error of the last refresh, if it failed.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().clone()
    }

    /// Sets a head that does not come from the branch, such as a checkout.
    pub fn set_head(&self, head: Head) {
        *self.head.write() = Some(Arc::new(head));
    }

    /// Fetches the branch, loads it where it moved, and enqueues requests for the changed instances and environments.
    ///
    /// # Errors
    /// When the repository, the forge or the store fails; the head is unchanged.
    pub async fn refresh(self: &Arc<Self>) -> Result<(), Error> {
        let found = self.fetch_head().await;
        *self.problem.lock() = found.as_ref().err().map(|error| crate::error_chain(error));
        let revision = found?;
        if self.head().is_some_and(|head| head.revision == revision) {
            return Ok(());
        }
        let (desired, content) = self.load(&revision).await?;
        let (instances, problems) = (desired.instances.len(), desired.problems.len());
        tracing::info!(kind = "head-loaded", revision = revision.short(), instances, problems, "head loaded");
        let head = Arc::new(Head { revision, desired, content });
        self.record_history(&head).await?;
        let before = self.head.write().replace(Arc::clone(&head));
        self.enqueue_changes(before.as_deref(), &head).await
    }

    /// Enqueues the requests that a move of head requires.
    async fn enqueue_changes(&self, before: Option<&Head>, head: &Head) -> Result<(), Error> {
        let queue = &self.context.queue;
        let applied = self.context.store.applied_instances().await?;
        for (id, instance) in &head.desired.instances {
            let previous = before.and_then(|before| before.instance(id));
            let changed = previous.is_none_or(|previous| previous.digest != instance.digest);
            // The first head of a process enqueues a drift check of every instance, a later head of the changed instances.
            if (before.is_none() || changed) && applied.contains(id) {
                queue.enqueue(ReconcileRequest::Instance(id.clone()), Reason::HeadMoved);
            }
        }
        if before.is_none_or(|before| before.desired.schedules != head.desired.schedules) {
            self.context.due_changed.notify_one();
        }
        for environment in head.desired.environments.keys() {
            queue.enqueue(ReconcileRequest::Merges(environment.clone()), Reason::HeadMoved);
        }
        if self.context.forge.is_some() {
            queue.enqueue(ReconcileRequest::PullRequests, Reason::HeadMoved);
        }
        Ok(())
    }

    async fn fetch_head(&self) -> Result<Revision, Error> {
        self.use_git_token().await?;
        let branch = &self.context.settings.branch;
        let found = self.context.repository.fetch(&format!("refs/heads/{branch}")).await?;
        found.ok_or_else(|| {
            let message = format!("there is no branch `{branch}` in {}", self.context.repository.url());
            RepositoryError { kind: "git-no-branch", message, retry: Retry::WhenInputChanges }.into()
        })
    }

    /// Sets the token of the forge as the git credential of the repository.
    ///
    /// # Errors
    /// When the forge fails.
    pub(crate) async fn use_git_token(&self) -> Result<(), Error> {
        let url = self.context.repository.url();
        if let Some(forge) = &self.context.forge
            && url.starts_with("http")
            && let Some(token) = forge.git_token().await?
        {
            Tokens::global().set(url, token);
        }
        Ok(())
    }

    /// Loads the declarations and files of a revision.
    ///
    /// # Errors
    /// When the repository can't be read.
    pub(crate) async fn load(self: &Arc<Self>, revision: &Revision) -> Result<(Arc<Desired>, Arc<dyn Files>), Error> {
        let content = self.context.repository.files(revision).await?;
        let (source, files) = (Arc::clone(self), Arc::clone(&content));
        let loading = tokio::task::spawn_blocking(move || {
            let mut loader = source.loader.lock();
            loader.load(&*files, &source.context.settings.root)
        });
        let desired = loading.await.map_err(|_| RepositoryError::from(crate::adapters::git::Error::Interrupted))?;
        Ok((desired, content))
    }

    /// Loads a revision with its declarations, such as the revision of a run.
    ///
    /// # Errors
    /// When the repository can't be read.
    pub(crate) async fn at(self: &Arc<Self>, revision: &Revision) -> Result<Arc<Head>, Error> {
        if let Some(head) = self.head().filter(|head| head.revision == *revision) {
            return Ok(head);
        }
        let (desired, content) = self.load(revision).await?;
        Ok(Arc::new(Head { revision: revision.clone(), desired, content }))
    }
}

#[cfg(test)]
mod tests;
