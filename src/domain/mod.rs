//! The decisions: pure, synchronous functions from observations, declarations and `now` to plans and verdicts.
//!
//! *Architecture invariant:* no tokio, clock, randomness, file or network in here; `now` is an argument. `tests/tidy.rs`
//! checks this.

pub mod authorization;
pub mod calendar;
pub mod command;
pub mod declaration;
pub mod journal;
pub mod kind;
pub mod message;
pub mod plan;
pub mod remediation;
