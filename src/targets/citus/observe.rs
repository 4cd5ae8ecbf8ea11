//! Observes a cluster: the catalogs of the coordinator in one snapshot, and the state of each worker.
//!
//! *Flow:* one repeatable-read transaction reads every catalog. All workers are then queried concurrently for the
//! sizes of their shards and for their settings.
//! *Invariant:* an observation is complete or an error: a worker without a response or a warning of the server makes
//! it *partial*, and nothing is derived from a partial observation. Ids of Citus never leave an observation.
//! *Race:* a shard moves between the snapshot and the sizes. A placement without a size leads to another attempt, and
//! finally to an error.

use crate::targets::citus::placement::{Address, BalanceBy, table_name};
use crate::targets::citus::work::CitusWork;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use serde::Deserialize;
use tokio_postgres::Row;

use super::{
    access::{Session, text},
    catalog::{Catalog, NodeRow, PlacementRow, ShardRow, TableRow},
};
use crate::{
    model::{Backoff, Retry},
    ports::{TargetError, TargetErrorKind},
};

/// The maximum number of attempts while shards move during an observation.
const ATTEMPTS_MAX: u32 = 3;
/// The oldest supported version of Citus: it has distributed schemas, shard sizes by name, and `citus_is_coordinator`.
const VERSION_MIN: Version = Version(12, 0);

/// A version of Citus: major, minor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Version(pub u32, pub u32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl Version {
    fn read(text: &str) -> Option<Self> {
        let mut parts = text.split(['.', '-']);
        Some(Self(parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }
}

/// The state that a worker reports.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Worker {
    /// The size in bytes of each shard, with indexes.
    pub sizes: BTreeMap<i64, u64>,
    /// The estimated rows of each shard of a table whose primary key is its distribution column; negative if the table
    /// was never analyzed.
    pub rows: BTreeMap<i64, i64>,
    /// `replica` or `logical`.
    pub wal_level: String,
    /// The number of free replication slots.
    pub free_slots: i64,
    /// The size in bytes of everything on the worker.
    pub bytes: u64,
}

/// The result of one observation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Nodes, tables, shards, and placements with their sizes.
    pub catalog: Catalog,
    /// The version of Citus.
    pub version: Version,
    /// The identity of the cluster.
    pub identity: String,
    /// Distributed schemas.
    pub schemas: BTreeSet<String>,
    /// Declared schemas that exist.
    pub known_schemas: BTreeSet<String>,
    /// Declared tables that exist, and whether they have rows.
    pub known_tables: BTreeMap<String, bool>,
    /// The state of each active worker, by `host:port`.
    pub workers: BTreeMap<String, Worker>,
    /// The number of left-overs of completed moves that Citus has to clean up.
    pub left_over: u64,
    /// The first of the left-overs.
    pub left_over_first: Option<i64>,
    /// Background jobs that are running or failed: id, state, description.
    pub jobs: Vec<(i64, String, String)>,
    /// The applied migrations, with their checksums.
    pub migrations: BTreeMap<String, String>,
    /// For each pin, the shard of its tenant.
    pub pins: Vec<Option<i64>>,
    /// The balanced quantity of each shard, if a query defines it.
    pub costs: BTreeMap<i64, u64>,
}

