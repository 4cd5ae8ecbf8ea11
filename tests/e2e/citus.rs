//! Tests the shard layout of a Citus cluster: declaration, observation, changes and drift.

use evenkeel::{
    model::Verdict,
    targets::citus::planner::{
        Wanted,
        layout::{Layout, Node, Placement, balance},
        plan,
    },
};
use serde_json::Value;

use crate::{
    citus_cluster::CitusCluster,
    cluster::Cluster,
    stage::{Stage, environment},
};

const TABLES: &str = "CREATE TABLE tenants (tenant_id int PRIMARY KEY, name text);
CREATE TABLE tasks (tenant_id int, id int, body text, PRIMARY KEY (tenant_id, id));
CREATE TABLE plans (id int PRIMARY KEY, name text);
";

fn component(name: &str, citus: &str, more: &str) -> (String, String) {
    let text = format!(
        "apiVersion: evenkeel.dev/v1alpha1\nkind: Component\nmetadata: {{ name: {name} }}\nspec:\n  environments: [dev]\n  citus:\n    connection: citus\n{citus}{more}"
    );
    (format!("state-repo/components/{name}.yaml"), text)
}

/// Two colocated tables and a reference table.
fn layout(nodes: &[String], more: &str) -> String {
    format!(
        "    nodes: [{}]\n    tables:\n      - {{ name: tenants, distributionColumn: tenant_id, shardCount: 12, colocation: tenant }}\n      - {{ name: public.tasks, distributionColumn: tenant_id, colocation: tenant }}\n      - {{ name: plans, reference: true }}\n    migrations: citus/migrations\n{more}",
        nodes.iter().map(|node| format!("\"{node}\"")).collect::<Vec<_>>().join(", ")
    )
}

pub(crate) fn files(nodes: &[String], more: &str) -> Vec<(String, String)> {
    vec![
        environment("dev", "onMerge: apply, limits: { destroys: 2 }"),
        component("shards", &layout(nodes, more), ""),
        ("citus/migrations/0001_tables.sql".into(), TABLES.into()),
    ]
}

pub(crate) async fn start(cluster: &CitusCluster, files: &[(String, String)]) -> Stage {
    let mut stage = Stage::new(files).await;
    cluster.connect(&mut stage);
    stage.serve();
    stage.ready().await;
    stage
}

