//! Verdicts, what an instance waits on, and when to try again.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Digest, Duration, InstanceId};

/// The verdict of an instance. The order is that of urgency: of several verdicts the first counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// It could not be observed completely.
    Unknown,
    /// It can't go on without a person.
    Stalled,
    /// The world differs from what was applied.
    Drifted,
    /// Head differs from applied, or a run is in progress or waits.
    Pending,
    /// Applied and no longer declared.
    Orphaned,
    /// Observed, never acted on.
    Suspended,
    /// Everything was observed, and nothing differs.
    InSync,
}

impl Verdict {
    /// The words for people: "in sync".
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
    /// The exit code that a command with this result ends with.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Unknown | Self::Stalled => 3,
            Self::Drifted | Self::Pending | Self::Orphaned => 2,
            Self::Suspended | Self::InSync => 0,
        }
    }
}

/// Why an instance or a run does not go on by itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "camelCase")]
pub enum WaitingOn {
    /// Its plan is known after an upstream is applied.
    KnownAfter {
        /// The upstream.
        instance: InstanceId,
    },
    /// An upstream has not been applied, or failed.
    Upstream {
        /// The upstream.
        instance: InstanceId,
    },
    /// The same component of an earlier environment comes first (R3.5).
    Promotion {
        /// The instance that comes first.
        instance: InstanceId,
    },
    /// The same component of an earlier environment has to stay healthy for a while (R3.5).
    Soak {
        /// The instance that comes first.
        instance: InstanceId,
        /// Until when.
        until: DateTime<Utc>,
    },
    /// The applied objects to become ready.
    Rollout {
        /// How long it may take.
        until: DateTime<Utc>,
    },
    /// An `/apply`: the environment has `onMerge: wait`.
    Apply,
    /// An `/apply`: the approved plan does not cover this plan (R2.4).
    Approval {
        /// The plan that waits.
        digest: Digest,
    },
    /// An `/apply`: the target already holds resources that Evenkeel never applied (R1.6).
    FirstContact,
    /// A `/resume`, or another declaration.
    Suspended,
    /// A `/confirm`: the target is not the one that was applied (R1.8).
    Confirm,
}

/// When the same attempt may succeed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retry {
    /// After a while.
    After(Backoff),
    /// When the input changes.
    WhenInputChanges,
    /// Never: this is a bug.
    Never,
}

/// How the waits between attempts grow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backoff {
    /// The first wait.
    pub first: Duration,
    /// The longest wait.
    pub longest: Duration,
}

impl Backoff {
    /// For what another machine may mend by itself within minutes.
    pub const REMOTE: Self = Self { first: Duration::seconds(2), longest: Duration::seconds(300) };

    /// The wait before attempt `attempt`, counted from 0.
    pub fn wait(self, attempt: u32) -> Duration {
        let factor = 1_u64.checked_shl(attempt.min(32)).unwrap_or(u64::MAX);
        Duration::seconds(self.first.as_seconds().saturating_mul(factor).min(self.longest.as_seconds()))
    }
}
