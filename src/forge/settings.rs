//! Defines the settings, users and errors of the embedded forge.

use serde::Deserialize;
use std::{net::SocketAddr, path::PathBuf};

/// The users and repositories.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// The organisation.
    pub owner: String,
    /// The name of the repository.
    pub repository: String,
    /// The users; the first one is usually the bot.
    pub users: Vec<User>,
    /// Teams of the organisation, by name.
    #[serde(default)]
    pub teams: std::collections::BTreeMap<String, Vec<String>>,
    /// An App that is installed on the repository.
    #[serde(default)]
    pub app: Option<App>,
    /// The receiver of events.
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
    /// The permission: `read`, `write` or `admin`.
    pub permission: String,
}

/// An App that is installed on the repository, with write access.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct App {
    /// The id of the App.
    pub id: u64,
    /// The name in logins: the App writes as `SLUG[bot]`.
    pub slug: String,
    /// The public half of the App's key, as PEM.
    pub public_key: String,
}

/// The receiver of events.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Webhook {
    /// The address.
    pub url: String,
    /// The secret for the signature.
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
    /// The address is not loopback, so that other machines could reach it.
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
