//! Tests that incidents of other tools do not happen here.
//!
//! Further incidents are in the module of their subject.
//!
//! Applies of an older push and before the plan: `conversation`. Killed runners and their locks: `crashes`,
//! `kills`. Secrets in errors: `bad_days`. Malformed and oversized bodies: `webhooks`, and `outside` of the
//! suite.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::StatusCode,
    response::Response,
};
use evenkeel::model::Verdict;
use serde_json::json;

use crate::stage::{Stage, component, environment, module};

fn file(name: &str, content: &str) -> (String, String) {
    module(name, &format!("resource \"world_file\" \"{name}\" {{\n  path = \"{name}\"\n  content = {content}\n}}"))
}

fn one(content: &str) -> Vec<(String, String)> {
    vec![environment("dev", "onMerge: apply"), component("a", "dev", "root: tf/a", ""), file("a", content)]
}

/// Atlantis GHSA-rjh2: a shell interpreted names of branches and files. Evenkeel uses no shell: names arrive
/// unchanged, and no part of them is executed.
#[tokio::test(flavor = "multi_thread")]
async fn atlantis_ghsa_rjh2_nothing_that_somebody_writes_reaches_a_shell() {
    const HOSTILE: [&str; 8] = [
        "a;touch pwned",
        "a&&touch pwned",
        "$(touch pwned)",
        "`touch pwned`",
        "a|touch pwned",
        "-out=pwned",
        "~/x",
        "a\nb",
    ];
    let text = "variable \"hostile\" { type = list(string) }\nresource \"world_file\" \"a\" {\n  path = \"a\"\n  content = jsonencode(var.hostile)\n}";
    let spec =
        format!("root: tf/a, variables: {{ hostile: {} }}, varFiles: [\"tf/a;touch pwned.tfvars\"]", json!(HOSTILE));
    let files = vec![
        environment("dev", "onMerge: apply"),
        component("a", "dev", &spec, ""),
        module("a", text),
        ("tf/a;touch pwned.tfvars".to_owned(), "hostile = []\n".to_owned()),
    ];
    let stage = Stage::start(&files).await;
    stage.verdict("dev/a", Verdict::InSync).await;
    let found: Vec<String> = serde_json::from_str(&stage.world("a")).unwrap();
    assert_eq!(found, HOSTILE);
    let pull = stage
        .pull("x;touch${IFS}pwned", &[component("a", "dev", &spec.replace("a;touch pwned\"", "b;touch pwned\""), "")])
        .await;
    stage.comment(pull, "### Plan for `dev`").await;
    stage.say("lin", pull, "/plan $(touch pwned); `touch pwned`").await;
    stage
        .until("an answer", async || {
            stage.comments(pull).await.iter().any(|body| body.contains("answer to=")).then_some(())
        })
        .await;
    let everywhere = std::process::Command::new("find").arg(stage.place("")).args(["-name", "pwned"]).output().unwrap();
    assert!(everywhere.stdout.is_empty(), "{}", String::from_utf8_lossy(&everywhere.stdout));
    assert!(!std::path::Path::new("pwned").exists());
}

/// Argo CD CVE-2022-24904 and CVE-2022-31036, Flux CVE-2022-24877: links and paths in a repository led to secrets
/// of the machine. Here they are refused at their position, and no file outside is read.
#[tokio::test(flavor = "multi_thread")]
async fn argo_cve_2022_24904_links_and_paths_do_not_leave_the_repository() {
    let stage = Stage::start(&one("\"1\"")).await;
    stage.verdict("dev/a", Verdict::InSync).await;
    let secret = stage.place("secret");
    std::fs::write(&secret, "hostile = \"canary-8f3a61c2d4\"\n").unwrap();
    for (branch, spec) in
        [("up", "root: ../../.."), ("rooted", "root: /etc"), ("vars", "root: tf/a, varFiles: [../../secret]")]
    {
        let pull = stage.pull(branch, &[component("a", "dev", spec, "")]).await;
        stage.check(pull, "evenkeel/plan", "failure").await;
        let comment = stage.comment(pull, "repository").await;
        assert!(!comment.contains("canary"), "{comment}");
    }
    let work = stage.place("checkout");
    std::os::unix::fs::symlink(&secret, work.join("tf/a/leak.auto.tfvars")).unwrap();
    let pull = stage.pull("link", &[file("a", "\"2\"")]).await;
    let comment = stage.comment(pull, "leads out of the repository").await;
    assert!(!comment.contains("canary"), "{comment}");
    stage.check(pull, "evenkeel/plan", "failure").await;
    stage.merge("lin", pull).await;
    stage.verdict("dev/a", Verdict::Stalled).await;
    assert_eq!(stage.world("a"), "1", "nothing of it is applied");
}

