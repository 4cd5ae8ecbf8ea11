//! Objects on a real API server: applied, looked at, changed by others, and gone.

use evenkeel::model::Verdict;
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, component},
    stage::{Stage, environment},
};

const DEPLOYMENT: &str = "apiVersion: apps/v1
kind: Deployment
metadata: { name: web, labels: { app: web } }
spec:
  replicas: 2
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec:
      containers:
      - name: web
        image: web:1.4.2
        ports: [{ containerPort: 8080 }]
        resources: { requests: { cpu: 1000m, memory: 64Mi } }
";

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{ name: {name} }}\n")
}

/// A component with a namespace, a deployment and a config map; nobody waits for the rollout, as no controller runs.
fn app(space: &str) -> Vec<(String, String)> {
    vec![
        environment("dev", &format!("onMerge: apply, kubernetes: {{ connection: cluster, namespace: {space} }}")),
        component(space, "manifests: k8s/app, wait: none", ""),
        ("k8s/app/namespace.yaml".into(), namespace(space)),
        ("k8s/app/web.yaml".into(), DEPLOYMENT.into()),
        (
            "k8s/app/config.yaml".into(),
            "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: config }\ndata: { mode: \"0644\", colour: blue }\n"
                .into(),
        ),
    ]
}

async fn start(cluster: &Cluster, files: &[(String, String)]) -> Stage {
    let mut stage = Stage::new(files).await;
    cluster.connect(&mut stage);
    stage.serve();
    stage.ready().await;
    stage
}

fn web(space: &str) -> String {
    format!("/apis/apps/v1/namespaces/{space}/deployments/web")
}

