//! Decides what to do: pure functions from observations, declarations and `now` to plans and verdicts.
//!
//! *Architecture invariant:* no tokio, clock, randomness, file or network in this layer; `now` is an argument.
//! `tests/tidy.rs` checks this invariant.

pub mod authorization;
pub mod calendar;
pub mod command;
pub mod declaration;
pub mod journal;
pub mod kind;
pub mod message;
pub mod plan;
pub mod remediation;