/// Waits until a query of the cluster returns the expected rows.
pub(crate) async fn until(cluster: &CitusCluster, stage: &Stage, sql: &str, expected: &[&str]) {
    let seen = std::sync::Mutex::new(vec![]);
    let holds = async || {
        let current = cluster.sql(sql).await;
        let is = current == expected;
        *seen.lock().unwrap() = current;
        is.then_some(())
    };
    stage.until(&format!("{sql} says {expected:?}"), holds).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layout_is_brought_about_seen_and_kept() {
    let cluster = CitusCluster::start(2).await;
    let nodes = cluster.workers[..2].to_vec();
    let stage = start(&cluster, &files(&nodes, "")).await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    assert_eq!(cluster.shards().await, [format!("{} 12", nodes[0]), format!("{} 12", nodes[1])]);
    // `evenkeel init` can generate a declaration of the existing cluster, whose plan has no changes.
    let (code, out, err) =
        stage.run(&["init", "--citus", cluster.file("plan").to_str().unwrap(), "--environment", "dev"]);
    assert_eq!(code, 0, "{err}");
    assert!(
        out.contains("distributionColumn: tenant_id") && out.contains("shardCount: 12") && out.contains(&nodes[1]),
        "{out}"
    );
    let pull = stage.pull("written", &[("state-repo/components/shards.yaml".into(), out)]).await;
    stage.comment(pull, "Nothing would change in `dev`").await;
    // One node receives new rows. The catalogs do not show the imbalance, and the observation of sizes does.
    cluster.fill("tasks", &nodes[0], 300, 2000).await;
    let (code, out, _) = stage.drift("dev");
    assert_eq!(code, 2, "{out}");
    assert!(out.contains("moves of ") && out.contains('█'), "{out}");
    let pull = stage.proposal().await;
    let body = pull["body"].as_str().unwrap();
    assert!(body.contains("shards public.tasks +1") && body.contains("| move | bytes | about |"), "{body}");
    assert!(body.contains('█'), "{body}");
    stage.merge("lin", pull["number"].as_u64().unwrap()).await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    assert_ne!(cluster.shards().await[0], format!("{} 12", nodes[0]), "shards have moved");
    // A second drift check finds no drift.
    let (code, out, _) = stage.drift("dev");
    assert_eq!(code, 0, "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_comes_is_filled_and_goes() {
    let cluster = CitusCluster::start(2).await;
    let nodes = cluster.workers[..2].to_vec();
    let stage = start(&cluster, &files(&nodes, "")).await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    for node in &nodes {
        cluster.fill("tasks", node, 200, 2000).await;
    }
    let all = cluster.workers[..3].to_vec();
    let grown = stage.pull("grow", &files(&all, "")[1..2]).await;
    let plan = stage.comment(grown, "### Plan for `dev`").await;
    assert!(plan.contains(&format!("+ node {}", all[2])) && plan.contains("4 to move"), "{plan}");
    stage.merge("lin", grown).await;
    until(&cluster, &stage, "SELECT count(*) FROM pg_dist_node WHERE groupid > 0 AND shouldhaveshards", &["3"]).await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    assert_eq!(cluster.shards().await, all.iter().map(|node| format!("{node} 8")).collect::<Vec<_>>());
    let references = "SELECT count(*) FROM pg_dist_placement JOIN pg_dist_shard s USING (shardid) WHERE s.logicalrelid = 'plans'::regclass";
    assert_eq!(cluster.sql(references).await, ["4"], "what is on every node is on the new one");
    // The first node leaves: its shards move away, and then it is removed.
    let rest = all[1..].to_vec();
    let shrunk = stage.pull("shrink", &files(&rest, "")[1..2]).await;
    let plan = stage.comment(shrunk, "1 to destroy").await;
    assert!(plan.contains(&format!("- node {}", all[0])), "{plan}");
    stage.merge("lin", shrunk).await;
    until(&cluster, &stage, "SELECT count(*) FROM pg_dist_node WHERE groupid > 0", &["2"]).await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    assert_eq!(cluster.shards().await, rest.iter().map(|node| format!("{node} 12")).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn pins_and_drains_are_kept_and_strangers_are_undone() {
    let cluster = CitusCluster::start(3).await;
    let nodes = cluster.workers[..3].to_vec();
    let placement = format!(
        "    placement: {{ rebalance: report, pins: [{{ table: tenants, tenant: \"7\", node: \"{}\" }}], drain: [\"{}\"] }}\n",
        nodes[1], nodes[2]
    );
    let stage = start(&cluster, &files(&nodes, &placement)).await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    let shards = cluster.shards().await;
    assert_eq!(shards[2], format!("{} 0", nodes[2]), "{shards:?}");
    let home = "SELECT nodeport FROM pg_dist_placement JOIN pg_dist_shard s USING (shardid) JOIN pg_dist_node USING (groupid) WHERE s.logicalrelid = 'tenants'::regclass AND worker_hash(7) BETWEEN shardminvalue::int AND shardmaxvalue::int";
    let port = |node: &str| node.rsplit_once(':').unwrap().1.to_owned();
    assert_eq!(cluster.sql(home).await, [port(&nodes[1])]);
    // A user moves a shard by SQL: the drift is observed within seconds, and a pull request proposes to move it
    // back.
    let (from, to) = (port(&nodes[1]), port(&nodes[0]));
    let host = nodes[0].rsplit_once(':').unwrap().0;
    cluster.sql("CALL citus_cleanup_orphaned_resources()").await;
    cluster.sql(&format!("SELECT citus_move_shard_placement((SELECT shardid FROM pg_dist_shard s WHERE s.logicalrelid = 'tenants'::regclass AND worker_hash(7) BETWEEN shardminvalue::int AND shardmaxvalue::int), '{host}', {from}, '{host}', {to})")).await;
    let drifted = stage.verdict("dev/shards", Verdict::Drifted).await;
    assert_eq!(drifted.drift.len(), 1, "{drifted:?}");
    let pull = stage.proposal().await;
    stage.merge("lin", pull["number"].as_u64().unwrap()).await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    assert_eq!(cluster.sql(home).await, [port(&nodes[1])]);
    // Another move by SQL, which is adopted this time.
    cluster.sql("CALL citus_cleanup_orphaned_resources()").await;
    cluster.sql(&format!("SELECT citus_move_shard_placement((SELECT shardid FROM pg_dist_shard s WHERE s.logicalrelid = 'tenants'::regclass AND worker_hash(7) BETWEEN shardminvalue::int AND shardmaxvalue::int), '{host}', {from}, '{host}', {to})")).await;
    stage.verdict("dev/shards", Verdict::Drifted).await;
    let pull = stage.proposal().await;
    let (code, out, err) = stage.run(&["adopt", "dev/shards"]);
    assert_eq!(code, 0, "{out}{err}");
    stage
        .until("the pull request adopts", async || {
            let number = pull["number"].as_u64().unwrap();
            let (_, files) =
                stage.forge("lin", reqwest::Method::GET, &format!("pulls/{number}/files"), Value::Null).await;
            files.to_string().contains("shards.yaml").then_some(())
        })
        .await;
    stage.merge("lin", pull["number"].as_u64().unwrap()).await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    assert_eq!(cluster.sql(home).await, [port(&nodes[0])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn migrations_run_once_in_order_and_are_never_changed() {
    let cluster = CitusCluster::start(2).await;
    let nodes = cluster.workers[..2].to_vec();
    let stage = start(&cluster, &files(&nodes, "")).await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    let migration = |name: &str, text: &str| vec![(format!("citus/migrations/{name}"), text.to_owned())];
    stage.push(
        "main",
        &migration(
            "0002_index.sql",
            "CREATE TABLE notes (id int);\nCREATE INDEX CONCURRENTLY notes_by_id ON notes (id);\nSELECT 1 / 0;\n",
        ),
    );
    let stalled = stage.verdict("dev/shards", Verdict::Stalled).await;
    assert!(
        stalled.message().contains("statement 3 of 3 of the migration `0002_index.sql` failed"),
        "{}",
        stalled.message()
    );
    // The failed migration is fixed; the applied ones do not run again.
    stage.push(
        "main",
        &migration(
            "0002_index.sql",
            "CREATE TABLE notes (id int);\nCREATE INDEX CONCURRENTLY notes_by_id ON notes (id);\nSELECT 1;\n",
        ),
    );
    stage.verdict("dev/shards", Verdict::InSync).await;
    assert_eq!(
        cluster.sql("SELECT name FROM evenkeel.migrations WHERE applied_at IS NOT NULL ORDER BY 1").await,
        ["0001_tables.sql", "0002_index.sql"]
    );
    // A transaction that fails changes nothing.
    stage.push("main", &migration("0003_half.sql", "CREATE TABLE half (id int);\nSELECT 1 / 0;\n"));
    let stalled = stage.verdict("dev/shards", Verdict::Stalled).await;
    assert!(stalled.message().contains("nothing of it was applied"), "{}", stalled.message());
    assert_eq!(cluster.sql("SELECT to_regclass('half') IS NULL").await, ["t"]);
    stage.push("main", &migration("0003_half.sql", ""));
    stage.verdict("dev/shards", Verdict::InSync).await;
    // The content of an applied migration must not change.
    stage.push("main", &migration("0001_tables.sql", "SELECT 1;\n"));
    let refused = stage.verdict("dev/shards", Verdict::Stalled).await;
    assert!(
        refused.message().contains("the migration `0001_tables.sql` was applied with the checksum"),
        "{}",
        refused.message()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_seen_as_a_whole_is_unknown() {
    let cluster = CitusCluster::start(2).await;
    let nodes = cluster.workers[..2].to_vec();
    let mut stage = start(&cluster, &files(&nodes, "")).await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    // A worker is not a coordinator, and a database without Citus is not a cluster.
    let place = stage.place("wrong-url");
    let url = |node: &str, database: &str| format!("postgresql://evenkeel_watch@{node}/{database}?sslmode=disable");
    let unknown = async |stage: &Stage, message: &str| {
        stage
            .until(message, async || {
                stage.drift("dev");
                stage
                    .instance("dev/shards")
                    .await
                    .filter(|instance| instance.verdict == Verdict::Unknown && instance.message().contains(message))
            })
            .await;
    };
    std::fs::write(&place, url(&nodes[0], &cluster.database)).unwrap();
    stage.config["connections"]["*"]["citus"]["plan"]["urlFile"] = place.display().to_string().into();
    stage.stop();
    stage.serve();
    stage.ready().await;
    unknown(&stage, "the connection leads to a worker; it has to lead to the coordinator").await;
    std::fs::write(&place, url(&nodes[0], "template1")).unwrap();
    unknown(&stage, "the database has no Citus").await;
    std::fs::write(&place, "postgresql://nobody-of-that-name@127.0.0.1:1/x").unwrap();
    unknown(&stage, "the coordinator can't be reached").await;
    std::fs::write(&place, "hunter2-is-no-address").unwrap();
    unknown(&stage, "the connection can't be used: its file holds no `postgresql://…` address").await;
    assert!(!stage.log().contains("hunter2"), "an address is never shown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebalance_is_made_by_a_word_and_by_the_clock() {
    let cluster = CitusCluster::start(2).await;
    let nodes = cluster.workers[..2].to_vec();
    let scheduled = "    placement: { rebalance: scheduled }\n    moves: { cooldown: 1s }\n";
    let mut all = files(&nodes, scheduled);
    all[0] = environment("dev", "onMerge: apply, limits: { moves: 1 }");
    let stage = start(&cluster, &all).await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    let (code, out, _) = stage.run(&["rebalance", "dev"]);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("No move was needed"), "{out}");
    cluster.fill("tasks", &nodes[0], 300, 2000).await;
    let (code, out, _) = stage.drift("dev");
    assert_eq!(code, 0, "what waits for its time is no drift: {out}");
    let warnings = stage.instance("dev/shards").await.unwrap().warnings;
    assert!(warnings.iter().any(|warning| warning.starts_with("the next rebalance makes ")), "{warnings:?}");
    // Each rebalance makes one move, as the limits require.
    let (code, out, err) = stage.run(&["rebalance", "dev"]);
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(cluster.shards().await, [format!("{} 10", nodes[0]), format!("{} 14", nodes[1])]);
    let (_, journal, _) = stage.run(&["journal"]);
    assert!(journal.contains("moving public.tasks +1") && journal.contains("moved public.tasks +1"), "{journal}");
    let explained = stage.run(&["explain", "dev/shards"]).1;
    assert!(explained.contains("moved public.tasks +1"), "{explained}");
    // The schedule starts the next move.
    let schedule = "apiVersion: evenkeel.dev/v1alpha1\nkind: Schedule\nmetadata: { name: often }\nspec: { cron: \"* * * * *\", run: rebalance, select: \"kind:citus\", duration: 1m }\n";
    stage.push("main", &[("state-repo/schedules/often.yaml".into(), schedule.into())]);
    until(&cluster, &stage, "SELECT count(DISTINCT groupid) FROM pg_dist_placement p JOIN pg_dist_shard s USING (shardid) WHERE s.logicalrelid = 'tasks'::regclass AND (SELECT count(*) FROM pg_dist_placement q JOIN pg_dist_shard t USING (shardid) WHERE t.logicalrelid = 'tasks'::regclass AND q.groupid = p.groupid) = 8", &["1"]).await;
    let runs = stage.run(&["runs"]).1;
    assert!(runs.contains("Schedule"), "{runs}");
}

/// Returns a tofu component whose machines run nodes, one for each port.
fn machines(ports: &str) -> (String, String) {
    let text = format!(
        "apiVersion: evenkeel.dev/v1alpha1\nkind: Component\nmetadata: {{ name: vm }}\nspec:\n  environments: [dev]\n  tofu: {{ connection: world, root: tf/vm, variables: {{ ports: [{ports}] }} }}\n"
    );
    ("state-repo/components/vm.yaml".into(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_goes_after_the_node_on_it_is_empty_and_gone() {
    let cluster = CitusCluster::start(3).await;
    let nodes = cluster.workers[..3].to_vec();
    let port = |node: &str| node.rsplit_once(':').unwrap().1.to_owned();
    let ports = |nodes: &[String]| nodes.iter().map(|node| port(node)).collect::<Vec<_>>().join(", ");
    let module = "terraform {\n  required_providers {\n    world = { source = \"evenkeel/world\" }\n  }\n}\nvariable \"ports\" { type = list(number) }\nresource \"world_file\" \"worker\" {\n  for_each = { for port in var.ports : tostring(port) => port }\n  path     = \"worker-${each.key}\"\n  content  = each.key\n}\noutput \"workers\" {\n  value = [for port in var.ports : { host = \"127.0.0.1\", port = port, runsOn = \"world_file.worker[\\\"${port}\\\"]\" }]\n}\n";
    let shards = layout(&[], "").replace("nodes: []", "nodes: ${vm.outputs.workers}");
    let all = vec![
        environment("dev", "onMerge: apply, deferred: apply, limits: { destroys: 3 }"),
        machines(&ports(&nodes)),
        ("tf/vm/main.tf".into(), module.into()),
        component("shards", &shards, "  dependsOn: [vm]\n"),
        ("citus/migrations/0001_tables.sql".into(), TABLES.into()),
    ];
    let stage = start(&cluster, &all).await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    assert_eq!(cluster.shards().await, nodes.iter().map(|node| format!("{node} 8")).collect::<Vec<_>>());
    // The plan states the removal, in this order.
    let shrunk = stage.pull("shrink", &[machines(&ports(&nodes[..2]))]).await;
    let plan = stage.comment(shrunk, "### Plan for `dev`").await;
    let drain = plan.find(&format!("drain of node {} in dev/shards", nodes[2])).expect(&plan);
    let destroy = plan.find(&format!("world_file.worker[\"{}\"]", port(&nodes[2]))).expect(&plan);
    assert!(drain < destroy, "{plan}");
    stage.merge("lin", shrunk).await;
    stage
        .until("the machine is gone", async || {
            stage.world(&format!("worker-{}", port(&nodes[2]))).is_empty().then_some(())
        })
        .await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    assert_eq!(cluster.sql("SELECT count(*) FROM pg_dist_node WHERE groupid > 0").await, ["2"]);
    assert_eq!(cluster.shards().await, nodes[..2].iter().map(|node| format!("{node} 12")).collect::<Vec<_>>());
    let journal = stage.run(&["journal"]).1;
    let drained = journal.find("destroy node").expect(&journal);
    let begun = journal.find("drains ").expect(&journal);
    assert!(begun < drained && journal[drained..].contains("finished"), "{journal}");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_nodes_are_asked_for_once_and_a_backup_is_made_by_the_clock() {
    let cluster = CitusCluster::start(2).await;
    let nodes = cluster.workers[..2].to_vec();
    let rule = "    capacity:\n      - { when: { bytesPerWorker: 1kB, for: 1s }, raise: { component: vm, variable: worker_count, by: 1, max: 3 } }\n";
    let mut all = files(&nodes, rule);
    all.push(crate::stage::component("vm", "dev", "root: tf/vm, variables: { worker_count: 2 }", ""));
    all.push((
        "tf/vm/main.tf".into(),
        "variable \"worker_count\" { type = number }\noutput \"count\" { value = var.worker_count }\n".into(),
    ));
    let backup = "apiVersion: evenkeel.dev/v1alpha1\nkind: Schedule\nmetadata: { name: points }\nspec: { cron: \"* * * * *\", run: backup }\n";
    all.push(("state-repo/schedules/points.yaml".into(), backup.into()));
    let stage = start(&cluster, &all).await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    let asked = async || {
        let (_, open) = stage.forge("lin", reqwest::Method::GET, "pulls?state=all", Value::Null).await;
        let is_capacity =
            |pull: &Value| pull["head"]["ref"].as_str().is_some_and(|branch| branch.starts_with("evenkeel-capacity/"));
        open.as_array().into_iter().flatten().filter(|pull| is_capacity(pull)).cloned().collect::<Vec<_>>()
    };
    let pull = stage.until("more nodes are asked for", async || {
        stage.drift("dev/shards");
        asked().await.first().cloned()
    });
    let pull = pull.await;
    let body = pull["body"].as_str().unwrap();
    assert!(
        body.contains("raises `worker_count` of `dev/vm` from 2 to 3") && body.contains("the limit is 1.0 KiB"),
        "{body}"
    );
    // The daemon plans its own pull request like any other, and opens it once.
    let number = pull["number"].as_u64().unwrap();
    stage.comment(number, "### Plan for `dev`").await;
    stage.merge("lin", number).await;
    stage.check(number, "evenkeel/apply/dev", "success").await;
    stage.verdict("dev/vm", Verdict::InSync).await;
    assert!(stage.run(&["explain", "dev/vm"]).1.contains("in sync"));
    stage.drift("dev/shards");
    assert_eq!(asked().await.len(), 1, "3 is the most");
    stage
        .until("a restore point was made", async || stage.run(&["audit"]).1.contains("restore-point").then_some(()))
        .await;
    let audit = stage.run(&["audit"]).1;
    assert!(audit.contains("evenkeel_20") && !audit.contains("none could be made"), "{audit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewrite_needs_a_word_and_has_a_point_to_go_back_to() {
    let cluster = CitusCluster::start(2).await;
    let nodes = cluster.workers[..2].to_vec();
    let mut all = files(&nodes, "");
    all[0] = environment("dev", "onMerge: apply, limits: { destroys: 2, replaces: 2 }");
    let stage = start(&cluster, &all).await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    let wider = |more: &str| {
        let (path, text) = component("shards", &layout(&nodes, more), "");
        let text = text.replace("shardCount: 12", "shardCount: 24");
        vec![(path, text)]
    };
    let pull = stage.pull("wider", &wider("")).await;
    let plan = stage.comment(pull, "### Plan for `dev`").await;
    assert!(
        plan.contains("has to be rewritten for another shardCount") && plan.contains("`allowRewrite: true`"),
        "{plan}"
    );
    // If `allowRewrite` is declared together with the change that it allows, it does not count.
    stage.push_on("wider", &wider("    allowRewrite: true\n"));
    stage.comment(pull, "declare `allowRewrite: true` in a pull request of its own first").await;
    stage.push("main", &files(&nodes, "    allowRewrite: true\n")[1..2]);
    stage.verdict("dev/shards", Verdict::InSync).await;
    let pull = stage.pull("wide", &wider("    allowRewrite: true\n")).await;
    stage.comment(pull, "2 to replace").await;
    stage.merge("lin", pull).await;
    until(&cluster, &stage, "SELECT count(*) FROM pg_dist_shard WHERE logicalrelid = 'tasks'::regclass", &["24"]).await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    let journal = stage.run(&["journal"]).1;
    assert!(journal.contains("restore point evenkeel_run_2 at "), "{journal}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_move_lacks_is_said_in_the_plan() {
    let cluster = CitusCluster::start(2).await;
    let nodes = cluster.workers[..2].to_vec();
    let mut all = files(&nodes, "");
    all[2].1 = TABLES.replace("body text, PRIMARY KEY (tenant_id, id)", "body text");
    let stage = start(&cluster, &all).await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    let drain = |mode: &str| {
        let placement =
            format!("    placement: {{ drain: [\"{}\"] }}\n    moves: {{ transferMode: {mode} }}\n", nodes[1]);
        all.iter().take(1).cloned().chain(files(&nodes, &placement).into_iter().skip(1).take(1)).collect::<Vec<_>>()
    };
    let pull = stage.pull("drain", &drain("auto")[1..]).await;
    stage.comment(pull, "`public.tasks` has no primary key and no replica identity").await;
    stage.push_on("drain", &drain("blockWrites")[1..]);
    stage.comment(pull, "6 to move").await;
    stage.merge("lin", pull).await;
    stage
        .until("the node is empty", async || (cluster.shards().await[1] == format!("{} 0", nodes[1])).then_some(()))
        .await;
    // If no node has free capacity, the plan reports it.
    let full = format!(
        "    placement: {{ drain: [\"{}\"] }}\n    moves: {{ transferMode: blockWrites, diskSize: 1MiB, diskHeadroom: 10% }}\n",
        nodes[0]
    );
    let pull = stage.pull("full", &files(&nodes, &full)[1..2]).await;
    stage.comment(pull, "no other node has room for it").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_replaced_under_its_node_is_vacated_and_all_at_once_is_refused() {
    let cluster = CitusCluster::start(3).await;
    let nodes = cluster.workers[..3].to_vec();
    let port = |node: &str| node.rsplit_once(':').unwrap().1.to_owned();
    let machines = |renewed: &[&String]| {
        let ports = nodes.iter().map(|node| port(node)).collect::<Vec<_>>().join(", ");
        let renewed = renewed.iter().map(|node| port(node)).collect::<Vec<_>>().join(", ");
        let text = format!(
            "apiVersion: evenkeel.dev/v1alpha1\nkind: Component\nmetadata: {{ name: vm }}\nspec:\n  environments: [dev]\n  tofu: {{ connection: world, root: tf/vm, variables: {{ ports: [{ports}], renewed: [{renewed}] }} }}\n"
        );
        ("state-repo/components/vm.yaml".to_owned(), text)
    };
    let module = "terraform {\n  required_providers {\n    world = { source = \"evenkeel/world\" }\n  }\n}\nvariable \"ports\" { type = list(number) }\nvariable \"renewed\" { type = list(number) }\nresource \"world_file\" \"worker\" {\n  for_each = { for port in var.ports : tostring(port) => port }\n  path     = contains(var.renewed, each.value) ? \"new-${each.key}\" : \"worker-${each.key}\"\n  content  = each.key\n}\noutput \"workers\" {\n  value = [for port in var.ports : { host = \"127.0.0.1\", port = port, runsOn = \"world_file.worker[\\\"${port}\\\"]\" }]\n}\n";
    let shards = layout(&[], "").replace("nodes: []", "nodes: ${vm.outputs.workers}");
    let all = vec![
        environment("dev", "onMerge: apply, deferred: apply, limits: { destroys: 3, replaces: 3 }"),
        machines(&[]),
        ("tf/vm/main.tf".into(), module.into()),
        component("shards", &shards, "  dependsOn: [vm]\n"),
        ("citus/migrations/0001_tables.sql".into(), TABLES.into()),
    ];
    let stage = start(&cluster, &all).await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    // If all machines were replaced at once, the shards could not move anywhere: no machine is replaced.
    let everything = stage.pull("all", &[machines(&nodes.iter().collect::<Vec<_>>())]).await;
    stage.comment(everything, "3 to replace").await;
    stage.merge("lin", everything).await;
    let stalled = stage.verdict("dev/vm", Verdict::Stalled).await;
    assert!(stalled.message().contains("has to release"), "{}", stalled.message());
    assert_eq!(stage.world(&format!("worker-{}", port(&nodes[0]))), port(&nodes[0]));
    assert_eq!(cluster.shards().await, nodes.iter().map(|node| format!("{node} 8")).collect::<Vec<_>>());
    // The node of one machine is drained and the machine is replaced. The node is missing then and returns by a
    // remediation.
    stage.push("main", &[machines(&[&nodes[2]])]);
    stage
        .until("the machine is another one", async || {
            (!stage.world(&format!("new-{}", port(&nodes[2]))).is_empty()).then_some(())
        })
        .await;
    stage.verdict("dev/vm", Verdict::InSync).await;
    assert_eq!(cluster.sql("SELECT count(*) FROM pg_dist_node WHERE groupid > 0").await, ["2"]);
    let pull = stage.proposal().await;
    stage.merge("lin", pull["number"].as_u64().unwrap()).await;
    until(&cluster, &stage, "SELECT count(*) FROM pg_dist_node WHERE groupid > 0 AND shouldhaveshards", &["3"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebalance_is_a_word_of_those_who_may() {
    let cluster = CitusCluster::start(2).await;
    let nodes = cluster.workers[..2].to_vec();
    let mut all = files(&nodes, "    placement: { rebalance: scheduled }\n");
    let rights = crate::stage::STATE_REPO.replace("allow: [apply]", "allow: [apply, rebalance]");
    all.push(("state-repo/staterepo.yaml".into(), rights));
    all.push(("README.md".into(), "one\n".into()));
    let stage = start(&cluster, &all).await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    cluster.fill("tasks", &nodes[0], 300, 2000).await;
    let pull = stage.pull("talk", &[("README.md".into(), "two\n".into())]).await;
    stage.say("mira", pull, "/rebalance dev").await;
    stage.comment(pull, "is not allowed to `/rebalance`").await;
    stage.say("lin", pull, "/rebalance kind:tofu or component:nothing").await;
    stage.comment(pull, "matches no instance").await;
    stage.say("lin", pull, "/rebalance dev").await;
    let run = stage.comment(pull, "All moves of this run completed").await;
    assert!(run.contains("`/rebalance` of @lin"), "{run}");
    let (code, out, _) = stage.drift("dev");
    assert_eq!(code, 0, "{out}");
    let warnings = stage.instance("dev/shards").await.unwrap().warnings;
    assert!(!warnings.iter().any(|warning| warning.starts_with("the next rebalance")), "{warnings:?}");
}

/// Returns a component of pods, and the nodes of a cluster that run in the first ones.
fn pods(cluster: &CitusCluster, replicas: usize) -> Vec<(String, String)> {
    let set = format!(
        "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{ name: worker }}\nspec:\n  replicas: {replicas}\n  serviceName: workers\n  selector: {{ matchLabels: {{ app: worker }} }}\n  template:\n    metadata: {{ labels: {{ app: worker }} }}\n    spec: {{ containers: [{{ name: citus, image: \"citus:13\" }}] }}\n"
    );
    let ports = cluster.workers.iter().filter_map(|worker| worker.rsplit(':').next()).take(replicas).enumerate();
    let node = |(at, port): (usize, &str)| {
        format!("      - {{ host: worker-{at}, port: {port}, runsOn: StatefulSet/pods/worker }}\n")
    };
    let nodes: String = ports.map(node).collect();
    let shards = layout(&[], "").replacen("    nodes: []\n", &format!("    nodes:\n{nodes}"), 1);
    vec![
        environment(
            "dev",
            "onMerge: apply, limits: { destroys: 2 }, kubernetes: { connection: cluster, namespace: pods }",
        ),
        component("shards", &shards, "  dependsOn: [pods]\n"),
        crate::cluster::component("pods", "manifests: k8s/pods, wait: none", ""),
        ("k8s/pods/namespace.yaml".into(), "apiVersion: v1\nkind: Namespace\nmetadata: { name: pods }\n".into()),
        ("k8s/pods/workers.yaml".into(), set),
        ("citus/migrations/0001_tables.sql".into(), TABLES.into()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_of_pods_shrinks_after_the_node_on_the_last_of_them_is_empty_and_gone() {
    let cluster = CitusCluster::start(0).await;
    // The nodes of a real cluster have fixed names.
    if cluster.servers.is_none() {
        return;
    }
    let kubernetes = Cluster::shared().await;
    let mut stage = Stage::new(&pods(&cluster, 3)).await;
    cluster.connect(&mut stage);
    kubernetes.connect(&mut stage);
    stage.serve();
    stage.ready().await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    let nodes = "SELECT nodename FROM pg_dist_node WHERE groupid > 0 ORDER BY 1";
    assert_eq!(cluster.sql(nodes).await, ["worker-0", "worker-1", "worker-2"]);
    let shrunk = stage.pull("shrink", &pods(&cluster, 2)).await;
    let plan = stage.comment(shrunk, "### Plan for `dev`").await;
    assert!(plan.contains("drain of node worker-2:") && !plan.contains("drain of node worker-1:"), "{plan}");
    stage.merge("lin", shrunk).await;
    stage
        .until("the set is smaller", async || {
            let set = kubernetes.get("/apis/apps/v1/namespaces/pods/statefulsets/worker").await;
            // The pod may only be removed after its node.
            let is_gone = cluster.sql(nodes).await == ["worker-0", "worker-1"];
            assert!(set["spec"]["replicas"] == 3 || is_gone, "the pod went before its node");
            (set["spec"]["replicas"] == 2).then_some(())
        })
        .await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    stage.verdict("dev/pods", Verdict::InSync).await;
    let placed = "SELECT count(*) FROM pg_dist_placement JOIN pg_dist_shard s USING (shardid) WHERE s.logicalrelid = 'tasks'::regclass";
    assert_eq!(cluster.sql(placed).await, ["12"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_bytes_move_than_citus_itself_would_move() {
    let cluster = CitusCluster::start(4).await;
    // A stand-in has no planner of Citus.
    if cluster.servers.is_some() {
        return;
    }
    cluster.sql("CREATE TABLE tasks (tenant_id int, id int, body text, PRIMARY KEY (tenant_id, id)); SELECT create_distributed_table('tasks', 'tenant_id', shard_count => 48)").await;
    let per_group = "SELECT d.shardminvalue || ' ' || s.nodename || ':' || s.nodeport || ' ' || s.shard_size FROM citus_shards s JOIN pg_dist_shard d USING (shardid) ORDER BY d.shardminvalue::bigint";
    let theirs = "SET citus.rebalancer_by_disk_size_base_cost = 0; SELECT d.shardminvalue || ' ' || p.targetname || ':' || p.targetport FROM get_rebalance_table_shards_plan(rebalance_strategy := 'by_disk_size', threshold := 0.1) p JOIN pg_dist_shard d USING (shardid)";
    let (mut saved, mut rounds) = (0.0, 0);
    for rows in [[3000, 100, 1500, 400], [0, 2500, 0, 0], [0, 0, 0, 4000], [700, 0, 5000, 0]] {
        for (node, rows) in cluster.workers.iter().zip(rows).filter(|(_, rows)| *rows > 0) {
            cluster.fill("tasks", node, rows, 1500).await;
        }
        let place = |name: &str| cluster.workers.iter().position(|worker| worker == name).unwrap();
        let output = cluster.sql(per_group).await;
        let shards: Vec<Vec<&str>> = output.iter().map(|line| line.split(' ').collect()).collect();
        let placement = |(group, words): (usize, &Vec<&str>)| {
            let bytes = words[2].parse().unwrap();
            Placement { group, node: place(words[1]), bytes, weight: bytes, pin: None }
        };
        let node = |name: &String| Node { name: name.clone(), holds: true, room: None };
        let layout = Layout {
            nodes: cluster.workers.iter().map(node).collect(),
            placements: shards.iter().enumerate().map(placement).collect(),
        };
        let mut after: Vec<usize> = layout.placements.iter().map(|placement| placement.node).collect();
        for line in cluster.sql(theirs).await {
            let (range, to) = line.split_once(' ').unwrap();
            after[shards.iter().position(|words| words[0] == range).unwrap()] = place(to);
        }
        let moved = layout.placements.iter().zip(&after).filter(|(placement, to)| placement.node != **to);
        let bytes: u64 = moved.map(|(placement, _)| placement.bytes).sum();
        let reached = balance(&layout, &after).skew();
        let ours = plan(&layout, Some(Wanted { limit: reached, aim: reached }));
        println!(
            "Citus: {bytes} bytes to {:.2} %; ours: {} to {:.2} %",
            reached * 100.0,
            ours.bytes,
            ours.after.skew() * 100.0
        );
        assert!(ours.after.skew() <= reached + 1e-9 && ours.bytes <= bytes, "{} against {bytes}", ours.bytes);
        (saved, rounds) = (saved + 1.0 - ours.bytes as f64 / bytes.max(1) as f64, rounds + 1);
    }
    println!("{:.0} % of the bytes are saved", saved / f64::from(rounds) * 100.0);
}