/// The query on each node. It finds shards among the node's own tables by the shard id and the name that Citus assigns,
/// in the schema of their table: a lookup by name would need rights on every schema.
const ASK: &str = "WITH shards AS MATERIALIZED (\
   SELECT s.shardid, c.oid, c.reltuples, s.logicalrelid \
   FROM (SELECT *, substring(relname FROM '_([0-9]{1,18})$')::bigint AS number FROM pg_class WHERE relkind IN ('r', 'p')) c \
   JOIN pg_dist_shard s ON s.shardid = c.number JOIN pg_class t ON t.oid = s.logicalrelid AND t.relnamespace = c.relnamespace \
   CROSS JOIN LATERAL parse_ident(shard_name(s.logicalrelid, s.shardid)) AS name WHERE c.relname = name[cardinality(name)]), \
 tenants AS (\
   SELECT p.logicalrelid FROM pg_dist_partition p JOIN pg_index i ON i.indrelid = p.logicalrelid AND i.indisprimary AND i.indnatts = 1 \
   JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] \
   WHERE p.partmethod = 'h' AND a.attname = column_to_column_name(p.logicalrelid, p.partkey)) \
 SELECT json_build_object(\
 'sizes', (SELECT coalesce(json_object_agg(shardid, pg_total_relation_size(oid)), '{}') FROM shards), \
 'rows', (SELECT coalesce(json_object_agg(shardid, reltuples::bigint), '{}') FROM shards JOIN tenants USING (logicalrelid)), \
 'walLevel', current_setting('wal_level'), \
 'freeSlots', current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots), \
 'bytes', pg_database_size(current_database()))::text";

fn partial(why: String) -> TargetError {
    TargetError { retry: Retry::After(Backoff::REMOTE), ..TargetError::new(TargetErrorKind::Unreachable, why) }
}

fn refused(why: String) -> TargetError {
    TargetError { retry: Retry::WhenInputChanges, ..TargetError::new(TargetErrorKind::Connection, why) }
}

/// The durations of the parts of an observation.
pub struct Times {
    /// The fingerprint query, which runs every few seconds.
    pub fingerprint: Duration,
    /// The catalogs, in one snapshot.
    pub catalogs: Duration,
    /// The queries on all nodes for settings and shard sizes.
    pub nodes: Duration,
    /// The number of placements.
    pub placements: usize,
}

/// Observes a cluster and measures each part.
pub(super) async fn timed(session: &Session) -> Result<Times, TargetError> {
    let begin = Instant::now();
    fingerprint(session).await?;
    let (fingerprint, begin) = (begin.elapsed(), Instant::now());
    session.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let mut seen = read(session, &CitusWork::default()).await?;
    session.run("ROLLBACK").await?;
    let (catalogs, begin) = (begin.elapsed(), Instant::now());
    ask_nodes(session, &mut seen).await?;
    Ok(Times { fingerprint, catalogs, nodes: begin.elapsed(), placements: seen.catalog.placements.len() })
}

/// Observes a cluster.
pub(super) async fn observe(session: &Session, work: &CitusWork) -> Result<Seen, TargetError> {
    session.run("SET citus.node_connection_timeout TO 10000; SET statement_timeout TO '25s'").await?;
    let mut without = None;
    for _ in 0..ATTEMPTS_MAX {
        session.warnings();
        session.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        let read = read(session, work).await;
        session.run("ROLLBACK").await?;
        let mut seen = read?;
        ask_nodes(session, &mut seen).await?;
        if let Some(warning) = session.warnings().into_iter().next() {
            return Err(partial(format!("the cluster could not be seen as a whole: {warning}")));
        }
        without = sizes(&mut seen);
        if without.is_none() {
            return Ok(seen);
        }
    }
    let why = without.unwrap_or_default();
    Err(partial(format!("the cluster could not be seen as a whole: {why}")))
}

/// Sets the size of each placement. Returns a message about a placement without a size.
fn sizes(seen: &mut Seen) -> Option<String> {
    let nodes: BTreeMap<i32, &NodeRow> =
        seen.catalog.nodes.iter().filter(|node| node.is_primary).map(|node| (node.group, node)).collect();
    let mut without = None;
    for placement in &mut seen.catalog.placements {
        let Some(node) = nodes.get(&placement.group) else { continue };
        // The shards of an inactive node can't be measured; no moves are planned while a node is inactive.
        let Some(worker) = seen.workers.get(&node.name) else { continue };
        match worker.sizes.get(&placement.shard) {
            Some(bytes) => placement.bytes = *bytes,
            None => without = Some(format!("shard {} is not on `{}`", placement.shard, node.name)),
        }
    }
    without
}

