//! Killed, stopped, cut off: nothing is lost and nothing happens twice, with real processes.

use std::process::Command;

use evenkeel::model::Verdict;
use serde_json::json;

use crate::stage::{Stage, component, environment, module};

fn file(name: &str, content: &str, more: &str) -> (String, String) {
    let text =
        format!("resource \"world_file\" \"{name}\" {{\n  path = \"{name}\"\n  content = \"{content}\"\n{more}\n}}");
    module(name, &text)
}

/// One component that takes a while, and one that comes after it.
fn slow(delay: &str) -> Vec<(String, String)> {
    vec![
        environment("dev", "onMerge: apply, deferred: apply"),
        component("a", "dev", "root: tf/a", ""),
        component("b", "dev", "root: tf/b", "  dependsOn: [a]\n"),
        file("a", "1", &format!("  delay = \"{delay}\"")),
        file("b", "1", ""),
    ]
}

async fn applying(stage: &Stage, name: &str) -> i32 {
    let place = format!("/work/dev/{name}/");
    stage
        .until("an apply is under way", async || {
            let all = stage.processes("apply -json");
            all.into_iter().find(|(_, line)| line.contains("tofu") && line.contains(&place)).map(|(pid, _)| pid)
        })
        .await
}

async fn nobody_left(stage: &Stage) {
    stage.until("no process is left", async || stage.processes("").is_empty().then_some(())).await;
}

/// tofu-controller kills its runner with itself and leaves the lock (its #531, #1876): here the apply goes on without the
/// daemon, and the next one goes on reporting.
#[tokio::test(flavor = "multi_thread")]
async fn r7_1_an_apply_outlives_the_daemon_and_the_next_one_attaches() {
    let mut stage = Stage::new(&slow("4s")).await;
    stage.serve();
    let tofu = applying(&stage, "a").await;
    stage.kill();
    assert!(stage.processes("apply -json").iter().any(|(pid, _)| *pid == tofu), "it goes on");
    stage.serve();
    stage.until("the daemon attaches", async || stage.log().contains("attached to what went on").then_some(())).await;
    assert!(stage.processes("apply -json").iter().any(|(pid, _)| *pid == tofu), "the same one");
    stage.verdict("dev/b", Verdict::InSync).await;
    assert_eq!(stage.writes(), ["create a", "create b"]);
    let (_, journal, _) = stage.run(&["journal"]);
    let of = |what: &str| journal.lines().filter(|line| line.contains("dev/a") && line.contains(what)).count();
    assert_eq!((of("started action"), of("finished"), of("interrupted")), (1, 1, 0), "{journal}");
    assert!(stage.log().contains("world_file.a: Creation complete"), "progress goes on");
    stage.stop();
    nobody_left(&stage).await;
}

/// While nobody watched, the apply ended: how it ended stands on disk.
#[tokio::test(flavor = "multi_thread")]
async fn r7_1_what_ended_without_a_daemon_is_read_from_disk() {
    let mut stage = Stage::new(&slow("2s")).await;
    stage.serve();
    applying(&stage, "a").await;
    stage.kill();
    nobody_left(&stage).await;
    assert_eq!(stage.writes(), ["create a"]);
    stage.serve();
    stage.verdict("dev/b", Verdict::InSync).await;
    assert_eq!(stage.writes(), ["create a", "create b"]);
    // And how it failed as well: what fails is not tried again by itself.
    let fails = file("a", "2", "  delay = \"2s\"\n  fail = \"the disk is on fire\"");
    stage.push("main", &[fails]);
    applying(&stage, "a").await;
    stage.kill();
    nobody_left(&stage).await;
    stage.serve();
    let a = stage.verdict("dev/a", Verdict::Stalled).await;
    assert!(a.says().contains("the disk is on fire"), "{}", a.says());
}

/// A second daemon waits, and takes over at once when the first is dead.
#[tokio::test(flavor = "multi_thread")]
async fn r7_3_a_second_daemon_waits_and_takes_over_from_a_dead_one() {
    let mut stage = Stage::new(&slow("4s")).await;
    stage.serve();
    applying(&stage, "a").await;
    let (mut second, port) = stage.serve_another();
    let log = || std::fs::read_to_string(stage.place("another.log")).unwrap_or_default();
    stage.until("it waits", async || log().contains("another daemon has the lease").then_some(())).await;
    stage.kill();
    stage.port = port;
    stage.verdict("dev/b", Verdict::InSync).await;
    assert_eq!(stage.writes(), ["create a", "create b"]);
    drop(Command::new("kill").arg(second.id().to_string()).status());
    assert!(second.wait().unwrap().success());
    nobody_left(&stage).await;
}

/// A laptop that slept, a daemon that was stopped for an hour: another one takes over, and the first finds out.
#[tokio::test(flavor = "multi_thread")]
async fn r7_3_a_daemon_that_was_stopped_and_goes_on_does_nothing_twice() {
    let mut stage = Stage::new(&slow("6s")).await;
    stage.config["lease"] = json!("2s");
    stage.config["repository"]["poll"] = json!("1s");
    stage.serve();
    applying(&stage, "a").await;
    let (mut second, port) = stage.serve_another();
    stage.signal("STOP");
    let first = std::mem::replace(&mut stage.port, port);
    stage.verdict("dev/b", Verdict::InSync).await;
    assert!(std::fs::read_to_string(stage.place("another.log")).unwrap().contains("renews its lease no more"));
    stage.push("main", &[file("b", "2", "")]);
    stage.until("the second works on", async || (stage.world("b") == "2").then_some(())).await;
    stage.port = first;
    stage.signal("CONT");
    assert_eq!(stage.wait(), 1, "the first one ends with an error");
    assert!(stage.log().contains("another daemon has taken over"), "{}", stage.log());
    stage.port = port;
    stage.verdict("dev/b", Verdict::InSync).await;
    assert_eq!(stage.writes(), ["create a", "create b", "update b"]);
    drop(Command::new("kill").arg(second.id().to_string()).status());
    assert!(second.wait().unwrap().success());
    nobody_left(&stage).await;
}

/// `/cancel` interrupts tofu once and waits: what was done until then is in the state, and nothing is begun after it.
#[tokio::test(flavor = "multi_thread")]
async fn r5_5_cancel_ends_a_run_at_a_safe_point() {
    let mut files = slow("3s");
    let more = module(
        "a",
        "resource \"world_file\" \"a\" {\n  path = \"a\"\n  content = \"1\"\n  delay = \"3s\"\n}\nresource \"world_file\" \"later\" {\n  path = \"later\"\n  content = \"1\"\n  depends_on = [world_file.a]\n}",
    );
    files[3] = more;
    let mut stage = Stage::new(&files).await;
    stage.serve();
    stage.until("a resource is under way", async || stage.log().contains("world_file.a: Creating").then_some(())).await;
    let (code, out, err) = stage.run(&["cancel", "dev"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("`dev/a` was asked to stop") || out.contains("dev/a was asked to stop"), "{out}");
    let a = stage.verdict("dev/a", Verdict::Stalled).await;
    assert!(a.says().contains("cancelled by token:local"), "{}", a.says());
    assert_eq!(stage.writes(), ["create a"], "the resource that was under way is finished, and no other begun");
    let (code, _, err) = stage.run(&["cancel", "dev"]);
    assert_eq!(code, 1);
    assert!(err.contains("no run of what you mean is under way"), "{err}");
    let (code, out, err) = stage.run(&["apply", "dev", "--yes"]);
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(stage.writes(), ["create a", "create later", "create b"]);
    stage.stop();
    nobody_left(&stage).await;
}
