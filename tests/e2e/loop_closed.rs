//! Tests the main purpose: a commit becomes an applied run, drift becomes a pull request.

use evenkeel::model::Verdict;

use crate::stage::{Stage, component, environment, module, tools};

fn network() -> Vec<(String, String)> {
    vec![
        environment("dev", "onMerge: apply, deferred: apply"),
        component("network", "dev", "root: tf/network", ""),
        component("backend", "dev", "root: tf/backend, variables: { gateway: \"${network.outputs.gateway}\" }", ""),
        module(
            "network",
            "resource \"world_file\" \"gateway\" {\n  path = \"gateway\"\n  content = \"10.0.0.1\"\n}\noutput \"gateway\" { value = world_file.gateway.content }",
        ),
        module(
            "backend",
            "variable \"gateway\" {}\nresource \"world_file\" \"config\" {\n  path = \"config\"\n  content = \"via ${var.gateway}\"\n}",
        ),
    ]
}

/// The demo that the README describes, run by the program itself.
#[tokio::test(flavor = "multi_thread")]
async fn the_demo_comes_true() {
    let output =
        tokio::process::Command::new(env!("CARGO_BIN_EXE_evenkeel")).arg("demo").envs(tools()).output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("8 of 8 in sync."), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r1_4_drift_is_proposed_and_a_merge_reverts_it_without_what_is_pending() {
    let mut files = network();
    files[0] = environment("dev", "onMerge: wait, deferred: apply");
    let stage = Stage::start(&files).await;
    stage.verdict("dev/backend", Verdict::Pending).await;
    let (code, out, err) = stage.run(&["apply", "dev", "--yes"]);
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(stage.world("config"), "via 10.0.0.1");
    // A merged change waits for `/apply` while drift appears: the remediation contains no pending change.
    stage.push("main", &[module("network", "resource \"world_file\" \"gateway\" {\n  path = \"gateway\"\n  content = \"10.0.0.2\"\n}\noutput \"gateway\" { value = world_file.gateway.content }")]);
    stage
        .until("the change is seen", async || stage.instance("dev/network").await.filter(|i| !i.pending.is_empty()))
        .await;
    std::fs::write(stage.place("world/config"), "tampered").unwrap();
    std::fs::write(stage.place("world/gateway"), "10.9.9.9").unwrap();
    let (code, out, _) = stage.drift("dev");
    assert_eq!(code, 2, "{out}");
    assert!(out.contains("world_file.config  /content  \"via 10.0.0.1\" → \"tampered\""), "{out}");
    // One cause gets one pull request (R4.4).
    let proposal = stage.proposal().await;
    assert_eq!(proposal["title"], "Revert drift in dev/network and 1 more");
    let (_, again, _) = stage.run(&["propose", "dev"]);
    assert!(again.starts_with("#1   dev/network   open"), "{again}");
    stage.merge("lin", 1).await;
    stage
        .until("the world is back", async || {
            (stage.world("config") == "via 10.0.0.1" && stage.world("gateway") == "10.0.0.1").then_some(())
        })
        .await;
    stage.comment(1, "### Applied · `dev`").await;
    let network = stage.verdict("dev/network", Verdict::Pending).await;
    assert!(network.drift.is_empty());
    let (code, out, err) = stage.run(&["apply", "dev", "--yes"]);
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!((stage.world("gateway").as_str(), stage.world("config").as_str()), ("10.0.0.2", "via 10.0.0.2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn r1_5_a_plan_without_work_advances_by_itself_and_a_pass_is_one_process() {
    let mut files = network();
    files[0] = environment("dev", "onMerge: wait");
    let stage =
        Stage::start(&files[..4].iter().filter(|(path, _)| !path.contains("backend")).cloned().collect::<Vec<_>>())
            .await;
    let (code, _, err) = stage.run(&["apply", "dev", "--yes"]);
    assert_eq!(code, 0, "{err}");
    let before = stage.instance("dev/network").await.unwrap().applied;
    let (path, text) = files[3].clone();
    stage.push("main", &[(path, format!("# a comment\n{text}"))]);
    stage
        .until("applied advances", async || {
            stage.instance("dev/network").await.filter(|i| i.applied != before && i.verdict == Verdict::InSync)
        })
        .await;
    assert_eq!(stage.writes(), ["create gateway"]);
    let started = |stage: &Stage| {
        std::fs::read_to_string(stage.place("daemon.log")).unwrap().matches("kind=\"tofu-started\"").count()
    };
    stage.drift("dev");
    let count = started(&stage);
    stage.drift("dev");
    assert_eq!(started(&stage) - count, 1, "a pass over an unchanged instance is one process");
}

#[tokio::test(flavor = "multi_thread")]
async fn r5_4_a_failure_stops_its_dependents_and_nothing_else_and_a_fix_forward_leads_out() {
    let mut files = network();
    let failing = |fail: &str| {
        module(
            "network",
            &format!(
                "resource \"world_file\" \"first\" {{\n  path = \"first\"\n  content = \"1\"\n}}\nresource \"world_file\" \"gateway\" {{\n  path = \"gateway\"\n  content = \"10.0.0.1\"\n  fail = {fail}\n  depends_on = [world_file.first]\n}}\noutput \"gateway\" {{ value = world_file.gateway.content }}"
            ),
        )
    };
    files[3] = failing("\"the disk is on fire\"");
    files.push(component("other", "dev", "root: tf/other", ""));
    files.push(module("other", "resource \"world_file\" \"other\" {\n  path = \"other\"\n  content = \"1\"\n}"));
    let stage = Stage::start(&files).await;
    let network = stage.verdict("dev/network", Verdict::Stalled).await;
    assert!(network.message().contains("the disk is on fire"), "{}", network.message());
    stage.verdict("dev/other", Verdict::InSync).await;
    assert_eq!(stage.verdict("dev/backend", Verdict::Pending).await.applied, None);
    assert_eq!(stage.world("first"), "1", "what was done half-way stays");
    stage.push("main", &[failing("null")]);
    stage.verdict("dev/network", Verdict::InSync).await;
    stage.verdict("dev/backend", Verdict::InSync).await;
    assert_eq!(stage.writes().iter().filter(|line| *line == "create first").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_once_does_what_is_due_and_exits() {
    let stage = Stage::new(&network()).await;
    let (code, out, err) = stage.run(&["serve", "--once"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("2 of 2 in sync."), "{out}");
    assert_eq!(stage.world("config"), "via 10.0.0.1");
    std::fs::write(stage.place("world/config"), "tampered").unwrap();
    let (code, out, err) = stage.run(&["drift", "dev"]);
    assert_eq!(code, 2, "without a daemon the store is read: {out}{err}");
    let (code, out, _) = stage.run(&["drift", "dev", "--output", "json"]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, json["verdict"].as_str(), json["against"].as_str()), (2, Some("drifted"), Some("applied")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_asked_to_stop_ends_what_is_under_way() {
    let slow = module(
        "network",
        "resource \"world_file\" \"gateway\" {\n  path = \"gateway\"\n  content = \"1\"\n  delay = \"3s\"\n}\noutput \"gateway\" { value = world_file.gateway.content }",
    );
    let mut files = network();
    files[3] = slow;
    let mut stage = Stage::start(&files).await;
    stage
        .until("the apply is under way", async || {
            stage
                .get("/api/v1/journal")
                .await
                .as_array()?
                .iter()
                .any(|record| record["event"] == "started")
                .then_some(())
        })
        .await;
    assert_eq!(stage.stop(), 0);
    assert_eq!(stage.writes(), ["create gateway"], "what was begun ended, and nothing new began");
    stage.serve();
    stage.verdict("dev/backend", Verdict::InSync).await;
    assert_eq!(stage.writes(), ["create gateway", "create config"]);
}
