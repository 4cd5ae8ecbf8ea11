//! Sends requests to one API server and caches the kinds that it serves.
//!
//! Owns the rules for retries: a request is retried if it only reads, or if a repetition of the same content is
//! harmless. Follows 429 and `Retry-After`, and gives up after a time limit.
//! *Invariant:* never logs a token, and takes credentials from the daemon's configuration only.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use kube::{Client, client::Body};
use serde::Deserialize;
use serde_json::Value;

use super::{
    kinds::{Kind, Kinds},
    object::Key,
};
use crate::{
    model::Retry,
    ports::{TargetError, TargetErrorKind},
};

/// The time limit of one read request; a list is read in pages.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(15);
/// The time limit of one write or dry-run: the server waits 30 s for a webhook.
const WRITE_TIME_MAX: Duration = Duration::from_secs(35);
/// The time limit of a request with all its retries.
const TRIES_TIME_MAX: Duration = Duration::from_secs(20);
/// The first delay between retries; each further delay doubles.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// The longest delay between retries, whatever `Retry-After` requests.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// The number of objects in one page of a list.
const PAGE: u32 = 500;
/// The accepted media type.
const JSON: &str = "application/json";
/// The media type for metadata without the rest of the objects.
const METADATA_ALONE: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
/// The seconds after which the server closes a watch.
pub(super) const WATCH_SECONDS: u32 = 290;
/// The maximum age of the cached kinds.
pub(super) const KINDS_KNOWN: Duration = Duration::from_secs(3600);
/// The same, if a kind is missing.
pub(super) const KINDS_AGAIN: Duration = Duration::from_secs(2);

/// An error response of an API server.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Refusal {
    /// The HTTP status; 0 if there was no response.
    pub code: u16,
    /// `AlreadyExists`, `Invalid`, …
    pub reason: String,
    /// The message of the server.
    pub message: String,
    /// The fields that the response names, with a message each.
    pub causes: Vec<(String, String)>,
}