fn config(space: &str) -> String {
    format!("/api/v1/namespaces/{space}/configmaps/config")
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_applied_and_changes_by_others_are_found_and_reverted() {
    let cluster = Cluster::shared().await;
    let stage = start(&cluster, &app("loop")).await;
    stage.verdict("dev/loop", Verdict::InSync).await;
    let live = cluster.get(&web("loop")).await;
    assert_eq!(live["metadata"]["labels"]["evenkeel.dev/component"], "loop");
    assert_eq!(cluster.get(&config("loop")).await["data"]["mode"], "0644");
    let (code, out, err) = stage.drift("dev");
    assert_eq!(code, 0, "{out}{err}");
    // Somebody changes a field, and nobody asks.
    cluster.patch(&web("loop"), &json!({"spec": {"template": {"spec": {"containers": [{"name": "web", "image": "web:hotfix", "env": [{"name": "DEBUG", "value": "1"}]}]}}}})).await;
    let drifted = stage.verdict("dev/loop", Verdict::Drifted).await;
    let fields: Vec<&str> = drifted.drift[0].fields.iter().map(|field| field.path.as_str()).collect();
    assert_eq!(fields, ["/spec/template/spec/containers/0/env", "/spec/template/spec/containers/0/image"]);
    assert_eq!(drifted.drift[0].changed_by.as_deref(), Some("kubectl-edit"));
    let proposal = stage.proposal().await;
    assert!(proposal["body"].as_str().unwrap().contains("web:hotfix"), "{proposal}");
    stage.merge("lin", proposal["number"].as_u64().unwrap()).await;
    stage.verdict("dev/loop", Verdict::InSync).await;
    let live = cluster.get(&web("loop")).await;
    let container = &live["spec"]["template"]["spec"]["containers"][0];
    assert_eq!((&container["image"], &container["env"]), (&json!("web:1.4.2"), &Value::Null));
}

/// What the first drift of an instance says, as `drift path desired → observed`.
fn told(status: &evenkeel::daemon::InstanceStatus) -> Vec<String> {
    let mut all = vec![];
    for drift in &status.drift {
        let word = serde_json::to_value(drift.drift).unwrap();
        let word = word.as_str().unwrap();
        if drift.fields.is_empty() {
            all.push(format!("{word} {}", drift.resource));
        }
        for field in &drift.fields {
            let show = |value: &Option<Value>| value.as_ref().map_or("-".to_owned(), Value::to_string);
            all.push(format!(
                "{word} {} {} {} -> {}",
                drift.resource,
                field.path,
                show(&field.desired),
                show(&field.observed)
            ));
        }
    }
    all
}

/// Waits until the drift of an instance is exactly this, without anybody asking for a look.
async fn drifts(stage: &Stage, id: &str, expected: &[&str]) {
    let last = std::sync::Mutex::new(vec![]);
    let found = tokio::time::timeout(crate::stage::LIMIT, async {
        loop {
            if let Some(status) = stage.instance(id).await {
                let now = told(&status);
                if now == expected {
                    return;
                }
                *last.lock().unwrap() = now;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
    assert!(found.await.is_ok(), "found {:#?}, expected {expected:#?}", last.lock().unwrap());
}

/// A stage whose app is applied and whose drift nobody proposes.
async fn reporting(cluster: &Cluster, space: &str) -> Stage {
    let mut files = app(space);
    files[1] = component(space, "manifests: k8s/app, wait: none", "  drift: { mode: report }\n");
    let stage = start(cluster, &files).await;
    stage.verdict(&format!("dev/{space}"), Verdict::InSync).await;
    // The watches are there once a whole look was made.
    let (code, out, err) = stage.drift("dev");
    assert_eq!(code, 0, "{out}{err}");
    stage
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sort_of_drift_is_found_without_polling() {
    let cluster = Cluster::shared().await;
    let stage = reporting(&cluster, "sorts").await;
    let config = config("sorts");
    // A changed field.
    cluster.edit(&config, &json!({"data": {"colour": "red"}})).await;
    drifts(&stage, "dev/sorts", &["changed ConfigMap/sorts/config /data/colour \"blue\" -> \"red\""]).await;
    // Changed back by hand.
    cluster.edit(&config, &json!({"data": {"colour": "blue"}})).await;
    drifts(&stage, "dev/sorts", &[]).await;
    // A removed field.
    cluster.edit(&config, &json!({"data": {"colour": null}})).await;
    drifts(&stage, "dev/sorts", &["changed ConfigMap/sorts/config /data/colour \"blue\" -> -"]).await;
    cluster.edit(&config, &json!({"data": {"colour": "blue"}})).await;
    drifts(&stage, "dev/sorts", &[]).await;
    // An added field, which a dry-run can't see.
    cluster.edit(&config, &json!({"data": {"more": "x"}})).await;
    drifts(&stage, "dev/sorts", &["extra ConfigMap/sorts/config /data/more - -> \"x\""]).await;
    cluster.edit(&config, &json!({"data": {"more": null}})).await;
    drifts(&stage, "dev/sorts", &[]).await;
    // A label that we declare; and one that we don't, which is nobody's business.
    cluster.edit(&config, &json!({"metadata": {"labels": {"evenkeel.dev/component": null, "mine": "yes"}}})).await;
    drifts(
        &stage,
        "dev/sorts",
        &["changed ConfigMap/sorts/config /metadata/labels/evenkeel.dev~1component \"sorts\" -> -"],
    )
    .await;
    cluster.edit(&config, &json!({"metadata": {"labels": {"evenkeel.dev/component": "sorts"}}})).await;
    drifts(&stage, "dev/sorts", &[]).await;
    // Deleted; and made again by somebody, which is another object.
    let before = cluster.get(&config).await;
    cluster.delete(&config).await;
    drifts(&stage, "dev/sorts", &["missing ConfigMap/sorts/config"]).await;
    let made = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "config"}, "data": before["data"]});
    cluster.create("/api/v1/namespaces/sorts/configmaps", &made).await;
    let (code, out, _) = stage.drift("dev");
    assert_eq!(code, 2, "{out}");
    assert!(out.contains("ConfigMap/sorts/config"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_drift_is_not_found() {
    let cluster = Cluster::shared().await;
    let stage = reporting(&cluster, "quiet").await;
    let web = web("quiet");
    // Status, a controller's annotation, somebody's own label, another way to write a quantity, a finalizer.
    let status = json!({"status": {"replicas": 2, "observedGeneration": 1}});
    let (code, answer) = cluster
        .ask("admin", http::Method::PATCH, &format!("{web}/status"), "application/merge-patch+json", Some(&status))
        .await;
    assert_eq!(code, 200, "{answer}");
    cluster.edit(&web, &json!({"metadata": {"annotations": {"deployment.kubernetes.io/revision": "3"}, "labels": {"mine": "yes"}, "finalizers": ["example.com/mine"]}})).await;
    cluster.patch(&web, &json!({"spec": {"template": {"spec": {"containers": [{"name": "web", "resources": {"requests": {"cpu": "1"}}}]}}}})).await;
    let (code, out, err) = stage.drift("dev");
    assert_eq!(code, 0, "{out}{err}");
    cluster.edit(&web, &json!({"metadata": {"finalizers": null}})).await;
    // An HPA scales by the subresource; replicas are declared here, so that is drift; where they are ignored, it is not.
    let scale = json!({"spec": {"replicas": 5}});
    let (code, answer) = cluster
        .ask("admin", http::Method::PATCH, &format!("{web}/scale"), "application/merge-patch+json", Some(&scale))
        .await;
    assert_eq!(code, 200, "{answer}");
    drifts(&stage, "dev/quiet", &["changed Deployment.apps/quiet/web /spec/replicas 2 -> 5"]).await;
    let ignoring = "manifests: k8s/app, wait: none, ignore: [{ kind: Deployment, pointers: [/spec/replicas], because: an HPA owns it }]";
    stage.push("main", &[component("quiet", ignoring, "  drift: { mode: report }\n")]);
    drifts(&stage, "dev/quiet", &[]).await;
    stage.verdict("dev/quiet", Verdict::InSync).await;
    assert_eq!(cluster.get(&web).await["spec"]["replicas"], 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_declared_any_more_is_deleted_and_nothing_else() {
    let cluster = Cluster::shared().await;
    let mut files = app("prune");
    files[0] = environment(
        "dev",
        "onMerge: apply, limits: { destroys: 3 }, kubernetes: { connection: cluster, namespace: prune }",
    );
    let extra = |name: &str, more: &str| {
        (
            format!("k8s/app/{name}.yaml"),
            format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{ name: {name}{more} }}\ndata: {{ a: b }}\n"),
        )
    };
    files.push(extra("goes", ""));
    files.push(extra("stays", ", annotations: { evenkeel.dev/prune: disabled }"));
    files.push(extra("taken", ""));
    let stage = start(&cluster, &files).await;
    stage.verdict("dev/prune", Verdict::InSync).await;
    let path = |name: &str| format!("/api/v1/namespaces/prune/configmaps/{name}");
    // Somebody's own object with our labels, and one of ours that somebody else labelled.
    let copy = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "copy", "labels": {"evenkeel.dev/environment": "dev", "evenkeel.dev/component": "prune"}}});
    cluster.create("/api/v1/namespaces/prune/configmaps", &copy).await;
    stage.push("main", &[("k8s/app/goes.yaml".into(), String::new()), ("k8s/app/stays.yaml".into(), String::new())]);
    stage.until("it is gone", async || cluster.get(&path("goes")).await.is_null().then_some(())).await;
    stage.verdict("dev/prune", Verdict::InSync).await;
    for name in ["stays", "copy", "taken", "config"] {
        assert!(!cluster.get(&path(name)).await.is_null(), "{name} is gone");
    }
    cluster.edit(&path("taken"), &json!({"metadata": {"labels": {"evenkeel.dev/component": "other"}}})).await;
    stage.push("main", &[("k8s/app/taken.yaml".into(), String::new())]);
    stage.verdict("dev/prune", Verdict::InSync).await;
    stage
        .until("the head is applied", async || {
            stage.instance("dev/prune").await.filter(|i| i.pending.is_empty() && i.applied.is_some())
        })
        .await;
    assert!(!cluster.get(&path("taken")).await.is_null());
}
