//! Defines the types that all layers share: ids, digests, changes, verdicts, units and problems.
//!
//! Decides nothing and has no effects.
//! *Invariant:* no type of this module depends on a clock, a file, a network or a third-party client.

pub mod change;
pub mod digest;
pub mod ids;
pub mod layout;
mod outcome;
pub mod problem;
pub mod secret;
mod target_spec;
pub mod units;

pub use change::{Action, Change, ChangedBy, Drift, DriftField, DriftKind, Effect, Field, Overwrite, ResourceChange};
pub use digest::{Digest, Digester, Seal};
pub use ids::{ComponentName, EnvironmentName, InstanceId, PullNumber, Revision, RunId};
pub use outcome::{Backoff, Retry, Verdict, WaitingOn};
pub use problem::{Place, Problem, Problems};
pub use secret::Redactor;
pub use target_spec::TargetSpec;
pub use units::{Duration, Percent, Size};
