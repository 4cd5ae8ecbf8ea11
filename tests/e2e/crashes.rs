//! Kills, suspends and disconnects real processes: nothing is lost and nothing happens twice.

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{Method, StatusCode},
    routing::any,
};
use evenkeel::model::Verdict;
use serde_json::{Value, json};

use crate::stage::{Stage, component, environment, module};

fn file(name: &str, content: &str, more: &str) -> (String, String) {
    let text =
        format!("resource \"world_file\" \"{name}\" {{\n  path = \"{name}\"\n  content = \"{content}\"\n{more}\n}}");
    module(name, &text)
}

/// Returns a slow component, and one that depends on it.
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

/// tofu-controller kills its runner with itself and leaves the lock (its #531, #1876). Here the apply continues
/// without the daemon, and the next daemon resumes reporting.
#[tokio::test(flavor = "multi_thread")]
async fn r7_1_an_apply_outlives_the_daemon_and_the_next_one_attaches() {
    let mut stage = Stage::new(&slow("4s")).await;
    stage.serve();
    let tofu = applying(&stage, "a").await;
    stage.kill();
    assert!(stage.processes("apply -json").iter().any(|(pid, _)| *pid == tofu), "it goes on");
    stage.serve();
    stage.until("the daemon attaches", async || stage.log().contains("kind=\"tofu-attached\"").then_some(())).await;
    assert!(stage.processes("apply -json").iter().any(|(pid, _)| *pid == tofu), "the same one");
    stage.verdict("dev/b", Verdict::InSync).await;
    assert_eq!(stage.writes(), ["create a", "create b"]);
    let (_, journal, _) = stage.run(&["journal"]);
    let count = |what: &str| journal.lines().filter(|line| line.contains("dev/a") && line.contains(what)).count();
    assert_eq!((count("started action"), count("finished"), count("interrupted")), (1, 1, 0), "{journal}");
    assert!(stage.log().contains("world_file.a: Creation complete"), "progress goes on");
    stage.stop();
    nobody_left(&stage).await;
}

/// The apply ended while no daemon ran: its end is recorded on disk.
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
    // A failure is recorded too, and a failed action is not retried automatically.
    let fails = file("a", "2", "  delay = \"2s\"\n  fail = \"the disk is on fire\"");
    stage.push("main", &[fails]);
    applying(&stage, "a").await;
    stage.kill();
    nobody_left(&stage).await;
    stage.serve();
    let a = stage.verdict("dev/a", Verdict::Stalled).await;
    assert!(a.message().contains("the disk is on fire"), "{}", a.message());
}

/// A second daemon waits, and takes over at once when the first is dead.
#[tokio::test(flavor = "multi_thread")]
async fn r7_3_a_second_daemon_waits_and_takes_over_from_a_dead_one() {
    let mut stage = Stage::new(&slow("4s")).await;
    stage.serve();
    applying(&stage, "a").await;
    let (mut second, port) = stage.serve_another();
    let log = || std::fs::read_to_string(stage.place("another.log")).unwrap_or_default();
    stage.until("it waits", async || log().contains("kind=\"lease-waits\"").then_some(())).await;
    stage.kill();
    stage.port = port;
    stage.verdict("dev/b", Verdict::InSync).await;
    assert_eq!(stage.writes(), ["create a", "create b"]);
    drop(Command::new("kill").arg(second.id().to_string()).status());
    assert!(second.wait().unwrap().success());
    nobody_left(&stage).await;
}

