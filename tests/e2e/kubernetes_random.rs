//! Tests drift with random manifests and random edits by others.
//!
//! Drift is reported exactly if a declared field differs, or an edit adds something inside a declared object.

use std::collections::{BTreeMap, BTreeSet};

use evenkeel::model::Verdict;
use http::Method;
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, component},
    stage::{Stage, environment},
};

/// The number of objects of each kind.
const OBJECTS: usize = 40;

/// A pseudo-random generator with the same numbers in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % end
    }
    fn some<'a>(&mut self, choices: &[&'a str]) -> BTreeSet<&'a str> {
        choices.iter().copied().filter(|_| self.below(2) == 0).collect()
    }
}

const KEYS: [&str; 4] = ["a", "b.c", "d-e", "f"];
const LABELS: [&str; 3] = ["tier", "example.com/team", "x"];
const VARIABLES: [&str; 4] = ["A", "B", "C", "D"];

/// Returns a config map and an edit: a merge patch, and whether the edit is drift.
fn map(name: &str, numbers: &mut Numbers) -> (String, Value, bool) {
    let (keys, labels) = (numbers.some(&KEYS), numbers.some(&LABELS));
    let data: BTreeMap<&str, &str> = keys.iter().map(|key| (*key, "1")).collect();
    let labelled: BTreeMap<&str, &str> = labels.iter().map(|label| (*label, "1")).collect();
    let text =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labelled}, "data": data})
            .to_string();
    let key = KEYS[numbers.below(KEYS.len())];
    let label = LABELS[numbers.below(LABELS.len())];
    let value = [json!("1"), json!("2"), Value::Null][numbers.below(3)].clone();
    if numbers.below(3) == 0 {
        // Only declared labels are owned.
        let differs = labels.contains(label) && value != "1";
        return (text, json!({"metadata": {"labels": {label: value}}}), differs);
    }
    let differs = if keys.contains(key) { value != "1" } else { !keys.is_empty() && !value.is_null() };
    (text, json!({"data": {key: value}}), differs)
}

/// The same for a deployment whose containers are edited by name.
fn deployment(name: &str, numbers: &mut Numbers) -> (String, Value, bool) {
    let variables = numbers.some(&VARIABLES);
    let env: Vec<Value> = variables.iter().map(|name| json!({"name": name, "value": "1"})).collect();
    let has_env = !env.is_empty();
    let mut container = json!({"name": "web", "image": "web:1"});
    if has_env {
        container["env"] = env.into();
    }
    let text = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
        "selector": {"matchLabels": {"app": name}}, "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}}}});
    let of_container = |change: Value| {
        let mut change = change;
        change["name"] = "web".into();
        json!({"spec": {"template": {"spec": {"containers": [change]}}}})
    };
    let variable = VARIABLES[numbers.below(VARIABLES.len())];
    let (patch, differs) = match numbers.below(6) {
        0 => (of_container(json!({"image": "web:1"})), false),
        1 => (of_container(json!({"image": "web:2"})), true),
        2 => (of_container(json!({"env": [{"name": variable, "value": "1"}]})), !variables.contains(variable)),
        3 => (of_container(json!({"env": [{"name": variable, "value": "2"}]})), true),
        4 => (of_container(json!({"env": [{"name": variable, "$patch": "delete"}]})), variables.contains(variable)),
        _ => (json!({"spec": {"template": {"spec": {"containers": [{"name": "side", "image": "side:1"}]}}}}), true),
    };
    (text.to_string(), patch, differs)
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_is_told_exactly_where_something_declared_differs_or_was_put_beside() {
    let cluster = Cluster::shared().await;
    let mut numbers = Numbers(7);
    let mut files = vec![
        environment("dev", "onMerge: apply, kubernetes: { connection: cluster, namespace: random }"),
        component("random", "manifests: k8s/app, wait: none", "  drift: { mode: report }\n"),
        ("k8s/app/namespace.yaml".into(), "apiVersion: v1\nkind: Namespace\nmetadata: { name: random }\n".into()),
    ];
    let mut edits = vec![];
    for n in 0..OBJECTS {
        let (name, other) = (format!("map-{n}"), format!("web-{n}"));
        let (text, patch, differs) = map(&name, &mut numbers);
        files.push((format!("k8s/app/{name}.json"), text));
        let path = format!("/api/v1/namespaces/random/configmaps/{name}");
        edits.push((path, patch, differs, format!("ConfigMap/random/{name}")));
        let (text, patch, differs) = deployment(&other, &mut numbers);
        files.push((format!("k8s/app/{other}.json"), text));
        let path = format!("/apis/apps/v1/namespaces/random/deployments/{other}");
        edits.push((path, patch, differs, format!("Deployment.apps/random/{other}")));
    }
    let mut stage = Stage::new(&files).await;
    cluster.connect(&mut stage);
    stage.serve();
    stage.ready().await;
    stage.verdict("dev/random", Verdict::InSync).await;
    for (path, patch, _, _) in &edits {
        let path = format!("{path}?fieldManager=somebody");
        let sort = "application/strategic-merge-patch+json";
        let (status, answer) = cluster.ask("admin", Method::PATCH, &path, sort, Some(patch)).await;
        assert_eq!(status, 200, "{answer}");
    }
    let expected: BTreeSet<&str> = edits.iter().filter(|edit| edit.2).map(|edit| edit.3.as_str()).collect();
    assert!(expected.len() > OBJECTS / 2 && expected.len() < edits.len() - OBJECTS / 4, "the edits are one-sided");
    // By the watches alone, by a full drift check, and by a restarted daemon with only its store.
    for by in ["watches", "a whole look", "another start"] {
        match by {
            "watches" => {}
            "a whole look" => drop(stage.drift("dev")),
            _ => {
                stage.kill();
                stage.serve();
                stage.ready().await;
                drop(stage.drift("dev"));
            }
        }
        let last = std::sync::Mutex::new(String::new());
        let found = tokio::time::timeout(crate::stage::LIMIT, async {
            loop {
                let found = stage.instance("dev/random").await;
                let names: Vec<String> =
                    found.iter().flat_map(|i| &i.drift).map(|drift| drift.resource.clone()).collect();
                let names: BTreeSet<&str> = names.iter().map(String::as_str).collect();
                if names == expected {
                    return;
                }
                let (more, less): (Vec<_>, Vec<_>) =
                    (names.difference(&expected).collect(), expected.difference(&names).collect());
                *last.lock().unwrap() = format!("told and not drifted: {more:?}; drifted and not told: {less:?}");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        });
        assert!(found.await.is_ok(), "by {by}: {}", last.lock().unwrap());
    }
    // After an apply, all objects are in sync, whatever the earlier edits.
    stage.push("main", &[component("random", "manifests: k8s/app, wait: none", "  drift: { mode: revert }\n")]);
    stage.until("everything is reverted", async || (stage.drift("dev").0 == 0).then_some(())).await;
    stage.verdict("dev/random", Verdict::InSync).await;
}
