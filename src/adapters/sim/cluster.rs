//! Simulates Citus clusters in memory: nodes, tables, shards, placements, and their changes.
//!
//! Decides nothing: the target's own comparison computes differences and steps, over catalogs that are stored
//! here instead of at a coordinator. A move takes simulated time, and a move that a crash interrupts leaves
//! remains that need a clean-up. A script declares a cluster and its changes in lines:
//!
//! ```text
//! nodes w1:5432 w2:5432                                 more workers
//! table public.tasks by tenant_id: w1:5432 30 w2:5432 9  a table, with the node and size in MiB of each shard
//! size public.tasks 2 40                                the new size of a shard in MiB
//! moved public.tasks 2 w1:5432                          the new node of a shard
//! shards w1:5432 false                                  whether a node should hold shards
//! left 2                                                the number of remains of moves without a clean-up
//! ```

use crate::targets::citus::placement::{Table, TransferMode, whole_name};
use std::collections::{BTreeMap, BTreeSet};

use crate::{
    ports::{TargetError, TargetErrorKind},
    targets::citus::{
        catalog::{Catalog, NodeRow, PlacementRow, ShardRow, TableRow},
        migrations,
        observe::{Seen, Version, Worker},
        steps::Moving,
        steps::{Memory, Task},
        work::CitusWork,
    },
};

/// The simulated version of Citus, which makes moves one after the other.
const VERSION: Version = Version(13, 0);
/// The default number of shards of a table.
const SHARDS: u32 = 4;
/// The lower bound of the hash range.
const RANGE_BEGIN: i64 = -(1 << 31);
/// One MiB in bytes, the unit of sizes in scripts.
const MIB: u64 = 1 << 20;

#[derive(Clone, Debug)]
pub(super) struct Cluster {
    catalog: Catalog,
    schemas: BTreeSet<String>,
    /// Whether a table contains rows, by table; distributed or not.
    tables: BTreeMap<String, bool>,
    migrations: BTreeMap<String, String>,
    /// The number of remains of interrupted moves.
    left_over: u64,
    /// The memory of the target about this cluster.
    pub(super) memory: Memory,
    last: i64,
}

impl Default for Cluster {
    /// Returns a coordinator without workers.
    fn default() -> Self {
        let coordinator =
            NodeRow { group: 0, name: "coordinator:5432".into(), is_primary: true, is_active: true, holds: false };
        Self {
            catalog: Catalog { nodes: vec![coordinator], ..Catalog::default() },
            schemas: BTreeSet::new(),
            tables: BTreeMap::new(),
            migrations: BTreeMap::new(),
            left_over: 0,
            memory: Memory::default(),
            last: 0,
        }
    }
}

impl Cluster {
    /// Applies a line of a script, which stands for a change outside Evenkeel.
    pub(super) fn tell(&mut self, what: &str) -> Result<(), String> {
        let words: Vec<&str> = what.split_whitespace().collect();
        let number = |text: &str| text.parse::<u64>().map_err(|_| format!("`{text}` is no number"));
        match words[..] {
            ["nodes", ref names @ ..] => names.iter().for_each(|name| self.add(name, true)),
            ["table", table, "by", column, ref rest @ ..] => {
                let colocation = self.next_colocation();
                self.insert(table, 'h', Some(column.trim_end_matches(':')), colocation);
                for (at, pair) in rest.chunks(2).enumerate() {
                    let [node, mib] = pair else { return Err(format!("`{what}` has a shard without its MiB")) };
                    self.place(table, Some(begin(at, rest.len() / 2)), &[self.group(node)?], number(mib)? * MIB);
                }
            }
            ["size", table, at, mib] => {
                let (shard, bytes) = (self.shard(table, number(at)?)?, number(mib)? * MIB);
                let all = self.catalog.placements.iter_mut().filter(|placement| placement.shard == shard);
                all.for_each(|placement| placement.bytes = bytes);
            }
            ["moved", table, at, node] => {
                let (shard, group) = (self.shard(table, number(at)?)?, self.group(node)?);
                let colocated = self.colocated(shard);
                let all = self.catalog.placements.iter_mut().filter(|placement| colocated.contains(&placement.shard));
                all.for_each(|placement| placement.group = group);
            }
            ["left", count] => self.left_over = number(count)?,
            ["shards", node, holds] => self.node(node)?.holds = holds == "true",
            _ => return Err(format!("`{what}` is nothing that happens to a cluster")),
        }
        Ok(())
    }