/// Refuses a worker and a server without Citus. Returns the version.
async fn is_coordinator(session: &Session) -> Result<Version, TargetError> {
    let rows = session.rows("SELECT extversion FROM pg_extension WHERE extname = 'citus'", &[]).await?;
    let Some(text) = rows.first().map(|row| row.get::<_, String>(0)) else {
        return Err(refused("the database has no Citus: `CREATE EXTENSION citus` is missing there".into()));
    };
    let version = Version::read(&text).unwrap_or_default();
    if version < VERSION_MIN {
        return Err(refused(format!("the cluster has Citus {text}; {VERSION_MIN} or later is needed")));
    }
    if !session.row("SELECT citus_is_coordinator()", &[]).await?.get::<_, bool>(0) {
        return Err(refused("the connection leads to a worker; it has to lead to the coordinator".into()));
    }
    Ok(version)
}

async fn read(session: &Session, work: &CitusWork) -> Result<Seen, TargetError> {
    let mut seen = Seen { version: is_coordinator(session).await?, ..Seen::default() };
    let identity = "SELECT (SELECT system_identifier::text FROM pg_control_system()) || '/' || current_database()";
    seen.identity = session.row(identity, &[]).await?.get(0);
    seen.catalog = catalog(session).await?;
    let names = |rows: Vec<Row>| rows.iter().map(|row| row.get::<_, String>(0)).collect::<BTreeSet<_>>();
    seen.schemas = names(
        session
            .rows("SELECT n.nspname::text FROM pg_dist_schema s JOIN pg_namespace n ON n.oid = s.schemaid", &[])
            .await?,
    );
    seen.known_schemas = names(
        session.rows("SELECT nspname::text FROM pg_namespace WHERE nspname::text = ANY ($1)", &[&work.schemas]).await?,
    );
    seen.known_tables = known_tables(session, work).await?;
    // A move in flight holds an advisory lock with its operation id.
    let left_overs = "SELECT count(*), min(record_id) FROM pg_dist_cleanup c JOIN pg_dist_node n ON n.groupid = c.node_group_id AND n.noderole::text = 'primary' \
        WHERE NOT EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted AND l.classid::bigint = c.operation_id >> 32 AND l.objid::bigint = c.operation_id & 4294967295)";
    let left_overs = session.row(left_overs, &[]).await?;
    (seen.left_over, seen.left_over_first) =
        (u64::try_from(left_overs.get::<_, i64>(0)).unwrap_or(0), left_overs.get(1));
    let jobs = "SELECT job_id, state::text, description FROM pg_dist_background_job WHERE state::text NOT IN ('finished', 'cancelled') ORDER BY job_id DESC LIMIT 20";
    seen.jobs = session.rows(jobs, &[]).await?.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    seen.migrations = migrations(session).await?;
    seen.pins = pins(session, work, &seen.catalog).await?;
    if let BalanceBy::Query(query) = &work.placement.balance {
        seen.costs = costs(session, &query.query).await?;
    }
    Ok(seen)
}

/// Returns the cost of shards by a query.
async fn costs(session: &Session, query: &str) -> Result<BTreeMap<i64, u64>, TargetError> {
    let query = query.trim().trim_end_matches(';');
    let sql = format!("SELECT shard::bigint, greatest(cost::numeric, 0)::bigint FROM ({query}) AS told (shard, cost)");
    let rows = session.rows(&sql, &[]).await.map_err(|mut error| {
        error.message = format!("the query of `balance` failed: {}", error.message);
        error
    })?;
    let costs = rows.iter().map(|row| (row.get::<_, Option<i64>>(0), row.get::<_, Option<i64>>(1)));
    Ok(costs.filter_map(|(shard, cost)| Some((shard?, u64::try_from(cost?).ok()?))).collect())
}

