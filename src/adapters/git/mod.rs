//! Accesses the state repo with git: a bare mirror, revisions, merges, commits and pushes.
//!
//! Does not interpret the content. Every call opens the mirror anew on a blocking thread, so that tasks share no
//! libgit2 handle. *Invariant:* the mirror never has a work tree: instances get exactly the files of their
//! closure (`targets/`).
//! *Race:* a user pushes during a fetch: the fetched head existed, and the next `ReconcileRequest` fetches the
//! newer one.
//! *Race:* a user pushes to a branch of the daemon during its push: the daemon's push is refused, because the
//! remote checks the expected head, and the caller observes the branch again.

mod http;
mod mirror;
mod tree;

pub use http::{Tokens, register};
pub use mirror::Mirror;
pub use tree::{RevisionFiles, WorkingFiles};

use crate::model::{Backoff, Retry};

/// An error of a git operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The remote could not be reached, or refused.
    #[error("could not {attempt} {url}")]
    Remote {
        /// The attempted operation: "fetch from" or "push to".
        attempt: &'static str,
        /// The address, without credentials.
        url: String,
        /// The error of libgit2.
        source: git2::Error,
    },
    /// Another writer moved the branch.
    #[error("`{branch}` is not where it was expected")]
    Moved {
        /// The branch.
        branch: String,
    },
    /// The mirror on this machine could not be read or written.
    #[error("could not {attempt} in the mirror")]
    Mirror {
        /// The attempted operation.
        attempt: &'static str,
        /// The error of libgit2.
        source: git2::Error,
    },
    /// A file of the mirror could not be read or written.
    #[error("could not use the folder of the mirror")]
    Io(#[source] std::io::Error),
    /// The task was cancelled; this happens only at shutdown.
    #[error("git was interrupted")]
    Interrupted,
}

impl Error {
    /// Returns when the same attempt may succeed.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Remote { .. } | Self::Moved { .. } | Self::Interrupted | Self::Io(_) => Retry::After(Backoff::REMOTE),
            Self::Mirror { .. } => Retry::After(Backoff::REMOTE),
        }
    }
    /// Returns a stable kebab-case name for metrics and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Remote { .. } => "git-remote",
            Self::Moved { .. } => "git-moved",
            Self::Mirror { .. } => "git-mirror",
            Self::Io(_) => "git-io",
            Self::Interrupted => "git-interrupted",
        }
    }
}

impl From<Error> for crate::ports::RepositoryError {
    fn from(error: Error) -> Self {
        Self { kind: error.kind(), message: crate::error_chain(&error), retry: error.retry() }
    }
}