impl Refusal {
    pub(super) fn silent(message: String) -> Self {
        Self { code: 0, reason: "Unreachable".into(), message, causes: vec![] }
    }
    /// Whether the object, or a resource that it needs, does not exist.
    pub(super) fn is_not_found(&self) -> bool {
        self.code == 404
    }
    /// Whether the object differs from the precondition of the request.
    pub(super) fn is_conflict(&self) -> bool {
        self.code == 409
    }
    /// Whether the object does not fit its schema. If a patch names a field that the schema lacks, the server responds
    /// with the status of an internal error.
    pub(super) fn is_wrong(&self) -> bool {
        matches!(self.code, 400 | 422) || self.message.contains("failed to create typed patch object")
    }
    /// Whether the request may or may not have taken effect.
    pub(super) fn is_unclear(&self) -> bool {
        matches!(self.code, 0 | 502 | 503 | 504) || (self.code == 500 && !self.is_wrong())
    }
    /// Converts the response to an error of the target.
    pub(super) fn into_error(self, what: &str) -> TargetError {
        let kind = match self.code {
            0 => TargetErrorKind::Unreachable,
            401 => TargetErrorKind::Unauthorized,
            403 => TargetErrorKind::Forbidden,
            404 => TargetErrorKind::NotFound,
            409 => TargetErrorKind::Conflict,
            _ if self.is_unclear() => TargetErrorKind::Unreachable,
            _ => TargetErrorKind::Refused,
        };
        let waits = matches!(self.code, 0 | 409 | 429) || self.is_unclear();
        let retry = if waits { Retry::After(crate::model::Backoff::REMOTE) } else { Retry::WhenInputChanges };
        TargetError { retry, ..TargetError::new(kind, format!("{what}: {}", self.message)) }
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    message: String,
    reason: String,
    details: Details,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Details {
    causes: Vec<Cause>,
    retry_after_seconds: u64,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Cause {
    field: String,
    message: String,
}

/// An API server, accessed as one user.
#[derive(Clone)]
pub(super) struct Cluster {
    client: Client,
    kinds: Arc<tokio::sync::Mutex<(Kinds, Option<Instant>)>>,
    /// The number of changes of the served kinds.
    epoch: Arc<std::sync::atomic::AtomicU64>,
}

/// The options of a write.
#[derive(Clone, Copy, Default)]
pub(super) struct Write<'w> {
    /// Validates without storing.
    pub dry_run: bool,
    /// The required uid of the object.
    pub uid: Option<&'w str>,
    /// The required resource version of the object.
    pub version: Option<&'w str>,
}

impl Cluster {
    pub(super) fn new(client: Client) -> Self {
        Self { client, kinds: Arc::default(), epoch: Arc::default() }
    }

    /// Returns the kinds that the server serves, at most this old.
    pub(super) async fn kinds(&self, at_most: Duration) -> Result<Kinds, TargetError> {
        let mut known = self.kinds.lock().await;
        let is_fresh = known.1.is_some_and(|at| at.elapsed() < at_most);
        if is_fresh {
            return Ok(known.0.clone());
        }
        let unreachable = |error: &dyn std::fmt::Display| {
            TargetError::new(TargetErrorKind::Unreachable, format!("could not ask the cluster for its kinds: {error}"))
        };
        let asked = tokio::time::timeout(REQUEST_TIME_MAX, Kinds::of_server(&self.client)).await;
        let discovered = asked.map_err(|_| unreachable(&"it did not answer"))?.map_err(|error| unreachable(&error))?;
        if !known.0.are(&discovered) {
            let epoch = self.epoch.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
            known.0 = discovered;
            known.0.epoch = epoch;
        }
        known.1 = Some(Instant::now());
        Ok(known.0.clone())
    }

    /// Returns the uid of the cluster: the uid of its oldest namespace.
    pub(super) async fn identity(&self) -> Result<String, Refusal> {
        let namespace = self.send(Method::GET, "/api/v1/namespaces/kube-system", None, JSON, true).await?;
        match namespace["metadata"]["uid"].as_str() {
            Some(uid) => Ok(uid.to_owned()),
            None => Err(Refusal::silent("the namespace `kube-system` has no uid".into())),
        }
    }

    pub(super) async fn read(&self, path: &str) -> Result<Value, Refusal> {
        self.send(Method::GET, path, None, JSON, true).await
    }

    /// Returns an object, or `None` if it does not exist.
    pub(super) async fn get(&self, kind: &Kind, key: &Key) -> Result<Option<Value>, Refusal> {
        match self.send(Method::GET, &path(kind, key), None, JSON, true).await {
            Ok(object) => Ok(Some(object)),
            Err(refusal) if refusal.is_not_found() => Ok(None),
            Err(refusal) => Err(refusal),
        }
    }

    /// Lists all objects of a kind that match a label selector, page by page. Returns the resource version of the list.
    pub(super) async fn list(
        &self,
        kind: &Kind,
        labels: &str,
        each: &mut (dyn FnMut(Value) + Send),
    ) -> Result<String, Refusal> {
        self.pages(&root(kind), labels, JSON, each).await
    }

    async fn pages(
        &self,
        at: &str,
        labels: &str,
        accept: &str,
        each: &mut (dyn FnMut(Value) + Send),
    ) -> Result<String, Refusal> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            metadata: Value,
            /// The server sends null for an empty list.
            #[serde(default)]
            items: Option<Vec<Value>>,
        }
        let mut next: Option<String> = None;
        loop {
            let mut query = url_query(&[("limit", &PAGE.to_string()), ("labelSelector", labels)]);
            if let Some(next) = &next {
                query.push_str(&url_query(&[("continue", next)]).replacen('?', "&", 1));
            }
            let text = self.send_text(Method::GET, &format!("{at}{query}"), None, accept, true).await?;
            let page: Page = serde_json::from_slice(&text)
                .map_err(|error| Refusal::silent(format!("its answer can't be read: {error}")))?;
            page.items.into_iter().flatten().for_each(&mut *each);
            match page.metadata["continue"].as_str().filter(|text| !text.is_empty()) {
                Some(more) => next = Some(more.to_owned()),
                None => return Ok(page.metadata["resourceVersion"].as_str().unwrap_or_default().to_owned()),
            }
        }
    }

