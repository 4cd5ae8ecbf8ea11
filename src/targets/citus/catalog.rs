//! Converts the catalogs of a coordinator to a layout of shard groups.
//!
//! Decides which shards move together, and excludes what is not balanced: reference tables, secondaries, and
//! placements that wait for cleanup. Nodes are identified by host and port, tables by name, groups by tables and
//! range. Ids of Citus join rows of one observation only; they are never stored, because they change.
//! *Invariant:* a placement on an unknown node, or a group whose tables are on different nodes, is an error.

use std::collections::{BTreeMap, BTreeSet};

use crate::targets::citus::planner::layout::{Layout, Node, Placement};

/// A row of `pg_dist_node`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    /// The group of a primary and its secondaries; 0 for the coordinator.
    pub group: i32,
    /// `host:port`.
    pub name: String,
    /// Whether it is a primary.
    pub is_primary: bool,
    /// Whether the node is active.
    pub is_active: bool,
    /// Whether the node should hold shards.
    pub holds: bool,
}

/// A row of `pg_dist_partition`, with the name of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRow {
    /// `schema.table`, quoted where necessary.
    pub name: String,
    /// `h` for hash-distributed, `n` for one shard: reference tables, tables of distributed schemas, local tables.
    pub method: char,
    /// `t` for reference tables.
    pub replication: char,
    /// The colocation group.
    pub colocation: i32,
    /// The distribution column.
    pub column: Option<String>,
    /// Whether the table has a primary key or a replica identity, which a move with concurrent writes needs.
    pub has_identity: bool,
}

impl TableRow {
    /// Whether the table is a reference table, with a copy on every node.
    pub fn is_reference(&self) -> bool {
        self.replication == 't'
    }
    /// Whether the shards can be moved: shards of range- and append-distributed tables can't.
    pub fn is_movable(&self) -> bool {
        !self.is_reference() && !self.is_local() && matches!(self.method, 'h' | 'n')
    }
    /// Whether the table is on the coordinator alone.
    pub fn is_local(&self) -> bool {
        self.method == 'n' && self.colocation == 0 && !self.is_reference()
    }
}

/// A row of `pg_dist_shard`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardRow {
    /// The id.
    pub id: i64,
    /// The table.
    pub table: String,
    /// The lower bound of the range; `None` for a table with one shard.
    pub from: Option<i64>,
}

/// A row of `pg_dist_placement` that does not wait for cleanup, with the size that its worker reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacementRow {
    /// The shard.
    pub shard: i64,
    /// The group of the node.
    pub group: i32,
    /// The size in bytes, with indexes.
    pub bytes: u64,
}

/// One observation of a coordinator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    /// The nodes.
    pub nodes: Vec<NodeRow>,
    /// The tables.
    pub tables: Vec<TableRow>,
    /// The shards.
    pub shards: Vec<ShardRow>,
    /// The placements.
    pub placements: Vec<PlacementRow>,
}

/// The balanced quantity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum By {
    /// Bytes.
    #[default]
    Bytes,
    /// The number of groups.
    Shards,
    /// A number for each shard, from a query or the count of tenants; a missing shard has 0.
    ProgressEvent(BTreeMap<i64, u64>),
}

/// A group of shards that move together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// `public.tasks +1 [-2147483648]`: the first table, the number of further tables, and the lower bound of the
    /// range.
    pub name: String,
    /// The shard of the first table, which names the group in a move.
    pub shard: i64,
    /// Its tables.
    pub tables: Vec<String>,
    /// All shards of the group.
    pub shards: Vec<i64>,
    /// The colocation group; two moves of one colocation group do not run concurrently.
    pub colocation: i32,
}