    /// Returns the result of one observation.
    pub(super) fn seen(&self, work: &CitusWork, silent: &BTreeSet<String>) -> Result<Seen, TargetError> {
        if let Some(node) = self.catalog.nodes.iter().find(|node| node.is_active && silent.contains(&node.name)) {
            return Err(TargetError::new(TargetErrorKind::Unreachable, format!("node {} did not answer", node.name)));
        }
        let known = |table: &Table| Some((table.name.clone(), *self.tables.get(&whole_name(&table.name))?));
        let worker = |node: &NodeRow| {
            let placements = self.catalog.placements.iter().filter(|placement| placement.group == node.group);
            let sizes: BTreeMap<i64, u64> = placements.map(|placement| (placement.shard, placement.bytes)).collect();
            let bytes = sizes.values().sum();
            let worker = Worker { sizes, wal_level: "logical".into(), free_slots: 8, bytes, ..Worker::default() };
            (node.name.clone(), worker)
        };
        Ok(Seen {
            catalog: self.catalog.clone(),
            version: VERSION,
            identity: "sim".into(),
            schemas: self.schemas.clone(),
            known_schemas: self.schemas.clone(),
            known_tables: work.tables.iter().filter_map(known).collect(),
            workers: self.catalog.nodes.iter().filter(|node| node.is_active).map(worker).collect(),
            left_over: self.left_over,
            left_over_first: (self.left_over > 0).then_some(1),
            migrations: self.migrations.clone(),
            pins: work.placement.pins.iter().map(|pin| self.tenant(&whole_name(&pin.table), &pin.tenant)).collect(),
            ..Seen::default()
        })
    }

    /// Returns the content of the cluster, line by line.
    pub(super) fn things(&self) -> impl Iterator<Item = String> {
        let nodes = self.catalog.nodes.iter().filter(|node| node.group != 0);
        let nodes = nodes.map(|node| format!("{} holds {}", node.name, node.holds));
        let shards = self.catalog.shards.iter().map(|shard| {
            let on = self.catalog.placements.iter().filter(|placement| placement.shard == shard.id);
            let on: Vec<&str> = on.map(|placement| self.name(placement.group)).collect();
            format!("{} [{}] on {}", shard.table, shard.from.unwrap_or_default(), on.join(" "))
        });
        nodes.chain(shards)
    }

    /// Begins a move, which leaves remains if it is interrupted.
    pub(super) fn begin_move(&mut self) {
        self.left_over += 1;
    }

    /// Executes a step, or returns the reason why not. A step that is done already succeeds.
    pub(super) fn make(&mut self, task: &Task, work: &CitusWork, silent: &BTreeSet<String>) -> Result<(), String> {
        match task {
            Task::Add { address, .. } if silent.contains(&address.to_string()) => {
                return Err(format!("`{address}` was not added: Citus does not reach it"));
            }
            Task::Add { address, holds } => self.add(&address.to_string(), *holds),
            Task::Activate(address) => self.node(&address.to_string())?.is_active = true,
            Task::Holds { address, holds } => self.node(&address.to_string())?.holds = *holds,
            Task::Migrate(migration) => {
                for statement in migrations::statements(&migration.sql) {
                    let words: Vec<&str> = statement.split([' ', '\n', '(']).filter(|word| !word.is_empty()).collect();
                    if let ["CREATE", "TABLE", name, ..] = words[..] {
                        self.tables.insert(whole_name(name), false);
                    }
                }
                self.migrations.insert(migration.name.clone(), migration.checksum.clone());
            }
            Task::MakeSchema(schema) | Task::DistributeSchema(schema) => drop(self.schemas.insert(schema.clone())),
            Task::Distribute { table, column, with, shards, .. } => {
                self.distribute(table, column, with, shards.unwrap_or(SHARDS));
            }
            Task::Refer(table) => {
                let colocation = self.next_colocation();
                self.insert(table, 'n', None, colocation);
                self.place(table, None, &self.active(), MIB);
                self.replicate();
            }
            Task::Rewrite { table, column, shards, .. } => self.rewrite(table, column.as_deref(), *shards),
            Task::Along(_) => {}
            Task::Replicate => self.replicate(),
            Task::CleanUp => self.left_over = 0,
            Task::Move(moving) => self.r#move(moving, work, silent)?,
            Task::Remove(address) => {
                let group = self.group(&address.to_string())?;
                if let Some(shard) = self.held(group) {
                    return Err(format!("`{address}` still holds {shard} and is not removed"));
                }
                self.catalog.nodes.retain(|node| node.group != group);
                self.catalog.placements.retain(|placement| placement.group != group);
            }
        }
        Ok(())
    }

