//! Declares a running cluster, for `init`.
//!
//! The first declaration contains every worker, every distributed and reference table with its colocation, and every
//! distributed schema. It sets `rebalance: report`, so that merging it changes nothing.

use crate::targets::citus::placement::{Address, Placement, RebalanceMode, Schema, Table, table_name};
use std::collections::BTreeMap;

use super::observe::Seen;
use crate::targets::citus::declaration::{Citus, CitusNode, CitusNodeWith, Nodes};

/// Returns the declaration of an observation, and notes on what it can't declare.
pub(super) fn declared(seen: &Seen, connection: &str) -> (Citus, Vec<String>) {
    let mut omitted = vec![];
    let nodes = seen.catalog.nodes.iter().filter(|node| node.is_primary && (node.group != 0 || node.holds));
    let nodes: Vec<CitusNode> = nodes
        .map(|node| match (node.holds, node.name.parse::<Address>()) {
            (false, Ok(Address { host, port })) => {
                CitusNode::With(CitusNodeWith { host, port: Some(port), shards: false, runs_on: None })
            }
            _ => CitusNode::Address(node.name.clone()),
        })
        .collect();
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    for shard in &seen.catalog.shards {
        *counts.entry(&shard.table).or_default() += 1;
    }
    let mut rows: Vec<_> = seen.catalog.tables.iter().filter(|row| row.is_reference() || row.method == 'h').collect();
    rows.sort_by(|a, b| (a.is_reference(), a.colocation, &a.name).cmp(&(b.is_reference(), b.colocation, &b.name)));
    let mut tables: Vec<Table> = vec![];
    let mut groups: BTreeMap<i32, String> = BTreeMap::new();
    for row in &rows {
        if table_name(&row.name).is_err() {
            omitted.push(format!("`{}`: its name needs quotes", row.name));
            continue;
        }
        let mut table = Table {
            name: row.name.clone(),
            distribution_column: None,
            shard_count: None,
            colocation: None,
            reference: row.is_reference(),
        };
        if !row.is_reference() {
            let together =
                rows.iter().filter(|other| other.colocation == row.colocation && !other.is_reference()).count();
            let is_first = !groups.contains_key(&row.colocation);
            let short = row.name.rsplit('.').next().unwrap_or_default();
            let name = groups.entry(row.colocation).or_insert_with(|| short.to_owned()).clone();
            table.distribution_column.clone_from(&row.column);
            table.colocation = (together > 1).then_some(name);
            table.shard_count = counts.get(row.name.as_str()).copied().filter(|_| is_first || together == 1);
        }
        tables.push(table);
    }
    let others = seen.catalog.tables.iter().filter(|row| !row.is_reference() && !row.is_local() && !row.is_movable());
    omitted.extend(others.map(|row| format!("`{}`: it is distributed by range or by appending", row.name)));
    let citus = Citus {
        connection: connection.to_owned(),
        nodes: Some(Nodes::List(nodes)),
        tables,
        schemas: seen.schemas.iter().map(|name| Schema { name: name.clone() }).collect(),
        placement: Placement { rebalance: RebalanceMode::Report, ..Placement::default() },
        moves: Default::default(),
        allow_rewrite: false,
        migrations: None,
        capacity: vec![],
    };
    (citus, omitted)
}