/// Returns the layout of a catalog, with its groups in the order of their numbers.
///
/// # Errors
/// A message that explains how rows contradict each other; no layout can be derived then.
pub fn layout(catalog: &Catalog, by: &By) -> Result<(Layout, Vec<Group>), String> {
    let primaries: BTreeMap<i32, &NodeRow> =
        catalog.nodes.iter().filter(|node| node.is_primary).map(|node| (node.group, node)).collect();
    let tables: BTreeMap<&str, &TableRow> = catalog.tables.iter().map(|table| (&*table.name, table)).collect();
    let mut names: Vec<(&str, i32)> = primaries.iter().map(|(group, node)| (&*node.name, *group)).collect();
    names.sort_unstable();
    let place: BTreeMap<i32, usize> = names.iter().enumerate().map(|(at, (_, group))| (*group, at)).collect();
    let node = |(_, group): &(&str, i32)| {
        let node = primaries[group];
        Node { name: node.name.clone(), holds: node.holds && node.is_active, room: None }
    };
    let nodes = names.iter().map(node).collect();
    let mut by_group: BTreeMap<(i32, Option<i64>), Vec<&ShardRow>> = BTreeMap::new();
    for shard in &catalog.shards {
        let Some(table) = tables.get(&*shard.table) else {
            return Err(format!("shard {} belongs to `{}`, which is no distributed table", shard.id, shard.table));
        };
        // A reference table is on every node, and a local table only on the coordinator.
        if table.is_movable() {
            by_group.entry((table.colocation, shard.from)).or_default().push(shard);
        }
    }
    let mut on: BTreeMap<i64, BTreeMap<i32, u64>> = BTreeMap::new();
    for placement in &catalog.placements {
        on.entry(placement.shard).or_default().insert(placement.group, placement.bytes);
    }
    let (mut groups, mut placements) = (vec![], vec![]);
    let mut all: Vec<Vec<&ShardRow>> = by_group.into_values().collect();
    for shards in &mut all {
        shards.sort_by(|a, b| a.table.cmp(&b.table).then(a.id.cmp(&b.id)));
    }
    all.sort_by(|a, b| (&a[0].table, a[0].from).cmp(&(&b[0].table, b[0].from)));
    let none = BTreeMap::new();
    for shards in all {
        let name = called(&shards);
        let first: BTreeSet<&i32> = on.get(&shards[0].id).unwrap_or(&none).keys().collect();
        if let Some(apart) =
            shards.iter().find(|shard| on.get(&shard.id).unwrap_or(&none).keys().collect::<BTreeSet<_>>() != first)
        {
            return Err(format!("the shards of `{name}` are not on the same nodes: {} and {}", shards[0].id, apart.id));
        }
        if first.is_empty() {
            return Err(format!("`{name}` is on no node"));
        }
        for group in first {
            let Some(node) = place.get(group) else {
                return Err(format!("`{name}` is on group {group}, of which no primary is known"));
            };
            let bytes = shards.iter().map(|shard| on[&shard.id][group]).sum();
            let weight = match by {
                By::Bytes => bytes,
                By::Shards => 1,
                By::ProgressEvent(costs) => shards.iter().filter_map(|shard| costs.get(&shard.id)).sum(),
            };
            placements.push(Placement { group: groups.len(), node: *node, bytes, weight, pin: None });
        }
        let table_names = shards.iter().map(|shard| shard.table.clone()).collect();
        let ids = shards.iter().map(|shard| shard.id).collect();
        let colocation = tables[&*shards[0].table].colocation;
        groups.push(Group { name, shard: shards[0].id, tables: table_names, shards: ids, colocation });
    }
    Ok((Layout { nodes, placements }, groups))
}

