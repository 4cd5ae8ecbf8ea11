//! Provides a Citus cluster for tests: a real one or a stand-in of plain PostgreSQL servers.
//!
//! `EVENKEEL_TEST_CITUS_URL` names the coordinator of a real cluster, as its superuser. Each test has its own
//! database on every node, dropped with the test.

use std::sync::{
    Arc, OnceLock, Weak,
    atomic::{AtomicU32, Ordering},
};

use serde_json::json;
use tokio::sync::Mutex;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use crate::{postgres::Postgres, stage::Stage};

/// The number of workers of a cluster.
const WORKERS: usize = 4;

/// A database on a coordinator and its workers.
pub(crate) struct CitusCluster {
    /// The connection to the coordinator as its superuser, in the default database.
    url: Config,
    pub(crate) database: String,
    /// `host:port` of each worker, in the cluster or not.
    pub(crate) workers: Vec<String>,
    folder: tempfile::TempDir,
    /// The servers of the stand-in, the coordinator first; `None` for a real cluster.
    pub(crate) servers: Option<Arc<Vec<Postgres>>>,
    /// Tests on a real cluster run one at a time, because its servers belong to the clusters of all databases.
    _turn: Option<tokio::sync::OwnedMutexGuard<()>>,
}

/// Returns the servers of a stand-in, shared by concurrent tests.
async fn shared() -> Arc<Vec<Postgres>> {
    static SHARED: OnceLock<Mutex<Weak<Vec<Postgres>>>> = OnceLock::new();
    let mut shared = SHARED.get_or_init(Mutex::default).lock().await;
    if let Some(servers) = shared.upgrade() {
        return servers;
    }
    let servers = Arc::new(servers());
    *shared = Arc::downgrade(&servers);
    servers
}

fn servers() -> Vec<Postgres> {
    (0..=WORKERS)
        .map(|_| Postgres::start_with("-c wal_level=logical -c max_prepared_transactions=20 -c max_connections=200"))
        .collect()
}

async fn connect(config: &Config) -> Client {
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    client
}

/// Returns the first column of the results of statements.
async fn texts(client: &Client, sql: &str) -> Vec<String> {
    let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let text = |message: SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
        _ => None,
    };
    messages.into_iter().filter_map(text).collect()
}

/// Creates the roles for observing and for owning the tables.
async fn roles(client: &Client) {
    for role in ["evenkeel_watch", "evenkeel_own"] {
        let make = format!(
            "DO $$ BEGIN CREATE ROLE {role} LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
        );
        texts(client, &make).await;
    }
    let grant = "DO $$ BEGIN GRANT pg_monitor TO evenkeel_watch; EXCEPTION WHEN unique_violation THEN NULL; END $$";
    texts(client, grant).await;
}

impl CitusCluster {
    /// Starts a cluster with the first `with` workers added.
    pub(crate) async fn start(with: usize) -> Self {
        match std::env::var("EVENKEEL_TEST_CITUS_URL") {
            Ok(url) => Self::real(url.parse().unwrap(), with).await,
            Err(_) => Self::stand_in(shared().await, with).await,
        }
    }

    /// Starts a stand-in whose servers no other test uses, so that they can be stopped; `None` for a real cluster.
    pub(crate) async fn breakable(with: usize) -> Option<Self> {
        match std::env::var("EVENKEEL_TEST_CITUS_URL") {
            Ok(_) => None,
            Err(_) => Some(Self::stand_in(Arc::new(servers()), with).await),
        }
    }

    async fn real(url: Config, with: usize) -> Self {
        static TURN: OnceLock<Arc<Mutex<()>>> = OnceLock::new();
        let turn = Arc::clone(TURN.get_or_init(Arc::default)).lock_owned().await;
        let all = connect(&url).await;
        let workers = texts(&all, "SELECT nodename || ':' || nodeport FROM pg_dist_node WHERE groupid > 0 AND noderole = 'primary' ORDER BY nodename, nodeport").await;
        assert!(workers.len() >= WORKERS, "the cluster of EVENKEEL_TEST_CITUS_URL needs four workers");
        roles(&all).await;
        let this = Self::new(url, workers, None, Some(turn));
        for node in this.workers.iter().chain([&this.coordinator()]) {
            let client = connect(this.at(node).dbname("postgres")).await;
            texts(&client, &format!("CREATE DATABASE {}", this.database)).await;
            texts(&connect(&this.at(node)).await, "CREATE EXTENSION citus; SELECT setval('pg_dist_operationid_seq', (random() * 1000000)::int + 1); GRANT ALL ON SCHEMA public TO evenkeel_own")
                .await;
        }
        this.with(with).await
    }

    async fn stand_in(servers: Arc<Vec<Postgres>>, with: usize) -> Self {
        let address = |server: &Postgres| format!("127.0.0.1:{}", server.port);
        let workers = servers[1..].iter().map(address).collect();
        let mut url = Config::new();
        url.host("127.0.0.1").port(servers[0].port).user("evenkeel").dbname("postgres");
        let this = Self::new(url, workers, Some(servers), None);
        for node in this.workers.iter().chain([&this.coordinator()]) {
            let client = connect(this.at(node).dbname("postgres")).await;
            roles(&client).await;
            texts(&client, &format!("CREATE DATABASE {}", this.database)).await;
            let client = connect(&this.at(node)).await;
            texts(&client, include_str!("citus_stand_in.sql")).await;
            let database = &this.database;
            texts(&client, &format!("GRANT ALL ON SCHEMA public TO evenkeel_own; ALTER DATABASE {database} SET search_path = \"$user\", public, citus; ALTER DATABASE {database} SET citus.shard_count = 32")).await;
        }
        this.sql("UPDATE stand_in SET is_coordinator = true").await;
        this.with(with).await
    }

