//! Measures 100,000 objects without a cluster that contains them.
//!
//! A real API server's responses for one object of each kind are recorded, and replayed for the others with other
//! names.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::{Query, Request, State},
    response::{IntoResponse, Response},
};
use evenkeel::targets::kubernetes::local::ApiServer;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{EACH, ask, objects};
use crate::{Row, Stage, envelope, tools, write};

/// The number of components; each has as many objects of each of the four kinds as in the other figures.
const COMPONENTS: usize = 10;
/// The total number of objects of each kind.
const MANY: usize = COMPONENTS * EACH;
/// The names of the kinds in paths.
const KINDS: [&str; 4] = ["serviceaccounts", "services", "deployments", "ingresses"];

/// A server that replays the responses of an API server.
struct Replay {
    client: kube::Client,
    /// The recorded responses for `app-0000`, by the name of the kind in paths.
    recorded: HashMap<&'static str, String>,
    /// The applied objects, with their versions.
    there: Mutex<HashMap<&'static str, BTreeMap<String, u64>>>,
    /// The streams of the watches.
    watches: Mutex<HashMap<&'static str, mpsc::UnboundedSender<String>>>,
    /// The object that a user changed.
    changed: Mutex<Option<String>>,
}

impl Replay {
    fn object(&self, kind: &str, name: &str, version: u64) -> String {
        let uid = format!("\"uid\":\"{name}-{kind}\"");
        let text = self.recorded[kind].replace("app-0000", name).replace("\"uid\":\"UID\"", &uid);
        let text = text.replace("apps-0", &component(name));
        let text = text.replace("\"VERSION\"", &format!("\"{version}\""));
        if self.changed.lock().unwrap().as_deref() == Some(name) {
            return text.replace("app:1.0.0", "app:hotfix");
        }
        text
    }

