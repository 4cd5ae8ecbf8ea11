//! Tests the embedded forge against GitHub's published OpenAPI description and webhook schemas.
//!
//! As far as these describe GitHub, a client that works with one works with the other.

use std::{collections::BTreeMap, path::PathBuf, process::Command};

use axum::{Router, extract::State, http::HeaderMap, routing::post};
use evenkeel::forge::{Forge, Settings, seed};
use jsonschema::Validator;
use serde_json::{Value, json};

fn published(name: &str) -> Value {
    let output = Command::new("tools/tools").arg("published").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let folder = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
    serde_json::from_slice(&std::fs::read(folder.join(name)).unwrap()).unwrap()
}

/// OpenAPI 3.0 has `nullable`, which JSON Schema does not have.
fn with_null(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(with_null);
            if map.remove("nullable") == Some(Value::Bool(true)) {
                let inner = Value::Object(std::mem::take(map));
                map.insert("anyOf".into(), json!([{"type": "null"}, inner]));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(with_null),
        _ => {}
    }
}

/// Returns a schema with only the referenced parts, because the whole description takes minutes to compile.
fn with_references(schema: &Value, whole: &Value) -> Value {
    fn references<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str));
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let mut all = json!({"allOf": [schema]});
    let mut open = vec![];
    references(schema, &mut open);
    while let Some(reference) = open.pop() {
        let parts: Vec<&str> = reference.trim_start_matches("#/").split('/').collect();
        let place = parts.iter().fold(&mut all, |at, part| &mut at[*part]);
        if place.is_null() {
            let named = whole.pointer(reference.trim_start_matches('#')).unwrap();
            *place = named.clone();
            references(named, &mut open);
        }
    }
    all
}

struct Asked {
    http: reqwest::Client,
    base: String,
    description: Value,
    validators: BTreeMap<String, Validator>,
    wrong: Vec<String>,
    seen: usize,
}

impl Asked {
    /// Sends a request, requires this status, and checks the response against the operation's schema.
    async fn ask(&mut self, user: &str, method: &str, template: &str, path: &str, body: Value, expected: u16) -> Value {
        let method_upper: reqwest::Method = method.to_uppercase().parse().unwrap();
        let mut request = self
            .http
            .request(method_upper, format!("{}{path}", self.base))
            .bearer_auth(if user.contains('.') { user.to_owned() } else { format!("t-{user}") });
        if method != "get" {
            request = request.json(&body);
        }
        let answer = request.timeout(super::stage::LIMIT).send().await.unwrap();
        let status = answer.status().as_u16();
        let found: Value = answer.json().await.unwrap_or(Value::Null);
        assert_eq!(status, expected, "{method} {path}: {found}");
        let operation = self.description["paths"][template][method]["responses"][status.to_string()].clone();
        assert!(operation.is_object(), "{method} {template} has no answer {status} at GitHub");
        let response = match operation["$ref"].as_str() {
            Some(reference) => self.description.pointer(reference.trim_start_matches('#')).unwrap().clone(),
            None => operation,
        };
        let key = format!("{method} {template} {status}");
        let schema = response["content"]["application/json"]["schema"].clone();
        let whole = &self.description;
        let validator = self
            .validators
            .entry(key.clone())
            .or_insert_with(|| jsonschema::draft4::new(&with_references(&schema, whole)).unwrap());
        for error in validator.iter_errors(&found) {
            let message = error.to_string();
            self.wrong.push(format!(
                "{key}: at {}: {}",
                error.instance_path(),
                &message[message.len().saturating_sub(160)..]
            ));
        }
        self.seen += 1;
        found
    }
}

