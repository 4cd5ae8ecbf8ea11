//! Settings and errors of the embedded forge, and the people that it knows.

use serde::Deserialize;
use std::{net::SocketAddr, path::PathBuf};

/// The users and repositories.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// The organisation.
    pub owner: String,
    /// The repository's name.
    pub repository: String,
    /// The people.
    pub users: Vec<User>,
    /// Teams of the organisation, by name.
    #[serde(default)]
    pub teams: std::collections::BTreeMap<String, Vec<String>>,
    /// An App that is installed on the repository.
    #[serde(default)]
    pub app: Option<App>,
    /// Where events are sent.
    #[serde(default)]
    pub webhook: Option<Webhook>,
}

/// A user.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct User {
    /// The login.
    pub login: String,
    /// The user's token.
    pub token: String,
    /// `read`, `write` or `admin`.
    pub permission: String,
}

/// An App that is installed on the repository, with the right to write.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct App {
    /// Its id.
    pub id: u64,
    /// Its name in logins: it writes as `SLUG[bot]`.
    pub slug: String,
    /// The public half of its key, as PEM.
    pub public_key: String,
}

/// Where events are sent.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Webhook {
    /// The address.
    pub url: String,
    /// The secret of the signature.
    pub secret: String,
}

/// The error of the forge.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder or the repository could not be used.
    #[error("could not use the forge's folder `{path}`: {why}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The error.
        why: String,
    },
    /// It is asked to listen where others reach it.
    #[error("the forge listens on loopback alone, and `{0}` is not")]
    NotLoopback(SocketAddr),
    /// The address is taken.
    #[error("could not listen on `{address}`")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The error of the operating system.
        source: std::io::Error,
    },
}
