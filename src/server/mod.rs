//! Serves HTTP: webhooks, the API, health checks and metrics.
//!
//! Decides who may read and who may issue commands, and passes each request on to the daemon. Reads on loopback
//! need no token, but only under a loopback host name, so that no other site's page can read them through a
//! browser. Every other request needs a bearer token, which the server compares in constant time. A webhook body
//! is limited in size and authenticated over its raw bytes before it is parsed.

mod api;
mod metrics;
mod webhook;

use std::{net::SocketAddr, path::Path, sync::Arc};

pub use api::{CommandRequest, Explained, Started, openapi};
use axum::{
    Json, Router,
    extract::{ConnectInfo, FromRequest, FromRequestParts, Request, State},
    http::{StatusCode, request::Parts},
    response::{IntoResponse, Response},
    routing::get,
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use tokio::net::TcpListener;
pub use webhook::wakes;

use crate::{
    controller::{Daemon, Error},
    domain::authorization::{LOCAL_TOKEN, Principal},
};

/// The state of the HTTP handlers.
pub struct ServerState {
    /// The daemon.
    pub daemon: Arc<Daemon>,
    /// The tokens of the API, by name.
    pub tokens: Vec<(String, SecretString)>,
    /// The secret of webhooks.
    pub webhook_secret: Option<SecretString>,
}

type Shared = Arc<ServerState>;

/// Serves on a listener until the daemon stops.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, door: ServerState) -> std::io::Result<()> {
    let shared = Arc::new(door);
    let stop = Arc::clone(&shared.daemon);
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .merge(metrics::routes())
        .merge(webhook::routes())
        .merge(api::routes())
        .fallback(|| async {
            Refusal(
                StatusCode::NOT_FOUND,
                "no-route",
                "there is nothing here; /api/v1/openapi.json describes what there is".into(),
            )
        })
        .method_not_allowed_fallback(|| async {
            Refusal(
                StatusCode::METHOD_NOT_ALLOWED,
                "no-method",
                "this address takes another method; /api/v1/openapi.json describes what there is".into(),
            )
        })
        .with_state(shared);
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service).with_graceful_shutdown(async move { stop.context.stopped().await }).await
}

async fn ready(State(door): State<Shared>) -> Response {
    match door.daemon.source.head() {
        Some(_) => "ready\n".into_response(),
        None => (
            StatusCode::SERVICE_UNAVAILABLE,
            door.daemon
                .source
                .problem()
                .map(|why| door.daemon.context.redactor.redact(&why))
                .unwrap_or_else(|| "the state repo has not been read yet".into()),
        )
            .into_response(),
    }
}

/// Returns the token of this machine's owner; the first start creates it.
///
/// # Errors
/// When the file can't be read or created.
pub fn local_token(data: &Path) -> std::io::Result<SecretString> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let path = data.join("api-token");
    if let Ok(text) = std::fs::read_to_string(&path) {
        return Ok(text.trim().to_owned().into());
    }
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| std::io::Error::other(error.to_string()))?;
    let token = hex::encode(bytes);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    writeln!(file, "{token}")?;
    Ok(token.into())
}

/// A refused request, with its response as JSON.
pub(crate) struct Refusal(StatusCode, &'static str, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(json!({"error": {"kind": self.1, "message": self.2}}))).into_response()
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(message) => Self(StatusCode::CONFLICT, "refused", message.to_string()),
            other => Self(StatusCode::INTERNAL_SERVER_ERROR, "failed", crate::error_chain(&other)),
        }
    }
}

impl From<crate::controller::SourceError> for Refusal {
    fn from(error: crate::controller::SourceError) -> Self {
        Error::from(error).into()
    }
}

impl From<crate::adapters::store::Error> for Refusal {
    fn from(error: crate::adapters::store::Error) -> Self {
        Error::from(error).into()
    }
}

fn equal(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

fn principal(parts: &Parts, door: &ServerState) -> Option<Principal> {
    let header = parts.headers.get("authorization")?.to_str().ok()?;
    let token = header.strip_prefix("Bearer ")?.trim();
    door.tokens
        .iter()
        .find(|(_, known)| equal(known.expose_secret(), token))
        .map(|(name, _)| Principal::Token { name: name.clone() })
}

/// A part of a request. A missing or malformed part is refused like any other error: as JSON, with one sentence.
pub(crate) struct Part<E>(pub(crate) E);

/// Selects the axum trait by which the inner part is extracted.
pub(crate) struct Via<M>(std::marker::PhantomData<M>);

impl<S: Send + Sync, E: FromRequest<S, M>, M> FromRequest<S, Via<M>> for Part<E>
where
    E::Rejection: IntoResponse + std::fmt::Display,
{
    type Rejection = Refusal;
    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        E::from_request(request, state).await.map(Self).map_err(|rejection| {
            let message = rejection.to_string();
            Refusal(rejection.into_response().status(), "malformed", message)
        })
    }
}

/// The principal of a request that may change something.
pub(crate) struct Caller(pub(crate) Principal);

impl FromRequestParts<Shared> for Caller {
    type Rejection = Refusal;
    async fn from_request_parts(parts: &mut Parts, door: &Shared) -> Result<Self, Refusal> {
        let why =
            format!("a bearer token is needed: that of `<data>/api-token` (token:{LOCAL_TOKEN}) or a configured one");
        principal(parts, door).map(Self).ok_or(Refusal(StatusCode::UNAUTHORIZED, "unauthorized", why))
    }
}

/// Authorizes a request that only reads.
pub(crate) struct Reader;

impl FromRequestParts<Shared> for Reader {
    type Rejection = Refusal;
    async fn from_request_parts(parts: &mut Parts, door: &Shared) -> Result<Self, Refusal> {
        let near = parts
            .extensions
            .get::<ConnectInfo<SocketAddr>>()
            .is_some_and(|ConnectInfo(address)| address.ip().is_loopback());
        let host = parts.headers.get("host").and_then(|host| host.to_str().ok()).unwrap_or_default();
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        let local = matches!(name, "localhost" | "127.0.0.1" | "[::1]");
        if (near && local) || principal(parts, door).is_some() {
            return Ok(Self);
        }
        Err(Refusal(StatusCode::UNAUTHORIZED, "unauthorized", "from another machine a bearer token is needed".into()))
    }
}
