//! A Citus cluster for tests: a real one where `EVENKEEL_TEST_CITUS_URL` names a coordinator as its superuser, else a stand-in of plain PostgreSQL
//! servers. Each test has a database of its own on every node, gone with the test.

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use crate::stage::Stage;

/// A database on a coordinator and its workers.
pub(crate) struct CitusCluster {
    /// The coordinator as its superuser, in the database of all.
    url: Config,
    pub(crate) database: String,
    /// `host:port` of each worker, whether it is part of the cluster or not.
    pub(crate) workers: Vec<String>,
    folder: tempfile::TempDir,
}

async fn connect(config: &Config) -> Client {
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    client
}

/// The first column of what statements answer.
async fn texts(client: &Client, sql: &str) -> Vec<String> {
    let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let text = |message: SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
        _ => None,
    };
    messages.into_iter().filter_map(text).collect()
}

impl CitusCluster {
    /// A cluster whose first workers are part of it.
    pub(crate) async fn start(with: usize) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let url: Config = std::env::var("EVENKEEL_TEST_CITUS_URL").unwrap().parse().unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let database = format!("evenkeel_{}_{number}", std::process::id());
        let all = connect(&url).await;
        let workers = texts(&all, "SELECT nodename || ':' || nodeport FROM pg_dist_node WHERE groupid > 0 AND noderole = 'primary' ORDER BY nodename, nodeport").await;
        assert!(workers.len() >= 4, "the cluster of EVENKEEL_TEST_CITUS_URL needs four workers");
        for role in ["evenkeel_watch", "evenkeel_own"] {
            texts(&all, &format!("DO $$ BEGIN CREATE ROLE {role} LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$")).await;
        }
        texts(&all, "GRANT pg_monitor TO evenkeel_watch").await;
        let this = Self { url, database, workers, folder: tempfile::tempdir().unwrap() };
        let coordinator = format!("{}:{}", this.host(), this.url.get_ports().first().unwrap_or(&5432));
        for node in this.workers.iter().chain([&coordinator]) {
            let client = connect(this.at(node).dbname("postgres")).await;
            texts(&client, &format!("CREATE DATABASE {}", this.database)).await;
            let client = connect(&this.at(node)).await;
            texts(&client, "CREATE EXTENSION citus; GRANT ALL ON SCHEMA public TO evenkeel_own").await;
        }
        let (host, port) = coordinator.rsplit_once(':').unwrap();
        this.sql(&format!("SELECT citus_set_coordinator_host('{host}', {port})")).await;
        for worker in &this.workers[..with] {
            let (host, port) = worker.rsplit_once(':').unwrap();
            this.sql(&format!("SELECT citus_add_node('{host}', {port})")).await;
        }
        this.sql(&format!("GRANT CREATE ON DATABASE {} TO evenkeel_own", this.database)).await;
        for (name, user) in [("plan", "evenkeel_watch"), ("apply", "evenkeel_own"), ("admin", "")] {
            let user = if user.is_empty() { this.url.get_user().unwrap_or("postgres") } else { user };
            let url = format!("postgresql://{user}@{coordinator}/{}?sslmode=disable", this.database);
            std::fs::write(this.folder.path().join(name), url).unwrap();
        }
        this
    }

    fn host(&self) -> String {
        match self.url.get_hosts().first() {
            Some(tokio_postgres::config::Host::Tcp(host)) => host.clone(),
            _ => "127.0.0.1".into(),
        }
    }

    /// A node, as the superuser.
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

    /// Statements on the coordinator as the superuser; the first column of what they answer.
    pub(crate) async fn sql(&self, sql: &str) -> Vec<String> {
        texts(&connect(&self.here()).await, sql).await
    }

    /// The same as the owner of the tables.
    pub(crate) async fn own(&self, sql: &str) -> Vec<String> {
        let mut config = self.here();
        texts(&connect(config.user("evenkeel_own")).await, sql).await
    }

    /// Lets the daemon of a stage use it as `citus`.
    pub(crate) fn connect(&self, stage: &mut Stage) {
        let place = |name: &str| self.folder.path().join(name);
        stage.config["connections"]["*"]["citus"] = json!({
            "plan": {"urlFile": place("plan")}, "apply": {"urlFile": place("apply")}, "admin": {"urlFile": place("admin")},
        });
    }

    /// How many shards of distributed tables each node holds, as `host:port count`.
    pub(crate) async fn shards(&self) -> Vec<String> {
        self.sql("SELECT nodename || ':' || nodeport || ' ' || count(p.shardid) FROM pg_dist_node n LEFT JOIN (pg_dist_placement p JOIN pg_dist_shard USING (shardid) JOIN pg_dist_partition t ON t.logicalrelid = pg_dist_shard.logicalrelid AND t.partmethod = 'h') USING (groupid) WHERE n.groupid > 0 GROUP BY nodename, nodeport ORDER BY 1").await
    }
}

impl Drop for CitusCluster {
    fn drop(&mut self) {
        let nodes: Vec<Config> = self.workers.iter().map(|node| self.at(node)).chain([self.here()]).collect();
        let database = self.database.clone();
        // A test may be over while its runtime is: the end needs one of its own.
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