    fn list(&self, kind: &'static str, query: &HashMap<String, String>) -> String {
        let there = self.there.lock().unwrap();
        let all = &there[kind];
        let after = query.get("continue").cloned().unwrap_or_default();
        let limit = query.get("limit").and_then(|text| text.parse().ok()).unwrap_or(usize::MAX);
        let labels = query.get("labelSelector").cloned().unwrap_or_default();
        let is_meant = |name: &str| !labels.contains("component=") || labels.ends_with(&component(name));
        let names: Vec<(&String, &u64)> =
            all.iter().filter(|(name, _)| **name > after && is_meant(name)).take(limit).collect();
        let next = names.last().filter(|_| names.len() == limit).map(|(name, _)| name.as_str()).unwrap_or_default();
        let items: Vec<String> = names.iter().map(|(name, version)| self.object(kind, name, **version)).collect();
        format!(r#"{{"metadata":{{"resourceVersion":"1","continue":"{next}"}},"items":[{}]}}"#, items.join(","))
    }
}

/// Returns the component of an object.
fn component(name: &str) -> String {
    let n: usize = name.trim_start_matches("app-").parse().unwrap();
    format!("apps-{}", n / EACH)
}

async fn replay(State(replay): State<Arc<Replay>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let Query(query): Query<HashMap<String, String>> = Query::try_from_uri(request.uri()).unwrap();
    let mut parts = path.rsplit('/');
    let (last, before) = (parts.next().unwrap_or_default().to_owned(), parts.next().unwrap_or_default());
    let json = |text: String| ([("content-type", "application/json")], text).into_response();
    if let Some(kind) = KINDS.into_iter().find(|kind| *kind == last) {
        if query.get("watch").is_some_and(|text| text == "true") {
            let (send, receive) = mpsc::unbounded_channel();
            replay.watches.lock().unwrap().insert(kind, send);
            let lines = futures::stream::unfold(receive, async |mut receive| {
                receive.recv().await.map(|line| (Ok::<_, Infallible>(line), receive))
            });
            return Body::from_stream(lines).into_response();
        }
        return json(replay.list(kind, &query));
    }
    if let Some(kind) = KINDS.into_iter().find(|kind| *kind == before) {
        if request.method() == Method::PATCH {
            if !query.contains_key("dryRun") {
                replay.there.lock().unwrap().get_mut(kind).unwrap().insert(last.clone(), 1);
            } else {
                // The dry-run returns the declared object.
                let mut object: Value = serde_json::from_str(&replay.object(kind, &last, 1)).unwrap();
                if kind == "deployments" {
                    object["spec"]["template"]["spec"]["containers"][0]["image"] = "app:1.0.0".into();
                }
                return json(object.to_string());
            }
        }
        let version = replay.there.lock().unwrap()[kind].get(&last).copied();
        return match version {
            Some(version) => json(replay.object(kind, &last, version)),
            None => (StatusCode::NOT_FOUND, json(r#"{"kind":"Status","code":404,"reason":"NotFound"}"#.into()))
                .into_response(),
        };
    }
    let (mut parts, body) = request.into_parts();
    parts.uri = parts.uri.path_and_query().unwrap().as_str().parse().unwrap();
    parts.headers.remove("host");
    parts.headers.remove("authorization");
    let body = body.collect().await.unwrap().to_bytes();
    let sent = replay.client.send(http::Request::from_parts(parts, kube::client::Body::from(body.to_vec()))).await;
    let (parts, body) = sent.unwrap().into_parts();
    Response::from_parts(parts, Body::new(body))
}

/// Records the server's responses for an object of each kind, as the daemon applies it.
async fn record(client: &kube::Client) -> HashMap<&'static str, String> {
    let places = [
        "/api/v1/namespaces/bench/serviceaccounts",
        "/api/v1/namespaces/bench/services",
        "/apis/apps/v1/namespaces/bench/deployments",
        "/apis/networking.k8s.io/v1/namespaces/bench/ingresses",
    ];
    let mut recorded = HashMap::new();
    for ((kind, place), text) in KINDS.into_iter().zip(places).zip(objects(0).split("\n---\n")) {
        let mut object: Value = serde_json::from_str(text).unwrap();
        let labels = object["metadata"]["labels"].take();
        let mut labels = if labels.is_null() { json!({}) } else { labels };
        labels["evenkeel.dev/environment"] = "dev".into();
        labels["evenkeel.dev/component"] = "apps-0".into();
        object["metadata"]["labels"] = labels;
        object["metadata"]["namespace"] = "bench".into();
        let path = format!("{place}/app-0000?fieldManager=evenkeel");
        let request = http::Request::patch(path).header("content-type", "application/apply-patch+yaml");
        let answer = client
            .send(request.body(kube::client::Body::from(object.to_string().into_bytes())).unwrap())
            .await
            .unwrap();
        assert!(answer.status().is_success());
        let mut live: Value = serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap();
        live["metadata"]["uid"] = "UID".into();
        live["metadata"]["resourceVersion"] = "VERSION".into();
        recorded.insert(kind, live.to_string());
    }
    recorded
}

pub(crate) async fn rows() -> Vec<Row> {
    let fill = |folder: &Path| {
        let spec = "{ onMerge: apply, deferred: apply, kubernetes: { connection: cluster, namespace: bench } }";
        write(folder, "state-repo/environments/dev.yaml", &envelope("Environment", "dev", spec));
        let spec = "{ environments: [dev], kubernetes: { manifests: k8s, wait: none }, drift: { mode: report } }";
        for at in 0..COMPONENTS {
            let (name, spec) = (format!("apps-{at}"), spec.replace("k8s", &format!("k8s/{at}")));
            write(folder, &format!("state-repo/components/{name}.yaml"), &envelope("Component", &name, &spec));
        }
        for first in (0..MANY).step_by(50) {
            let texts: Vec<String> = (first..first + 50).map(objects).collect();
            write(folder, &format!("k8s/{}/{first:05}.yaml", first / EACH), &texts.join("\n---\n"));
        }
    };
    let mut stage = Stage::new(fill, 4).await;
    let server = ApiServer::start(&stage.place("cluster"), Some(&tools()["PATH"])).unwrap();
    server.ready().await.unwrap();
    let client = server.client("admin").await.unwrap();
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "bench"}});
    let request = http::Request::post("/api/v1/namespaces").header("content-type", "application/json");
    client.send(request.body(kube::client::Body::from(space.to_string().into_bytes())).unwrap()).await.unwrap();
    let replay = Arc::new(Replay {
        recorded: record(&client).await,
        client,
        there: Mutex::new(KINDS.into_iter().map(|kind| (kind, BTreeMap::new())).collect()),
        watches: Mutex::default(),
        changed: Mutex::default(),
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let router = axum::Router::new().fallback(self::replay).with_state(Arc::clone(&replay));
    let serving = tokio::spawn(async move { axum::serve(listener, router).await });
    let kubeconfig = server.kubeconfig("admin").replace(&server.address(), &address);
    std::fs::write(stage.place("kubeconfig"), kubeconfig).unwrap();
    let mut config: Value = serde_json::from_slice(&std::fs::read(stage.place("evenkeel.yaml")).unwrap()).unwrap();
    let access = json!({"kubeconfigFile": stage.place("kubeconfig")});
    config["connections"]["*"]["cluster"] = json!({"plan": access, "apply": access});
    std::fs::write(stage.place("evenkeel.yaml"), config.to_string()).unwrap();
    stage.serve();
    stage.until("everything is applied", async || stage.in_sync().await).await;
    stage.stop();
    replay.watches.lock().unwrap().clear();
    let started = Instant::now();
    let log = |stage: &Stage| std::fs::read_to_string(stage.place("daemon.log")).unwrap_or_default();
    let watched = |stage: &Stage| log(stage).matches("everything was looked at and is watched").count();
    let before = watched(&stage);
    stage.serve();
    stage
        .until("it watches", async || {
            watched(&stage) >= before + COMPONENTS && replay.watches.lock().unwrap().len() == KINDS.len()
        })
        .await;
    let start = started.elapsed().as_secs_f64();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let memory = stage.statistic("VmRSS:");
    // Every object has an event that changes only its version; the last object of each kind is changed or deleted.
    let last = format!("app-{:04}", MANY - 1);
    *replay.changed.lock().unwrap() = Some(last.clone());
    let mut lines: Vec<(&str, String)> = vec![];
    for kind in KINDS {
        for n in 0..MANY {
            let name = format!("app-{n:04}");
            let is_gone = name == last && kind != "deployments";
            let sort = if is_gone { "DELETED" } else { "MODIFIED" };
            lines.push((kind, format!("{{\"type\":\"{sort}\",\"object\":{}}}\n", replay.object(kind, &name, 2))));
            if is_gone {
                replay.there.lock().unwrap().get_mut(kind).unwrap().remove(&name);
            }
        }
    }
    let bytes: usize = lines.iter().map(|(_, line)| line.len()).sum();
    let count = lines.len();
    let started = Instant::now();
    for (kind, line) in lines {
        replay.watches.lock().unwrap()[kind].send(line).unwrap();
    }
    stage
        .until("the drift is told", async || {
            let status = stage.get("/api/v1/status").await;
            let last = status["instances"].as_array().and_then(|all| all.last().cloned()).unwrap_or_default();
            last["drift"].as_array().is_some_and(|drift| drift.len() == KINDS.len())
        })
        .await;
    let stream = started.elapsed().as_secs_f64();
    let after = stage.statistic("VmRSS:");
    stage.stop();
    serving.abort();
    ask(&replay.client, Method::DELETE, "/api/v1/namespaces/bench/services/app-0000", None).await;
    let per = |kib: u64| kib as f64 * 1024.0 / (4 * MANY) as f64;
    vec![
        Row {
            what: "100,000 recorded objects: start → rendered, seen and watched",
            found: format!("{start:.1} s"),
            bound: "stated".into(),
        },
        Row {
            what: "the same: memory of the whole daemon",
            found: format!("{:.0} MB", memory as f64 / 1024.0),
            bound: format!("{:.0} bytes for an object; stated", per(memory)),
        },
        Row {
            what: "an event of each, a change the last of each kind → drift told",
            found: format!("{stream:.1} s"),
            bound: format!(
                "{:.0} µs for an event, {:.0} MB of them; memory then {:.0} MB",
                stream * 1e6 / count as f64,
                bytes as f64 / 1e6,
                after as f64 / 1024.0
            ),
        },
    ]
}
