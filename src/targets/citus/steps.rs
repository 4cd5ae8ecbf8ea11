//! The steps by which a cluster becomes what it is declared to be, and the comparison that finds them.

use crate::targets::citus::work::CitusWork;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{catalog::NodeRow, migrations::Migration, observe::Seen};
use crate::{
    model::{
        Change, Field, ResourceChange, Retry,
        citus::{Address, LayoutPlan},
    },
    ports::{Observation, TargetError, TargetErrorKind},
};

/// What a move makes in a second where nothing was measured here yet, in bytes: little, so that nothing runs over.
const SPEED_ASSUMED: u64 = 8 << 20;

/// What a move takes whatever it moves: snapshots, locks, waiting for the other side.
const MOVE_SECONDS: u64 = 15;

/// A group of shards that moves.
#[derive(Clone, Debug, PartialEq)]
pub struct Moving {
    /// What it is called.
    pub group: String,
    /// Its tables.
    pub tables: Vec<String>,
    /// The shard of the first of them, which the move names.
    pub shard: i64,
    /// From where.
    pub from: String,
    /// To where.
    pub to: String,
    /// How much, with indexes.
    pub bytes: u64,
    /// How much of what is balanced.
    pub weight: u64,
    /// What it is colocated by.
    pub colocation: i32,
    /// Whether nothing but the balance asks for it.
    pub for_balance: bool,
}

impl Moving {
    /// How long it takes, in seconds.
    pub fn seconds(&self, bytes_per_second: Option<u64>) -> u64 {
        MOVE_SECONDS + self.bytes / bytes_per_second.unwrap_or(SPEED_ASSUMED).max(1)
    }
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Task {
    /// A node is checked and added.
    Add {
        /// Where it listens.
        address: Address,
        /// Whether it holds shards.
        holds: bool,
    },
    /// A node takes part again.
    Activate(Address),
    /// Whether a node holds shards is set.
    Holds {
        /// The node.
        address: Address,
        /// Whether it does.
        holds: bool,
    },
    /// A migration is applied.
    Migrate(Migration),
    /// A distributed schema is made.
    MakeSchema(String),
    /// A schema becomes distributed, with what is in it.
    DistributeSchema(String),
    /// A table becomes distributed.
    Distribute {
        /// The table.
        table: String,
        /// The column.
        column: String,
        /// What it lies with: a table, `default` or `none`.
        with: String,
        /// How many shards.
        shards: Option<u32>,
        /// Whether it has rows, so that writes go on meanwhile.
        has_rows: bool,
    },
    /// A table comes to be on every node.
    Refer(String),
    /// A table is rewritten.
    Rewrite {
        /// The table.
        table: String,
        /// Another column.
        column: Option<String>,
        /// Another number of shards.
        shards: Option<u32>,
        /// Another table that it lies with.
        with: Option<String>,
        /// Whether it has to be brought together first.
        undistribute: bool,
    },
    /// A table is rewritten with another one, by whose step it is done.
    Along(String),
    /// Reference tables come to be on every node.
    Replicate,
    /// What moves left behind is cleaned up.
    CleanUp,
    /// A group of shards moves.
    Move(Moving),
    /// An empty node is removed.
    Remove(Address),
}

/// A thing to do, with what it changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What it changes.
    pub change: ResourceChange,
    /// The action.
    pub task: Task,
}

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// What would be done, in order.
    pub steps: Vec<Step>,
    /// Warnings.
    pub notes: Vec<String>,
    /// Why it can't be done as it stands.
    pub refused: Option<String>,
    /// What the moves do to the layout.
    pub layout: Option<LayoutPlan>,
    /// Whether the balance asks for moves that are not among the steps.
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
    /// What was found, as it is observed of a cluster.
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
    /// Why it can't be done as it stands, as an error.
    ///
    /// # Errors
    /// When it can't.
    pub fn allowed(&self) -> Result<(), TargetError> {
        let refused = |why: &String| TargetError {
            retry: Retry::WhenInputChanges,
            ..TargetError::new(TargetErrorKind::Refused, why.clone())
        };
        self.refused.as_ref().map_or(Ok(()), |why| Err(refused(why)))
    }
}

/// A field before and after.
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
    /// How many bytes a second a move made here.
    pub bytes_per_second: Option<u64>,
    /// When the last rebalance ended, in seconds since 1970.
    pub rebalanced_at: Option<i64>,
    /// Of each rule of capacity, what was seen.
    pub rules: BTreeMap<String, RuleMemory>,
    /// The first of the left-overs of moves, and since when it is there, in seconds since 1970.
    pub left_over: Option<(i64, i64)>,
}

impl Memory {
    /// Takes in what a look saw.
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
    /// Since when it is over its limit, in seconds since 1970.
    pub over_since: Option<i64>,
    /// What the whole cluster had, and when.
    pub samples: Vec<(i64, u64)>,
}

/// What is compared.
pub struct Compared<'a> {
    /// The declaration.
    pub work: &'a CitusWork,
    /// The cluster.
    pub seen: &'a Seen,
    /// The migrations of the repository, in order.
    pub migrations: &'a [Migration],
    /// What is remembered.
    pub memory: &'a Memory,
    /// Now, in seconds since 1970.
    pub now: i64,
}

/// Whether a node is to hold shards, as far as the declaration says it.
pub(super) fn is_to_hold(work: &CitusWork, name: &str) -> Option<bool> {
    let drained = work.placement.drain.iter().chain(&work.vacate);
    if drained.into_iter().any(|drained| drained == name) {
        return Some(false);
    }
    let nodes = work.nodes.as_ref()?;
    nodes.iter().find(|node| node.address.to_string() == name).map(|node| node.holds)
}

/// The same of a node that is there: one that goes gets nothing new while it is emptied.
pub(super) fn is_to_hold_there(this: &Compared<'_>, row: &NodeRow) -> Option<bool> {
    let goes = undeclared(this).iter().any(|gone| gone.name == row.name);
    if goes { Some(false) } else { is_to_hold(this.work, &row.name) }
}

/// The primaries that a declaration of all nodes leaves out; never the coordinator.
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

/// Whether anything is on a node that is not on every node.
pub(super) fn holds_shards(this: &Compared<'_>, row: &NodeRow) -> bool {
    this.seen.catalog.placements.iter().any(|one| one.group == row.group && !is_reference(this, one.shard))
}

pub(super) fn is_reference(this: &Compared<'_>, shard: i64) -> bool {
    let catalog = &this.seen.catalog;
    let table = catalog.shards.iter().find(|one| one.id == shard).map(|one| one.table.as_str());
    catalog.tables.iter().any(|row| Some(row.name.as_str()) == table && row.is_reference())
}
