//! Defines the declared parts of a Citus cluster: addresses, tables, placement, moves and capacity rules.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::{Duration, Percent, Size, ids::Malformed};

/// The default of `placement.skew`.
const SKEW: Percent = Percent(10);
/// The default of `moves.cooldown`.
const COOLDOWN: Duration = Duration::seconds(24 * 3600);
/// The default port of PostgreSQL.
const PORT: u16 = 5432;

/// The address of a node: `host:port`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address {
    /// A host name or an IP address.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl FromStr for Address {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let malformed = || Malformed {
            found: text.chars().take(80).collect(),
            expected: "the address of a node (such as `10.0.3.9:5432`)",
        };
        let (host, port) = match text.rsplit_once(':') {
            // An IPv6 address contains colons and is in brackets if a port follows.
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                (host, port.parse().map_err(|_| malformed())?)
            }
            _ => (text, PORT),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let is_host = |c: char| c.is_ascii_alphanumeric() || ".-_:%".contains(c);
        if host.is_empty() || host.len() > 253 || !host.chars().all(is_host) {
            return Err(malformed());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}
impl TryFrom<String> for Address {
    type Error = Malformed;
    fn try_from(text: String) -> Result<Self, Malformed> {
        text.parse()
    }
}
impl From<Address> for String {
    fn from(address: Address) -> String {
        address.to_string()
    }
}

/// A table: distributed by a column, or copied to every node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Table {
    /// `schema.table`.
    #[schemars(extend("format" = "evenkeel-table"))]
    pub name: String,
    /// The column that determines the shard of a row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distribution_column: Option<String>,
    /// The number of shards. Default: the cluster's `citus.shard_count`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64000))]
    pub shard_count: Option<u32>,
    /// A name of your choice. Tables with the same name are colocated: matching shards are on the same node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub colocation: Option<String>,
    /// Whether every node has a copy of the whole table.
    #[serde(default)]
    pub reference: bool,
}

/// A distributed schema. All of its tables are on one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Schema {
    /// The name of the schema.
    pub name: String,
}

/// The placement of shards on nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Placement {
    /// The reaction to an unbalanced layout.
    pub rebalance: RebalanceMode,
    /// The quantity that is balanced.
    pub balance: BalanceBy,
    /// The allowed deviation of a node from the mean, in both directions.
    pub skew: Percent,
    /// Tenants that are pinned to a node.
    pub pins: Vec<Pin>,
    /// Nodes that must have no shards, as `host:port`.
    pub drain: Vec<String>,
}

impl Default for Placement {
    fn default() -> Self {
        Self {
            rebalance: RebalanceMode::default(),
            balance: BalanceBy::default(),
            skew: SKEW,
            pins: vec![],
            drain: vec![],
        }
    }
}

/// The reaction to an unbalanced layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RebalanceMode {
    /// Only shows the imbalance.
    Report,
    /// Treats the imbalance as drift: a pull request proposes the moves.
    #[default]
    Propose,
    /// Moves shards when a Schedule of `rebalance` is due, or on `/rebalance`.
    Scheduled,
}

/// The quantity that is balanced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum BalanceBy {
    /// A predefined quantity.
    Word(BalanceWord),
    /// The result of a query.
    Query(BalanceQuery),
}

impl Default for BalanceBy {
    fn default() -> Self {
        Self::Word(BalanceWord::Bytes)
    }
}

/// The quantity that is balanced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum BalanceWord {
    /// The size in bytes, with indexes.
    Bytes,
    /// The number of shard groups.
    Shards,
    /// The number of tenants: the rows of the table whose primary key is its distribution column.
    Tenants,
}

/// The quantity that is balanced, as the result of a query.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BalanceQuery {
    /// A query with two columns: the id of a shard and its cost.
    pub query: String,
}

/// A tenant that is pinned to a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pin {
    /// A distributed table.
    #[schemars(extend("format" = "evenkeel-table"))]
    pub table: String,
    /// The value of its distribution column.
    pub tenant: String,
    /// The node, as `host:port`.
    pub node: String,
}

/// The rules for shard moves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Moves {
    /// The handling of writes while a shard moves.
    pub transfer_mode: TransferMode,
    /// The number of concurrent moves, if the Citus version supports more than one.
    #[schemars(range(min = 1, max = 16))]
    pub parallel: u32,
    /// No move starts while the lag of a replica exceeds this size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_replication_lag: Option<Size>,
    /// The share of a node's disk that a move must leave free. Needs `diskSize`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_headroom: Option<Percent>,
    /// The size of each node's disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_size: Option<Size>,
    /// No move starts while one of these queries exceeds its limit.
    pub pause_while: Vec<PauseWhile>,
    /// The minimum time between two rebalances.
    pub cooldown: Duration,
}

