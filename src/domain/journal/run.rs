//! A run and where it stands (R5), and the journal's record.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Event, Status};
use crate::domain::plan::Summary;
use crate::model::{Action, Digest, EnvironmentName, InstanceId, PullNumber, Revision, RunId, WaitingOn};

/// Where a run stands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum RunState {
    /// It is under way or waits.
    Open,
    /// It ended.
    Ended {
        /// In a sentence.
        #[serde(rename = "says")]
        message: String,
    },
}

/// Something that is applied, instance by instance.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// Its number.
    pub id: RunId,
    /// The environment.
    pub environment: EnvironmentName,
    /// The revision that it applies.
    pub revision: Revision,
    /// Where it stands.
    pub state: RunState,
    /// The authorisation, as text.
    pub because: String,
    /// The principal, as in the audit log.
    pub principal: String,
    /// The command that created it, which is executed once: a comment, the merge of a remediation, a time of a Schedule.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "word")]
    pub command_id: Option<String>,
    /// The kind of the run.
    #[serde(flatten)]
    pub kind: RunKind,
    /// The pull request that its comment stands on.
    pub pull: Option<PullNumber>,
    /// Its instances.
    pub instances: BTreeMap<InstanceId, RunInstance>,
    /// When it was authorised.
    pub created_at: DateTime<Utc>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
}

/// The kind of a run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(from = "StoredRunKind", into = "StoredRunKind")]
pub enum RunKind {
    /// Applies what a revision declares.
    Apply {
        /// Whether the merge itself is the authorization (`onMerge: apply`).
        by_merge: bool,
    },
    /// Destroys what is no longer declared (R1.9).
    Destroy {
        /// Whether the merge itself is the authorization (`onDelete: destroy`).
        by_merge: bool,
    },
    /// Reverts drift because the declaration says so (`drift.mode: revert`, R3.1).
    Revert,
    /// Runs a merged remediation, which filters its actions (R4.1).
    Remediation {
        /// The name of the remediation.
        name: String,
    },
    /// Moves shards.
    Rebalance(Rebalance),
}

impl RunKind {
    /// Whether it returns to what is applied, and leaves head alone.
    pub fn reverts(&self) -> bool {
        matches!(self, Self::Revert | Self::Remediation { .. } | Self::Rebalance(_))
    }

    /// Whether it destroys what is no longer declared.
    pub fn destroys(&self) -> bool {
        matches!(self, Self::Destroy { .. })
    }

    /// Whether a merge alone is its authorization.
    pub fn by_merge(&self) -> bool {
        matches!(self, Self::Apply { by_merge: true } | Self::Destroy { by_merge: true })
    }

    /// The name of the remediation that it runs.
    pub fn remediation(&self) -> Option<&str> {
        match self {
            Self::Remediation { name } => Some(name),
            _ => None,
        }
    }

    /// How it moves shards.
    pub fn rebalance(&self) -> Option<Rebalance> {
        match self {
            Self::Rebalance(rebalance) => Some(*rebalance),
            _ => None,
        }
    }
}

/// The stored form of [`RunKind`]: fields of the run's document, as every version since the first reads and writes them.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredRunKind {
    by_merge: bool,
    remediation: Option<String>,
    #[serde(default)]
    by_drift: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rebalance: Option<Rebalance>,
    #[serde(default)]
    destroys: bool,
}

impl From<StoredRunKind> for RunKind {
    fn from(stored: StoredRunKind) -> Self {
        match stored {
            StoredRunKind { rebalance: Some(rebalance), .. } => Self::Rebalance(rebalance),
            StoredRunKind { remediation: Some(name), .. } => Self::Remediation { name },
            StoredRunKind { by_drift: true, .. } => Self::Revert,
            StoredRunKind { destroys: true, by_merge, .. } => Self::Destroy { by_merge },
            StoredRunKind { by_merge, .. } => Self::Apply { by_merge },
        }
    }
}

impl From<RunKind> for StoredRunKind {
    fn from(kind: RunKind) -> Self {
        Self {
            by_merge: kind.by_merge(),
            remediation: kind.remediation().map(str::to_owned),
            by_drift: kind == RunKind::Revert,
            rebalance: kind.rebalance(),
            destroys: kind.destroys(),
        }
    }
}

/// A run that moves shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rebalance {
    /// A move starts only if it is estimated to end by this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<DateTime<Utc>>,
    /// Whether a Schedule started it, and not a command.
    #[serde(default, rename = "byClock")]
    pub by_schedule: bool,
}

/// Where an instance of a run stands.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunInstance {
    /// Where it stands.
    pub status: Status,
    /// Its component digest, as the run applies it.
    #[serde(default)]
    pub digest: Option<Digest>,
    /// Its step.
    pub order: usize,
    /// The upstreams among the instances of the run.
    #[serde(default)]
    pub after: BTreeSet<InstanceId>,
    /// In a sentence, where there is something to say.
    #[serde(rename = "says")]
    pub message: String,
    /// Whether anything was changed.
    pub changed: bool,
    /// The condition that it waits for.
    pub waiting_on: Option<WaitingOn>,
    /// When it was last found that it waits.
    #[serde(default)]
    pub waiting_since: Option<DateTime<Utc>>,
    /// How long what was applied may take to come up, while that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout_until: Option<DateTime<Utc>>,
    /// Its use of the limits of the run.
    #[serde(default)]
    pub spent: Option<Summary>,
}

/// One record of the journal.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JournalRecord {
    /// Its number.
    pub seq: i64,
    /// The run.
    pub run: RunId,
    /// The instance.
    pub instance: InstanceId,
    /// When.
    pub at: DateTime<Utc>,
    /// The fencing token of who wrote it.
    pub token: i64,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// The approved actions of one instance (R2.4).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "approved", rename_all = "camelCase")]
pub enum Approved {
    /// Whatever the declaration says: it came by a merge that nobody was shown a plan of.
    Declaration,
    /// A part that was wholly unknown when the rest was approved; `deferred` decides.
    Unknown,
    /// These actions.
    Actions {
        /// As they were shown.
        actions: Vec<Action>,
    },
    /// The actions that a merged remediation allows.
    Remediation,
    /// Moves of shards.
    Moves {
        /// Those that the planner made of what it saw first; nothing before that.
        #[serde(default)]
        chosen: Option<Vec<Action>>,
    },
}

impl Run {
    /// Whether it returns to what is applied, and leaves head alone.
    pub fn reverts(&self) -> bool {
        self.kind.reverts()
    }

    /// Whether an instance of it has not ended.
    pub fn holds(&self, id: &InstanceId) -> bool {
        matches!(self.state, RunState::Open) && self.instances.get(id).is_some_and(|instance| !instance.status.ended())
    }
}
