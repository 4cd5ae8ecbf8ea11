//! Receives `/webhooks/github`: authenticates and deduplicates deliveries, and enqueues requests.

use std::time::Duration;

use axum::{
    Router,
    extract::{Request, State},
    http::StatusCode,
    routing::post,
};
use hmac::{Hmac, KeyInit, Mac};
use secrecy::ExposeSecret;
use serde::Deserialize;
use sha2::Sha256;

use super::Shared;
use crate::{controller::ReconcileRequest, model::PullNumber};

/// GitHub sends at most 25 MB.
const BODY_BYTES_MAX: usize = 25 << 20;
/// The longest delivery id that is stored.
const ID_LENGTH_MAX: usize = 100;
/// The time limit for a body to arrive; the forge itself gives up after ten seconds.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) fn routes() -> Router<Shared> {
    Router::new().route("/webhooks/github", post(receive))
}

#[derive(Deserialize, Default)]
struct Payload {
    number: Option<u64>,
    issue: Option<Numbered>,
    pull_request: Option<Numbered>,
}

#[derive(Deserialize)]
struct Numbered {
    number: Option<u64>,
}

/// Returns the requests that an event leads to. An unreadable payload leads to the requests of its event type, without
/// those for a single pull request. The daemon reads facts from the forge, never from the payload.
pub fn wakes(event: &str, body: &[u8]) -> Vec<ReconcileRequest> {
    let payload: Payload = serde_json::from_slice(body).unwrap_or_default();
    let number = payload.number.or(payload.issue.and_then(|i| i.number));
    let number = number.or(payload.pull_request.and_then(|p| p.number)).map(PullNumber);
    let pull = number.map(ReconcileRequest::PullRequest).into_iter();
    match event {
        "push" => vec![ReconcileRequest::Source],
        "pull_request" => [ReconcileRequest::Source, ReconcileRequest::PullRequests].into_iter().chain(pull).collect(),
        "issue_comment" | "pull_request_review" => pull.collect(),
        _ => vec![],
    }
}

async fn receive(State(door): State<Shared>, request: Request) -> (StatusCode, &'static str) {
    let (parts, body) = request.into_parts();
    let headers = parts.headers;
    use std::sync::atomic::Ordering::Relaxed;
    let refuse = |status, message| {
        door.daemon.context.metrics.webhooks_refused.fetch_add(1, Relaxed);
        (status, message)
    };
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Some(secret) = &door.webhook_secret else {
        return refuse(StatusCode::NOT_FOUND, "no webhook secret is configured\n");
    };
    let signature = text("x-hub-signature-256").strip_prefix("sha256=").and_then(|digits| hex::decode(digits).ok());
    let Some(signature) = signature else {
        return refuse(StatusCode::UNAUTHORIZED, "the signature is missing or malformed\n");
    };
    // A body that is too large by its `Content-Length` is refused unread. Nothing is parsed before the signature
    // matches.
    let length = text("content-length").parse::<usize>().unwrap_or(0);
    if length > BODY_BYTES_MAX {
        return refuse(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large\n");
    }
    let body = match tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, BODY_BYTES_MAX)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return refuse(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large, or was cut off\n"),
        Err(_) => return refuse(StatusCode::REQUEST_TIMEOUT, "the body did not arrive\n"),
    };
    let mut mac =
        <Hmac<Sha256>>::new_from_slice(secret.expose_secret().as_bytes()).expect("HMAC takes a key of any length");
    mac.update(&body);
    if mac.verify_slice(&signature).is_err() {
        return refuse(StatusCode::UNAUTHORIZED, "the signature does not fit\n");
    }
    let (event, id) = (text("x-github-event"), text("x-github-delivery"));
    if id.is_empty() || id.len() > ID_LENGTH_MAX {
        return refuse(StatusCode::BAD_REQUEST, "the delivery has no id\n");
    }
    match door.daemon.context.store.receive(&format!("delivery/{id}"), door.daemon.context.now(), &event).await {
        Ok(true) => {}
        Ok(false) => return (StatusCode::OK, "seen before\n"),
        // The delivery was not stored, so it is not acknowledged, and the forge sends it again.
        Err(_) => return refuse(StatusCode::SERVICE_UNAVAILABLE, "could not keep the delivery\n"),
    }
    door.daemon.context.metrics.webhooks.fetch_add(1, Relaxed);
    wakes(event, &body)
        .into_iter()
        .for_each(|wake| door.daemon.context.queue.enqueue(wake, crate::controller::Reason::Webhook));
    if let Err(error) = door.daemon.context.store.handled(&format!("delivery/{id}"), door.daemon.context.now()).await {
        tracing::warn!(
            kind = "webhook-not-recorded",
            error = crate::error_chain(&error),
            "a delivery could not be recorded"
        );
    }
    (StatusCode::OK, "ok\n")
}