/// Returns the declared tables that exist, and whether they have rows.
async fn known_tables(session: &Session, work: &CitusWork) -> Result<BTreeMap<String, bool>, TargetError> {
    let mut declared = BTreeMap::new();
    for table in &work.tables {
        declared.extend(table_name(&table.name).ok().map(|name| (name, table.name.clone())));
    }
    let (schemas, tables): (Vec<&str>, Vec<&str>) =
        declared.keys().map(|(schema, table)| (&**schema, &**table)).unzip();
    let known = "SELECT n.nspname::text, c.relname::text, c.reltuples > 0 OR pg_relation_size(c.oid) > 0 \
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
        JOIN unnest($1::text[], $2::text[]) AS asked (schema, name) ON n.nspname = asked.schema AND c.relname = asked.name \
        WHERE c.relkind IN ('r', 'p')";
    let rows = session.rows(known, &[&schemas, &tables]).await?;
    let named = |row: &Row| Some((declared.get(&(row.get(0), row.get(1)))?.clone(), row.get(2)));
    Ok(rows.iter().filter_map(named).collect())
}

/// Returns the applied migrations; none if the table of migrations does not exist.
async fn migrations(session: &Session) -> Result<BTreeMap<String, String>, TargetError> {
    if session.row("SELECT to_regclass('evenkeel.migrations') IS NULL", &[]).await?.get(0) {
        return Ok(BTreeMap::new());
    }
    let rows = session.rows("SELECT name, checksum FROM evenkeel.migrations WHERE applied_at IS NOT NULL", &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Returns the shard of each pinned tenant whose table is distributed. The function of Citus would need rights on the
/// table.
async fn pins(session: &Session, work: &CitusWork, catalog: &Catalog) -> Result<Vec<Option<i64>>, TargetError> {
    let mut shards = vec![];
    for pin in &work.placement.pins {
        let name = table_name(&pin.table).unwrap_or_default();
        let whole = format!("{}.{}", name.0, name.1);
        if !catalog.tables.iter().any(|table| table.name == whole && table.method == 'h') {
            shards.push(None);
            continue;
        }
        let column = "SELECT format_type(a.atttypid, a.atttypmod), c.oid FROM pg_dist_partition p JOIN pg_class c ON c.oid = p.logicalrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
                      JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = column_to_column_name(p.logicalrelid, p.partkey) WHERE n.nspname = $1 AND c.relname = $2";
        let row = session.row(column, &[&name.0, &name.1]).await?;
        let (sort, table): (String, u32) = (row.get(0), row.get(1));
        let find = format!(
            "SELECT shardid FROM pg_dist_shard, (SELECT worker_hash({}::{sort}) AS hash) h WHERE logicalrelid::oid = $1 AND hash BETWEEN shardminvalue::int AND shardmaxvalue::int",
            text(&pin.tenant)
        );
        let found = session.rows(&find, &[&table]).await.map_err(|mut error| {
            error.message =
                format!("the pin of the tenant `{}` of `{}` can't be placed: {}", pin.tenant, pin.table, error.message);
            error
        })?;
        shards.push(found.first().map(|row| row.get(0)));
    }
    Ok(shards)
}

async fn catalog(session: &Session) -> Result<Catalog, TargetError> {
    let nodes = session
        .rows("SELECT groupid, nodename, nodeport, noderole::text, isactive, shouldhaveshards FROM pg_dist_node ORDER BY groupid, nodename, nodeport", &[])
        .await?;
    let node = |row: &Row| NodeRow {
        group: row.get(0),
        name: address(row.get(1), row.get(2)),
        is_primary: row.get::<_, String>(3) == "primary",
        is_active: row.get(4),
        holds: row.get(5),
    };
    let tables = session
        .rows(
            "SELECT n.nspname || '.' || c.relname, p.partmethod::text, p.repmodel::text, p.colocationid, column_to_column_name(p.logicalrelid, p.partkey), \
             c.relreplident IN ('f', 'i') OR (c.relreplident = 'd' AND EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)), c.oid \
             FROM pg_dist_partition p JOIN pg_class c ON c.oid = p.logicalrelid JOIN pg_namespace n ON n.oid = c.relnamespace",
            &[],
        )
        .await?;
    let by_oid: BTreeMap<u32, String> = tables.iter().map(|row| (row.get(6), row.get(0))).collect();
    let letter = |text: String| text.chars().next().unwrap_or(' ');
    let table = |row: &Row| TableRow {
        name: row.get(0),
        method: letter(row.get(1)),
        replication: letter(row.get(2)),
        colocation: row.get(3),
        column: row.get(4),
        has_identity: row.get(5),
    };
    let shards =
        session.rows("SELECT shardid, s.logicalrelid::oid, CASE WHEN p.partmethod = 'h' THEN shardminvalue::bigint END FROM pg_dist_shard s JOIN pg_dist_partition p USING (logicalrelid)", &[]).await?;
    let shard = |row: &Row| ShardRow {
        id: row.get(0),
        table: by_oid.get(&row.get::<_, u32>(1)).cloned().unwrap_or_default(),
        from: row.get(2),
    };
    let placements = session.rows("SELECT shardid, groupid FROM pg_dist_placement WHERE shardstate = 1", &[]).await?;
    let placement = |row: &Row| PlacementRow { shard: row.get(0), group: row.get(1), bytes: 0 };
    Ok(Catalog {
        nodes: nodes.iter().map(node).collect(),
        tables: tables.iter().map(table).collect(),
        shards: shards.iter().map(shard).collect(),
        placements: placements.iter().map(placement).collect(),
    })
}

fn address(host: String, port: i32) -> String {
    Address { host, port: u16::try_from(port).unwrap_or(0) }.to_string()
}

/// Queries every active node concurrently; the coordinator may hold shards as well.
async fn ask_nodes(session: &Session, seen: &mut Seen) -> Result<(), TargetError> {
    let sql = "SELECT n.nodename, n.nodeport, a.success, a.result FROM run_command_on_all_nodes($1) a JOIN pg_dist_node n USING (nodeid)";
    for row in &session.rows(sql, &[&ASK]).await? {
        let name = address(row.get(0), row.get(1));
        let answer = row.get::<_, Option<String>>(3).unwrap_or_default();
        if !row.get::<_, bool>(2) {
            let why = answer.split_whitespace().collect::<Vec<_>>().join(" ");
            return Err(partial(format!("node {name} did not answer: {why}")));
        }
        seen.workers.insert(name, parse_worker(&answer)?);
    }
    let silent = |node: &&NodeRow| node.is_primary && node.is_active && !seen.workers.contains_key(&node.name);
    match seen.catalog.nodes.iter().find(silent) {
        Some(node) => Err(partial(format!("node {} did not answer", node.name))),
        None => Ok(()),
    }
}

fn parse_worker(text: &str) -> Result<Worker, TargetError> {
    serde_json::from_str(text).map_err(|error| partial(format!("a worker said what can't be read: {error}")))
}

/// Returns a cheap fingerprint that changes with every change of the layout, even one that was reverted.
pub(super) async fn fingerprint(session: &Session) -> Result<String, TargetError> {
    let sql = "SELECT concat_ws(' ', \
        (SELECT concat(count(*), ' ', sum(hashint8extended(shardid, groupid)), ' ', sum(xmin::text::bigint)) FROM pg_dist_placement WHERE shardstate = 1), \
        (SELECT md5(string_agg(concat(nodename, nodeport, noderole, isactive, shouldhaveshards, xmin), ',' ORDER BY nodename, nodeport)) FROM pg_dist_node), \
        (SELECT concat(count(*), ' ', sum(hashint8extended(logicalrelid::oid::bigint, colocationid))) FROM pg_dist_partition), \
        (SELECT count(*) FROM pg_dist_cleanup), \
        (SELECT string_agg(concat(job_id, state), ',' ORDER BY job_id) FROM pg_dist_background_job WHERE state::text NOT IN ('finished', 'cancelled')))";
    Ok(session.row(sql, &[]).await?.get(0))
}
