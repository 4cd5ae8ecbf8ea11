//! Tests webhooks: size limit, authentication over raw bytes, deduplication.

use evenkeel::model::Verdict;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::stage::{Stage, component, environment, module};

fn sign(body: &[u8]) -> String {
    sign_with(b"hook", body)
}

pub(crate) fn sign_with(secret: &[u8], body: &[u8]) -> String {
    let mut mac = <Hmac<Sha256>>::new_from_slice(secret).unwrap();
    mac.update(body);
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

#[tokio::test(flavor = "multi_thread")]
async fn r7_5_a_webhook_wakes_and_nothing_else() {
    let files = [
        environment("dev", "onMerge: apply"),
        component("a", "dev", "root: tf/a", ""),
        module("a", "resource \"world_file\" \"a\" {\n  path = \"a\"\n  content = \"1\"\n}"),
    ];
    let stage = Stage::start(&files).await;
    stage.verdict("dev/a", Verdict::InSync).await;
    let url = format!("http://127.0.0.1:{}/webhooks/github", stage.port);
    let send = async |event: &str, id: &str, signature: &str, body: &'static [u8]| {
        let request = stage
            .http()
            .post(&url)
            .header("X-GitHub-Event", event)
            .header("X-GitHub-Delivery", id)
            .header("X-Hub-Signature-256", signature)
            .body(body);
        request.send().await.unwrap().status().as_u16()
    };
    let body = b"{\"ref\": \"refs/heads/main\"}";
    assert_eq!(send("push", "1", &sign(body), body).await, 200);
    assert_eq!(send("push", "1", &sign(body), body).await, 200, "replayed: taken once, and acknowledged");
    assert_eq!(send("push", "2", &sign(b"another"), body).await, 401);
    assert_eq!(send("push", "3", "sha256=zz", body).await, 401);
    assert_eq!(send("push", "4", "", body).await, 401);
    assert_eq!(send("meteor_strike", "5", &sign(body), body).await, 200, "an unknown type is acknowledged");
    assert_eq!(send("issue_comment", "6", &sign(b"[]"), b"[]").await, 200, "another shape is no crash");
    assert_eq!(send("push", "", &sign(body), body).await, 400);
    // Argo CD CVE-2024-40634: a large body crashed the server. Here a body with a length of a gigabyte is refused
    // unread.
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", stage.port)).await.unwrap();
    let head = format!(
        "POST /webhooks/github HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\nX-GitHub-Event: push\r\nX-GitHub-Delivery: 7\r\nX-Hub-Signature-256: {}\r\n\r\n",
        1_u64 << 30,
        sign(b"x")
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 64];
    let count = tokio::time::timeout(crate::stage::LIMIT, stream.read(&mut answer)).await.unwrap().unwrap();
    assert!(
        String::from_utf8_lossy(&answer[..count]).starts_with("HTTP/1.1 413"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    let metrics = stage
        .http()
        .get(format!("http://127.0.0.1:{}/metrics", stage.port))
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(metrics.contains("evenkeel_instances{environment=\"dev\",verdict=\"in_sync\"} 1"), "{metrics}");
    assert_eq!(stage.writes(), ["create a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_are_for_this_machine_and_writes_for_tokens() {
    let files = [
        environment("dev", "onMerge: wait"),
        component("a", "dev", "root: tf/a", ""),
        module("a", "resource \"world_file\" \"a\" {\n  path = \"a\"\n  content = \"1\"\n}"),
    ];
    let stage = Stage::start(&files).await;
    let base = format!("http://127.0.0.1:{}", stage.port);
    assert_eq!(stage.http().get(format!("{base}/api/v1/status")).send().await.unwrap().status(), 200);
    let rebound =
        stage.http().get(format!("{base}/api/v1/status")).header("Host", "evil.example").send().await.unwrap();
    assert_eq!(rebound.status(), 401, "a page of another site reaches loopback under its own name");
    let apply = stage
        .http()
        .post(format!("{base}/api/v1/apply"))
        .json(&serde_json::json!({"selector": "dev"}))
        .send()
        .await
        .unwrap();
    assert_eq!(apply.status(), 401);
    let wrong = stage
        .http()
        .post(format!("{base}/api/v1/apply"))
        .bearer_auth("wrong")
        .json(&serde_json::json!({"selector": "dev"}))
        .send()
        .await
        .unwrap();
    assert_eq!(wrong.status(), 401);
    // A malformed request gets a response of the same form as every refusal.
    let token = std::fs::read_to_string(stage.place("data/api-token")).unwrap();
    let asked = [
        ("/api/v1/apply", "{", 400),
        ("/api/v1/apply", "{\"selecter\": \"dev\"}", 422),
        ("/api/v1/plan", "[1]", 422),
        ("/api/v1/drift", "{\"selector\": \"a and\"}", 400),
        ("/api/v1/nothing", "{}", 404),
        ("/api/v1/status", "{}", 405),
    ];
    for (path, body, expected) in asked {
        let answer = stage
            .http()
            .post(format!("{base}{path}"))
            .bearer_auth(token.trim())
            .header("Content-Type", "application/json")
            .body(body)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), expected, "{path} {body}");
        let refusal: serde_json::Value = answer.json().await.unwrap();
        assert!(
            refusal["error"]["kind"].is_string()
                && refusal["error"]["message"].as_str().is_some_and(|message| message.len() > 5),
            "{path} {body}: {refusal}"
        );
    }
    let odd = stage.http().get(format!("{base}/api/v1/runs/x")).send().await.unwrap();
    assert_eq!(
        (odd.status().as_u16(), odd.json::<serde_json::Value>().await.unwrap()["error"]["kind"].clone()),
        (400, "malformed".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_asks_gets_one_object_whatever_happens() {
    let files = [
        environment("dev", "onMerge: wait"),
        component("a", "dev", "root: tf/a", ""),
        module("a", "resource \"world_file\" \"a\" {\n  path = \"a\"\n  content = \"1\"\n}"),
    ];
    let stage = Stage::start(&files).await;
    stage.verdict("dev/a", Verdict::Pending).await;
    let asked = [
        (0, "apply dev --yes"),
        (0, "status"),
        (0, "drift"),
        (0, "explain dev/a"),
        (0, "runs"),
        (0, "runs 1"),
        (0, "journal"),
        (0, "audit"),
        (0, "audit verify"),
        (0, "propose"),
        (0, "doctor"),
        (0, "apply dev --yes"),
        (1, "explain dev/b"),
        (1, "runs 99"),
        (64, "drift a and"),
        (64, "status --server nonsense"),
        (1, "status --server http://127.0.0.1:1"),
    ];
    for (expected, words) in asked {
        let mut arguments: Vec<&str> = words.split(' ').collect();
        arguments.extend(["--output", "json"]);
        let (code, out, err) = stage.run(&arguments);
        assert_eq!(code, expected, "{words}: {out}{err}");
        let document: serde_json::Value =
            serde_json::from_str(&out).unwrap_or_else(|error| panic!("{words}: {error}: {out}"));
        assert_eq!(document["command"], arguments[0], "{words}: {document}");
        assert_eq!(document["error"].is_object(), expected != 0, "{words}: {document}");
    }
}
