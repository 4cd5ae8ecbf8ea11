//! The words: what every other room speaks in.
//!
//! Decides nothing and touches nothing: ids, digests, changes, verdicts, units, problems.
//! *Invariant:* no type here knows a clock, a file, a network or a third party's client.

pub mod change;
pub mod citus;
pub mod digest;
pub mod ids;
pub mod outcome;
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