/// A daemon was suspended for an hour, like a sleeping laptop: another one takes over, and the first detects it.
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
    assert!(std::fs::read_to_string(stage.place("another.log")).unwrap().contains("kind=\"lease-taken\""));
    stage.push("main", &[file("b", "2", "")]);
    stage.until("the second works on", async || (stage.world("b") == "2").then_some(())).await;
    stage.port = first;
    stage.signal("CONT");
    assert_eq!(stage.wait(), 1, "the first one ends with an error");
    assert!(stage.log().contains("kind=\"lease-lost\""), "{}", stage.log());
    stage.port = port;
    stage.verdict("dev/b", Verdict::InSync).await;
    assert_eq!(stage.writes(), ["create a", "create b", "update b"]);
    drop(Command::new("kill").arg(second.id().to_string()).status());
    assert!(second.wait().unwrap().success());
    nobody_left(&stage).await;
}

/// `/cancel` interrupts tofu once and waits: the state contains the completed changes, and no further action
/// begins.
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
    assert!(a.message().contains("cancelled by token:local"), "{}", a.message());
    assert_eq!(stage.writes(), ["create a"], "the resource that was under way is finished, and no other begun");
    let (code, _, err) = stage.run(&["cancel", "dev"]);
    assert_eq!(code, 1);
    assert!(err.contains("no run is in progress on the selection"), "{err}");
    let (code, out, err) = stage.run(&["apply", "dev", "--yes"]);
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(stage.writes(), ["create a", "create later", "create b"]);
    stage.stop();
    nobody_left(&stage).await;
}

/// A state backend whose locks persist until they are released, as those of buckets do.
#[derive(Clone, Default)]
struct States(Arc<Mutex<BTreeMap<String, Kept>>>);

/// The text of a state, and its lock.
type Kept = (Bytes, Option<Value>);

impl States {
    async fn serve(&self) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = Router::new().route("/{name}", any(answer)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        port
    }
    fn lock(&self, name: &str) -> Option<Value> {
        self.0.lock().unwrap().get(name).and_then(|(_, lock)| lock.clone())
    }
}

async fn answer(
    State(states): State<States>,
    Path(name): Path<String>,
    method: Method,
    body: Bytes,
) -> (StatusCode, Bytes) {
    let mut all = states.0.lock().unwrap();
    let (text, lock) = all.entry(name).or_default();
    match method.as_str() {
        "LOCK" => match lock {
            Some(lock) => (StatusCode::LOCKED, lock.to_string().into()),
            None => {
                *lock = serde_json::from_slice(&body).ok();
                (StatusCode::OK, Bytes::new())
            }
        },
        "UNLOCK" => {
            *lock = None;
            (StatusCode::OK, Bytes::new())
        }
        "POST" => {
            *text = body;
            (StatusCode::OK, Bytes::new())
        }
        _ if text.is_empty() => (StatusCode::NOT_FOUND, Bytes::new()),
        _ => (StatusCode::OK, text.clone()),
    }
}

async fn with_locks(delay: &str) -> (Stage, States) {
    let states = States::default();
    let port = states.serve().await;
    let mut files = slow(delay);
    let address = format!("http://127.0.0.1:{port}/a");
    let settings = format!(
        "root: tf/a, backendConfig: {{ address: \"{address}\", lock_address: \"{address}\", unlock_address: \"{address}\" }}"
    );
    files[1] = component("a", "dev", &settings, "");
    files.push(("tf/a/backend.tf".to_owned(), "terraform {\n  backend \"http\" {}\n}\n".to_owned()));
    let mut stage = Stage::new(&files).await;
    stage.config["tofu"] = json!({"lockTimeout": "1s"});
    (stage, states)
}

/// A machine that is lost during an apply leaves the lock of a bucket behind. The daemon proves the owner of the
/// lock and releases it; tofu-controller needs an option that breaks any lock (its #1876).
#[tokio::test(flavor = "multi_thread")]
async fn r7_4_the_lock_of_a_killed_apply_is_released() {
    let (mut stage, states) = with_locks("60s").await;
    stage.serve();
    stage.until("a resource is under way", async || stage.log().contains("world_file.a: Creating").then_some(())).await;
    let lock = states.lock("a").expect("tofu holds the lock");
    stage.kill();
    for (pid, _) in stage.processes("") {
        drop(Command::new("kill").args(["-9", &pid.to_string()]).status());
    }
    nobody_left(&stage).await;
    assert_eq!(states.lock("a"), Some(lock), "and nobody released it");
    stage.push("main", &[file("a", "1", "")]);
    stage.serve();
    stage.verdict("dev/b", Verdict::InSync).await;
    assert_eq!(stage.writes(), ["create a", "create b"]);
    assert!(stage.log().contains("kind=\"state-lock-released\""), "{}", stage.log());
    assert_eq!(states.lock("a"), None);
}

