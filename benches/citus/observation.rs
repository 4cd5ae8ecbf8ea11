//! Measures the observation of a cluster of 4,000 placements, part by part.
//!
//! Runs on a stand-in of plain PostgreSQL servers, or on the database of `EVENKEEL_BENCH_CITUS_URL`.

use evenkeel::{
    model::Redactor,
    targets::citus::{Login, observe::Times, timed},
};
use tokio_postgres::{Client, NoTls};

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../../tests/e2e/postgres.rs"]
mod postgres;

use super::{super::median, Row};
use postgres::Postgres;

const WORKERS: usize = 4;
const TABLES: usize = 20;
const SHARDS: usize = 200;
const LOOKS: usize = 21;

/// Returns the durations of the parts of an observation.
pub(crate) async fn rows() -> Vec<Row> {
    let (servers, url, which) = match std::env::var("EVENKEEL_BENCH_CITUS_URL") {
        Ok(url) => (vec![], url, "real"),
        Err(_) => {
            let servers: Vec<Postgres> = (0..=WORKERS).map(|_| Postgres::start_with("-c wal_level=logical")).collect();
            let url = stand_in(&servers).await;
            (servers, url, "stand-in")
        }
    };
    let login = Login { url: url.into(), authorities: None, shared_with: vec![] };
    let times = timed(&login, &Redactor::default(), LOOKS).await.unwrap();
    drop(servers);
    let duration = |part: &dyn Fn(&Times) -> std::time::Duration| {
        median(times.iter().map(|times| part(times).as_secs_f64() * 1000.0).collect())
    };
    let row = |what, found: f64, bound: &str| Row {
        what,
        found: format!("{found:.1} ms"),
        bound: format!("{bound}; {} placements, {which} Citus", times[0].placements),
    };
    vec![
        row("a look at a cluster: the fingerprint, every 5 s", duration(&|times| times.fingerprint), "no bound"),
        row("a look at a cluster: all catalogs", duration(&|times| times.catalogs), "< 50 ms"),
        row("a look at a cluster: all nodes, with the sizes of shards", duration(&|times| times.nodes), "no bound"),
    ]
}

async fn connect(server: &Postgres) -> Client {
    let url = format!("postgresql://evenkeel@127.0.0.1:{}/postgres", server.port);
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    client
}

/// Creates tables on a coordinator whose shards are placed round-robin on its workers; returns its address.
async fn stand_in(servers: &[Postgres]) -> String {
    let mut clients = vec![];
    for server in servers {
        let client = connect(server).await;
        client.batch_execute(include_str!("../../tests/e2e/citus_stand_in.sql")).await.unwrap();
        client.batch_execute("ALTER DATABASE postgres SET search_path = \"$user\", public, citus").await.unwrap();
        clients.push(connect(server).await);
    }
    let coordinator = &clients[0];
    let begin = format!(
        "UPDATE stand_in SET is_coordinator = true; SELECT citus_set_coordinator_host('127.0.0.1', {})",
        servers[0].port
    );
    coordinator.batch_execute(&begin).await.unwrap();
    for server in &servers[1..] {
        coordinator.batch_execute(&format!("SELECT citus_add_node('127.0.0.1', {})", server.port)).await.unwrap();
    }
    let tables = format!(
        "DO $$ BEGIN FOR i IN 1..{TABLES} LOOP
           EXECUTE format('CREATE TABLE t%s (tenant_id int PRIMARY KEY)', i);
           INSERT INTO pg_dist_partition VALUES (format('t%s', i)::regclass, 'h', 'tenant_id', 1, 's');
           INSERT INTO pg_dist_shard SELECT format('t%s', i)::regclass, i * 1000 + n, 't', -2147483648 + n * (4294967296 / {SHARDS}), 0 FROM generate_series(0, {SHARDS} - 1) n;
         END LOOP; END $$;
         INSERT INTO pg_dist_placement (shardid, groupid) SELECT shardid, shardid % {WORKERS} + 1 FROM pg_dist_shard;
         SELECT tell(); ANALYZE"
    );
    coordinator.batch_execute(&tables).await.unwrap();
    for (group, client) in clients.iter().enumerate().skip(1) {
        let shards = format!(
            "DO $$ BEGIN FOR i IN 1..{TABLES} LOOP FOR n IN 0..{SHARDS} - 1 LOOP
               IF n % {WORKERS} + 1 = {group} THEN EXECUTE format('CREATE TABLE t%s_%s (tenant_id int PRIMARY KEY)', i, i * 1000 + n); END IF;
             END LOOP; END LOOP; END $$; ANALYZE"
        );
        client.batch_execute(&shards).await.unwrap();
    }
    format!("postgresql://evenkeel@127.0.0.1:{}/postgres?sslmode=disable", servers[0].port)
}
