//! Tests failures of a cluster: throttling, lost connections, restarts, and killed daemons.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use evenkeel::model::Verdict;
use futures::StreamExt;
use http::Method;
use serde_json::json;

use crate::{
    cluster::{Cluster, component},
    stage::{Stage, environment},
};

/// A proxy between a daemon and an API server that can break requests.
struct Between {
    client: kube::Client,
    /// The number of further writes that are throttled.
    too_many: AtomicU32,
    /// Whether lists of config maps fail.
    lists_fail: AtomicBool,
    /// Whether the next watch fails with 410 Gone.
    gone: AtomicBool,
    /// Ends the open watches.
    cut: tokio::sync::Notify,
    seen: Mutex<Vec<String>>,
}

impl Between {
    /// Starts the proxy; returns its address.
    async fn start(cluster: &Cluster) -> (Arc<Self>, String) {
        let between = Arc::new(Self {
            client: cluster.server.client("admin").await.unwrap(),
            too_many: AtomicU32::new(0),
            lists_fail: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            cut: tokio::sync::Notify::new(),
            seen: Mutex::default(),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new().fallback(pass).with_state(Arc::clone(&between));
        tokio::spawn(async move { axum::serve(listener, router).await });
        (between, address)
    }

    fn seen(&self, what: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|line| line.contains(what)).count()
    }
}

fn answer(code: u16, reason: &str) -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason});
    (http::StatusCode::from_u16(code).unwrap(), [("retry-after", "0")], status.to_string()).into_response()
}

async fn pass(State(between): State<Arc<Between>>, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    let target = parts.uri.path_and_query().unwrap().to_string();
    between.seen.lock().unwrap().push(format!("{} {target}", parts.method));
    let is_watch = target.contains("watch=true");
    let writes = parts.method != Method::GET;
    if writes && between.too_many.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| count.checked_sub(1)).is_ok()
    {
        return answer(429, "TooManyRequests");
    }
    if !is_watch && target.contains("/configmaps?") && between.lists_fail.load(Ordering::SeqCst) {
        return answer(403, "Forbidden");
    }
    if is_watch && between.gone.swap(false, Ordering::SeqCst) {
        return answer(410, "Expired");
    }
    parts.uri = target.parse().unwrap();
    for name in ["host", "authorization"] {
        parts.headers.remove(name);
    }
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let sent = between.client.send(http::Request::from_parts(parts, kube::client::Body::from(body.to_vec()))).await;
    let Ok(live) = sent else { return answer(503, "ServiceUnavailable") };
    let (parts, body) = live.into_parts();
    let body = if is_watch {
        let between = Arc::clone(&between);
        let until = async move { between.cut.notified().await };
        Body::from_stream(Body::new(body).into_data_stream().take_until(Box::pin(until)))
    } else {
        Body::new(body)
    };
    Response::from_parts(parts, body)
}

fn map(name: &str, value: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{ name: {name} }}\ndata: {{ a: \"{value}\" }}\n")
}

/// Returns a namespace and config maps, with the connection at this address.
fn files(space: &str, address: &str, count: usize) -> Vec<(String, String)> {
    let connection =
        if address.is_empty() { "cluster".to_owned() } else { format!("{{ name: cluster, server: \"{address}\" }}") };
    let mut files = vec![
        environment(
            "dev",
            &format!("onMerge: apply, limits: {{ destroys: 1000 }}, kubernetes: {{ namespace: {space} }}"),
        ),
        component(
            space,
            &format!("connection: {connection}, manifests: k8s/app, wait: none"),
            "  drift: { mode: report }\n",
        ),
        ("k8s/app/namespace.yaml".into(), format!("apiVersion: v1\nkind: Namespace\nmetadata: {{ name: {space} }}\n")),
    ];
    files.extend((0..count).map(|n| (format!("k8s/app/m{n:03}.yaml"), map(&format!("m{n:03}"), "1"))));
    files
}

async fn through(between: &str, space: &str, count: usize) -> Stage {
    let mut stage = Stage::new(&files(space, between, count)).await;
    std::fs::write(stage.place("cluster-token"), "token-of-admin").unwrap();
    let access = json!({"tokenFile": stage.place("cluster-token")});
    stage.config["connections"]["*"]["cluster"] = json!({"plan": access, "apply": access});
    stage
}