/// A foreign lock is never released without a command, and `/unlock` is refused while a run uses the target.
#[tokio::test(flavor = "multi_thread")]
async fn r5_5_a_lock_of_somebody_else_waits_for_unlock() {
    let (mut stage, states) = with_locks("3s").await;
    let theirs = json!({"ID": "f0e1", "Operation": "OperationTypeApply", "Info": "", "Who": "ann@laptop", "Version": "1.10.7", "Created": "2026-11-20T01:02:03Z", "Path": ""});
    states.0.lock().unwrap().insert("a".into(), (Bytes::new(), Some(theirs.clone())));
    stage.serve();
    let a = stage.verdict("dev/a", Verdict::Stalled).await;
    assert!(a.message().contains("is locked by ann@laptop since 2026-11-20"), "{}", a.message());
    assert_eq!(states.lock("a"), Some(theirs));
    let (code, out, err) = stage.run(&["unlock", "dev/a"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("was locked by ann@laptop"), "{out}");
    assert_eq!(states.lock("a"), None);
    let apply = stage.command(&["apply", "dev/a", "--yes"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    applying(&stage, "a").await;
    let (code, _, err) = stage.run(&["unlock", "dev/a"]);
    assert_eq!(code, 1);
    assert!(err.contains("works on `dev/a`") || err.contains("works on dev/a"), "{err}");
    assert!(apply.unwrap().wait().unwrap().success());
    assert_eq!(stage.world("a"), "1");
}

/// In a container, the init process outlives the daemon, restarts it, and lets its programs finish.
#[tokio::test(flavor = "multi_thread")]
async fn r7_1_in_a_container_the_first_process_keeps_what_was_begun() {
    let stage = Stage::new(&slow("4s")).await;
    let serve = stage.command(&["supervise", "--", "serve"]);
    let log = std::fs::OpenOptions::new().create(true).append(true).open(stage.place("daemon.log")).unwrap();
    // A new pid namespace, in which the process has pid 1.
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).arg(serve.get_program());
    let arguments: Vec<_> =
        serve.get_args().filter(|argument| *argument != "--config").map(ToOwned::to_owned).collect();
    let config = arguments.last().unwrap().clone();
    command.args(&arguments[..arguments.len() - 1]).arg("--config").arg(config);
    let mut first = command.envs(crate::stage::tools()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let tofu = applying(&stage, "a").await;
    let daemon =
        |stage: &Stage| stage.processes("serve --config").into_iter().find(|(_, line)| !line.contains("supervise"));
    let (before, _) = daemon(&stage).unwrap();
    assert!(Command::new("kill").args(["-9", &before.to_string()]).status().unwrap().success());
    stage.until("the daemon is started again", async || daemon(&stage).filter(|(pid, _)| *pid != before)).await;
    assert!(stage.processes("apply -json").iter().any(|(pid, _)| *pid == tofu), "the apply goes on");
    stage.verdict("dev/b", Verdict::InSync).await;
    assert_eq!(stage.writes(), ["create a", "create b"]);
    let (init, _) =
        stage.processes("supervise -- serve").into_iter().find(|(_, line)| !line.contains("unshare")).unwrap();
    assert!(Command::new("kill").arg(init.to_string()).status().unwrap().success());
    assert!(first.wait().unwrap().success());
    nobody_left(&stage).await;
}
