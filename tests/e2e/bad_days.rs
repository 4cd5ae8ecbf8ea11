//! Tests bad input and failing infrastructure: each has defined behaviour and loses no data.

use evenkeel::model::Verdict;
use serde_json::json;

use crate::stage::{Stage, component, environment, module};

fn file(name: &str, more: &str) -> (String, String) {
    module(name, &format!("resource \"world_file\" \"{name}\" {{\n  path = \"{name}\"\n{more}\n}}"))
}

fn two() -> Vec<(String, String)> {
    vec![
        environment("dev", "onMerge: apply, deferred: apply"),
        component("a", "dev", "root: tf/a", ""),
        component("b", "dev", "root: tf/b", ""),
        file("a", "  content = \"1\""),
        file("b", "  content = \"1\""),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_breaks_one_file_stalls_what_is_in_it_and_nothing_else() {
    let stage = Stage::start(&two()).await;
    stage.verdict("dev/a", Verdict::InSync).await;
    stage.verdict("dev/b", Verdict::InSync).await;
    let (path, text) = component("a", "dev", "root: tf/a", "");
    stage.push("main", &[(path.clone(), text.replace("tofu:", "tofu: [")), file("b", "  content = \"2\"")]);
    stage.until("b follows", async || (stage.world("b") == "2").then_some(())).await;
    let a = stage.verdict("dev/a", Verdict::Stalled).await;
    assert!(a.message().contains("may have been removed"), "{}", a.message());
    let pull = stage.pull("typo", &[(path.clone(), text.replace("root:", "rot:"))]).await;
    let comment = stage.comment(pull, "in the declarations").await;
    assert!(comment.contains("unknown field `rot`") && comment.contains("did you mean `root`?"), "{comment}");
    stage.check(pull, "evenkeel/plan", "failure").await;
    stage.push("main", &[(path, text)]);
    stage.verdict("dev/a", Verdict::InSync).await;
    assert_eq!(stage.writes().iter().filter(|line| line.ends_with(" a")).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_instances_on_one_backend_key_are_refused_by_name() {
    let mut files = two();
    let backend = |name: &str| (format!("tf/{name}/backend.tf"), "terraform {\n  backend \"local\" {}\n}\n".to_owned());
    files[1] = component("a", "dev", "root: tf/a, backendConfig: { path: /tmp/STATE }", "");
    files[2] = component("b", "dev", "root: tf/b, backendConfig: { path: /tmp/STATE }", "  dependsOn: [a]\n");
    let mut stage = Stage::new(&two()).await;
    let shared = stage.place("shared.tfstate").display().to_string();
    let mut files: Vec<(String, String)> =
        files.into_iter().map(|(path, text)| (path, text.replace("/tmp/STATE", &shared))).collect();
    files.extend([backend("a"), backend("b")]);
    stage.push("main", &files);
    stage.serve();
    stage.verdict("dev/a", Verdict::InSync).await;
    let b = stage.verdict("dev/b", Verdict::Stalled).await;
    assert!(b.message().contains("`dev/b` and `dev/a` keep their state in the same place"), "{}", b.message());
    assert_eq!(stage.writes(), ["create a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tofu_that_is_missing_hangs_or_speaks_no_json_is_named() {
    let mut stage = Stage::new(&two()).await;
    stage.config["tofu"] = json!({"binary": "/nonexistent/tofu"});
    let (code, out, err) = stage.run(&["doctor"]);
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("could not start `/nonexistent/tofu`"), "{out}");
    stage.config["tofu"] = json!({"binary": "true", "timeout": "5s"});
    stage.serve();
    let stalled = stage.verdict("dev/a", Verdict::Stalled).await;
    assert!(stalled.message().contains("could not be read"), "{}", stalled.message());
    stage.kill();
    let script = stage.place("hang");
    std::fs::write(&script, "#!/bin/sh\nexec sleep 600\n").unwrap();
    std::process::Command::new("chmod").arg("+x").arg(&script).status().unwrap();
    stage.config["tofu"] = json!({"binary": script, "timeout": "1s"});
    stage.serve();
    stage.ready().await;
    stage.push("main", &[file("a", "  content = \"2\"")]);
    let hanging = stage
        .until("the hang is named", async || {
            stage.instance("dev/a").await.filter(|i| i.message().contains("longer than 1 s"))
        })
        .await;
    assert_eq!(hanging.verdict, Verdict::Stalled);
    stage.kill();
    stage.config["tofu"] = json!({});
    stage.serve();
    stage.ready().await;
    stage.push("main", &[file("a", "  content = \"3\""), file("b", "  content = \"3\"")]);
    stage.verdict("dev/a", Verdict::InSync).await;
    stage.verdict("dev/b", Verdict::InSync).await;
    assert_eq!(stage.world("a"), "3");
}

#[tokio::test(flavor = "multi_thread")]
async fn diagnostics_name_the_place_in_the_module() {
    let mut files = two();
    files[3] = file("a", "  content = nonsense.x");
    let stage = Stage::start(&files).await;
    let a = stage.verdict("dev/a", Verdict::Stalled).await;
    assert!(a.message().contains("main.tf:8: "), "{}", a.message());
    stage.verdict("dev/b", Verdict::InSync).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_cannot_be_reached_is_unknown_and_never_empty() {
    let mut stage = Stage::new(&two()).await;
    let url = stage.config["repository"]["url"].clone();
    stage.config["repository"] = json!({"url": "http://127.0.0.1:1/acme/infra.git", "poll": "1s"});
    stage.serve();
    let status =
        stage.until("the reason is said", async || stage.status().await.filter(|status| status.reason.is_some())).await;
    assert_eq!(status.verdict, Verdict::Unknown);
    let (code, out, _) = stage.run(&["status"]);
    assert_eq!(code, 3, "{out}");
    let ready = stage.http().get(format!("http://127.0.0.1:{}/readyz", stage.port)).send().await.unwrap();
    assert_eq!(ready.status(), 503);
    stage.kill();
    stage.config["repository"] = json!({"url": url});
    stage.serve();
    stage.verdict("dev/a", Verdict::InSync).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_lock_is_reported_with_its_owner() {
    let mut files = two();
    files.truncate(4);
    files.remove(2);
    let mut stage = Stage::new(&two()).await;
    stage.config["tofu"] = json!({"lockTimeout": "1s"});
    let state = stage.place("a.tfstate").display().to_string();
    let backend =
        ("tf/a/backend.tf".to_owned(), format!("terraform {{\n  backend \"local\" {{ path = \"{state}\" }}\n}}\n"));
    stage.push("main", &[backend]);
    // A user slowly applies the same module from another folder.
    let by_hand = stage.place("by-hand");
    std::fs::create_dir_all(&by_hand).unwrap();
    let text = format!(
        "terraform {{\n  required_providers {{\n    world = {{ source = \"evenkeel/world\" }}\n  }}\n  backend \"local\" {{ path = \"{state}\" }}\n}}\nresource \"world_file\" \"slow\" {{\n  path = \"slow\"\n  content = \"1\"\n  delay = \"20s\"\n}}\n"
    );
    std::fs::write(by_hand.join("main.tf"), text).unwrap();
    let tofu = |arguments: &[&str]| {
        let mut command = std::process::Command::new("tofu");
        command
            .args(arguments)
            .current_dir(&by_hand)
            .envs(crate::stage::tools())
            .env("WORLD_ROOT", stage.place("world"))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        command
    };
    assert!(tofu(&["init"]).status().unwrap().success());
    let mut slow = tofu(&["apply", "-auto-approve"]).spawn().unwrap();
    stage.until("the lock is held", async || stage.place(".a.tfstate.lock.info").exists().then_some(())).await;
    stage.serve();
    let a = stage.verdict("dev/a", Verdict::Stalled).await;
    drop(slow.kill());
    drop(slow.wait());
    assert!(a.message().contains("the state of `dev/a` is locked by "), "{}", a.message());
    assert!(a.message().contains("OperationTypeApply"), "{}", a.message());
    stage.verdict("dev/b", Verdict::InSync).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_protected_or_over_a_limit_is_not_destroyed() {
    let mut files = two();
    files[1] = component("a", "dev", "root: tf/a", "  protect: [world_file.a]\n");
    let stage = Stage::start(&files).await;
    stage.verdict("dev/a", Verdict::InSync).await;
    stage.verdict("dev/b", Verdict::InSync).await;
    let renamed = |name: &str| {
        module(name, &format!("resource \"world_file\" \"{name}\" {{\n  path = \"moved\"\n  content = \"1\"\n}}"))
    };
    let pull = stage.pull("move", &[renamed("a"), renamed("b")]).await;
    let plan = stage.comment(pull, "### Plan for `dev`").await;
    assert!(plan.contains("`world_file.a` of `dev/a` is protected and would be replaced"), "{plan}");
    assert!(plan.contains("`limits.replaces` allows 0"), "{plan}");
    stage.check(pull, "evenkeel/plan", "failure").await;
    stage.merge("lin", pull).await;
    let a = stage.verdict("dev/a", Verdict::Stalled).await;
    assert!(a.message().contains("is protected"), "{}", a.message());
    let b = stage.verdict("dev/b", Verdict::Stalled).await;
    assert!(b.message().contains("is protected"), "the run is stopped as a whole: {}", b.message());
    assert_eq!(stage.writes().len(), 2, "nothing was replaced");
}

/// No sensitive value appears anywhere: store, logs, comments, branches, pages, metrics, API.
#[tokio::test(flavor = "multi_thread")]
async fn r2_3_a_canary_appears_nowhere() {
    const CANARY: &str = "canary-8f3a61c2d4";
    let secret = |n: u32| {
        module(
            "vault",
            &format!(
                "variable \"fail\" {{ default = null }}\nresource \"world_file\" \"vault\" {{\n  path = \"vault\"\n  content = \"{n}\"\n  secret = format(\"%s%s\", \"canary-\", \"8f3a61c2d4\")\n  fail = var.fail\n}}\noutput \"password\" {{\n  value = world_file.vault.secret\n  sensitive = true\n}}"
            ),
        )
    };
    let user = |fail: &str| {
        module(
            "user",
            &format!(
                "variable \"password\" {{ sensitive = true }}\nresource \"world_file\" \"user\" {{\n  path = \"user\"\n  content = \"static\"\n  secret = var.password\n  fail = {fail}\n}}"
            ),
        )
    };
    let files = vec![
        environment("dev", "onMerge: apply, deferred: apply"),
        component("vault", "dev", "root: tf/vault", ""),
        component("user", "dev", "root: tf/user, variables: { password: \"${vault.outputs.password}\" }", ""),
        secret(1),
        user("null"),
    ];
    let stage = Stage::start(&files).await;
    stage.verdict("dev/user", Verdict::InSync).await;
    assert_eq!(stage.world("user.secret"), CANARY, "the secret reached where it belongs");
    std::fs::write(stage.place("world/user.secret"), "tampered").unwrap();
    stage.drift("dev");
    let proposal = stage.proposal().await;
    stage.merge("lin", proposal["number"].as_u64().unwrap()).await;
    stage.until("it is back", async || (stage.world("user.secret") == CANARY).then_some(())).await;
    // The provider puts the secret into its error.
    let pull = stage.pull("leak", &[user("\"login with ${nonsensitive(var.password)} failed\""), secret(2)]).await;
    stage.comment(pull, "### Plan for `dev`").await;
    stage.merge("lin", pull).await;
    let stalled = stage.verdict("dev/user", Verdict::Stalled).await;
    assert!(stalled.message().contains("failed"), "{}", stalled.message());
    let mut texts = vec![
        ("explain".to_owned(), stage.run(&["explain", "dev/user"]).1),
        ("journal".into(), stage.run(&["journal"]).1),
        ("plan".into(), stage.run(&["plan", "dev", "--output", "json"]).1),
    ];
    for path in [
        "/api/v1/status",
        "/api/v1/runs",
        "/api/v1/journal",
        "/api/v1/plans",
        "/api/v1/audit",
        "/api/v1/instances/dev/user",
    ] {
        texts.push((path.to_owned(), stage.get(path).await.to_string()));
    }
    texts.push((
        "metrics".into(),
        stage
            .http()
            .get(format!("http://127.0.0.1:{}/metrics", stage.port))
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap(),
    ));
    for pull in 1..=2 {
        texts.push((
            format!("page {pull}"),
            stage
                .http()
                .get(format!("http://{}/acme/infra/pull/{pull}", stage.forge.address))
                .send()
                .await
                .unwrap()
                .text()
                .await
                .unwrap(),
        ));
    }
    for name in ["daemon.log", "data/evenkeel.db", "data/evenkeel.db-wal", "forge/forge.json"] {
        texts.push((
            name.into(),
            String::from_utf8_lossy(&std::fs::read(stage.place(name)).unwrap_or_default()).into_owned(),
        ));
    }
    let objects = std::process::Command::new("sh")
        .arg("-c")
        .arg("git cat-file --batch-all-objects --batch")
        .current_dir(stage.place("forge/repository.git"))
        .output()
        .unwrap();
    texts.push(("the repository's objects".into(), String::from_utf8_lossy(&objects.stdout).into_owned()));
    for (name, text) in texts {
        assert!(!text.is_empty(), "{name} is empty");
        // The declaration joins the canary from two halves, so that only a value can contain the whole.
        assert!(!text.contains(CANARY), "the canary appears in {name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_folder_is_refused_clearly() {
    let mut other = Stage::new(&two()).await;
    other.config["data"] = json!("/proc/nowhere");
    let (code, _, err) = other.run(&["serve"]);
    assert_eq!(code, 1);
    assert!(err.contains("could not use the folder of data"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tofu_that_is_killed_half_way_stalls_and_apply_again_leads_out() {
    let mut files = two();
    files[3] = file("a", "  content = \"1\"\n  delay = \"15s\"");
    let stage = Stage::start(&files).await;
    let pid = stage.until("the apply is under way", async || {
        let output = std::process::Command::new("pgrep")
            .args(["-f", &format!("tofu apply.*{}/work/dev/a/", stage.place("data").display())])
            .output()
            .ok()?;
        String::from_utf8_lossy(&output.stdout).lines().next()?.parse::<i32>().ok()
    });
    let pid = pid.await;
    assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    let a = stage.verdict("dev/a", Verdict::Stalled).await;
    assert!(a.message().contains("was killed"), "{}", a.message());
    stage.verdict("dev/b", Verdict::InSync).await;
    stage.push("main", &[file("a", "  content = \"2\"")]);
    stage.verdict("dev/a", Verdict::InSync).await;
    assert_eq!(stage.world("a"), "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_are_asked_after_an_apply_and_on_every_pass() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut files = two();
    let checked = |timeout: &str| {
        component(
            "a",
            "dev",
            "root: tf/a",
            &format!("  checks: [{{ name: gateway, tcp: \"127.0.0.1:{port}\", timeout: {timeout} }}]\n"),
        )
    };
    files[1] = checked("20s");
    let stage = Stage::start(&files).await;
    stage.verdict("dev/a", Verdict::InSync).await;
    drop(listener);
    stage.push("main", &[checked("1s")]);
    stage.until("the shorter limit holds", async || stage.drift("dev/a").1.contains("within 1 s").then_some(())).await;
    let a = stage.verdict("dev/a", Verdict::Stalled).await;
    assert!(a.message().contains("check `gateway`") && a.message().contains("did not answer"), "{}", a.message());
    let _again = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    stage.drift("dev/a");
    stage.verdict("dev/a", Verdict::InSync).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r1_10_a_state_that_would_be_kept_elsewhere_is_refused() {
    let stage = Stage::start(&two()).await;
    stage.verdict("dev/a", Verdict::InSync).await;
    let elsewhere = stage.place("elsewhere.tfstate").display().to_string();
    let backend =
        ("tf/a/backend.tf".to_owned(), format!("terraform {{\n  backend \"local\" {{ path = \"{elsewhere}\" }}\n}}\n"));
    let pull = stage.pull("move", std::slice::from_ref(&backend)).await;
    let plan = stage.comment(pull, "### Plan for `dev`").await;
    assert!(plan.contains("would be kept elsewhere"), "{plan}");
    stage.check(pull, "evenkeel/plan", "failure").await;
    stage.merge("lin", pull).await;
    let a = stage.verdict("dev/a", Verdict::Stalled).await;
    assert!(a.message().contains("would be kept elsewhere"), "{}", a.message());
    assert_eq!(
        stage.writes().iter().filter(|line| line.ends_with(" a")).count(),
        1,
        "nothing is created a second time"
    );
    stage.push("main", &[(backend.0, String::new())]);
    stage.verdict("dev/a", Verdict::InSync).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_repository_is_watched_and_needs_no_forge() {
    let mut stage = Stage::new(&two()).await;
    let path = stage.place("forge/repository.git").display().to_string();
    stage.config["repository"] = json!({"url": path, "poll": "1h"});
    stage.config.as_object_mut().unwrap().remove("github");
    stage.serve();
    stage.verdict("dev/a", Verdict::InSync).await;
    stage.push("main", &[file("a", "  content = \"2\"")]);
    stage.until("the push is seen without a poll", async || (stage.world("a") == "2").then_some(())).await;
    stage.stop();
    stage.config["repository"] = json!({"url": format!("file://{path}"), "poll": "1h"});
    stage.serve();
    stage.verdict("dev/a", Verdict::InSync).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_refuses_to_start_and_goes_on_with_room() {
    let mut stage = Stage::new(&two()).await;
    let small = stage.place("small");
    std::fs::create_dir_all(&small).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m", "none"])
        .arg(&small)
        .status()
        .is_ok_and(|status| status.success());
    assert!(mounted, "this test mounts a tmpfs and needs the right to");
    stage.config["data"] = json!(small.join("data"));
    // The failed write fills the disk completely.
    assert!(std::fs::write(small.join("ballast"), vec![0; 9 << 20]).is_err());
    let (code, _, err) = stage.run(&["serve"]);
    assert_eq!(code, 1, "{err}");
    assert!(["full", "No space left"].iter().any(|sign| err.contains(sign)), "{err}");
    assert_eq!(stage.writes(), Vec::<String>::new(), "nothing is done that can't be recorded");
    std::fs::remove_file(small.join("ballast")).unwrap();
    stage.serve();
    stage.ready().await;
    stage.push("main", &[file("a", "  content = \"2\""), file("b", "  content = \"2\"")]);
    stage.verdict("dev/a", Verdict::InSync).await;
    stage.verdict("dev/b", Verdict::InSync).await;
    stage.kill();
    drop(std::process::Command::new("umount").arg(&small).status());
}