/// A proxy before a failing forge: every fourth response is an error, a rate limit, or cut off.
async fn bad(State((forge, count)): State<(std::net::SocketAddr, Arc<AtomicUsize>)>, request: Request) -> Response {
    let number = count.fetch_add(1, Ordering::Relaxed);
    let answer =
        |status: StatusCode, text: &'static str| Response::builder().status(status).body(Body::from(text)).unwrap();
    // Pseudo-random numbers, so that the failures do not align with the daemon's requests.
    let number = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) % 16;
    match number {
        0 => return answer(StatusCode::INTERNAL_SERVER_ERROR, "{\"message\": \"Server Error\"}"),
        2 => {
            let mut limited = answer(StatusCode::TOO_MANY_REQUESTS, "{\"message\": \"API rate limit exceeded\"}");
            limited.headers_mut().insert("retry-after", "1".parse().unwrap());
            return limited;
        }
        4 => {
            let mut limited =
                answer(StatusCode::FORBIDDEN, "{\"message\": \"You have exceeded a secondary rate limit.\"}");
            limited.headers_mut().insert("retry-after", "1".parse().unwrap());
            return limited;
        }
        _ => {}
    }
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 24).await.unwrap();
    let url = format!("http://{forge}{}", parts.uri.path_and_query().unwrap());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut headers = parts.headers.clone();
    headers.remove("host");
    let upstream = client.request(parts.method, url).headers(headers).body(body).send().await.unwrap();
    let mut response = Response::builder().status(upstream.status());
    for (name, value) in
        upstream.headers().iter().filter(|(name, _)| *name != "content-length" && *name != "transfer-encoding")
    {
        response = response.header(name, value);
    }
    let content = upstream.bytes().await.unwrap();
    if number == 6 && content.len() > 2 {
        // Half a response: the request was executed, and the client does not know.
        let half = content.slice(..content.len() / 2);
        let cut = futures::stream::iter([Ok::<Bytes, std::io::Error>(half), Err(std::io::Error::other("cut off"))]);
        return response.body(Body::from_stream(cut)).unwrap();
    }
    response.body(Body::from(content)).unwrap()
}

/// A forge responds with 500, 429, its secondary limit, or half a response to an executed request: the result is
/// the same, and every comment is written once.
#[tokio::test(flavor = "multi_thread")]
async fn r7_2_a_forge_on_a_bad_day_is_told_everything_once() {
    let mut stage = Stage::new(&one("\"1\"")).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().fallback(bad).with_state((stage.forge.address, Arc::new(AtomicUsize::new(0))));
    tokio::spawn(async move { axum::serve(listener, router).await });
    stage.config["github"]["baseUrl"] = json!(format!("http://{address}"));
    stage.config["repository"]["poll"] = json!("2s");
    stage.serve();
    stage.verdict("dev/a", Verdict::InSync).await;
    let pull = stage.pull("two", &[file("a", "\"2\"")]).await;
    stage.comment(pull, "### Plan for `dev`").await;
    stage.merge("lin", pull).await;
    stage.comment(pull, "### Applied · `dev`").await;
    stage.check(pull, "evenkeel/apply/dev", "success").await;
    std::fs::write(stage.place("world/a"), "by hand").unwrap();
    stage.drift("dev");
    let proposal = stage.proposal().await;
    stage.merge("lin", proposal["number"].as_u64().unwrap()).await;
    stage.until("the world is back", async || (stage.world("a") == "2").then_some(())).await;
    let all = stage.comments(pull).await;
    for begins in ["### Plan for", "### Applied"] {
        assert_eq!(all.iter().filter(|body| body.starts_with(begins)).count(), 1, "{all:#?}");
    }
    assert_eq!(stage.writes(), ["create a", "update a", "update a"]);
}

