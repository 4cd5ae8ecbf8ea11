//! Serves git over HTTP through the server side of the `git` program.

use std::{process::Stdio, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Path, Query, State as Extract},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use tokio::{io::AsyncWriteExt, process::Command};

use super::{Shared, extract, rest};

/// The maximum size of a push.
const PUSH_BYTES_MAX: usize = 256 << 20;
/// The time limit of a `git` process.
const TIMEOUT: Duration = Duration::from_secs(120);

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/{owner}/{repository}/info/refs", get(advertise))
        .route("/{owner}/{repository}/git-upload-pack", post(upload))
        .route("/{owner}/{repository}/git-receive-pack", post(receive))
        .layer(DefaultBodyLimit::max(PUSH_BYTES_MAX))
}

#[derive(Deserialize)]
struct Service {
    service: String,
}

fn challenge() -> Response {
    (
        StatusCode::UNAUTHORIZED,
        [(header::WWW_AUTHENTICATE, "Basic realm=\"evenkeel forge\"")],
        "authentication is needed\n",
    )
        .into_response()
}

async fn run(shared: &Shared, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>, String> {
    let path = shared.lock().await.repository_path();
    let mut child = Command::new("git")
        .args(["-c", "http.receivepack=true", "-c", "uploadpack.allowAnySHA1InWant=true"])
        .args(arguments)
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("could not start git: {error}"))?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let feed = async {
        // git may exit before it has read everything; its response explains why.
        drop(stdin.write_all(input).await);
        drop(stdin);
    };
    let (output, ()) = tokio::time::timeout(TIMEOUT, async { tokio::join!(child.wait_with_output(), feed) })
        .await
        .map_err(|_| "git took too long".to_owned())?;
    output.map(|output| output.stdout).map_err(|error| error.to_string())
}

async fn advertise(
    Extract(shared): Extract<Shared>,
    headers: HeaderMap,
    Path((owner, repository)): Path<(String, String)>,
    Query(Service { service }): Query<Service>,
) -> Response {
    if extract::authenticate(&shared, &headers).await.is_none() {
        return challenge();
    }
    if !rest::is_here(&shared, &owner, &repository).await {
        return StatusCode::NOT_FOUND.into_response();
    }
    let Some(name) = service.strip_prefix("git-").filter(|name| matches!(*name, "upload-pack" | "receive-pack")) else {
        return StatusCode::FORBIDDEN.into_response();
    };
    match run(&shared, &[name, "--stateless-rpc", "--advertise-refs"], b"").await {
        Ok(refs) => {
            let line = format!("# service={service}\n");
            let mut body = format!("{:04x}{line}0000", line.len() + 4).into_bytes();
            body.extend(refs);
            (
                [
                    (header::CONTENT_TYPE, format!("application/x-{service}-advertisement")),
                    (header::CACHE_CONTROL, "no-cache".into()),
                ],
                body,
            )
                .into_response()
        }
        Err(why) => (StatusCode::INTERNAL_SERVER_ERROR, why).into_response(),
    }
}

async fn upload(
    Extract(shared): Extract<Shared>,
    headers: HeaderMap,
    Path((owner, repository)): Path<(String, String)>,
    body: Bytes,
) -> Response {
    if extract::authenticate(&shared, &headers).await.is_none() {
        return challenge();
    }
    if !rest::is_here(&shared, &owner, &repository).await {
        return StatusCode::NOT_FOUND.into_response();
    }
    answer("upload-pack", run(&shared, &["upload-pack", "--stateless-rpc"], &body).await)
}

async fn receive(
    Extract(shared): Extract<Shared>,
    headers: HeaderMap,
    Path((owner, repository)): Path<(String, String)>,
    body: Bytes,
) -> Response {
    let Some(user) = extract::authenticate(&shared, &headers).await else { return challenge() };
    if !rest::is_here(&shared, &owner, &repository).await {
        return StatusCode::NOT_FOUND.into_response();
    }
    if !matches!(user.permission.as_str(), "write" | "maintain" | "admin") {
        return (StatusCode::FORBIDDEN, format!("{} may not push\n", user.login)).into_response();
    }
    let done = run(&shared, &["receive-pack", "--stateless-rpc"], &body).await;
    if let Err(refusal) = shared.lock().await.look(&user.login) {
        tracing::warn!(kind = "branches-not-read", why = refusal.1, "the branches could not be read after a push");
    }
    answer("receive-pack", done)
}

fn answer(service: &str, done: Result<Vec<u8>, String>) -> Response {
    match done {
        Ok(bytes) => {
            ([(header::CONTENT_TYPE, format!("application/x-git-{service}-result"))], Body::from(bytes)).into_response()
        }
        Err(why) => (StatusCode::INTERNAL_SERVER_ERROR, why).into_response(),
    }
}
