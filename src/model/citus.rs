//! What may be declared of a Citus cluster, as both declarations and targets say it.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Duration, Percent, Size, ids::Malformed};

/// How far from the mean a node may be where nothing says so.
const SKEW: Percent = Percent(10);
/// How long after a rebalance the next may begin where nothing says so.
const COOLDOWN: Duration = Duration::seconds(24 * 3600);
/// The port of PostgreSQL.
const PORT: u16 = 5432;

/// Where a node listens: `host:port`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address {
    /// A name or an address.
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
            // An IPv6 address has colons of its own and stands in brackets where a port follows.
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

/// A table: distributed by a column, or on every node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Table {
    /// `schema.table`.
    #[schemars(extend("format" = "evenkeel-table"))]
    pub name: String,
    /// The column that says on which shard a row is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distribution_column: Option<String>,
    /// How many shards; the cluster's `citus.shard_count` where it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64000))]
    pub shard_count: Option<u32>,
    /// A name of your own: tables of the same name lie on the same nodes, shard by shard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub colocation: Option<String>,
    /// Whether the whole table is on every node.
    #[serde(default)]
    pub reference: bool,
}

/// A schema whose tables lie together on one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Schema {
    /// Its name.
    pub name: String,
}

/// How shards are laid out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Placement {
    /// The reaction to an unbalanced layout.
    pub rebalance: RebalanceMode,
    /// The quantity that is balanced.
    pub balance: BalanceBy,
    /// How far a node may be from the mean, on both sides.
    pub skew: Percent,
    /// Tenants that have their node.
    pub pins: Vec<Pin>,
    /// Nodes that are to hold nothing, `host:port`.
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
    /// It is shown.
    Report,
    /// It is drift: a pull request proposes the moves.
    #[default]
    Propose,
    /// A Schedule of `rebalance`, or `/rebalance`, makes the moves.
    Scheduled,
}

/// The quantity that is balanced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum BalanceBy {
    /// A word.
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
    /// Bytes, with indexes.
    Bytes,
    /// Shard groups.
    Shards,
    /// Tenants: the rows of the table whose primary key is its distribution column.
    Tenants,
}

/// The quantity that is balanced, as the result of a query.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BalanceQuery {
    /// Two columns: a shard's id, and what it costs.
    pub query: String,
}

/// A tenant that has its node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pin {
    /// A distributed table.
    #[schemars(extend("format" = "evenkeel-table"))]
    pub table: String,
    /// The value of its distribution column.
    pub tenant: String,
    /// `host:port`.
    pub node: String,
}

/// How shards are moved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Moves {
    /// Whether writes go on while a shard moves.
    pub transfer_mode: TransferMode,
    /// How many moves at once, where the version can.
    #[schemars(range(min = 1, max = 16))]
    pub parallel: u32,
    /// No move begins while a replica is further behind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_replication_lag: Option<Size>,
    /// How much of a node's disk a move has to leave free, as far as `diskSize` tells how large it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_headroom: Option<Percent>,
    /// How large the disk of each node is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_size: Option<Size>,
    /// No move begins while one of these is over its limit.
    pub pause_while: Vec<PauseWhile>,
    /// How long after a rebalance the next may begin.
    pub cooldown: Duration,
}

impl Moves {
    /// How many bytes of a node's disk may be used; nothing where that is not said.
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

/// A query on the coordinator that says when no move may begin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PauseWhile {
    /// One number.
    pub query: String,
    /// No move begins while it is more than this.
    pub over: f64,
}

/// Whether writes go on while a shard moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum TransferMode {
    /// They do; a table without a replica identity is refused.
    #[default]
    Auto,
    /// They do, but UPDATE and DELETE fail on a table without a replica identity.
    ForceLogical,
    /// They wait until the shard has moved.
    BlockWrites,
}

impl TransferMode {
    /// The word that Citus has for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::ForceLogical => "force_logical",
            Self::BlockWrites => "block_writes",
        }
    }
}

/// When a pull request raises a variable of what carries the nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Capacity {
    /// The condition.
    pub when: CapacityWhen,
    /// The variable that is raised.
    pub raise: CapacityRaise,
}

/// The condition and its duration: exactly one of the limits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CapacityWhen {
    /// More tenants than this on a node in the mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenants_per_worker: Option<u64>,
    /// More bytes than this on a node in the mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_worker: Option<Size>,
    /// More than this of the fullest node's disk, which `moves.diskSize` tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_used: Option<Percent>,
    /// For how long.
    pub r#for: Duration,
}

/// The variable that is raised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CapacityRaise {
    /// A component of kind tofu, in the same environment.
    pub component: super::ComponentName,
    /// A variable of it, a number.
    pub variable: String,
    /// By how much.
    #[schemars(range(min = 1))]
    pub by: u64,
    /// Never over this.
    pub max: u64,
}

/// The figures of a layout plan; none of them is part of a digest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayoutPlan {
    /// The balanced quantity: `bytes`, `shards`, `tenants` or `query`.
    pub balance: String,
    /// How far a node may be from the mean: 0.1 is a tenth.
    pub limit: f64,
    /// The nodes, by name.
    pub nodes: Vec<NodeLoad>,
    /// The moves, in the order in which they are made.
    pub moves: Vec<MoveFigures>,
    /// The bytes that they move.
    pub bytes: u64,
    /// So many at least any plan would have to move that comes as close.
    pub bytes_at_least: u64,
}

/// The load of a node, before and after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeLoad {
    /// `host:port`.
    pub node: String,
    /// Whether it is to hold shards.
    pub holds: bool,
    /// Before.
    pub before: Load,
    /// After.
    pub after: Load,
}

/// The load of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Load {
    /// In the unit that is balanced.
    pub load: u64,
    /// In bytes.
    pub bytes: u64,
}

/// The cost of a move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MoveFigures {
    /// The resource of its action.
    pub resource: String,
    /// To where.
    pub to: String,
    /// The bytes that move.
    pub bytes: u64,
    /// How long it takes, as far as this cluster's throughput tells.
    pub seconds: u64,
}

impl LayoutPlan {
    /// How far the fullest node is above the mean and the emptiest below it, as shares: before, or after.
    pub fn spread(&self, after: bool) -> (f64, f64) {
        let load = |node: &NodeLoad| if after { node.after.load } else { node.before.load };
        let total: u64 = self.nodes.iter().map(load).sum();
        let holding: Vec<u64> = self.nodes.iter().filter(|node| node.holds).map(load).collect();
        if total == 0 || holding.is_empty() {
            return (0.0, 0.0);
        }
        let mean = total as f64 / holding.len() as f64;
        let share = |load: u64| load as f64 / mean - 1.0;
        let above = holding.iter().map(|load| share(*load)).fold(0.0, f64::max);
        let below = holding.iter().map(|load| -share(*load)).fold(0.0, f64::max);
        (above, below)
    }
}

/// A table's name with its schema; as it is where it is no name.
pub fn whole_name(name: &str) -> String {
    table_name(name).map_or_else(|_| name.to_owned(), |(schema, table)| format!("{schema}.{table}"))
}

/// The two parts of a table's name; a schema of `public` where there is only one.
///
/// # Errors
/// When it is no name, or one that needs quotes.
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