    /// Lists the metadata of all objects of a kind, optionally in one namespace.
    pub(super) async fn names(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        each: &mut (dyn FnMut(Value) + Send),
    ) -> Result<(), Refusal> {
        let at = match namespace {
            Some(name) => format!("{}/namespaces/{}/{}", group_path(kind), encoded(name), kind.plural),
            None => root(kind),
        };
        self.pages(&at, "", METADATA_ALONE, each).await.map(drop)
    }

    /// Applies an object with the field manager `evenkeel`, and takes ownership of all its fields.
    pub(super) async fn apply(&self, kind: &Kind, key: &Key, json: &str, write: Write<'_>) -> Result<Value, Refusal> {
        let mut query =
            vec![("fieldManager", super::object::MANAGER), ("force", "true"), ("fieldValidation", "Strict")];
        if write.dry_run {
            query.push(("dryRun", "All"));
        }
        let body = match (write.uid, write.version) {
            (None, None) => json.as_bytes().to_vec(),
            (uid, version) => {
                let mut object: Value = serde_json::from_str(json).unwrap_or_default();
                for (name, value) in [("uid", uid), ("resourceVersion", version)] {
                    if let (Some(value), Some(metadata)) = (value, object["metadata"].as_object_mut()) {
                        metadata.insert(name.into(), value.into());
                    }
                }
                object.to_string().into_bytes()
            }
        };
        let path = format!("{}{}", path(kind, key), url_query(&query));
        self.send(Method::PATCH, &path, Some(body), "application/apply-patch+yaml", true).await
    }

    /// Changes an object by a JSON patch whose first operation tests the resource version.
    pub(super) async fn patch(&self, kind: &Kind, key: &Key, operations: &Value) -> Result<Value, Refusal> {
        let query = url_query(&[("fieldManager", super::object::MANAGER)]);
        let body = operations.to_string().into_bytes();
        self.send(
            Method::PATCH,
            &format!("{}{query}", path(kind, key)),
            Some(body),
            "application/json-patch+json",
            false,
        )
        .await
    }

    /// Deletes the object with a uid; its dependents are deleted afterwards.
    pub(super) async fn delete(&self, kind: &Kind, key: &Key, uid: &str) -> Result<(), Refusal> {
        let body = serde_json::json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background", "preconditions": {"uid": uid}});
        let body = Some(body.to_string().into_bytes());
        match self.send(Method::DELETE, &path(kind, key), body, "application/json", true).await {
            Ok(_) => Ok(()),
            Err(refusal) if refusal.is_not_found() => Ok(()),
            Err(refusal) => Err(refusal),
        }
    }

    /// Watches the objects of a kind that match a label selector, from a resource version. Each line of the body is an
    /// event.
    pub(super) async fn watch(
        &self,
        kind: &Kind,
        labels: &str,
        version: &str,
    ) -> Result<http::Response<Body>, Refusal> {
        let seconds = WATCH_SECONDS.to_string();
        let query = url_query(&[
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", &seconds),
            ("labelSelector", labels),
            ("resourceVersion", version),
        ]);
        let request = Request::get(format!("{}{query}", root(kind)))
            .body(Body::empty())
            .map_err(|error| Refusal::silent(error.to_string()))?;
        let sent = tokio::time::timeout(REQUEST_TIME_MAX, self.client.send(request)).await;
        let answer = sent
            .map_err(|_| Refusal::silent("it did not answer".into()))?
            .map_err(|error| Refusal::silent(crate::error_chain(&error)))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let code = answer.status();
        let text = answer.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        Err(refusal(code, &text).0)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        sort: &str,
        again: bool,
    ) -> Result<Value, Refusal> {
        let text = self.send_text(method, path, body, sort, again).await?;
        serde_json::from_slice(&text).map_err(|error| Refusal::silent(format!("its answer can't be read: {error}")))
    }

