//! Defines the stored records of an instance: the applied record (R1.1) and the last observation.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    domain::declaration::schema::Component,
    model::{Action, Digest, Drift, ResourceChange, Revision, RunId, WaitingOn, layout::LayoutPlan},
    ports::RecordedOutput,
};

/// The applied record (R1.1), with all data that a drift check needs.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// The applied revision.
    pub revision: Revision,
    /// The component digest.
    pub digest: Digest,
    /// The resolved declaration.
    pub spec: Component,
    /// The files of the closure: path, git object id, and whether the file is executable.
    pub files: BTreeMap<String, (String, bool)>,
    /// Whether the root module configures the location of its state.
    pub declares_backend: bool,
    /// The recorded inputs, by `component.outputs.key`.
    pub inputs: BTreeMap<String, RecordedOutput>,
    /// The recorded outputs.
    pub outputs: BTreeMap<String, RecordedOutput>,
    /// The run that applied the instance; `None` if there was nothing to do.
    pub run: Option<RunId>,
    /// The time of the apply.
    pub at: DateTime<Utc>,
}

/// The last observation of an instance.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Observed {
    /// The start of the observation.
    pub at: DateTime<Utc>,
    /// The duration of the observation, in milliseconds.
    pub duration_ms: u64,
    /// The applied revision that the live objects were compared with; `None` if nothing is applied.
    pub against: Option<Revision>,
    /// The differences of the live objects from the applied revision.
    pub drift: Vec<Drift>,
    /// The actions that would revert the drift.
    pub revert: Vec<Action>,
    /// The head that the pending changes belong to.
    pub head: Option<Revision>,
    /// The changes that an apply of head would make.
    pub pending: Vec<ResourceChange>,
    /// The conditions that the pending changes wait for.
    pub waiting_on: Vec<WaitingOn>,
    /// The time at which head was planned against this observation; `None` if head must be planned again.
    #[serde(default)]
    pub planned_at: Option<DateTime<Utc>>,
    /// The reason for which head could not be planned, if an applied revision exists.
    #[serde(default)]
    pub head_problem: Option<String>,
    /// The reason for which the observation is not complete.
    pub error: Option<ObservedError>,
    /// The health checks that failed.
    pub failed_checks: Vec<String>,
    /// Warnings that are not drift.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// The figures of the shard moves of a revert.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<LayoutPlan>,
}

/// The reason for which an observation is not complete.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObservedError {
    /// A stable name of the error.
    pub kind: String,
    /// The message, one line.
    #[serde(rename = "says")]
    pub message: String,
    /// Whether the error may disappear without a change. The observation is then repeated before its regular time.
    #[serde(default)]
    #[serde(rename = "passes")]
    pub transient: bool,
}

impl Observed {
    /// Returns the actions that revert the drift; empty if there is no drift.
    pub fn revert_actions(&self) -> &[Action] {
        if self.drift.is_empty() { &[] } else { &self.revert }
    }

    /// Creates an observation that has a start time and no results yet.
    pub fn new(at: DateTime<Utc>, against: Option<Revision>) -> Self {
        Self {
            at,
            duration_ms: 0,
            against,
            drift: vec![],
            revert: vec![],
            head: None,
            pending: vec![],
            waiting_on: vec![],
            planned_at: None,
            head_problem: None,
            error: None,
            failed_checks: vec![],
            warnings: vec![],
            layout: None,
        }
    }
}
