//! Defines verdicts, the conditions that an instance waits for, and retry rules.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Digest, Duration, InstanceId};

/// The verdict of an instance, in order of urgency. If several verdicts apply, the first one counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// The last observation is not complete.
    Unknown,
    /// The instance can't continue without an operator.
    Stalled,
    /// The live objects differ from the applied ones.
    Drifted,
    /// Head differs from the applied revision, or a run is in progress or waits.
    Pending,
    /// The instance is applied and no longer declared.
    Orphaned,
    /// The instance is observed and never changed.
    Suspended,
    /// The observation is complete and shows no difference.
    InSync,
}

impl Verdict {
    /// Returns the display text, such as "in sync".
    pub fn words(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Stalled => "stalled",
            Self::Drifted => "drifted",
            Self::Pending => "pending",
            Self::Orphaned => "orphaned",
            Self::Suspended => "suspended",
            Self::InSync => "in sync",
        }
    }
    /// Returns the exit code of a command with this result.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Unknown | Self::Stalled => 3,
            Self::Drifted | Self::Pending | Self::Orphaned => 2,
            Self::Suspended | Self::InSync => 0,
        }
    }
}

/// The condition that an instance or a run waits for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "camelCase")]
pub enum WaitingOn {
    /// The plan is known only after an upstream is applied.
    KnownAfter {
        /// The upstream.
        instance: InstanceId,
    },
    /// An upstream is not applied yet, or its run failed.
    Upstream {
        /// The upstream.
        instance: InstanceId,
    },
    /// The same component of an earlier environment is not applied yet (R3.5).
    Promotion {
        /// The instance that comes first.
        instance: InstanceId,
    },
    /// The same component of an earlier environment must stay healthy until a time (R3.5).
    Soak {
        /// The instance that comes first.
        instance: InstanceId,
        /// The end of the soak time.
        until: DateTime<Utc>,
    },
    /// The applied objects must become ready.
    Rollout {
        /// The deadline of the rollout.
        until: DateTime<Utc>,
    },
    /// An `/apply`: the environment has `onMerge: wait`.
    Apply,
    /// An `/apply`: the approved plan does not cover this plan (R2.4).
    Approval {
        /// The digest of the plan that waits.
        digest: Digest,
    },
    /// An `/apply`: the target already holds resources that Evenkeel never applied (R1.6).
    FirstContact,
    /// A `/resume`, or a declaration without `suspend: true`.
    Suspended,
    /// A `/confirm`: the target is not the one that was applied (R1.8).
    Confirm,
}

/// When the same attempt may succeed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retry {
    /// After a backoff.
    After(Backoff),
    /// When the input changes.
    WhenInputChanges,
    /// Never: the error is a bug.
    Never,
}

/// An exponential backoff between attempts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backoff {
    /// The first wait.
    pub first: Duration,
    /// The longest wait.
    pub longest: Duration,
}

impl Backoff {
    /// The backoff for failures of remote systems that usually recover within minutes.
    pub const REMOTE: Self = Self { first: Duration::seconds(2), longest: Duration::seconds(300) };

    /// Returns the wait before attempt `attempt`, counted from 0.
    pub fn wait(self, attempt: u32) -> Duration {
        let factor = 1_u64.checked_shl(attempt.min(32)).unwrap_or(u64::MAX);
        Duration::seconds(self.first.as_seconds().saturating_mul(factor).min(self.longest.as_seconds()))
    }
}