    /// Sends a request. Retries if a retry may succeed and is harmless.
    async fn send_text(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        sort: &str,
        again: bool,
    ) -> Result<bytes::Bytes, Refusal> {
        let since = Instant::now();
        let mut wait = FIRST_WAIT;
        let limit = if method == Method::GET { REQUEST_TIME_MAX } else { WRITE_TIME_MAX };
        loop {
            let mut request = Request::builder().method(method.clone()).uri(path);
            request = match &body {
                Some(_) => request.header(header::ACCEPT, JSON).header(header::CONTENT_TYPE, sort),
                None => request.header(header::ACCEPT, sort),
            };
            let request = request
                .body(body.clone().map_or_else(Body::empty, Body::from))
                .map_err(|error| Refusal::silent(error.to_string()))?;
            let tried = tokio::time::timeout(limit, async {
                let answer =
                    self.client.send(request).await.map_err(|error| Refusal::silent(crate::error_chain(&error)))?;
                let (parts, body) = answer.into_parts();
                let text = body.collect().await.map_err(|error| Refusal::silent(crate::error_chain(&error)))?;
                Ok::<_, Refusal>((parts, text.to_bytes()))
            });
            let (refused, after) = match tried.await {
                Ok(Ok((parts, text))) if parts.status.is_success() => return Ok(text),
                Ok(Ok((parts, text))) => {
                    let (refused, seconds) = refusal(parts.status, &text);
                    let header =
                        parts.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
                    (refused, header.unwrap_or(seconds))
                }
                Ok(Err(refused)) => (refused, 0),
                Err(_) => (Refusal::silent(format!("it did not answer within {} s", limit.as_secs())), 0),
            };
            // A request that was rejected by overload had no effect. A request with an unclear result is repeated only
            // if a repetition is harmless.
            let may = refused.code == 429 || (refused.is_unclear() && refused.code != 500 && again);
            let wait_now = wait.max(Duration::from_secs(after)).min(LONGEST_WAIT);
            if !may || since.elapsed() + wait_now > TRIES_TIME_MAX {
                return Err(refused);
            }
            tokio::time::sleep(wait_now).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }
}

fn refusal(code: StatusCode, text: &[u8]) -> (Refusal, u64) {
    let status: Status = serde_json::from_slice(text).unwrap_or_default();
    let message = if status.message.is_empty() {
        format!("{code} {}", String::from_utf8_lossy(text).chars().take(200).collect::<String>())
    } else {
        status.message
    };
    let causes = status.details.causes.into_iter().map(|cause| (cause.field, cause.message)).collect();
    let refusal = Refusal { code: code.as_u16(), reason: status.reason, message, causes };
    (refusal, status.details.retry_after_seconds)
}

fn group_path(kind: &Kind) -> String {
    if kind.version.contains('/') { format!("/apis/{}", kind.version) } else { format!("/api/{}", kind.version) }
}

fn root(kind: &Kind) -> String {
    format!("{}/{}", group_path(kind), kind.plural)
}

fn path(kind: &Kind, key: &Key) -> String {
    let name = encoded(&key.name);
    match &key.namespace {
        Some(namespace) if kind.namespaced => {
            format!("{}/namespaces/{}/{}/{name}", group_path(kind), encoded(namespace), kind.plural)
        }
        _ => format!("{}/{name}", root(kind)),
    }
}

fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn url_query(pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
    format!("?{}", pairs.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_no_way_out_of_a_path() {
        let kind =
            Kind { version: "rbac.authorization.k8s.io/v1".into(), plural: "clusterroles".into(), namespaced: false };
        let key = Key {
            group: "rbac.authorization.k8s.io".into(),
            kind: "ClusterRole".into(),
            namespace: None,
            name: "system:x/../y".into(),
        };
        assert_eq!(path(&kind, &key), "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Ax%2F..%2Fy");
    }
}
