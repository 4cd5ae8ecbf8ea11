//! Evenkeel, an event-driven GitOps reconciler: one git repository says what the world should be.
//!
//! The floors, from the top; an upper one may use a lower one, never the reverse (`tests/tidy.rs`):
//! doors (`cli`, `server`, `config`, `telemetry`), conductors (`daemon`), hands (`targets`, `git`, `github`, `forge`,
//! `store`), minds (`desired`, `plan`, `authority`, `remedy`, `check`, `journal`, `command`, `render`, `calendar`),
//! words (`model`, `port`).

pub mod calendar;
pub mod desired;
pub mod git;
pub mod model;
pub mod port;
