//! Evenkeel, an event-driven GitOps reconciler: one git repository says what the world should be.
//!
//! The floors, from the top; an upper one may use a lower one, never the reverse (`tests/tidy.rs`):
//! doors (`cli`, `server`, `config`, `telemetry`), conductors (`daemon`), hands (`targets`, `git`, `github`, `forge`,
//! `store`, `supervisor`), minds (`desired`, `plan`, `authority`, `remedy`, `check`, `journal`, `command`, `render`, `calendar`),
//! words (`model`, `port`).

pub mod authority;
pub mod calendar;
pub mod check;
pub mod cli;
pub mod command;
pub mod config;
pub mod daemon;
pub mod desired;
pub mod forge;
pub mod git;
pub mod github;
pub mod journal;
pub mod model;
pub mod plan;
pub mod port;
pub mod remedy;
pub mod render;
pub mod server;
pub mod sim;
pub mod store;
pub mod supervisor;
pub mod targets;
pub mod telemetry;

/// An error and its causes, in one line.
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
