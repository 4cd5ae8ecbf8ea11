//! The state repo, as conductors ask for it.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::Files;
use crate::model::{Retry, Revision};

/// A commit, as far as anybody asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Its id.
    pub revision: Revision,
    /// The first line of its message.
    pub subject: String,
    /// The name of its author.
    pub author: String,
    /// When it was committed.
    pub at: DateTime<Utc>,
}

/// The result of a merge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Merged {
    /// A commit that nobody else has, with the merged content.
    Clean(Revision),
    /// The paths that differ on both sides.
    Conflict(Vec<String>),
}

/// The error of a repository.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct RepositoryError {
    /// A stable word for metrics and JSON.
    pub kind: &'static str,
    /// In a line.
    pub message: String,
    /// When the same attempt may succeed.
    pub retry: Retry,
}

/// The state repo: what is fetched, merged, committed and pushed.
#[async_trait]
pub trait Repository: Send + Sync {
    /// The address of the remote, without credentials.
    fn url(&self) -> &str;
    /// Fetches one ref, and answers the commit that it names; nothing where the remote has no such ref.
    ///
    /// # Errors
    /// When the remote can't be reached or refuses.
    async fn fetch(&self, name: &str) -> Result<Option<Revision>, RepositoryError>;
    /// The content of a revision that was fetched.
    ///
    /// # Errors
    /// When it is not there.
    async fn files(&self, of: &Revision) -> Result<Arc<dyn Files>, RepositoryError>;
    /// The merge of two revisions, as a commit that nobody else has.
    ///
    /// # Errors
    /// When one of them is not there.
    async fn merge(&self, base: &Revision, head: &Revision) -> Result<Merged, RepositoryError>;
    /// The commits from `after` (exclusive) to `to`, newest first, along first parents.
    ///
    /// # Errors
    /// When they are not there.
    async fn first_parents(&self, after: Option<&Revision>, to: &Revision) -> Result<Vec<Commit>, RepositoryError>;
    /// The commit along first parents that added a file, if the revision has it.
    ///
    /// # Errors
    /// When the revision is not there.
    async fn added_by(&self, of: &Revision, path: &str) -> Result<Option<Revision>, RepositoryError>;
    /// Whether one revision is among the ancestors of another, or the same.
    ///
    /// # Errors
    /// When they can't be read.
    async fn contains(&self, descendant: &Revision, ancestor: &Revision) -> Result<bool, RepositoryError>;
    /// Makes a commit on top of `base` and pushes it as the head of `branch`, which is expected at `expected` (nothing:
    /// it does not exist); files without content are removed.
    ///
    /// # Errors
    /// When the branch is elsewhere, or the remote can't be reached or refuses.
    async fn push(
        &self,
        branch: &str,
        base: &Revision,
        expected: Option<&Revision>,
        files: Vec<(String, Option<String>)>,
        message: &str,
    ) -> Result<Revision, RepositoryError>;
    /// Removes a branch of the remote, if it is there.
    ///
    /// # Errors
    /// When the remote can't be reached or refuses.
    async fn delete_branch(&self, branch: &str) -> Result<(), RepositoryError>;
}
