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
    /// What authorised it, in words.
    pub because: String,
    /// Whose authority it runs under, as in the audit.
    pub principal: String,
    /// The word that it was made by, which is obeyed once: a comment, the merge of a remediation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub word: Option<String>,
    /// Whether the merge itself is the authority.
    pub by_merge: bool,
    /// The pull request that its comment stands on.
    pub pull: Option<PullNumber>,
    /// The remediation that it runs, which filters it.
    pub remediation: Option<String>,
    /// Whether it reverts drift by the declaration's own word (`drift.mode: revert`).
    #[serde(default)]
    pub by_drift: bool,
    /// Whether it moves shards for the balance, and until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebalance: Option<Rebalance>,
    /// Whether it destroys what is no longer declared (R1.9).
    #[serde(default)]
    pub destroys: bool,
    /// Its instances.
    pub instances: BTreeMap<InstanceId, RunInstance>,
    /// When it was authorised.
    pub created_at: DateTime<Utc>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
}

/// A run that moves shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rebalance {
    /// No move begins that would not be over by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<DateTime<Utc>>,
    /// Whether nobody said it.
    #[serde(default)]
    pub by_clock: bool,
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
    /// What comes first, among the instances of the run.
    #[serde(default)]
    pub after: BTreeSet<InstanceId>,
    /// In a sentence, where there is something to say.
    #[serde(rename = "says")]
    pub message: String,
    /// Whether anything was changed.
    pub changed: bool,
    /// What it waits on.
    pub waiting_on: Option<WaitingOn>,
    /// When it was last found that it waits.
    #[serde(default)]
    pub waiting_since: Option<DateTime<Utc>>,
    /// How long what was applied may take to come up, while that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout_until: Option<DateTime<Utc>>,
    /// What it took of the limits of the run.
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

/// What was approved of one instance (R2.4).
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
    /// What a merged remediation lets through.
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
        self.remediation.is_some() || self.by_drift || self.rebalance.is_some()
    }

    /// Whether an instance of it has not ended.
    pub fn holds(&self, id: &InstanceId) -> bool {
        matches!(self.state, RunState::Open) && self.instances.get(id).is_some_and(|instance| !instance.status.ended())
    }
}
