//! The embedded forge: a small GitHub-compatible server over one bare repository, to try Evenkeel without GitHub.
//!
//! Decides what GitHub would answer to the client of this house. Never serves on anything but loopback, because its
//! pages let whoever opens them act as any of its users.
//! *Race:* a push and a merge at once: both happen under one lock on the state, and git refuses the second writer of a
//! ref. *Race:* a webhook that is not received: it is tried again a few times and then dropped, as on GitHub; whoever
//! listens has to poll as well.

mod app;
mod diff;
mod git_http;
mod graphql;
mod pages;
mod rest;
mod seed;
mod state;
mod webhooks;
mod wire;

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use axum::Router;
pub use seed::seed;
use serde::Deserialize;
use tokio::{net::TcpListener, sync::Mutex};

use state::State;

/// Who and what there is.
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

/// Somebody.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct User {
    /// The login.
    pub login: String,
    /// What proves who it is.
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

/// What the forge could not do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder or the repository could not be used.
    #[error("could not use the forge's folder `{path}`: {why}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What went wrong.
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
        /// What the system says.
        source: std::io::Error,
    },
}

/// A forge that runs.
pub struct Forge {
    /// Where it listens.
    pub address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Forge {
    /// Starts a forge over `folder/repository.git`, which is made where it is not there.
    ///
    /// # Errors
    /// When the folder can't be used, or the address is taken or not loopback.
    pub async fn start(folder: PathBuf, settings: Settings, address: SocketAddr) -> Result<Self, Error> {
        if !address.ip().is_loopback() {
            return Err(Error::NotLoopback(address));
        }
        let listener = TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
        let address = listener.local_addr().map_err(|source| Error::Listen { address, source })?;
        let state = State::open(folder, settings, address)?;
        let shared = Arc::new(Mutex::new(state));
        let router = Router::new()
            .merge(rest::routes())
            .merge(app::routes())
            .merge(git_http::routes())
            .merge(pages::routes())
            .with_state(shared);
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the forge stopped");
            }
        });
        Ok(Self { address, task })
    }

    /// Waits until it stops.
    pub async fn wait(self) {
        drop(self.task.await);
    }

    /// Stops it.
    pub fn stop(&self) {
        self.task.abort();
    }
}

type Shared = Arc<Mutex<State>>;