const REPOSITORY: &str = "/repos/{owner}/{repo}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_forge_answers_as_github_describes() {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("seed/tf")).unwrap();
    std::fs::write(folder.path().join("seed/tf/main.tf"), "# one\n").unwrap();
    seed(&folder.path().join("seed"), &folder.path().join("forge/repository.git")).unwrap();
    let (events, mut received) = tokio::sync::mpsc::unbounded_channel::<(String, Value)>();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hook = format!("http://{}/", listener.local_addr().unwrap());
    let take =
        post(
            |State(events): State<tokio::sync::mpsc::UnboundedSender<(String, Value)>>,
             headers: HeaderMap,
             body: String| async move {
                drop(events.send((
                    headers["x-github-event"].to_str().unwrap().to_owned(),
                    serde_json::from_str(&body).unwrap(),
                )));
            },
        );
    let hooks =
        tokio::spawn(
            async move { axum::serve(listener, Router::new().route("/", take).with_state(events)).await.unwrap() },
        );
    let settings: Settings = serde_json::from_value(json!({"owner": "acme", "repository": "infra",
        "users": [{"login": "evenkeel", "token": "t-evenkeel", "permission": "admin"}, {"login": "lin", "token": "t-lin", "permission": "write"}, {"login": "guest", "token": "t-guest", "permission": "read"}],
        "teams": {"platform": ["lin"]}, "app": {"id": 77, "slug": "keeper", "publicKey": super::secure::app_key(folder.path())}, "webhook": {"url": hook, "secret": "hook"}}))
    .unwrap();
    let forge = Forge::start(folder.path().join("forge"), settings, ([127, 0, 0, 1], 0).into()).await.unwrap();
    let mut description = published("api.json");
    with_null(&mut description);
    let base = format!("http://{}", forge.address);
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut asked = Asked { http, base, description, validators: BTreeMap::new(), wrong: vec![], seen: 0 };

    let work = folder.path().join("work");
    let git = |arguments: &[&str]| {
        let who = ["-c", "user.name=Lin", "-c", "user.email=lin@acme.test"];
        let done = Command::new("git").args(who).arg("-C").arg(folder.path()).args(arguments).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    };
    git(&["clone", "-q", &format!("http://lin:t-lin@{}/acme/infra.git", forge.address), "work"]);
    let push = |text: &str, branch: &str| {
        std::fs::write(work.join("tf/main.tf"), text).unwrap();
        git(&["-C", "work", "checkout", "-q", "-B", branch]);
        git(&["-C", "work", "commit", "-qam", text.trim()]);
        git(&["-C", "work", "push", "-q", "origin", branch]);
        git(&["-C", "work", "rev-parse", "HEAD"])
    };
    let sha = push("# two\n", "change");

    let at = |rest: &str| format!("{REPOSITORY}{rest}");
    let here = |rest: &str| format!("/repos/acme/infra{rest}");
    let nothing = Value::Null;
    asked.ask("lin", "get", "/user", "/user", nothing.clone(), 200).await;
    asked.ask("lin", "get", REPOSITORY, &here(""), nothing.clone(), 200).await;
    asked.ask("lin", "get", &at("/contents/{path}"), &here("/contents/tf/main.tf"), nothing.clone(), 200).await;
    asked.ask("lin", "get", &at("/contents/{path}"), &here("/contents/none"), nothing.clone(), 404).await;
    asked.ask("lin", "get", &at("/git/ref/{ref}"), &here("/git/ref/heads/main"), nothing.clone(), 200).await;
    let pull = asked
        .ask(
            "lin",
            "post",
            &at("/pulls"),
            &here("/pulls"),
            json!({"title": "two", "head": "change", "base": "main", "body": "why"}),
            201,
        )
        .await;
    let number = pull["number"].as_u64().unwrap();
    asked
        .ask(
            "lin",
            "post",
            &at("/pulls"),
            &here("/pulls"),
            json!({"title": "two", "head": "change", "base": "main"}),
            422,
        )
        .await;
    asked
        .ask(
            "guest",
            "post",
            &at("/pulls"),
            &here("/pulls"),
            json!({"title": "two", "head": "change", "base": "main"}),
            403,
        )
        .await;
    asked.ask("lin", "get", &at("/pulls"), &here("/pulls?state=all"), nothing.clone(), 200).await;
    let pull_path = at("/pulls/{pull_number}");
    let this = |rest: &str| here(&format!("/pulls/{number}{rest}"));
    asked.ask("lin", "get", &pull_path, &this(""), nothing.clone(), 200).await;
    asked.ask("lin", "get", &pull_path, &here("/pulls/99"), nothing.clone(), 404).await;
    asked.ask("lin", "patch", &pull_path, &this(""), json!({"title": "second"}), 200).await;
    asked.ask("lin", "get", &format!("{pull_path}/files"), &this("/files"), nothing.clone(), 200).await;
    asked.ask("lin", "get", &format!("{pull_path}/commits"), &this("/commits"), nothing.clone(), 200).await;
    asked
        .ask(
            "evenkeel",
            "post",
            &format!("{pull_path}/reviews"),
            &this("/reviews"),
            json!({"event": "APPROVE", "body": "good"}),
            200,
        )
        .await;
    asked.ask("lin", "get", &format!("{pull_path}/reviews"), &this("/reviews"), nothing.clone(), 200).await;
    let comments = at("/issues/{issue_number}/comments");
    let comment = asked
        .ask("lin", "post", &comments, &here(&format!("/issues/{number}/comments")), json!({"body": "/plan"}), 201)
        .await;
    asked.ask("lin", "get", &comments, &here(&format!("/issues/{number}/comments")), nothing.clone(), 200).await;
    asked
        .ask(
            "lin",
            "patch",
            &at("/issues/comments/{comment_id}"),
            &here(&format!("/issues/comments/{}", comment["id"])),
            json!({"body": "/help"}),
            200,
        )
        .await;
    asked
        .ask(
            "evenkeel",
            "post",
            &at("/statuses/{sha}"),
            &here(&format!("/statuses/{sha}")),
            json!({"state": "success", "context": "evenkeel/plan", "description": "fine"}),
            201,
        )
        .await;
    asked
        .ask("lin", "get", &at("/commits/{ref}/status"), &here(&format!("/commits/{sha}/status")), nothing.clone(), 200)
        .await;
    asked
        .ask(
            "lin",
            "get",
            &at("/commits/{ref}/statuses"),
            &here(&format!("/commits/{sha}/statuses")),
            nothing.clone(),
            200,
        )
        .await;
    let check = json!({"name": "build", "head_sha": sha, "status": "completed", "conclusion": "success", "output": {"title": "fine", "summary": "all of it"}});
    asked.ask("evenkeel", "post", &at("/check-runs"), &here("/check-runs"), check, 201).await;
    asked
        .ask(
            "lin",
            "get",
            &at("/commits/{ref}/check-runs"),
            &here(&format!("/commits/{sha}/check-runs")),
            nothing.clone(),
            200,
        )
        .await;
    asked
        .ask(
            "lin",
            "get",
            &at("/collaborators/{username}/permission"),
            &here("/collaborators/lin/permission"),
            nothing.clone(),
            200,
        )
        .await;
    asked
        .ask(
            "lin",
            "get",
            &at("/collaborators/{username}/permission"),
            &here("/collaborators/nobody/permission"),
            nothing.clone(),
            404,
        )
        .await;
    let team = "/orgs/{org}/teams/{team_slug}";
    asked
        .ask(
            "lin",
            "get",
            &format!("{team}/memberships/{{username}}"),
            "/orgs/acme/teams/platform/memberships/lin",
            nothing.clone(),
            200,
        )
        .await;
    asked
        .ask("lin", "get", &format!("{team}/members"), "/orgs/acme/teams/platform/members", nothing.clone(), 200)
        .await;
    push("# three\n", "change");
    asked.ask("lin", "get", &pull_path, &this(""), nothing.clone(), 200).await;
    asked.ask("lin", "put", &format!("{pull_path}/merge"), &this("/merge"), json!({"sha": sha}), 409).await;
    asked.ask("lin", "put", &format!("{pull_path}/merge"), &this("/merge"), json!({}), 200).await;
    asked.ask("lin", "put", &format!("{pull_path}/merge"), &this("/merge"), json!({}), 405).await;
    asked.ask("lin", "get", &pull_path, &this(""), nothing.clone(), 200).await;
    push("# four\n", "other");
    let other = asked
        .ask(
            "lin",
            "post",
            &at("/pulls"),
            &here("/pulls"),
            json!({"title": "four", "head": "other", "base": "main", "draft": true}),
            201,
        )
        .await;
    let other = here(&format!("/pulls/{}", other["number"]));
    asked.ask("lin", "patch", &pull_path, &other, json!({"state": "closed"}), 200).await;
    asked.ask("lin", "patch", &pull_path, &other, json!({"state": "open"}), 200).await;

    let app =
        json!({"iss": "77", "iat": chrono::Utc::now().timestamp() - 5, "exp": chrono::Utc::now().timestamp() + 60});
    let key = jsonwebtoken::EncodingKey::from_rsa_pem(&std::fs::read(folder.path().join("app.pem")).unwrap()).unwrap();
    let proof = jsonwebtoken::encode(&jsonwebtoken::Header::new(jsonwebtoken::Algorithm::RS256), &app, &key).unwrap();
    asked.ask(&proof, "get", "/app", "/app", nothing.clone(), 200).await;
    let installation =
        asked.ask(&proof, "get", &at("/installation"), &here("/installation"), nothing.clone(), 200).await;
    let tokens = format!("/app/installations/{}/access_tokens", installation["id"]);
    asked.ask(&proof, "post", "/app/installations/{installation_id}/access_tokens", &tokens, json!({}), 201).await;

    let schemas = published("webhooks.json");
    let mut wanted: Vec<&str> = vec![
        "push",
        "pull_request opened",
        "pull_request edited",
        "pull_request synchronize",
        "pull_request closed",
        "pull_request reopened",
        "pull_request_review submitted",
        "issue_comment created",
    ];
    while !wanted.is_empty() {
        let next = tokio::time::timeout(super::stage::LIMIT, received.recv()).await;
        let (event, payload) =
            next.unwrap_or_else(|_| panic!("never sent: {wanted:?}; {}", asked.wrong.join("\n"))).unwrap();
        let name = payload["action"].as_str().map_or_else(|| event.clone(), |action| format!("{event} {action}"));
        let definition =
            payload["action"].as_str().map_or_else(|| format!("{event}$event"), |action| format!("{event}${action}"));
        let schema = schemas["definitions"][&definition].clone();
        assert!(schema.is_object(), "GitHub has no event {definition}");
        let validator = jsonschema::draft7::new(&with_references(&schema, &schemas)).unwrap();
        for error in validator.iter_errors(&payload) {
            let message = error.to_string();
            asked.wrong.push(format!(
                "{name}: at {}: {}",
                error.instance_path(),
                &message[message.len().saturating_sub(160)..]
            ));
        }
        wanted.retain(|wanted| *wanted != name);
    }
    hooks.abort();
    forge.stop();
    assert!(asked.seen > 35, "{} answers", asked.seen);
    asked.wrong.sort();
    asked.wrong.dedup();
    assert!(asked.wrong.is_empty(), "{} differences:\n{}", asked.wrong.len(), asked.wrong.join("\n"));
}
