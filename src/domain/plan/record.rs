//! What is recorded of an instance: what is applied (R1.1), and what was observed last.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    domain::declaration::schema::Component,
    model::{Action, Digest, Drift, ResourceChange, Revision, RunId, WaitingOn, citus::LayoutPlan},
    ports::RecordedOutput,
};

/// The applied record (R1.1), with everything that a drift check needs.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// The revision.
    pub revision: Revision,
    /// The component digest.
    pub digest: Digest,
    /// The resolved declaration.
    pub spec: Component,
    /// The files of the closure.
    pub files: BTreeMap<String, (String, bool)>,
    /// Whether the root module says where its state is kept.
    pub declares_backend: bool,
    /// The recorded inputs, by `component.outputs.key`.
    pub inputs: BTreeMap<String, RecordedOutput>,
    /// The recorded outputs.
    pub outputs: BTreeMap<String, RecordedOutput>,
    /// The run that applied it; none where there was nothing to do.
    pub run: Option<RunId>,
    /// When.
    pub at: DateTime<Utc>,
}

/// The last observation of an instance.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Observed {
    /// When it began.
    pub at: DateTime<Utc>,
    /// How long it took.
    pub duration_ms: u64,
    /// The applied revision that it was compared with, if there is one.
    pub against: Option<Revision>,
    /// How the world differs from what was applied.
    pub drift: Vec<Drift>,
    /// The actions that would revert it.
    pub revert: Vec<Action>,
    /// The head that the pending changes belong to.
    pub head: Option<Revision>,
    /// The changes that an apply of head would make.
    pub pending: Vec<ResourceChange>,
    /// The condition that head waits for.
    pub waiting_on: Vec<WaitingOn>,
    /// When head was planned with the world as it was observed; absent where that has to be done again.
    #[serde(default)]
    pub planned_at: Option<DateTime<Utc>>,
    /// Why head could not be planned, while something is applied.
    #[serde(default)]
    pub head_problem: Option<String>,
    /// Why it could not be observed completely.
    pub error: Option<ObservedError>,
    /// Checks that did not answer.
    pub failed_checks: Vec<String>,
    /// Warnings that are no drift.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// The figures of the shard moves of a revert.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<LayoutPlan>,
}

/// Why an instance could not be observed completely.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObservedError {
    /// A stable word.
    pub kind: String,
    /// In a line.
    #[serde(rename = "says")]
    pub message: String,
    /// Whether it may pass by itself, so that it is looked again before the usual time.
    #[serde(default)]
    #[serde(rename = "passes")]
    pub transient: bool,
}

impl Observed {
    /// The actions that revert the drift; empty where nothing drifted.
    pub fn revert_actions(&self) -> &[Action] {
        if self.drift.is_empty() { &[] } else { &self.revert }
    }

    /// An observation of which nothing is known yet but when it began.
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
