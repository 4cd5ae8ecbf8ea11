//! The error of the state repo's controller.

use crate::{
    adapters::store,
    controller::context,
    domain::message::Refusal,
    ports::{ForgeError, RepositoryError},
};

/// The error of a fetch, a load or a read of recorded guards, suspensions and pull requests.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The repository failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The forge gave no token for git.
    #[error(transparent)]
    Forge(#[from] ForgeError),
    /// No head was loaded yet.
    #[error("{0}")]
    NotLoaded(Refusal),
}

impl From<Error> for context::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Store(error) => Self::Store(error),
            Error::Repository(error) => Self::Repository(error),
            Error::Forge(error) => Self::Forge(error),
            Error::NotLoaded(refusal) => Self::Refused(refusal),
        }
    }
}
