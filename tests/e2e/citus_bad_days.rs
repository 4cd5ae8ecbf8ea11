//! Tests failures of a cluster while shards move: nodes are down, slow or full, and daemons are killed.
//!
//! Further cases are rotated passwords and dropped tables.

use std::io::Write as _;

use evenkeel::model::Verdict;

use crate::{
    citus::{files, start, until},
    citus_cluster::CitusCluster,
    stage::Stage,
};

/// Returns a cluster with a layout and a slow drain that is about to begin.
async fn draining(cluster: &CitusCluster, more: &str) -> (Stage, Vec<String>) {
    let nodes = cluster.workers[..2].to_vec();
    let stage = start(cluster, &files(&nodes, "")).await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    drain(cluster, &stage, more).await;
    (stage, nodes)
}

/// Starts the drain of the second node, which takes a while.
async fn drain(cluster: &CitusCluster, stage: &Stage, more: &str) {
    if cluster.servers.is_some() {
        cluster.sql("UPDATE stand_in SET move_seconds = 1").await;
    }
    let nodes = &cluster.workers[..2];
    let drain = format!("    placement: {{ drain: [\"{}\"] }}\n{more}", nodes[1]);
    stage.push("main", &files(nodes, &drain)[1..2]);
}

const MOVING: &str = "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name LIKE 'evenkeel dev/shards run %' AND query LIKE 'SELECT citus_move_shard_placement%' AND state = 'active'";

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_restarts_under_a_move_is_waited_for() {
    let Some(cluster) = CitusCluster::breakable(2).await else { return };
    let (stage, nodes) = draining(&cluster, "").await;
    until(&cluster, &stage, MOVING, &["t"]).await;
    let servers = cluster.servers.as_ref().unwrap();
    servers[0].halt();
    servers[0].go_on();
    stage
        .until("the node is empty", async || (cluster.shards().await[1] == format!("{} 0", nodes[1])).then_some(()))
        .await;
    stage.verdict("dev/shards", Verdict::InSync).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_goes_down_under_a_move_ends_it_and_nothing_is_lost() {
    let Some(cluster) = CitusCluster::breakable(2).await else { return };
    let (stage, nodes) = draining(&cluster, "").await;
    until(&cluster, &stage, MOVING, &["t"]).await;
    let servers = cluster.servers.as_ref().unwrap();
    servers[1].halt();
    stage
        .until("it is told", async || {
            let status = stage.instance("dev/shards").await?;
            matches!(status.verdict, Verdict::Stalled | Verdict::Unknown).then_some(())
        })
        .await;
    servers[1].go_on();
    // A new `apply` continues where the drain ended.
    stage.until("it can be applied again", async || (stage.run(&["apply", "dev", "--yes"]).0 == 0).then_some(())).await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    assert_eq!(cluster.shards().await[1], format!("{} 0", nodes[1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_rebalance_is_waited_for() {
    let cluster = CitusCluster::start(2).await;
    let nodes = cluster.workers[..2].to_vec();
    let stage = start(&cluster, &files(&nodes, "")).await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    if cluster.servers.is_some() {
        // Longer than any test: the move ends once the daemon has met it.
        cluster.sql("UPDATE stand_in SET move_seconds = 3600").await;
    }
    let place = |node: &str| node.replacen(':', "', ", 1);
    let theirs = format!(
        "SELECT citus_move_shard_placement(shardid, '{}, '{}) FROM pg_dist_shard JOIN pg_dist_placement USING (shardid) JOIN pg_dist_node n USING (groupid) WHERE logicalrelid = 'tasks'::regclass AND n.nodeport = {} ORDER BY shardid LIMIT 1",
        place(&nodes[1]),
        place(&nodes[0]),
        nodes[1].rsplit(':').next().unwrap()
    );
    let ours = async {
        let moving = "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name NOT LIKE 'evenkeel%' AND query LIKE 'SELECT citus_move_shard_placement%' AND state = 'active'";
        if cluster.servers.is_some() {
            until(&cluster, &stage, moving, &["t"]).await;
        }
        drain(&cluster, &stage, "").await;
        if cluster.servers.is_some() {
            let is_met = async || stage.log().contains("could not acquire the lock").then_some(());
            stage.until("the daemon meets the other move", is_met).await;
            cluster.sql("UPDATE stand_in SET move_seconds = 0").await;
        }
    };
    tokio::join!(cluster.sql(&theirs), ours);
    stage
        .until("the node is empty", async || (cluster.shards().await[1] == format!("{} 0", nodes[1])).then_some(()))
        .await;
    stage.verdict("dev/shards", Verdict::InSync).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_move_begins_while_the_load_is_high() {
    let cluster = CitusCluster::start(2).await;
    cluster.sql("CREATE TABLE load (much int); INSERT INTO load VALUES (9); GRANT SELECT ON load TO PUBLIC").await;
    let (stage, nodes) =
        draining(&cluster, "    moves: { pauseWhile: [{ query: SELECT much FROM load, over: 3 }] }\n").await;
    stage.until("it waits", async || stage.log().contains("says 9, more than 3").then_some(())).await;
    assert_eq!(cluster.shards().await[1], format!("{} 12", nodes[1]));
    cluster.sql("UPDATE load SET much = 1").await;
    stage
        .until("the node is empty", async || (cluster.shards().await[1] == format!("{} 0", nodes[1])).then_some(()))
        .await;
    stage.verdict("dev/shards", Verdict::InSync).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_down_drives_nothing() {
    let Some(cluster) = CitusCluster::breakable(2).await else { return };
    let nodes = cluster.workers[..2].to_vec();
    let stage = start(&cluster, &files(&nodes, "")).await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    let servers = cluster.servers.as_ref().unwrap();
    servers[2].halt();
    let (code, out, _) = stage.drift("dev");
    assert_eq!(code, 3, "{out}");
    assert!(out.contains(&format!("node {} did not answer", nodes[1])), "{out}");
    servers[2].go_on();
    stage.until("it is in sync again", async || (stage.drift("dev").0 == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_waits_for_the_move_that_goes_on_and_does_the_rest() {
    let cluster = CitusCluster::start(2).await;
    let (mut stage, nodes) = draining(&cluster, "").await;
    let mut kills = 0;
    while cluster.shards().await[1] != format!("{} 0", nodes[1]) && kills < 6 {
        let moving = stage.until("a move is under way, or all are over", async || {
            let is_empty = cluster.shards().await[1] == format!("{} 0", nodes[1]);
            let is_active = cluster.sql(MOVING).await == ["t"];
            (is_empty || is_active).then_some(is_active)
        });
        if !moving.await {
            break;
        }
        stage.kill();
        kills += 1;
        stage.serve();
        stage.ready().await;
    }
    assert!(kills > 1, "it was killed among the moves");
    stage.verdict("dev/shards", Verdict::InSync).await;
    assert_eq!(cluster.shards().await[1], format!("{} 0", nodes[1]));
    assert_eq!(cluster.shards().await[0], format!("{} 24", nodes[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_dropped_under_its_move_is_missed_and_nothing_else_is() {
    let cluster = CitusCluster::start(2).await;
    let (stage, nodes) = draining(&cluster, "").await;
    until(&cluster, &stage, MOVING, &["t"]).await;
    cluster.sql("DROP TABLE tasks").await;
    let stalled = stage
        .until("it is told", async || {
            stage.instance("dev/shards").await.filter(|instance| instance.verdict == Verdict::Stalled)
        })
        .await;
    assert!(stalled.message().contains("tasks"), "{}", stalled.message());
    assert_eq!(
        cluster.sql("SELECT count(*) FROM pg_dist_shard WHERE logicalrelid = 'tenants'::regclass").await,
        ["12"]
    );
    // A migration creates the dropped table again, and the drain continues.
    let again = "CREATE TABLE tasks (tenant_id int, id int, body text, PRIMARY KEY (tenant_id, id));\n";
    stage.push("main", &[("citus/migrations/0002_tasks.sql".into(), again.into())]);
    stage.verdict("dev/shards", Verdict::InSync).await;
    assert_eq!(cluster.shards().await, [format!("{} 24", nodes[0]), format!("{} 0", nodes[1])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_answers_nobody_makes_it_unknown_and_ends_its_moves() {
    let Some(cluster) = CitusCluster::breakable(2).await else { return };
    let nodes = cluster.workers[..2].to_vec();
    let stage = start(&cluster, &files(&nodes, "")).await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    let servers = cluster.servers.as_ref().unwrap();
    // Existing connections hang, and new connections are refused.
    servers[1].freeze(true);
    let (code, out, err) = stage.drift("dev");
    servers[1].freeze(false);
    assert_eq!(code, 3, "{out}{err}");
    assert!(out.contains(&format!("node {} did not answer", nodes[0])), "{out}");
    stage.until("it is in sync again", async || (stage.drift("dev").0 == 0).then_some(())).await;
    drain(&cluster, &stage, "").await;
    until(&cluster, &stage, MOVING, &["t"]).await;
    servers[1].freeze(true);
    let stalled = async || stage.instance("dev/shards").await.filter(|instance| instance.verdict == Verdict::Stalled);
    stage.until("it is told", stalled).await;
    servers[1].freeze(false);
    stage.until("it can be applied again", async || (stage.run(&["apply", "dev", "--yes"]).0 == 0).then_some(())).await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    assert_eq!(cluster.shards().await[1], format!("{} 0", nodes[1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_rotated_under_us_is_read_anew() {
    let Some(cluster) = CitusCluster::breakable(2).await else { return };
    let rotate = async |password: &str| {
        for (role, file) in [("evenkeel_watch", "plan"), ("evenkeel_own", "apply")] {
            cluster.sql(&format!("ALTER ROLE {role} PASSWORD '{password}'")).await;
            cluster.write(file, &format!("{role}:{password}"));
        }
    };
    rotate("the-first-secret").await;
    let mut rules = std::fs::OpenOptions::new();
    let mut rules = rules.append(true).open(&cluster.sql("SHOW hba_file").await[0]).unwrap();
    let text = std::fs::read_to_string(&cluster.sql("SHOW hba_file").await[0]).unwrap();
    rules.set_len(0).unwrap();
    write!(rules, "host all evenkeel_watch,evenkeel_own 127.0.0.1/32 scram-sha-256\n{text}").unwrap();
    cluster.sql("SELECT pg_reload_conf()").await;
    let (stage, nodes) = draining(&cluster, "").await;
    until(&cluster, &stage, MOVING, &["t"]).await;
    rotate("the-second-secret").await;
    stage
        .until("the node is empty", async || (cluster.shards().await[1] == format!("{} 0", nodes[1])).then_some(()))
        .await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    // If the file still has the old password, the cluster is unknown.
    cluster.sql("ALTER ROLE evenkeel_watch PASSWORD 'the-third-secret'").await;
    let (code, out, _) = stage.drift("dev");
    assert_eq!(code, 3, "{out}");
    assert!(out.contains("password authentication failed"), "{out}");
    cluster.write("plan", "evenkeel_watch:the-third-secret");
    stage.until("it is in sync again", async || (stage.drift("dev").0 == 0).then_some(())).await;
    assert!(!stage.log().contains("-secret"), "a password is never shown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_keeps_moves_from_beginning() {
    let cluster = CitusCluster::start(2).await;
    cluster.sql("CREATE TABLE load (much int); INSERT INTO load VALUES (9); GRANT SELECT ON load TO PUBLIC").await;
    let moves =
        "    moves: { diskSize: 100MiB, diskHeadroom: 10%, pauseWhile: [{ query: SELECT much FROM load, over: 3 }] }\n";
    let (stage, nodes) = draining(&cluster, moves).await;
    stage.until("it waits", async || stage.log().contains("says 9, more than 3").then_some(())).await;
    cluster.at_node(&nodes[0], "CREATE TABLE junk AS SELECT i FROM generate_series(1, 2600000) i").await;
    cluster.sql("UPDATE load SET much = 1").await;
    stage.until("it is full", async || stage.log().contains("and no room for").then_some(())).await;
    assert_eq!(cluster.shards().await[1], format!("{} 12", nodes[1]));
    cluster.at_node(&nodes[0], "DROP TABLE junk").await;
    stage
        .until("the node is empty", async || (cluster.shards().await[1] == format!("{} 0", nodes[1])).then_some(()))
        .await;
    stage.verdict("dev/shards", Verdict::InSync).await;
}
