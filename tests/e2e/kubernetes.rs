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
        component("app", "manifests: k8s/app, wait: none", ""),
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
    stage.verdict("dev/app", Verdict::InSync).await;
    let live = cluster.get(&web("loop")).await;
    assert_eq!(live["metadata"]["labels"]["evenkeel.dev/component"], "app");
    assert_eq!(cluster.get(&config("loop")).await["data"]["mode"], "0644");
    let (code, out, err) = stage.drift("dev");
    assert_eq!(code, 0, "{out}{err}");
    // Somebody changes a field, and nobody asks.
    cluster.patch(&web("loop"), &json!({"spec": {"template": {"spec": {"containers": [{"name": "web", "image": "web:hotfix", "env": [{"name": "DEBUG", "value": "1"}]}]}}}})).await;
    let drifted = stage.verdict("dev/app", Verdict::Drifted).await;
    let fields: Vec<&str> = drifted.drift[0].fields.iter().map(|field| field.path.as_str()).collect();
    assert_eq!(fields, ["/spec/template/spec/containers/0/env", "/spec/template/spec/containers/0/image"]);
    assert_eq!(drifted.drift[0].changed_by.as_deref(), Some("kubectl-edit"));
    let proposal = stage.proposal().await;
    assert!(proposal["body"].as_str().unwrap().contains("web:hotfix"), "{proposal}");
    stage.merge("lin", proposal["number"].as_u64().unwrap()).await;
    stage.verdict("dev/app", Verdict::InSync).await;
    let live = cluster.get(&web("loop")).await;
    let container = &live["spec"]["template"]["spec"]["containers"][0];
    assert_eq!((&container["image"], &container["env"]), (&json!("web:1.4.2"), &Value::Null));
}
