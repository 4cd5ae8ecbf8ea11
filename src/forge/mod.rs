//! Runs the embedded forge: a small GitHub-compatible server over one bare repository.
//!
//! The forge lets a user try Evenkeel without GitHub, and responds to the requests of its client as GitHub does.
//! *Invariant:* the forge listens on loopback only, because its pages let any visitor act as any of its users.
//! *Race:* a push and a merge at once: both run under one lock on the state, and git refuses the second writer of
//! a ref. *Race:* the receiver misses a webhook: the forge tries a few times and then drops it, as GitHub does; a
//! receiver has to poll as well.

mod app;
mod diff;
mod extract;
mod git_http;
mod graphql;
mod pages;
mod rest;
mod seed;
mod settings;
mod state;
mod webhooks;
mod wire;

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use axum::Router;
use tokio::{net::TcpListener, sync::Mutex};

pub use seed::seed;
pub use settings::{App, Error, Settings, User, Webhook};

use state::State;

/// A running forge.
pub struct Forge {
    /// The address on which the forge listens.
    pub address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Forge {
    /// Starts a forge over `folder/repository.git`, and creates the repository if it does not exist.
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
                tracing::error!(kind = "forge-stopped", %error, "the forge stopped");
            }
        });
        Ok(Self { address, task })
    }

    /// Waits until the forge stops.
    pub async fn wait(self) {
        drop(self.task.await);
    }

    /// Stops the forge.
    pub fn stop(&self) {
        self.task.abort();
    }
}

type Shared = Arc<Mutex<State>>;