fn maps(space: &str) -> String {
    format!("/api/v1/namespaces/{space}/configmaps")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_turned_away_is_sent_again_and_a_broken_watch_misses_nothing() {
    let cluster = Cluster::shared().await;
    let (between, address) = Between::start(&cluster).await;
    between.too_many.store(60, Ordering::SeqCst);
    let mut stage = through(&address, "storm", 20).await;
    stage.serve();
    stage.ready().await;
    stage.verdict("dev/storm", Verdict::InSync).await;
    assert_eq!(between.too_many.load(Ordering::SeqCst), 0);
    let (code, out, err) = stage.drift("dev");
    assert_eq!(code, 0, "{out}{err}");
    stage.until("it watches", async || (between.seen("watch=true") >= 2).then_some(())).await;
    // The watch is disconnected, and its version has expired at the reconnect: the changes are found anyway.
    between.gone.store(true, Ordering::SeqCst);
    between.cut.notify_waiters();
    cluster.edit(&format!("{}/m003", maps("storm")), &json!({"data": {"a": "2"}})).await;
    cluster.delete(&format!("{}/m004", maps("storm"))).await;
    let drifted =
        stage.until("both are seen", async || stage.instance("dev/storm").await.filter(|i| i.drift.len() == 2)).await;
    assert_eq!(drifted.verdict, Verdict::Drifted);
    // Objects that can't be listed are unknown, and none of them counts as deleted.
    between.lists_fail.store(true, Ordering::SeqCst);
    let (code, out, err) = stage.drift("dev");
    assert_eq!(code, 3, "{out}{err}");
    let unknown = stage.verdict("dev/storm", Verdict::Unknown).await;
    assert!(unknown.message().contains("configmaps"), "{}", unknown.message());
    stage.push("main", &[("k8s/app/m005.yaml".into(), String::new())]);
    stage
        .until("the run fails", async || stage.instance("dev/storm").await.filter(|i| i.verdict == Verdict::Stalled))
        .await;
    assert!(!cluster.get(&format!("{}/m005", maps("storm"))).await.is_null());
    between.lists_fail.store(false, Ordering::SeqCst);
    let (code, out, err) = stage.run(&["apply", "dev", "--yes"]);
    assert_eq!(code, 0, "{out}{err}");
    stage.verdict("dev/storm", Verdict::InSync).await;
    let remaining = cluster.get(&maps("storm")).await;
    assert_eq!(remaining["items"].as_array().unwrap().len(), 19);
    // Objects without differences are not written.
    let before = between.seen("PATCH");
    let (code, out, err) = stage.drift("dev");
    assert_eq!((code, between.seen("PATCH")), (0, before), "{out}{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_and_its_store_go_and_come_back() {
    let mut cluster = Cluster::own().await;
    let path = Some(crate::cluster::path());
    let mut stage = Stage::new(&files("restart", "", 30)).await;
    cluster.connect(&mut stage);
    stage.serve();
    stage.ready().await;
    stage.verdict("dev/restart", Verdict::InSync).await;
    cluster.server.stop_server();
    let pushed = (0..30).map(|n| (format!("k8s/app/m{n:03}.yaml"), map(&format!("m{n:03}"), "2"))).collect::<Vec<_>>();
    stage.push("main", &pushed);
    stage.until("the run is at work", async || stage.log().contains("run=2").then_some(())).await;
    cluster.server.start_server(path).unwrap();
    cluster.server.ready().await.unwrap();
    let is_new = |live: &serde_json::Value| {
        live["items"].as_array().is_some_and(|all| all.iter().filter(|object| object["data"]["a"] == "2").count() == 30)
    };
    stage
        .until("the run is done or stalled", async || {
            stage.instance("dev/restart").await.filter(|i| matches!(i.verdict, Verdict::InSync | Verdict::Stalled))
        })
        .await;
    if !is_new(&cluster.get(&maps("restart")).await) {
        let (code, out, err) = stage.run(&["apply", "dev", "--yes"]);
        assert_eq!(code, 0, "{out}{err}");
    }
    assert!(is_new(&cluster.get(&maps("restart")).await));
    stage.verdict("dev/restart", Verdict::InSync).await;
    // Without etcd, the server can't respond: the instance is unknown, and no object is deleted.
    cluster.server.stop_etcd();
    let (code, _, _) = stage.drift("dev");
    assert_eq!(code, 3);
    cluster.server.start_etcd(path).unwrap();
    cluster.server.ready().await.unwrap();
    stage.until("it is seen again", async || (stage.drift("dev").0 == 0).then_some(())).await;
    cluster.edit(&format!("{}/m007", maps("restart")), &json!({"data": {"a": "3"}})).await;
    stage.verdict("dev/restart", Verdict::Drifted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r7_1_a_daemon_killed_in_the_middle_applies_the_rest_and_forgets_nothing() {
    let cluster = Cluster::shared().await;
    let (between, address) = Between::start(&cluster).await;
    let mut stage = through(&address, "killed", 60).await;
    stage.serve();
    stage.ready().await;
    for round in 1..=6_usize {
        // Kill in the middle of the objects, at another place each time. Every other write is throttled for a while, so
        // that the middle lasts.
        between.too_many.store(u32::try_from(200).unwrap(), Ordering::SeqCst);
        stage.until("it writes", async || (between.seen("PATCH") > round * 37).then_some(())).await;
        stage.kill();
        let value = format!("{}", round + 1);
        let pushed =
            (0..60).map(|n| (format!("k8s/app/m{n:03}.yaml"), map(&format!("m{n:03}"), &value))).collect::<Vec<_>>();
        if round % 2 == 0 {
            stage.push("main", &pushed);
        }
        stage.serve();
        stage.ready().await;
    }
    between.too_many.store(0, Ordering::SeqCst);
    stage
        .until("everything is as declared", async || {
            let live = cluster.get(&maps("killed")).await;
            let all = live["items"].as_array()?;
            (all.len() == 60 && all.iter().all(|object| object["data"]["a"] == "7")).then_some(())
        })
        .await;
    stage.verdict("dev/killed", Verdict::InSync).await;
    // All objects are known, whichever daemon process created them, and are deleted with their declaration.
    let gone: Vec<_> = (0..60).map(|n| (format!("k8s/app/m{n:03}.yaml"), String::new())).collect();
    stage.push("main", &gone);
    stage
        .until("all are gone", async || {
            let live = cluster.get(&maps("killed")).await;
            live["items"].as_array().filter(|all| all.is_empty()).map(drop)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_does_not_answer_is_said_and_an_own_identity_for_plans_stores_nothing() {
    let cluster = Cluster::own().await;
    let mut all = files("hooked", "", 2);
    all.push(component(
        "evenkeel",
        "connection: cluster, kustomize: kubernetes/evenkeel, wait: none",
        "  drift: { mode: report }\n",
    ));
    for entry in std::fs::read_dir("kubernetes/evenkeel").unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        all.push((format!("kubernetes/evenkeel/{name}"), std::fs::read_to_string(entry.path()).unwrap()));
    }
    let mut stage = Stage::new(&all).await;
    cluster.connect(&mut stage);
    stage.serve();
    stage.ready().await;
    stage.verdict("dev/evenkeel", Verdict::InSync).await;
    stage.verdict("dev/hooked", Verdict::InSync).await;
    let (code, out, err) = stage.drift("dev");
    assert_eq!(code, 0, "our own manifests are in sync on the next pass: {out}{err}");
    // The identity for plans may only make dry-runs, whatever its roles allow.
    let mut config: serde_json::Value = serde_json::from_str(&cluster.server.kubeconfig("admin")).unwrap();
    config["users"][0]["user"]["as"] = json!("system:serviceaccount:evenkeel:plan");
    let place = cluster.folder.path().join("plan");
    std::fs::write(&place, config.to_string()).unwrap();
    let config = kube::config::Kubeconfig::read_from(&place).unwrap();
    let client =
        kube::Client::try_from(kube::Config::from_custom_kubeconfig(config, &Default::default()).await.unwrap())
            .unwrap();
    let patch = |name: &str, query: &str| {
        let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "plan"}})
            .to_string();
        let request =
            http::Request::patch(format!("{}/{name}?fieldManager=evenkeel&force=true{query}", maps("hooked")));
        request.header("content-type", "application/apply-patch+yaml").body(body.into_bytes()).unwrap()
    };
    let refused = stage.until("the policy holds", async || client.request_text(patch("probe", "")).await.err()).await;
    assert!(refused.to_string().contains("the identity that plans may only try"), "{refused}");
    assert!(client.request_text(patch("m000", "")).await.is_err());
    client.request_text(patch("m000", "&dryRun=All")).await.unwrap();
    let access = json!({"kubeconfigFile": place});
    stage.config["connections"]["*"]["cluster"]["plan"] = access;
    std::fs::write(stage.place("evenkeel.yaml"), stage.config.to_string()).unwrap();
    stage.stop();
    stage.serve();
    stage.ready().await;
    let (code, out, err) = stage.drift("dev/hooked");
    assert_eq!(code, 0, "{out}{err}");
    cluster.edit(&format!("{}/m001", maps("hooked")), &json!({"data": {"a": "2"}})).await;
    stage.verdict("dev/hooked", Verdict::Drifted).await;
    cluster.edit(&format!("{}/m001", maps("hooked")), &json!({"data": {"a": "1"}})).await;
    // A foreign webhook that does not respond.
    let hook = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration", "metadata": {"name": "silent"}, "webhooks": [{
        "name": "silent.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None", "timeoutSeconds": 1, "failurePolicy": "Fail",
        "clientConfig": {"url": "https://127.0.0.1:9/"}, "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["configmaps"]}]}]});
    let hooks = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
    cluster.create(hooks, &hook).await;
    stage.push("main", &[("k8s/app/m000.yaml".into(), map("m000", "2"))]);
    let stalled = stage.verdict("dev/hooked", Verdict::Stalled).await;
    assert!(stalled.message().contains("silent.example.com"), "{}", stalled.message());
    cluster.delete(&format!("{hooks}/silent")).await;
    stage
        .until("it is applied again", async || (stage.run(&["apply", "dev/hooked", "--yes"]).0 == 0).then_some(()))
        .await;
    assert_eq!(cluster.get(&format!("{}/m000", maps("hooked"))).await["data"]["a"], "2");
}
