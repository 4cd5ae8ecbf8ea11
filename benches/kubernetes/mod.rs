//! Measures the whole daemon with 10,001 objects on a real API server of this machine.

pub(crate) mod many;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use evenkeel::targets::kubernetes::local::ApiServer;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::{Row, Stage, envelope, median, percentile, tools, write};

/// The number of objects of each of the four kinds.
const EACH: usize = 2500;
/// The number of changes by a user.
const CHANGES: usize = 200;
/// The number of full drift checks.
const DRIFT_CHECKS: usize = 5;

fn objects(n: usize) -> String {
    let name = format!("app-{n:04}");
    [
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "labels": {"app": name}}, "spec": {
            "replicas": 0, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"serviceAccountName": name, "containers": [{
                "name": "app", "image": "app:1.0.0", "ports": [{"containerPort": 8080}],
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}}}]}}}}),
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": name}, "spec": {"rules": [{"host": format!("{name}.local"),
            "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": {"service": {"name": name, "port": {"number": 80}}}}]}}]}}),
    ]
    .map(|object| object.to_string())
    .join("\n---\n")
}

async fn ask(client: &kube::Client, method: http::Method, path: &str, body: Option<Value>) -> bytes::Bytes {
    let request =
        http::Request::builder().method(method).uri(path).header("content-type", "application/merge-patch+json");
    let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
    let answer = client.send(request.body(kube::client::Body::from(body)).unwrap()).await.unwrap();
    assert!(answer.status().is_success(), "{path}: {}", answer.status());
    answer.into_body().collect().await.unwrap().to_bytes()
}

/// Returns the number of write requests, according to the server's metrics.
async fn writes(client: &kube::Client) -> u64 {
    let text = ask(client, http::Method::GET, "/metrics", None).await;
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().filter(|line| line.starts_with("apiserver_request_total"));
    let ours = lines.filter(|line| {
        ["deployments", "services", "serviceaccounts", "ingresses"]
            .iter()
            .any(|name| line.contains(&format!("resource=\"{name}\"")))
    });
    let writing = ours.filter(|line| {
        ["APPLY", "PATCH", "POST", "PUT", "DELETE"].iter().any(|verb| line.contains(&format!("verb=\"{verb}\"")))
    });
    writing.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
}

