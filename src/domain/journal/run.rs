//! Defines a run with its instances (R5), and the stored journal record.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Event, Status};
use crate::domain::plan::Summary;
use crate::model::{Action, Digest, EnvironmentName, InstanceId, PullNumber, Revision, RunId, WaitingOn};

/// The state of a run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum RunState {
    /// The run is in progress or waits.
    Open,
    /// The run ended.
    Ended {
        /// The result, as a sentence.
        #[serde(rename = "says")]
        message: String,
    },
}

/// A run: the apply, destruction, revert or rebalance of instances, one by one.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// The number of the run.
    pub id: RunId,
    /// The environment.
    pub environment: EnvironmentName,
    /// The revision that it applies.
    pub revision: Revision,
    /// The state of the run.
    pub state: RunState,
    /// The cause of the run, as text.
    pub because: String,
    /// The principal, as in the audit log.
    pub principal: String,
    /// The id of the command that created the run: a comment, the merge of a remediation, a due time of a Schedule. A
    /// command is executed once.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "word")]
    pub command_id: Option<String>,
    /// The kind of the run.
    #[serde(flatten)]
    pub kind: RunKind,
    /// The pull request that has the comment of the run.
    pub pull: Option<PullNumber>,
    /// The instances of the run.
    pub instances: BTreeMap<InstanceId, RunInstance>,
    /// The time of the authorization.
    pub created_at: DateTime<Utc>,
    /// The end of the run.
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
    /// Destroys instances that are no longer declared (R1.9).
    Destroy {
        /// Whether the merge itself is the authorization (`onDelete: destroy`).
        by_merge: bool,
    },
    /// Reverts drift by declaration (`drift.mode: revert`, R3.1).
    Revert,
    /// Runs a merged remediation, which filters its actions (R4.1).
    Remediation {
        /// The name of the remediation.
        name: String,
    },
    /// Moves shards of Citus clusters.
    Rebalance(Rebalance),
}

impl RunKind {
    /// Returns whether the run restores the applied revision and does not apply head.
    pub fn reverts(&self) -> bool {
        matches!(self, Self::Revert | Self::Remediation { .. } | Self::Rebalance(_))
    }

    /// Returns whether the run destroys instances that are no longer declared.
    pub fn destroys(&self) -> bool {
        matches!(self, Self::Destroy { .. })
    }

    /// Returns whether a merge alone authorizes the run.
    pub fn by_merge(&self) -> bool {
        matches!(self, Self::Apply { by_merge: true } | Self::Destroy { by_merge: true })
    }

    /// Returns the name of the remediation that the run executes.
    pub fn remediation(&self) -> Option<&str> {
        match self {
            Self::Remediation { name } => Some(name),
            _ => None,
        }
    }

    /// Returns the parameters of a rebalance.
    pub fn rebalance(&self) -> Option<Rebalance> {
        match self {
            Self::Rebalance(rebalance) => Some(*rebalance),
            _ => None,
        }
    }
}

/// The stored form of [`RunKind`]: fields of the run's document, as every version since the first one reads and writes
/// them.
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

/// The parameters of a run that moves shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rebalance {
    /// A move starts only if it is estimated to end by this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<DateTime<Utc>>,
    /// Whether a Schedule started the run; otherwise a command did.
    #[serde(default, rename = "byClock")]
    pub by_schedule: bool,
}

/// The record of an instance in a run.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunInstance {
    /// The status of the instance.
    pub status: Status,
    /// The component digest that the run applies.
    #[serde(default)]
    pub digest: Option<Digest>,
    /// The step at which the instance may start, counted from 1.
    pub order: usize,
    /// The upstreams among the instances of the run.
    #[serde(default)]
    pub after: BTreeSet<InstanceId>,
    /// The reason for the status, as a sentence; empty if there is none.
    #[serde(rename = "says")]
    pub message: String,
    /// Whether the run changed anything.
    pub changed: bool,
    /// The condition that the instance waits for.
    pub waiting_on: Option<WaitingOn>,
    /// The time at which the wait was last observed.
    #[serde(default)]
    pub waiting_since: Option<DateTime<Utc>>,
    /// The deadline of the rollout, while the health of the applied resources is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout_until: Option<DateTime<Utc>>,
    /// The instance's use of the limits of the run.
    #[serde(default)]
    pub spent: Option<Summary>,
}

/// One record of the journal.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JournalRecord {
    /// The sequence number.
    pub seq: i64,
    /// The run.
    pub run: RunId,
    /// The instance.
    pub instance: InstanceId,
    /// The time of the record.
    pub at: DateTime<Utc>,
    /// The fencing token of the writer.
    pub token: i64,
    /// The event.
    #[serde(flatten)]
    pub event: Event,
}

/// The approved actions of one instance (R2.4).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "approved", rename_all = "camelCase")]
pub enum Approved {
    /// Any plan of the declaration. The change was merged without a shown plan.
    Declaration,
    /// A plan that was not known when the rest was approved. `deferred` of the environment decides whether the plan
    /// runs.
    Unknown,
    /// These actions.
    Actions {
        /// The actions, as the pull request showed them.
        actions: Vec<Action>,
    },
    /// The actions that a merged remediation allows.
    Remediation,
    /// Moves of shards.
    Moves {
        /// The moves that the planner chose at the first observation; `None` before that.
        #[serde(default)]
        chosen: Option<Vec<Action>>,
    },
}

impl Run {
    /// Returns whether the run restores the applied revision and does not apply head.
    pub fn reverts(&self) -> bool {
        self.kind.reverts()
    }

    /// Returns whether the run has an instance that has not ended.
    pub fn holds(&self, id: &InstanceId) -> bool {
        matches!(self.state, RunState::Open) && self.instances.get(id).is_some_and(|instance| !instance.status.ended())
    }
}
