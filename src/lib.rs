//! Implements Evenkeel, an event-driven GitOps reconciler for OpenTofu, Kubernetes and Citus.
//!
//! The layers, from the top. A layer uses the layers below it, never one above (`tests/tidy.rs`): entry points
//! (`cli`, `server`, `config`, `telemetry`), controllers (`controller`), adapters and targets (`adapters`,
//! `targets`), the pure domain (`domain`), and the shared types and traits (`model`, `ports`). `forge` is the
//! embedded GitHub-compatible server, a separate program that only `cli` imports. See `ARCHITECTURE.md`.

pub mod adapters;
pub mod cli;
pub mod config;
pub mod controller;
pub mod domain;
pub mod forge;
pub mod model;
pub mod ports;
pub mod server;
pub mod targets;
pub mod telemetry;

/// Returns an error and its causes in one line, separated by colons.
pub fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