pub(crate) async fn rows() -> Vec<Row> {
    let count = EACH * 4 + 1;
    let fill = |folder: &Path| {
        write(
            folder,
            "state-repo/environments/dev.yaml",
            &envelope(
                "Environment",
                "dev",
                "{ onMerge: apply, deferred: apply, kubernetes: { connection: cluster, namespace: bench } }",
            ),
        );
        write(
            folder,
            "state-repo/components/apps.yaml",
            &envelope(
                "Component",
                "apps",
                "{ environments: [dev], kubernetes: { manifests: k8s, wait: none }, drift: { mode: report } }",
            ),
        );
        write(folder, "k8s/namespace.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: { name: bench }\n");
        for n in 0..EACH {
            write(folder, &format!("k8s/app-{n:04}.yaml"), &objects(n));
        }
    };
    let mut stage = Stage::new(fill, 4).await;
    let folder = stage.place("cluster");
    let mut server = ApiServer::start(&folder, Some(&tools()["PATH"])).unwrap();
    server.ready().await.unwrap();
    std::fs::write(stage.place("kubeconfig"), server.kubeconfig("admin")).unwrap();
    let mut config: Value = serde_json::from_slice(&std::fs::read(stage.place("evenkeel.yaml")).unwrap()).unwrap();
    let access = json!({"kubeconfigFile": stage.place("kubeconfig")});
    config["connections"]["*"]["cluster"] = json!({"plan": access, "apply": access});
    std::fs::write(stage.place("evenkeel.yaml"), config.to_string()).unwrap();
    let client = server.client("admin").await.unwrap();
    stage.serve();
    let log = |stage: &Stage| std::fs::read_to_string(stage.place("daemon.log")).unwrap_or_default();
    stage.until("the run is authorised", async || log(&stage).contains("run authorised")).await;
    let started = Instant::now();
    stage.until("everything is applied", async || stage.in_sync().await).await;
    let first = started.elapsed().as_secs_f64();
    // One LIST of the same objects is the minimum cost of reading all of them.
    let mut lists = vec![];
    let mut bytes = 0;
    for _ in 0..DRIFT_CHECKS {
        let started = Instant::now();
        bytes = 0;
        for path in [
            "/api/v1/namespaces/bench/serviceaccounts",
            "/api/v1/namespaces/bench/services",
            "/apis/apps/v1/namespaces/bench/deployments",
            "/apis/networking.k8s.io/v1/namespaces/bench/ingresses",
        ] {
            bytes += ask(&client, http::Method::GET, path, None).await.len();
        }
        lists.push(started.elapsed().as_secs_f64() * 1000.0);
    }
    let before = writes(&client).await;
    let mut transient = vec![];
    for _ in 0..DRIFT_CHECKS {
        let output = Command::new(env!("CARGO_BIN_EXE_evenkeel"))
            .args(["drift", "dev", "--output", "json"])
            .current_dir(stage.folder.path())
            .envs(tools())
            .output()
            .await
            .unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        assert_eq!(report["verdict"], "inSync", "{}", String::from_utf8_lossy(&output.stdout));
        transient.push(report["instances"][0]["durationMs"].as_f64().unwrap());
    }
    let wrote = writes(&client).await - before;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (memory, peak) = (stage.statistic("VmRSS:"), stage.statistic("VmHWM:"));
    let latencies = latencies(&stage, &client).await;
    // A restart: from the start of the daemon until every watch is established.
    stage.stop();
    let mut starts = vec![];
    for n in 1..=3 {
        let watched = |stage: &Stage| log(stage).matches("everything was looked at and is watched").count();
        let before = watched(&stage);
        let started = Instant::now();
        stage.serve();
        stage.until("it watches", async || watched(&stage) > before).await;
        starts.push(started.elapsed().as_secs_f64() * 1000.0);
        if n < 3 {
            stage.stop();
        }
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let again = stage.statistic("VmRSS:");
    let log_text = log(&stage);
    let lists_of_watches = log_text.lines().rev().filter(|line| line.contains("a watch has listed")).take(5);
    let ms = |line: &str| line.split(" ms=").nth(1)?.split(' ').next()?.parse::<u64>().ok();
    let first_list = lists_of_watches.filter_map(ms).max().unwrap_or_default();
    stage.stop();
    server.stop_server();
    let list = median(lists);
    vec![
        Row {
            what: "10,001 Kubernetes objects: first apply, authorised → in sync",
            found: format!("{first:.1} s"),
            bound: "< 25 s; a dry-run and an apply of each by Flux's library 38 s".into(),
        },
        Row {
            what: "a full pass over them, in sync",
            found: format!("{:.0} ms", median(transient)),
            bound: format!("{list:.0} ms: one LIST, {:.0} MB; < 1000 ms", bytes as f64 / 1e6),
        },
        Row { what: "write requests of 5 such passes", found: wrote.to_string(), bound: "0".into() },
        Row {
            what: "somebody's change → drift recorded and told: median",
            found: format!("{:.0} ms", median(latencies.clone())),
            bound: "< 40 ms".into(),
        },
        Row {
            what: "the same: 99th percentile",
            found: format!("{:.0} ms", percentile(latencies, 0.99)),
            bound: "< 100 ms".into(),
        },
        Row {
            what: "start of a daemon → rendered, seen and watched",
            found: format!("{:.0} ms", median(starts)),
            bound: format!("of it the slowest first list of a watch {first_list} ms; < 900 ms"),
        },
        Row {
            what: "memory with them watched: after a start",
            found: format!("{:.0} MB", again as f64 / 1024.0),
            bound: format!(
                "< 80 MB; after the first apply {:.0}, at its peak {:.0}; {count} objects",
                memory as f64 / 1024.0,
                peak as f64 / 1024.0
            ),
        },
    ]
}

use tokio::process::Command;

/// Measures the times from the response to a user's change until the API reports the drift.
async fn latencies(stage: &Stage, client: &kube::Client) -> Vec<f64> {
    let mut times = vec![];
    for n in 0..CHANGES {
        let path = format!("/apis/apps/v1/namespaces/bench/deployments/app-{:04}?fieldManager=somebody", n * 7 % EACH);
        let replicas = |count: u32| Some(json!({"spec": {"replicas": count}}));
        let started = Instant::now();
        ask(client, http::Method::PATCH, &path, replicas(3)).await;
        stage.until("the drift is told", async || stage.get("/api/v1/status").await["verdict"] == "drifted").await;
        times.push(started.elapsed().as_secs_f64() * 1000.0);
        ask(client, http::Method::PATCH, &path, replicas(0)).await;
        stage.until("it is well again", async || stage.in_sync().await).await;
    }
    times
}
