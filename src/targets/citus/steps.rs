//! Defines the steps that bring a cluster to its declaration, and the result of a comparison.

use crate::targets::citus::placement::Address;
use crate::targets::citus::work::CitusWork;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{catalog::NodeRow, migrations::Migration, observe::Seen};
use crate::{
    model::{Change, Field, ResourceChange, Retry, layout::LayoutPlan},
    ports::{Observation, TargetError, TargetErrorKind},
};

/// The assumed speed of a move without measurements, in bytes per second: low, so that no move exceeds its window.
const SPEED_ASSUMED: u64 = 8 << 20;

/// The fixed duration of a move in seconds: snapshots, locks, synchronization.
const MOVE_SECONDS: u64 = 15;

/// A move of a shard group.
#[derive(Clone, Debug, PartialEq)]
pub struct Moving {
    /// The name of the group.
    pub group: String,
    /// The tables of the group.
    pub tables: Vec<String>,
    /// The shard of the first table, which names the group in the move.
    pub shard: i64,
    /// The source node.
    pub from: String,
    /// The destination node.
    pub to: String,
    /// The size in bytes, with indexes.
    pub bytes: u64,
    /// The balanced quantity.
    pub weight: u64,
    /// The colocation group.
    pub colocation: i32,
    /// Whether only the balance requires the move.
    pub for_balance: bool,
}

impl Moving {
    /// Returns the expected duration, in seconds.
    pub fn seconds(&self, bytes_per_second: Option<u64>) -> u64 {
        MOVE_SECONDS + self.bytes / bytes_per_second.unwrap_or(SPEED_ASSUMED).max(1)
    }
}

/// The operation of a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Task {
    /// Checks and adds a node.
    Add {
        /// The address.
        address: Address,
        /// Whether it holds shards.
        holds: bool,
    },
    /// Activates a node.
    Activate(Address),
    /// Sets whether a node holds shards.
    Holds {
        /// The node.
        address: Address,
        /// Whether it holds shards.
        holds: bool,
    },
    /// Applies a migration.
    Migrate(Migration),
    /// Creates a distributed schema.
    MakeSchema(String),
    /// Distributes an existing schema with its tables.
    DistributeSchema(String),
    /// Distributes a table.
    Distribute {
        /// The table.
        table: String,
        /// The distribution column.
        column: String,
        /// The colocation: a table, `default` or `none`.
        with: String,
        /// The number of shards.
        shards: Option<u32>,
        /// Whether the table has rows, so that writes continue during the operation.
        has_rows: bool,
    },
    /// Makes a table a reference table.
    Refer(String),
    /// Rewrites a table.
    Rewrite {
        /// The table.
        table: String,
        /// The new distribution column.
        column: Option<String>,
        /// The new number of shards.
        shards: Option<u32>,
        /// The table of the new colocation.
        with: Option<String>,
        /// Whether the table must be undistributed first.
        undistribute: bool,
    },
    /// Rewrites a table together with another one; the other table's step performs it.
    Along(String),
    /// Copies reference tables to every node.
    Replicate,
    /// Cleans up the left-overs of moves.
    CleanUp,
    /// Moves a shard group.
    Move(Moving),
    /// Removes an empty node.
    Remove(Address),
}

/// An operation with the change that it makes.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The change.
    pub change: ResourceChange,
    /// The operation.
    pub task: Task,
}

/// The result of a comparison.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// Warnings.
    pub notes: Vec<String>,
    /// The reason why the plan is refused.
    pub refused: Option<String>,
    /// The layout before and after the moves.
    pub layout: Option<LayoutPlan>,
    /// Whether the balance requires moves that are not among the steps.
    pub more: bool,
}

