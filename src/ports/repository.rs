//! Defines the port to the git repository of the declarations.
//!
//! *Invariant:* a push never overwrites a commit that the caller did not expect.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::Files;
use crate::model::{Retry, Revision};

/// A commit, with the fields that controllers use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Its id.
    pub revision: Revision,
    /// The first line of its message.
    pub subject: String,
    /// The author's name.
    pub author: String,
    /// When it was committed.
    pub at: DateTime<Utc>,
}

/// The result of a merge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Merged {
    /// A local commit with the merged content. The remote does not have the commit.
    Clean(Revision),
    /// The paths with conflicting changes.
    Conflict(Vec<String>),
}

/// The error of a repository.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct RepositoryError {
    /// A stable name for metrics and JSON.
    pub kind: &'static str,
    /// The message, one line.
    pub message: String,
    /// When the same attempt may succeed.
    pub retry: Retry,
}

/// The operations on the state repo: fetch, read, merge, commit and push.
#[async_trait]
pub trait Repository: Send + Sync {
    /// Returns the URL of the remote, without credentials.
    fn url(&self) -> &str;
    /// Fetches one ref and returns its commit; `None` if the remote has no such ref.
    ///
    /// # Errors
    /// When the remote can't be reached or refuses the request.
    async fn fetch(&self, name: &str) -> Result<Option<Revision>, RepositoryError>;
    /// Returns the content of a fetched revision.
    ///
    /// # Errors
    /// When the revision does not exist locally.
    async fn files(&self, revision: &Revision) -> Result<Arc<dyn Files>, RepositoryError>;
    /// Merges two revisions into a local commit that is not pushed.
    ///
    /// # Errors
    /// When one of the revisions does not exist locally.
    async fn merge(&self, base: &Revision, head: &Revision) -> Result<Merged, RepositoryError>;
    /// Returns the commits from `after` (exclusive) to `to`, newest first, along first parents.
    ///
    /// # Errors
    /// When a revision does not exist locally.
    async fn first_parents(&self, after: Option<&Revision>, to: &Revision) -> Result<Vec<Commit>, RepositoryError>;
    /// Returns the commit along first parents that added a file; `None` if the revision does not have the file.
    ///
    /// # Errors
    /// When the revision does not exist locally.
    async fn added_by(&self, revision: &Revision, path: &str) -> Result<Option<Revision>, RepositoryError>;
    /// Returns whether `ancestor` is an ancestor of `descendant` or equal to it.
    ///
    /// # Errors
    /// When the history can't be read.
    async fn contains(&self, descendant: &Revision, ancestor: &Revision) -> Result<bool, RepositoryError>;
    /// Creates a commit on top of `base` and pushes it as the head of `branch`. The present head of `branch` must be
    /// `expected`; `None` means that the branch does not exist. A file with the content `None` is removed.
    ///
    /// # Errors
    /// When the head of the branch is not `expected`, or the remote can't be reached or refuses the push.
    async fn push(
        &self,
        branch: &str,
        base: &Revision,
        expected: Option<&Revision>,
        files: Vec<(String, Option<String>)>,
        message: &str,
    ) -> Result<Revision, RepositoryError>;
    /// Deletes a branch of the remote, if it exists.
    ///
    /// # Errors
    /// When the remote can't be reached or refuses the request.
    async fn delete_branch(&self, branch: &str) -> Result<(), RepositoryError>;
}