/// Atlantis relied on deliveries alone for months. Here all deliveries may be lost, or each may arrive a hundred
/// times.
#[tokio::test(flavor = "multi_thread")]
async fn r7_5_deliveries_are_lost_or_come_a_hundred_times() {
    let mut stage = Stage::new(&one("\"1\"")).await;
    stage.config["repository"]["poll"] = json!("1s");
    // No delivery of the forge is authentic, so all of them are lost.
    std::fs::write(stage.place("hook"), "another secret").unwrap();
    stage.serve();
    stage.verdict("dev/a", Verdict::InSync).await;
    let pull = stage.pull("two", &[file("a", "\"2\"")]).await;
    stage.comment(pull, "### Plan for `dev`").await;
    stage.merge("lin", pull).await;
    stage.until("it is applied", async || (stage.world("a") == "2").then_some(())).await;
    let body = b"{\"ref\": \"refs/heads/main\"}".to_vec();
    let signature = crate::webhooks::sign_with(b"another secret", &body);
    let sends = (0..100).map(|_| {
        let request = stage.http().post(format!("http://127.0.0.1:{}/webhooks/github", stage.port));
        let request = request
            .header("X-GitHub-Event", "push")
            .header("X-GitHub-Delivery", "same")
            .header("X-Hub-Signature-256", &signature);
        request.body(body.clone()).send()
    });
    let answers = futures::future::join_all(sends).await;
    assert!(answers.into_iter().all(|answer| answer.unwrap().status().is_success()));
    stage.verdict("dev/a", Verdict::InSync).await;
    assert_eq!(stage.writes(), ["create a", "update a"]);
    let metrics = stage.http().get(format!("http://127.0.0.1:{}/metrics", stage.port)).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    assert!(
        metrics.lines().any(|line| line.starts_with("evenkeel_webhooks_total") && line.ends_with(" 1")),
        "{metrics}"
    );
}

/// A damaged or locked store is refused with a reason, `doctor` names the fix, and a copy from the running daemon
/// restores it.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_is_refused_and_a_copy_restores_it() {
    let mut stage = Stage::start(&one("\"1\"")).await;
    stage.verdict("dev/a", Verdict::InSync).await;
    let copy = stage.place("copy.db").display().to_string();
    let (code, out, err) = stage.run(&["doctor", "--copy-store", &copy]);
    assert_eq!(code, 0, "{out}{err}");
    stage.kill();
    let store = stage.place("data/evenkeel.db");
    // Damage the middle of its pages, as a disk does.
    let mut bytes = std::fs::read(&copy).unwrap();
    let pages = 3 * 4096..bytes.len() - 4096;
    bytes[pages].fill(b'x');
    for end in ["-wal", "-shm"] {
        drop(std::fs::remove_file(stage.place(&format!("data/evenkeel.db{end}"))));
    }
    std::fs::write(&store, bytes).unwrap();
    let (code, _, err) = stage.run(&["serve"]);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("evenkeel doctor"), "{err}");
    let (code, out, _) = stage.run(&["doctor"]);
    assert_eq!(code, 1);
    assert!(out.contains("copy"), "{out}");
    for end in ["", "-wal", "-shm"] {
        drop(std::fs::remove_file(stage.place(&format!("data/evenkeel.db{end}"))));
    }
    std::fs::copy(&copy, &store).unwrap();
    stage.serve();
    stage.verdict("dev/a", Verdict::InSync).await;
    stage.push("main", &[file("a", "\"2\"")]);
    stage.until("it goes on", async || (stage.world("a") == "2").then_some(())).await;
    assert_eq!(stage.writes(), ["create a", "update a"]);
}
