//! Tests the reference traces on real tofu with the embedded forge; scenarios simulate the same traces.

use evenkeel::model::Verdict;
use serde_json::{Value, json};

use crate::stage::{Stage, component, environment, module};

fn file(name: &str, content: &str) -> String {
    format!("resource \"world_file\" \"{name}\" {{\n  path = \"{name}\"\n  content = {content}\n}}\n")
}

fn network(content: &str) -> (String, String) {
    module(
        "network",
        &format!("{}output \"gateway\" {{ value = world_file.gateway.content }}", file("gateway", content)),
    )
}

fn two(environment_says: &str) -> Vec<(String, String)> {
    vec![
        environment("dev", environment_says),
        component("network", "dev", "root: tf/network", ""),
        component("backend", "dev", "root: tf/backend, variables: { gateway: \"${network.outputs.gateway}\" }", ""),
        network("\"10.0.0.1\""),
        module("backend", &format!("variable \"gateway\" {{}}\n{}", file("config", "\"via ${var.gateway}\""))),
    ]
}

/// Returns the path and text of the remediation on a branch.
async fn remediation(stage: &Stage, pull: u64) -> (String, String) {
    let (_, files) = stage.forge("lin", reqwest::Method::GET, &format!("pulls/{pull}/files"), Value::Null).await;
    let path = files[0]["filename"].as_str().unwrap().to_owned();
    let (_, known) = stage.forge("lin", reqwest::Method::GET, &format!("pulls/{pull}"), Value::Null).await;
    let branch = known["head"]["ref"].as_str().unwrap();
    let (_, content) =
        stage.forge("lin", reqwest::Method::GET, &format!("contents/{path}?ref={branch}"), Value::Null).await;
    let text = content["content"].as_str().unwrap().replace('\n', "");
    let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).unwrap();
    (path, String::from_utf8(bytes).unwrap())
}

/// A first start: dev applies automatically, production waits, and a component with an existing state waits for a
/// command.
#[tokio::test(flavor = "multi_thread")]
async fn trace_a_r1_6_a_first_start_with_a_state_that_somebody_else_made() {
    let place = tempfile::tempdir().unwrap();
    let state = place.path().join("old.tfstate").display().to_string();
    let backend = "terraform {\n  backend \"local\" {}\n}\n";
    let old = |content: &str| module("old", &format!("{backend}{}", file("old", content)));
    let key = format!("root: tf/old, backendConfig: {{ path: \"{state}\" }}");
    let first = [environment("dev", "onMerge: apply"), component("old", "dev", &key, ""), old("\"1\"")];
    let before = Stage::start(&first).await;
    before.verdict("dev/old", Verdict::InSync).await;
    drop(before);
    let mut files = two("onMerge: apply, deferred: apply");
    files.push(environment("production", "onMerge: wait"));
    files.extend([component("site", "production", "root: tf/site", ""), module("site", &file("site", "\"1\""))]);
    files.extend([component("old", "dev", &key, ""), old("\"2\"")]);
    let stage = Stage::start(&files).await;
    stage.verdict("dev/backend", Verdict::InSync).await;
    stage.verdict("production/site", Verdict::Pending).await;
    stage
        .until("the old state is seen", async || {
            let old = stage.instance("dev/old").await?;
            old.reason.is_some_and(|why| why.contains("never applied from here")).then_some(())
        })
        .await;
    assert_eq!((stage.world("config").as_str(), stage.world("site").as_str()), ("via 10.0.0.1", ""));
    let (_, out, _) = stage.run(&["explain", "dev/old"]);
    assert!(out.contains("(R1.6)"), "{out}");
}

