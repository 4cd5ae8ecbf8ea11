//! The shard layout of a Citus cluster: declared, seen, brought about, and kept.

use evenkeel::model::Verdict;

use crate::{
    citus_cluster::CitusCluster,
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

/// Two tables that lie together and one on every node.
fn layout(nodes: &[String], more: &str) -> String {
    format!(
        "    nodes: [{}]\n    tables:\n      - {{ name: tenants, distributionColumn: tenant_id, shardCount: 12, colocation: tenant }}\n      - {{ name: public.tasks, distributionColumn: tenant_id, colocation: tenant }}\n      - {{ name: plans, reference: true }}\n    migrations: citus/migrations\n{more}",
        nodes.iter().map(|node| format!("\"{node}\"")).collect::<Vec<_>>().join(", ")
    )
}

fn files(nodes: &[String], more: &str) -> Vec<(String, String)> {
    vec![
        environment("dev", "onMerge: apply, limits: { destroys: 2 }"),
        component("shards", &layout(nodes, more), ""),
        ("citus/migrations/0001_tables.sql".into(), TABLES.into()),
    ]
}

async fn start(cluster: &CitusCluster, files: &[(String, String)]) -> Stage {
    let mut stage = Stage::new(files).await;
    cluster.connect(&mut stage);
    stage.serve();
    stage.ready().await;
    stage
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layout_is_brought_about_seen_and_kept() {
    let cluster = CitusCluster::start(2).await;
    let nodes = cluster.workers[..2].to_vec();
    let stage = start(&cluster, &files(&nodes, "")).await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    let held = cluster.shards().await;
    assert_eq!(held, [format!("{} 12", nodes[0]), format!("{} 12", nodes[1])]);
    // Somebody fills one node.
    cluster.fill("tasks", &nodes[0], 300, 900).await;
    let (code, out, err) = stage.drift("dev");
    println!("{code} {out} {err}");
    let drifted = stage.verdict("dev/shards", Verdict::Drifted).await;
    println!("{:#?}", drifted.says());
    println!("{}", stage.run(&["plan", "dev"]).1);
    let pull = stage.proposal().await;
    println!("{}", pull["body"].as_str().unwrap());
    stage.merge("lin", pull["number"].as_u64().unwrap()).await;
    stage.verdict("dev/shards", Verdict::InSync).await;
    println!("{:?}", cluster.shards().await);
}
