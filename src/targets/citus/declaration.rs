//! Defines the declaration of a Citus component: nodes, tables, schemas and shard placement.

use crate::targets::citus::placement::{Address, Capacity, Moves, Pin, Placement, Schema, Table};
use std::{collections::BTreeMap, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::declaration::{
    node::{self, Node},
    walk::{Closure, Looked, Walk, WalkError, inside},
};
use crate::model::{Digester, Place, Problem};
use crate::ports::{EntryKind, Files};

/// The shard layout of a Citus cluster; everything undeclared stays unchanged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Citus {
    /// The connection to the coordinator: `plan` reads, `apply` owns the tables, `admin` adds and removes nodes.
    pub connection: String,
    /// The workers: a list, or an output with a list. If it is not set, nodes are neither added nor removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Nodes>,
    /// Distributed and reference tables. Other tables stay unchanged.
    #[serde(default)]
    pub tables: Vec<Table>,
    /// Distributed schemas. Other schemas stay unchanged.
    #[serde(default)]
    pub schemas: Vec<Schema>,
    /// The placement of shards.
    #[serde(default)]
    pub placement: Placement,
    /// The settings of shard moves.
    #[serde(default)]
    pub moves: Moves,
    /// Whether a table may be rewritten, which a change of column, shard count or colocation requires.
    #[serde(default)]
    pub allow_rewrite: bool,
    /// A folder of SQL files, relative to the root of the repository; each is applied once, in the order of names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migrations: Option<String>,
    /// The rules by which a pull request proposes more nodes.
    #[serde(default)]
    pub capacity: Vec<Capacity>,
}

/// A list of nodes, or an output with a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Nodes {
    /// `${NAME.outputs.KEY}`.
    Output(String),
    /// A list of nodes.
    List(Vec<CitusNode>),
}

/// `host:port`, or an object with more fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum CitusNode {
    /// `host:port`.
    Address(String),
    /// An object with more fields.
    With(CitusNodeWith),
}

/// A node with its host resource.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CitusNodeWith {
    /// A host name or an address.
    pub host: String,
    /// The port; defaults to 5432.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Whether the node holds shards.
    #[serde(default = "yes")]
    pub shards: bool,
    /// The resource that the node runs on: a tofu address, or `StatefulSet/NAMESPACE/NAME`. It is not removed before
    /// the node is empty.
    #[serde(alias = "carriedBy", default, skip_serializing_if = "Option::is_none")]
    pub runs_on: Option<String>,
}

fn yes() -> bool {
    true
}

/// Collects the closure of a folder of migrations, or of none.
pub(super) fn closure(files: &dyn Files, folder: Option<&str>, looked: &mut Looked) -> Result<Closure, WalkError> {
    let Some(folder) = folder else {
        return Ok(Closure { digest: Some(Digester::new("closure").finish()), ..Closure::default() });
    };
    let folder = inside(folder)?;
    let mut walk = Walk::new(files, &folder, looked);
    if walk.look(&folder)?.is_none_or(|entry| entry.sort != EntryKind::Folder) {
        return Err(WalkError::Missing { path: folder });
    }
    for entry in files.list(&folder)? {
        let path = format!("{folder}/{}", entry.name);
        match entry.sort {
            EntryKind::File | EntryKind::Program | EntryKind::Link if entry.name.ends_with(".sql") => {
                drop(walk.file(&path)?)
            }
            _ => {}
        }
    }
    walk.close(&[])
}

/// Validates the declaration beyond its schema.
pub(super) fn check(file: &Arc<str>, citus: &Node) -> Vec<Problem> {
    let mut problems = vec![];
    let items = |name: &str| match citus.get(name).map(|node| &node.value) {
        Some(node::Kind::List(items)) => &items[..],
        _ => &[],
    };
    let (mut seen, mut groups) = (BTreeMap::new(), BTreeMap::new());
    for table in items("tables") {
        let (name, at) = (table.get("name").and_then(Node::text).unwrap_or_default(), table.at);
        if seen.insert(name, at).is_some() {
            problems.push(Problem::new("duplicate", file, at, format!("the table `{name}` is here a second time")));
        }
        let column = table.get("distributionColumn");
        let is_reference = table.get("reference").is_some_and(|node| node.value == node::Kind::Bool(true));
        if column.is_some() == is_reference {
            let message = format!("the table `{name}` has to be one thing");
            let problem = Problem::new("missing-field", file, Place { length: 0, ..at }, message);
            problems.push(problem.expected("expected one of `distributionColumn` and `reference: true`"));
        }
        for forbidden in ["shardCount", "colocation"].into_iter().filter(|_| is_reference) {
            if let Some(node) = table.get(forbidden) {
                let message = format!("`{name}` is a reference table and has no `{forbidden}`");
                problems.push(Problem::new("wrong-value", file, node.at, message));
            }
        }
        if let Some((group, count)) = table.get("colocation").and_then(Node::text).zip(table.get("shardCount")) {
            let text = count.to_json();
            if groups.insert(group, text.clone()).is_some_and(|other| other != text) {
                let message = format!("tables of the colocation `{group}` have different shard counts");
                problems.push(Problem::new("wrong-value", file, count.at, message));
            }
        }
    }
    let placement = citus.get("placement");
    let pins = match placement.and_then(|node| node.get("pins")).map(|node| &node.value) {
        Some(node::Kind::List(items)) => &items[..],
        _ => &[],
    };
    let drains = match placement.and_then(|node| node.get("drain")).map(|node| &node.value) {
        Some(node::Kind::List(items)) => &items[..],
        _ => &[],
    };
    let address = |node: &Node| node.text().filter(|text| !text.contains("${")).map(str::parse::<Address>);
    let drained: Vec<Address> = drains.iter().filter_map(|node| address(node)?.ok()).collect();
    let named = pins.iter().filter_map(|pin| pin.get("node")).chain(drains);
    for node in named {
        if let Some(Err(malformed)) = address(node) {
            let problem = Problem::new("wrong-value", file, node.at, format!("found `{}`", malformed.found));
            problems.push(problem.expected(format!("expected {}", malformed.expected)));
        }
    }
    for pin in pins.iter().filter_map(|pin| pin.get("node")) {
        if let Some(Ok(node)) = address(pin).filter(|node| node.as_ref().is_ok_and(|node| drained.contains(node))) {
            let message = format!("a tenant is pinned to `{node}`, which is drained");
            let hint = "pin it elsewhere, or leave the node out of `drain`";
            problems.push(Problem::new("wrong-value", file, pin.at, message).hint(hint));
        }
    }
    for when in items("capacity").iter().filter_map(|rule| rule.get("when")) {
        let limits = ["tenantsPerWorker", "bytesPerWorker", "diskUsed"];
        if limits.iter().filter(|limit| when.get(limit).is_some()).count() != 1 {
            let message = "a rule of capacity has to have exactly one limit";
            let problem = Problem::new("missing-field", file, Place { length: 0, ..when.at }, message);
            problems.push(problem.expected("expected one of `tenantsPerWorker`, `bytesPerWorker` and `diskUsed`"));
        }
    }
    problems
}

/// Returns the message for a tenant that two pins place: its shard would move back and forth.
pub(super) fn contradicting_pins(pins: &[Pin]) -> Option<String> {
    let mut known = BTreeMap::new();
    pins.iter().find_map(|pin| {
        let other = known.insert((&pin.table, &pin.tenant), &pin.node)?;
        (*other != pin.node).then(|| {
            format!("the tenant `{}` of `{}` is pinned to `{other}` and to `{}`", pin.tenant, pin.table, pin.node)
        })
    })
}