impl Found {
    pub(super) fn step(&mut self, r#type: &str, resource: String, change: Change, fields: Vec<Field>, task: Task) {
        let change =
            ResourceChange { resource, r#type: r#type.into(), change, reverts_drift: false, protected: false, fields };
        self.steps.push(Step { change, task });
    }
    pub(super) fn refuse(&mut self, why: impl FnOnce() -> String) {
        if self.refused.is_none() {
            self.refused = Some(why());
        }
    }
    /// Converts the result to an observation of the cluster.
    pub fn observation(&self, seen: &Seen) -> Observation {
        Observation {
            changes: self.steps.iter().map(|step| step.change.clone()).collect(),
            holds_anything: !seen.catalog.tables.is_empty(),
            identity: Some(seen.identity.clone()),
            refused: self.refused.clone(),
            warnings: self.notes.iter().cloned().chain(self.refused.clone()).collect(),
            layout: self.layout.clone(),
            ..Observation::default()
        }
    }
    /// Checks that the plan is not refused.
    ///
    /// # Errors
    /// The reason why the plan is refused.
    pub fn allowed(&self) -> Result<(), TargetError> {
        let refused = |why: &String| TargetError {
            retry: Retry::WhenInputChanges,
            ..TargetError::new(TargetErrorKind::Refused, why.clone())
        };
        self.refused.as_ref().map_or(Ok(()), |why| Err(refused(why)))
    }
}

/// Returns a field with its values before and after.
pub(super) fn field(path: &str, before: Value, after: Value) -> Field {
    let some = |value: Value| (!value.is_null()).then_some(value);
    Field {
        path: path.into(),
        before: some(before),
        after: some(after),
        sensitive: false,
        unknown: false,
        sealed: None,
    }
}

/// The memory of a cluster between observations.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Memory {
    /// The measured speed of moves, in bytes per second.
    pub bytes_per_second: Option<u64>,
    /// The end of the last rebalance, in seconds since 1970.
    pub rebalanced_at: Option<i64>,
    /// The measurements of each capacity rule.
    pub rules: BTreeMap<String, RuleMemory>,
    /// The first left-over of moves, and the time of its first observation in seconds since 1970.
    pub left_over: Option<(i64, i64)>,
}

impl Memory {
    /// Updates the memory from an observation.
    pub fn take_in(&mut self, seen: &Seen, now: i64) {
        let known = self.left_over;
        let since = |first| known.filter(|(known, _)| *known == first).unwrap_or((first, now));
        self.left_over = seen.left_over_first.map(since);
    }
}

/// The measurements of a rule of capacity.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuleMemory {
    /// The time since which the figure is over its limit, in seconds since 1970.
    pub over_since: Option<i64>,
    /// Samples of the cluster total: time in seconds since 1970, value.
    pub samples: Vec<(i64, u64)>,
}

/// The input of a comparison.
pub struct Compared<'a> {
    /// The declaration.
    pub work: &'a CitusWork,
    /// The cluster.
    pub seen: &'a Seen,
    /// The migrations of the repository, in order.
    pub migrations: &'a [Migration],
    /// The memory of earlier observations.
    pub memory: &'a Memory,
    /// The present time, in seconds since 1970.
    pub now: i64,
}

/// Whether a node should hold shards; `None` if the declaration does not define it.
pub(super) fn is_to_hold(work: &CitusWork, name: &str) -> Option<bool> {
    let drained = work.placement.drain.iter().chain(&work.vacate);
    if drained.into_iter().any(|drained| drained == name) {
        return Some(false);
    }
    let nodes = work.nodes.as_ref()?;
    nodes.iter().find(|node| node.address.to_string() == name).map(|node| node.holds)
}

/// Whether an existing node should hold shards: a node to be removed receives no shards while it is drained.
pub(super) fn is_to_hold_there(this: &Compared<'_>, row: &NodeRow) -> Option<bool> {
    let goes = undeclared(this).iter().any(|removed| removed.name == row.name);
    if goes { Some(false) } else { is_to_hold(this.work, &row.name) }
}

/// Returns the primaries that the declared list of nodes omits, except the coordinator.
pub(super) fn undeclared<'s>(this: &'s Compared<'_>) -> Vec<&'s NodeRow> {
    let declared: Option<BTreeSet<String>> =
        this.work.nodes.as_ref().map(|nodes| nodes.iter().map(|node| node.address.to_string()).collect());
    let goes = |row: &&NodeRow| {
        let is_vacated = this.work.vacate.contains(&row.name);
        row.is_primary
            && row.group != 0
            && (is_vacated || declared.as_ref().is_some_and(|all| !all.contains(&row.name)))
    };
    this.seen.catalog.nodes.iter().filter(goes).collect()
}

/// Whether a node holds shards that are not on every node.
pub(super) fn holds_shards(this: &Compared<'_>, row: &NodeRow) -> bool {
    this.seen
        .catalog
        .placements
        .iter()
        .any(|placement| placement.group == row.group && !is_reference(this, placement.shard))
}

pub(super) fn is_reference(this: &Compared<'_>, shard: i64) -> bool {
    let catalog = &this.seen.catalog;
    let table = catalog.shards.iter().find(|row| row.id == shard).map(|row| row.table.as_str());
    catalog.tables.iter().any(|row| Some(row.name.as_str()) == table && row.is_reference())
}
