//! Plans: which actions, in which order, under which digest, and what covers what.
//!
//! Decides the order of instances, the digests that approval means, and whether a fresh plan is covered by an approved
//! one (R2). Never looks at the world: observations come in, a document goes out.
//! *Invariant:* equal input gives an equal document; nothing here depends on time or on the order of arrival.

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