    fn new(
        url: Config,
        workers: Vec<String>,
        servers: Option<Arc<Vec<Postgres>>>,
        turn: Option<tokio::sync::OwnedMutexGuard<()>>,
    ) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let database = format!("evenkeel_{}_{number}", std::process::id());
        Self { url, database, workers, folder: tempfile::tempdir().unwrap(), servers, _turn: turn }
    }

    fn coordinator(&self) -> String {
        format!("{}:{}", self.host(), self.url.get_ports().first().unwrap_or(&5432))
    }

    /// Adds the first workers, and writes the credentials.
    async fn with(self, with: usize) -> Self {
        let coordinator = self.coordinator();
        let (host, port) = coordinator.rsplit_once(':').unwrap();
        self.sql(&format!("SELECT citus_set_coordinator_host('{host}', {port})")).await;
        for worker in &self.workers[..with] {
            let (host, port) = worker.rsplit_once(':').unwrap();
            self.sql(&format!("SELECT citus_add_node('{host}', {port})")).await;
        }
        self.sql(&format!("GRANT CREATE ON DATABASE {} TO evenkeel_own", self.database)).await;
        for (name, user) in [("plan", "evenkeel_watch"), ("apply", "evenkeel_own"), ("admin", "")] {
            let user = if user.is_empty() { self.url.get_user().unwrap_or("postgres") } else { user };
            self.write(name, user);
        }
        self
    }

    fn host(&self) -> String {
        match self.url.get_hosts().first() {
            Some(tokio_postgres::config::Host::Tcp(host)) => host.clone(),
            _ => "127.0.0.1".into(),
        }
    }

    /// Returns the connection to a node as the superuser.
    fn at(&self, node: &str) -> Config {
        let (host, port) = node.rsplit_once(':').unwrap();
        let mut config = Config::new();
        config.host(host).port(port.parse().unwrap()).dbname(&self.database);
        config.user(self.url.get_user().unwrap_or("postgres"));
        if let Some(password) = self.url.get_password() {
            config.password(password);
        }
        config
    }

    fn here(&self) -> Config {
        let mut config = self.url.clone();
        config.dbname(&self.database);
        config
    }

    /// Runs statements on the coordinator as the superuser; returns the first column of the results.
    pub(crate) async fn sql(&self, sql: &str) -> Vec<String> {
        texts(&connect(&self.here()).await, sql).await
    }

    /// Returns the file with the address of the coordinator for a role.
    pub(crate) fn file(&self, who: &str) -> std::path::PathBuf {
        self.folder.path().join(who)
    }

    /// Runs statements on a node as the superuser.
    pub(crate) async fn at_node(&self, node: &str, sql: &str) {
        texts(&connect(&self.at(node)).await, sql).await;
    }

    /// Writes the address for a role, with its password if it has one.
    pub(crate) fn write(&self, who: &str, user: &str) {
        let url = format!("postgresql://{user}@{}/{}?sslmode=disable", self.coordinator(), self.database);
        std::fs::write(self.folder.path().join(who), url).unwrap();
    }

    /// Gives the daemon of a stage the cluster as connection `citus`.
    pub(crate) fn connect(&self, stage: &mut Stage) {
        let place = |name: &str| self.folder.path().join(name);
        stage.config["connections"]["*"]["citus"] = json!({
            "plan": {"urlFile": place("plan")}, "apply": {"urlFile": place("apply")}, "admin": {"urlFile": place("admin")},
        });
    }

    /// Fills the shards of a table on a node with rows of this size in bytes.
    pub(crate) async fn fill(&self, table: &str, node: &str, rows: u32, bytes: u32) {
        let (host, port) = node.rsplit_once(':').unwrap();
        let shards = self.sql(&format!("SELECT s.shardid FROM pg_dist_shard s JOIN pg_dist_placement USING (shardid) JOIN pg_dist_node USING (groupid) WHERE s.logicalrelid = '{table}'::regclass AND nodename = '{host}' AND nodeport = {port} ORDER BY 1")).await;
        let client = connect(&self.at(node)).await;
        texts(&client, "SET citus.enable_manual_changes_to_shards TO on").await;
        for shard in shards {
            texts(&client, &format!("INSERT INTO {table}_{shard} SELECT {shard}, coalesce((SELECT max(id) FROM {table}_{shard}), 0) + i, repeat('x', {bytes}) FROM generate_series(1, {rows}) i")).await;
        }
    }

    /// Returns the number of shards of distributed tables on each node, as `host:port count`.
    pub(crate) async fn shards(&self) -> Vec<String> {
        self.sql("SELECT nodename || ':' || nodeport || ' ' || count(p.shardid) FROM pg_dist_node n LEFT JOIN (pg_dist_placement p JOIN pg_dist_shard USING (shardid) JOIN pg_dist_partition t ON t.logicalrelid = pg_dist_shard.logicalrelid AND t.partmethod = 'h') USING (groupid) WHERE n.groupid > 0 GROUP BY nodename, nodeport ORDER BY 1").await
    }
}

impl Drop for CitusCluster {
    fn drop(&mut self) {
        let nodes: Vec<Config> = self.workers.iter().map(|node| self.at(node)).chain([self.here()]).collect();
        let database = self.database.clone();
        // The runtime of the test may have ended, so the clean-up uses its own.
        let end = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                for mut node in nodes {
                    let Ok((client, connection)) = node.dbname("postgres").connect(NoTls).await else { continue };
                    tokio::spawn(async move { drop(connection.await) });
                    drop(client.simple_query(&format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)")).await);
                }
            });
        });
        drop(end.join());
    }
}