impl Moves {
    /// Returns the usable bytes of a node's disk; `None` if the size or the headroom is not declared.
    pub fn usable(&self) -> Option<u64> {
        let (disk, free) = self.disk_size.zip(self.disk_headroom)?;
        Some(disk.0 / 100 * u64::from(100_u32.saturating_sub(free.0)))
    }
}

impl Default for Moves {
    fn default() -> Self {
        Self {
            transfer_mode: TransferMode::default(),
            parallel: 1,
            max_replication_lag: None,
            disk_headroom: None,
            disk_size: None,
            pause_while: vec![],
            cooldown: COOLDOWN,
        }
    }
}

/// A query on the coordinator that pauses moves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PauseWhile {
    /// A query that returns one number.
    pub query: String,
    /// No move starts while the number exceeds this limit.
    pub over: f64,
}

/// The handling of writes while a shard moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum TransferMode {
    /// Writes continue. A move of a table without a replica identity is refused.
    #[default]
    Auto,
    /// Writes continue, but UPDATE and DELETE fail on a table without a replica identity.
    ForceLogical,
    /// Writes wait until the shard is moved.
    BlockWrites,
}

impl TransferMode {
    /// Returns the Citus name of the mode.
    pub fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::ForceLogical => "force_logical",
            Self::BlockWrites => "block_writes",
        }
    }
}

/// The rule by which a pull request raises the number of hosts of the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Capacity {
    /// The condition.
    pub when: CapacityWhen,
    /// The variable that is raised.
    pub raise: CapacityRaise,
}

/// The condition and its duration. Exactly one limit is set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CapacityWhen {
    /// The mean number of tenants per node exceeds this limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenants_per_worker: Option<u64>,
    /// The mean number of bytes per node exceeds this limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_worker: Option<Size>,
    /// The used share of the fullest node's disk exceeds this limit. Needs `moves.diskSize`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_used: Option<Percent>,
    /// The time for which the condition must be true.
    pub r#for: Duration,
}

/// The variable that is raised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CapacityRaise {
    /// A component of kind tofu, in the same environment.
    pub component: crate::model::ComponentName,
    /// A numeric variable of the component.
    pub variable: String,
    /// The amount of one raise.
    #[schemars(range(min = 1))]
    pub by: u64,
    /// The highest allowed value.
    pub max: u64,
}

/// Returns a table's name with its schema. An invalid name is returned unchanged.
pub fn whole_name(name: &str) -> String {
    table_name(name).map_or_else(|_| name.to_owned(), |(schema, table)| format!("{schema}.{table}"))
}

/// Splits a table's name into schema and table. The default schema is `public`.
///
/// # Errors
/// When the text is not a valid name, or the name needs quotes.
pub fn table_name(text: &str) -> Result<(&str, &str), Malformed> {
    let (schema, table) = text.split_once('.').unwrap_or(("public", text));
    let is_name = |name: &str| {
        let mut letters = name.chars();
        letters.next().is_some_and(|c| c.is_ascii_lowercase() || c == '_')
            && letters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '$')
            && name.len() <= 63
    };
    if is_name(schema) && is_name(table) {
        return Ok((schema, table));
    }
    Err(Malformed {
        found: text.chars().take(140).collect(),
        expected: "the name of a table (such as `public.tenants`, in small letters)",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_and_print() {
        for (text, said) in [
            ("10.0.3.9:5433", "10.0.3.9:5433"),
            ("worker-1", "worker-1:5432"),
            ("[fd00::1]:5433", "[fd00::1]:5433"),
            ("fd00::1", "[fd00::1]:5432"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), said);
        }
        for text in ["", ":5432", "a:b", "a:99999", "a b:1", "x;y:1"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_of_tables_are_plain() {
        assert_eq!(table_name("tenants").unwrap(), ("public", "tenants"));
        assert_eq!(table_name("a.b_1").unwrap(), ("a", "b_1"));
        for text in ["", "A.b", "a.b.c", "a.\"b\"", "1a", "a;b"] {
            assert!(table_name(text).is_err(), "{text}");
        }
    }
}