/// Drift in the network and its consequence in the backend share one pull request. A reviewer cuts one action,
/// and another change is merged meanwhile. The merged remediation runs the remaining actions.
#[tokio::test(flavor = "multi_thread")]
async fn trace_c_r4_4_a_reviewer_cuts_from_a_remediation_while_the_branch_moves() {
    let stage = Stage::start(&two("onMerge: wait, deferred: apply")).await;
    stage.verdict("dev/backend", Verdict::Pending).await;
    assert_eq!(stage.run(&["apply", "dev", "--yes"]).0, 0);
    std::fs::write(stage.place("world/config"), "by hand").unwrap();
    std::fs::write(stage.place("world/gateway"), "10.9.9.9").unwrap();
    stage.drift("dev");
    let pull = stage.proposal().await["number"].as_u64().unwrap();
    // The pull request opens with the first observed drift, and contains both once both are observed.
    let both = async || {
        let (path, text) = remediation(&stage, pull).await;
        text.match_indices("- digest:").nth(1).map(|(at, _)| (path, text.clone(), at))
    };
    let (path, text, at) = stage.until("it says both", both).await;
    let cut = text[..at].trim_end().to_owned() + "\n";
    assert!(cut.contains("dev/network") && !cut.contains("dev/backend"), "{text}");
    stage.push_on("evenkeel/drift/dev/network", &[(path, cut)]);
    stage.check(pull, "evenkeel/plan", "success").await;
    stage.push("main", &[network("\"10.0.0.2\"")]);
    stage
        .until("the change is seen", async || stage.instance("dev/network").await.filter(|i| !i.pending.is_empty()))
        .await;
    stage.merge("lin", pull).await;
    stage.comment(pull, "### Applied · `dev`").await;
    assert_eq!((stage.world("gateway").as_str(), stage.world("config").as_str()), ("10.0.0.1", "by hand"));
    let backend = stage.verdict("dev/backend", Verdict::Drifted).await;
    assert!(backend.snoozed.is_some_and(|snooze| snooze.because.contains("cut from the remediation")));
}

/// The data directory is lost: nothing is applied a second time automatically.
#[tokio::test(flavor = "multi_thread")]
async fn trace_f_r1_7_a_lost_data_directory() {
    let mut stage = Stage::start(&two("onMerge: apply, deferred: apply")).await;
    stage.verdict("dev/backend", Verdict::InSync).await;
    // An earlier status of the daemon tells a new daemon that its history is lost.
    let pull = stage.pull("two", &[network("\"10.0.0.2\"")]).await;
    stage.check(pull, "evenkeel/plan", "success").await;
    stage.merge("lin", pull).await;
    stage.check(pull, "evenkeel/apply/dev", "success").await;
    stage.stop();
    let before = stage.writes();
    std::fs::remove_dir_all(stage.place("data")).unwrap();
    stage.serve();
    stage.ready().await;
    let network = stage
        .until("it says so", async || {
            let network = stage.instance("dev/network").await?;
            network.reason.as_ref().is_some_and(|why| why.contains("no history")).then_some(network)
        })
        .await;
    assert_eq!(network.verdict, Verdict::Pending);
    assert_eq!(stage.writes(), before, "nothing is created over what is there");
    let (_, out, _) = stage.run(&["explain", "dev/network"]);
    assert!(out.contains("no history") && out.contains("(R1.7)"), "{out}");
}

/// The same drift appears twice: the first pull request is closed, the second is merged, after the drift had
/// healed in between.
#[tokio::test(flavor = "multi_thread")]
async fn trace_j_r4_5_the_same_drift_twice() {
    let stage = Stage::start(&two("onMerge: apply, deferred: apply")).await;
    stage.verdict("dev/backend", Verdict::InSync).await;
    let meddle = |content: &str| std::fs::write(stage.place("world/config"), content).unwrap();
    meddle("by hand");
    stage.drift("dev");
    let first = stage.proposal().await["number"].as_u64().unwrap();
    stage.forge("lin", reqwest::Method::PATCH, &format!("pulls/{first}"), json!({"state": "closed"})).await;
    stage.until("the no is noted", async || stage.instance("dev/backend").await.filter(|i| i.snoozed.is_some())).await;
    stage.drift("dev");
    assert!(stage.run(&["status"]).1.contains(&format!("(closed #{first})")));
    meddle("via 10.0.0.1");
    assert_eq!(stage.drift("dev").0, 0);
    meddle("by hand");
    stage.drift("dev");
    let second = stage.proposal().await["number"].as_u64().unwrap();
    assert!(second > first);
    stage.merge("lin", second).await;
    stage.comment(second, "### Applied · `dev`").await;
    assert_eq!(stage.world("config"), "via 10.0.0.1");
}

