//! Defines plans: their actions, order, digests and coverage.
//!
//! Decides the order of instances, the digests that users approve, and whether an approved plan covers a new plan (R2).
//! Never observes a target: observations are arguments, and a document is the result.
//! *Invariant:* equal input gives an equal document. Nothing in this module depends on time or on the order of arrival.

pub mod action;
pub mod coverage;
pub mod document;
pub mod hosts;
pub mod order;
pub mod pending;
pub mod record;
pub mod validation;

pub use action::{Protection, action_digest, mark_drifted, mark_protected};
pub use coverage::{Gap, covers};
pub use document::{InstancePlan, Plan, Summary};
pub use hosts::{HostViolation, HostedNode};
pub use order::{Order, order};
pub use record::{Applied, Observed, ObservedError};
