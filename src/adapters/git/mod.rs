//! The state repo as git keeps it: a bare mirror, the content of revisions, merges, commits, pushes.
//!
//! Decides nothing about meaning. Every call opens the mirror anew on a blocking thread, so that no libgit2 handle is
//! shared between tasks. Never has a work tree: instances get exactly the files of their closure (`targets/`).
//! *Race:* somebody pushes while we fetch: the fetched head is one that existed, and the next wake fetches the next.
//! *Race:* somebody pushes to a branch of ours while we push: ours is refused, because the expected head is checked,
//! and the caller looks again.

mod http;
mod mirror;
mod tree;

pub use http::{Tokens, register};
pub use mirror::Mirror;
pub use tree::{RevisionFiles, WorkingFiles};

use crate::model::{Backoff, Retry};

/// What could not be done with git.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The remote could not be reached, or refused.
    #[error("could not {attempt} {url}")]
    Remote {
        /// "fetch from", "push to".
        attempt: &'static str,
        /// The address, without credentials.
        url: String,
        /// What libgit2 says.
        source: git2::Error,
    },
    /// Somebody else moved the branch.
    #[error("`{branch}` is not where it was expected")]
    Moved {
        /// The branch.
        branch: String,
    },
    /// The mirror on this machine could not be read or written.
    #[error("could not {attempt} in the mirror")]
    Mirror {
        /// What was attempted.
        attempt: &'static str,
        /// What libgit2 says.
        source: git2::Error,
    },
    /// A file of the mirror could not be read or written.
    #[error("could not use the folder of the mirror")]
    Io(#[source] std::io::Error),
    /// The task was cancelled, which happens at shutdown alone.
    #[error("git was interrupted")]
    Interrupted,
}

impl Error {
    /// When the same attempt may succeed.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Remote { .. } | Self::Moved { .. } | Self::Interrupted | Self::Io(_) => Retry::After(Backoff::REMOTE),
            Self::Mirror { .. } => Retry::After(Backoff::REMOTE),
        }
    }
    /// A stable word for metrics and JSON.
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