/// A component is renamed with its own state; another is removed, and destroyed after its plan was named.
#[tokio::test(flavor = "multi_thread")]
async fn r1_9_r1_10_a_component_is_renamed_and_another_destroyed() {
    let mut files = two("onMerge: apply, deferred: apply, limits: { destroys: 1 }");
    files.extend([component("vpc", "dev", "root: tf/vpc", ""), module("vpc", &file("vpc", "\"1\""))]);
    let stage = Stage::start(&files).await;
    for id in ["dev/backend", "dev/vpc"] {
        stage.verdict(id, Verdict::InSync).await;
    }
    let before = stage.writes();
    let (_, text) = component("wan", "dev", "root: tf/vpc", "");
    let renamed = text.replace("name: wan }", "name: wan, renamedFrom: vpc }");
    let gone = |name: &str| (format!("state-repo/components/{name}.yaml"), String::new());
    let pull =
        stage.pull("rename", &[gone("vpc"), ("state-repo/components/wan.yaml".into(), renamed), gone("backend")]).await;
    let plan = stage.check(pull, "evenkeel/plan", "success").await;
    assert!(plan.contains("dev/vpc renamed to wan"), "{plan}");
    stage.merge("lin", pull).await;
    stage.verdict("dev/wan", Verdict::InSync).await;
    assert_eq!(stage.drift("dev/wan").0, 0);
    assert_eq!(stage.writes(), before, "a renaming makes nothing anew");
    stage.verdict("dev/backend", Verdict::Orphaned).await;
    let (code, out, err) = stage.run(&["destroy", "dev/backend", "--yes"]);
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(stage.world("config"), "");
    assert!(stage.instance("dev/backend").await.is_none());
    let (code, out, err) = stage.run(&["destroy", "dev/network"]);
    assert_eq!(code, 1, "{out}{err}");
    assert!(err.contains("`dev/network` is declared"), "{err}");
}

/// A user removes the state: the instance is unknown, and no resource is created a second time.
#[tokio::test(flavor = "multi_thread")]
async fn r1_8_a_lost_state_stops_everything_until_somebody_confirms() {
    let stage = Stage::start(&two("onMerge: apply, deferred: apply")).await;
    stage.verdict("dev/backend", Verdict::InSync).await;
    let before = stage.writes();
    let state = stage.place("data/states/dev/network/terraform.tfstate");
    let backup = std::fs::read(&state).unwrap();
    std::fs::remove_file(&state).unwrap();
    assert_eq!(stage.drift("dev").0, 3);
    let network = stage.verdict("dev/network", Verdict::Unknown).await;
    assert!(network.reason.unwrap().contains("is not the one that was applied"));
    stage.push("main", &[network_two()]);
    stage.until("the run waits", async || stage.instance("dev/network").await.filter(|i| i.run.is_some())).await;
    assert_eq!(stage.writes(), before);
    // The state is restored, and reconciliation resumes.
    std::fs::write(&state, backup).unwrap();
    stage.drift("dev");
    stage.until("it goes on", async || (stage.world("config") == "via 10.0.0.2").then_some(())).await;
}

fn network_two() -> (String, String) {
    network("\"10.0.0.2\"")
}

/// A manually changed value that comes straight from a variable is declared in the instance's own file of
/// variables.
#[tokio::test(flavor = "multi_thread")]
async fn r4_3_drift_is_adopted_in_a_file_of_variables() {
    let files = [
        environment("dev", "onMerge: apply"),
        environment("staging", "onMerge: apply"),
        component("site", "dev, staging", "root: tf/site, varFiles: [\"vars/${environment}.tfvars\"]", ""),
        ("vars/dev.tfvars".to_owned(), "# the owner says\nsize  =  \"small\" # never large\n".to_owned()),
        ("vars/staging.tfvars".to_owned(), "size = \"small\"\n".to_owned()),
        module(
            "site",
            "variable \"size\" {}\nresource \"world_file\" \"site\" {\n  path = \"site\"\n  content = var.size\n}\n",
        ),
    ];
    let stage = Stage::start(
        &files[..1]
            .iter()
            .chain(&files[2..4])
            .chain(&files[5..])
            .map(|(path, text)| (path.clone(), text.replace("dev, staging", "dev")))
            .collect::<Vec<_>>(),
    )
    .await;
    stage.verdict("dev/site", Verdict::InSync).await;
    std::fs::write(stage.place("world/site"), "large").unwrap();
    stage.drift("dev");
    let pull = stage.proposal().await["number"].as_u64().unwrap();
    let (code, out, err) = stage.run(&["adopt", "dev/site"]);
    assert_eq!(code, 0, "{out}{err}");
    stage
        .until("the pull request adopts", async || {
            let (_, known) = stage.forge("lin", reqwest::Method::GET, &format!("pulls/{pull}"), Value::Null).await;
            (known["title"] == "Adopt drift in dev/site").then_some(())
        })
        .await;
    let (path, text) = remediation(&stage, pull).await;
    assert_eq!(
        (path.as_str(), text.as_str()),
        ("vars/dev.tfvars", "# the owner says\nsize  =  \"large\" # never large\n")
    );
    stage.merge("lin", pull).await;
    stage.verdict("dev/site", Verdict::InSync).await;
    assert_eq!(stage.world("site"), "large");
    assert_eq!(stage.drift("dev").0, 0);
}