    fn r#move(&mut self, moving: &Moving, work: &CitusWork, silent: &BTreeSet<String>) -> Result<(), String> {
        if let Some(node) = [&moving.from, &moving.to].into_iter().find(|node| silent.contains(*node)) {
            return Err(format!("`{node}` does not answer any more; the move was cancelled"));
        }
        if work.moves.transfer_mode == TransferMode::BlockWrites {
            return Err("nobody may stop writing in this world".into());
        }
        let (from, to, colocated) = (self.group(&moving.from)?, self.group(&moving.to)?, self.colocated(moving.shard));
        let all = self
            .catalog
            .placements
            .iter_mut()
            .filter(|placement| colocated.contains(&placement.shard) && placement.group == from);
        all.for_each(|placement| placement.group = to);
        // The end of a move cleans up, also the remains of interrupted moves.
        self.left_over = 0;
        Ok(())
    }

    /// Returns a shard on a node, if the node has one that is not on all nodes.
    fn held(&self, group: i32) -> Option<&str> {
        let references: BTreeSet<&str> =
            self.catalog.tables.iter().filter(|table| table.is_reference()).map(|table| &*table.name).collect();
        let on_node: BTreeSet<i64> = self
            .catalog
            .placements
            .iter()
            .filter(|placement| placement.group == group)
            .map(|placement| placement.shard)
            .collect();
        let mut shards = self.catalog.shards.iter().filter(|shard| on_node.contains(&shard.id));
        shards.find(|shard| !references.contains(&*shard.table)).map(|shard| &*shard.table)
    }

    fn add(&mut self, name: &str, holds: bool) {
        let group = self.catalog.nodes.iter().map(|node| node.group).max().unwrap_or(0) + 1;
        self.catalog.nodes.push(NodeRow { group, name: name.into(), is_primary: true, is_active: true, holds });
        self.replicate();
    }

    fn distribute(&mut self, table: &str, column: &str, with: &str, shards: u32) {
        let anchor = self.catalog.tables.iter().find(|row| row.name == with).map(|row| row.colocation);
        let colocation = anchor.unwrap_or_else(|| self.next_colocation());
        let of_anchor = |shard: &&ShardRow| anchor.is_some() && shard.table == with;
        let anchors: Vec<ShardRow> = self.catalog.shards.iter().filter(of_anchor).cloned().collect();
        self.insert(table, 'h', Some(column), colocation);
        for shard in &anchors {
            let on = self
                .catalog
                .placements
                .iter()
                .find(|placement| placement.shard == shard.id)
                .map_or(0, |placement| placement.group);
            self.place(table, shard.from, &[on], 0);
        }
        if anchor.is_none() {
            let holding: Vec<i32> =
                self.catalog.nodes.iter().filter(|node| node.holds && node.is_active).map(|node| node.group).collect();
            let count = usize::try_from(shards).unwrap_or(0);
            for at in 0..count {
                self.place(table, Some(begin(at, count)), &[holding[at % holding.len()]], 0);
            }
        }
    }

    /// Creates a table anew; with a new shard count, also the tables that are colocated with it.
    fn rewrite(&mut self, table: &str, column: Option<&str>, shards: Option<u32>) {
        let Some(row) = self.catalog.tables.iter().find(|row| row.name == table).cloned() else { return };
        let with: Vec<TableRow> = (self.catalog.tables.iter())
            .filter(|other| other.colocation == row.colocation && (shards.is_some() || other.name == table))
            .cloned()
            .collect();
        let mut anchor = "none".to_owned();
        for other in with {
            let count = self.catalog.shards.iter().filter(|shard| shard.table == other.name).count();
            self.remove(&other.name);
            let column = column.or(other.column.as_deref()).unwrap_or_default();
            let count = shards.unwrap_or_else(|| u32::try_from(count).unwrap_or(SHARDS));
            self.distribute(&other.name, column, &anchor, count);
            anchor = other.name;
        }
    }

    fn remove(&mut self, table: &str) {
        let is_own = |shard: &&ShardRow| shard.table == table;
        let removed: BTreeSet<i64> = self.catalog.shards.iter().filter(is_own).map(|shard| shard.id).collect();
        self.catalog.placements.retain(|placement| !removed.contains(&placement.shard));
        self.catalog.shards.retain(|shard| shard.table != table);
        self.catalog.tables.retain(|row| row.name != table);
    }

    /// Copies the tables that are on every node to all nodes.
    fn replicate(&mut self) {
        let nodes = self.active();
        let reference = |name: &str| self.catalog.tables.iter().any(|row| row.name == name && row.is_reference());
        let shards: Vec<i64> =
            self.catalog.shards.iter().filter(|shard| reference(&shard.table)).map(|shard| shard.id).collect();
        for shard in shards {
            self.catalog.placements.retain(|placement| placement.shard != shard);
            let all = nodes.iter().map(|group| PlacementRow { shard, group: *group, bytes: MIB });
            self.catalog.placements.extend(all);
        }
    }

    fn insert(&mut self, table: &str, method: char, column: Option<&str>, colocation: i32) {
        let replication = if method == 'n' { 't' } else { 's' };
        let column = column.map(str::to_owned);
        let row = TableRow { name: table.into(), method, replication, colocation, column, has_identity: true };
        self.catalog.tables.push(row);
        self.tables.insert(table.into(), true);
    }

    fn place(&mut self, table: &str, from: Option<i64>, groups: &[i32], bytes: u64) {
        self.last += 1;
        let id = 102_000 + self.last;
        self.catalog.shards.push(ShardRow { id, table: table.into(), from });
        self.catalog.placements.extend(groups.iter().map(|group| PlacementRow { shard: id, group: *group, bytes }));
    }

    fn next_colocation(&self) -> i32 {
        self.catalog.tables.iter().map(|row| row.colocation).max().unwrap_or(0) + 1
    }

    fn active(&self) -> Vec<i32> {
        self.catalog.nodes.iter().filter(|node| node.is_active).map(|node| node.group).collect()
    }

    fn node(&mut self, name: &str) -> Result<&mut NodeRow, String> {
        self.catalog.nodes.iter_mut().find(|node| node.name == name).ok_or_else(|| format!("there is no node `{name}`"))
    }

    fn group(&self, name: &str) -> Result<i32, String> {
        let found = self.catalog.nodes.iter().find(|node| node.name == name);
        found.map(|node| node.group).ok_or_else(|| format!("there is no node `{name}`"))
    }

    fn name(&self, group: i32) -> &str {
        self.catalog.nodes.iter().find(|node| node.group == group).map_or("no node", |node| &node.name)
    }

    /// Returns the n-th shard of a table, from 1.
    fn shard(&self, table: &str, at: u64) -> Result<i64, String> {
        let mut shards = self.catalog.shards.iter().filter(|shard| shard.table == table);
        let found = usize::try_from(at).ok().and_then(|at| shards.nth(at.checked_sub(1)?));
        found.map(|shard| shard.id).ok_or_else(|| format!("`{table}` has no shard {at}"))
    }

    /// Returns the shard of a tenant, by a simple hash.
    fn tenant(&self, table: &str, tenant: &str) -> Option<i64> {
        let count = self.catalog.shards.iter().filter(|shard| shard.table == table).count();
        let hash: u64 = tenant.bytes().map(u64::from).sum();
        let at = hash.checked_rem(u64::try_from(count).ok()?)?;
        self.shard(table, at + 1).ok()
    }

    /// Returns the shards that move together with a shard.
    fn colocated(&self, shard: i64) -> BTreeSet<i64> {
        let place = |row: &ShardRow| {
            let table = self.catalog.tables.iter().find(|table| table.name == row.table);
            (table.map(|table| table.colocation), row.from)
        };
        let wanted = self.catalog.shards.iter().find(|row| row.id == shard).map(place);
        self.catalog.shards.iter().filter(|row| Some(place(row)) == wanted).map(|row| row.id).collect()
    }
}

/// Returns the beginning of the range of a shard.
fn begin(at: usize, count: usize) -> i64 {
    let (at, count) = (i64::try_from(at).unwrap_or(0), i64::try_from(count.max(1)).unwrap_or(1));
    RANGE_BEGIN + (1 << 32) / count * at
}