fn called(shards: &[&ShardRow]) -> String {
    let more = if shards.len() > 1 { format!(" +{}", shards.len() - 1) } else { String::new() };
    let range = shards[0].from.map(|from| format!(" [{from}]")).unwrap_or_default();
    format!("{}{more}{range}", shards[0].table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog() -> Catalog {
        let node = |group, name: &str, is_primary, holds| NodeRow {
            group,
            name: name.into(),
            is_primary,
            is_active: true,
            holds,
        };
        let table = |name: &str, method, replication, colocation| TableRow {
            name: name.into(),
            method,
            replication,
            colocation,
            column: None,
            has_identity: true,
        };
        let shard = |id, table: &str, from| ShardRow { id, table: table.into(), from };
        let on = |shard, group, bytes| PlacementRow { shard, group, bytes };
        Catalog {
            nodes: vec![
                node(0, "10.0.0.1:5432", true, false),
                node(2, "10.0.0.3:5432", true, true),
                node(1, "10.0.0.2:5432", true, true),
                node(1, "10.0.1.2:5432", false, true),
            ],
            tables: vec![
                table("public.tenants", 'h', 's', 1),
                table("public.tasks", 'h', 's', 1),
                table("public.plans", 'n', 't', 2),
                table("reporting.days", 'n', 's', 3),
                table("public.local", 'n', 's', 0),
            ],
            shards: vec![
                shard(101, "public.tenants", Some(-10)),
                shard(102, "public.tenants", Some(0)),
                shard(103, "public.tasks", Some(-10)),
                shard(104, "public.tasks", Some(0)),
                shard(105, "public.plans", None),
                shard(106, "reporting.days", None),
                shard(107, "public.local", None),
            ],
            placements: vec![
                on(101, 1, 10),
                on(103, 1, 5),
                on(102, 2, 20),
                on(104, 2, 7),
                on(105, 0, 1),
                on(105, 1, 1),
                on(105, 2, 1),
                on(106, 2, 40),
                on(107, 0, 9),
            ],
        }
    }

    #[test]
    fn what_moves_as_one_is_one_and_nothing_is_counted_twice() {
        let (layout, groups) = layout(&catalog(), &By::Bytes).unwrap();
        let nodes: Vec<_> = layout.nodes.iter().map(|node| (node.name.as_str(), node.holds)).collect();
        assert_eq!(nodes, [("10.0.0.1:5432", false), ("10.0.0.2:5432", true), ("10.0.0.3:5432", true)]);
        let named: Vec<_> = groups.iter().map(|group| (group.name.as_str(), group.shard)).collect();
        assert_eq!(named, [("public.tasks +1 [-10]", 103), ("public.tasks +1 [0]", 104), ("reporting.days", 106)]);
        let placed: Vec<_> = layout
            .placements
            .iter()
            .map(|placement| (placement.group, placement.node, placement.bytes, placement.weight))
            .collect();
        assert_eq!(placed, [(0, 1, 15, 15), (1, 2, 27, 27), (2, 2, 40, 40)]);
        let by = |by| {
            super::layout(&catalog(), &by)
                .unwrap()
                .0
                .placements
                .iter()
                .map(|placement| placement.weight)
                .collect::<Vec<_>>()
        };
        assert_eq!(by(By::Shards), [1, 1, 1]);
        assert_eq!(by(By::ProgressEvent([(101, 3), (103, 4), (106, 9)].into())), [7, 0, 9]);
    }

    #[test]
    fn rows_that_contradict_each_other_are_refused() {
        let message = |change: &dyn Fn(&mut Catalog)| {
            let mut catalog = catalog();
            change(&mut catalog);
            layout(&catalog, &By::Bytes).unwrap_err()
        };
        let apart = message(&|catalog| catalog.placements[1].group = 2);
        assert_eq!(apart, "the shards of `public.tasks +1 [-10]` are not on the same nodes: 103 and 101");
        let nowhere = message(&|catalog| catalog.placements.retain(|placement| placement.shard != 106));
        assert_eq!(nowhere, "`reporting.days` is on no node");
        let unknown = message(&|catalog| catalog.nodes.retain(|node| node.group != 2));
        assert_eq!(unknown, "`public.tasks +1 [0]` is on group 2, of which no primary is known");
        let strange = message(&|catalog| catalog.tables.remove(3).name.clear());
        assert_eq!(strange, "shard 106 belongs to `reporting.days`, which is no distributed table");
    }
}
