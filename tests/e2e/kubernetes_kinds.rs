//! Tests every kind of the API server, and kinds that appear and disappear at run time.

use std::collections::BTreeSet;

use evenkeel::model::Verdict;
use http::Method;
use kube::discovery::Discovery;
use serde_json::json;

use crate::{
    cluster::{Cluster, component},
    stage::{Stage, environment},
};

/// One object of each kind.
const EVERY_KIND: &str = include_str!("every_kind.yaml");

/// Returns the kinds of the server that can be created, changed and listed, by group and kind.
async fn kinds(cluster: &Cluster) -> BTreeSet<(String, String)> {
    let client = cluster.server.client("admin").await.unwrap();
    let discovery = Discovery::new(client).run_aggregated().await.unwrap();
    let all = discovery.groups().flat_map(|group| group.resources_by_stability());
    all.filter(|(_, can)| ["create", "patch", "list", "watch"].iter().all(|verb| can.supports_operation(verb)))
        .map(|(resource, _)| (resource.group, resource.kind))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_that_the_server_has_is_in_sync_once_applied() {
    let cluster = Cluster::own().await;
    let declared: BTreeSet<(String, String)> = EVERY_KIND
        .split("\n---\n")
        .map(|text| {
            let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
            let group = field("apiVersion:").split_once('/').map_or("", |(group, _)| group);
            (group.to_owned(), field("kind:").to_owned())
        })
        .collect();
    let missing: Vec<_> = kinds(&cluster).await.difference(&declared).cloned().collect();
    assert!(missing.is_empty(), "the server has kinds of which `every_kind.yaml` has no object: {missing:?}");
    let mut stage = Stage::new(&[
        environment("dev", "onMerge: apply, kubernetes: { connection: cluster, namespace: kinds }"),
        component("kinds", "manifests: k8s/kinds, wait: none", ""),
        ("k8s/kinds/all.yaml".into(), EVERY_KIND.into()),
    ])
    .await;
    cluster.connect(&mut stage);
    stage.serve();
    stage.ready().await;
    stage.verdict("dev/kinds", Verdict::InSync).await;
    for _ in 0..2 {
        let (code, out, err) = stage.drift("dev");
        assert_eq!(code, 0, "{out}{err}");
    }
}

/// Returns a definition of `Gadget` that another user creates.
fn gadgets() -> serde_json::Value {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer"}}}}});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "gadgets.come.example.com"},
        "spec": {
            "group": "come.example.com",
            "scope": "Namespaced",
            "names": {"kind": "Gadget", "plural": "gadgets"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
        },
    })
}

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_comes_while_the_daemon_runs_and_goes_again() {
    let cluster = Cluster::own().await;
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "come"}});
    cluster.create("/api/v1/namespaces", &space).await;
    let gadget = "apiVersion: come.example.com/v1\nkind: Gadget\nmetadata: { name: one }\nspec: { size: 3 }\n";
    let config = "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: config }\ndata: { a: b }\n";
    let mut stage = Stage::new(&[
        environment("dev", "onMerge: apply, kubernetes: { connection: cluster, namespace: come }"),
        component("come", "manifests: k8s/come, wait: none", ""),
        ("k8s/come/gadget.yaml".into(), gadget.into()),
        ("k8s/come/config.yaml".into(), config.into()),
    ])
    .await;
    cluster.connect(&mut stage);
    stage.serve();
    stage.ready().await;
    let message = async |what: &str| {
        stage
            .until(what, async || stage.instance("dev/come").await.filter(|status| status.message().contains(what)))
            .await
    };
    message("Gadget").await;
    cluster.create(DEFINITIONS, &gadgets()).await;
    stage.until("it is applied", async || (stage.run(&["apply", "dev", "--yes"]).0 == 0).then_some(())).await;
    let path = "/apis/come.example.com/v1/namespaces/come/gadgets/one";
    stage.verdict("dev/come", Verdict::InSync).await;
    assert_eq!(cluster.get(path).await["spec"]["size"], 3);
    // A user deletes the kind: the declared object can't exist, which is reported as neither success nor absence.
    cluster.delete(&format!("{DEFINITIONS}/gadgets.come.example.com")).await;
    stage
        .until("the kind is gone", async || {
            let (status, _) = cluster.ask("admin", Method::GET, path, "", None).await;
            let (_, out, err) = stage.drift("dev");
            (status == 404 && format!("{out}{err}").contains("Gadget")).then_some(())
        })
        .await;
    let unknown = stage.verdict("dev/come", Verdict::Unknown).await;
    assert!(unknown.message().contains("k8s/come/gadget.yaml:1: the cluster has no `Gadget` in `come.example.com/v1`"));
    // The gadget is not declared any more, and another server for its group does not respond: the existing objects
    // are unknown, and stay owned.
    let service = json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1.come.example.com"},
        "spec": {"group": "come.example.com", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 10,
            "insecureSkipTLSVerify": true, "service": {"namespace": "come", "name": "nobody"}},
    });
    let services = "/apis/apiregistration.k8s.io/v1/apiservices";
    stage
        .until("the other server is known", async || {
            let (status, _) = cluster.ask("admin", Method::POST, services, "application/json", Some(&service)).await;
            (status == 201).then_some(())
        })
        .await;
    let no_gadget = ("k8s/come/gadget.yaml".into(), String::new());
    stage.push("main", &[no_gadget, ("k8s/come/config.yaml".into(), config.replace("a: b", "a: c"))]);
    message("warning: `Gadget.come.example.com/come/one`: the cluster has no such kind any more").await;
    assert_eq!(cluster.get("/api/v1/namespaces/come/configmaps/config").await["data"]["a"], "c");
    // Without that server, the gadget is deleted with its kind.
    cluster.delete(&format!("{services}/v1.come.example.com")).await;
    stage
        .until("nothing is held", async || {
            stage.drift("dev");
            stage.instance("dev/come").await.filter(|status| status.warnings.is_empty())
        })
        .await;
    stage.verdict("dev/come", Verdict::InSync).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_holds_what_others_made_stays() {
    let cluster = Cluster::own().await;
    let space = |name: &str| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{ name: {name} }}\n");
    let config = "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: config }\ndata: { a: b }\n";
    let mut stage = Stage::new(&[
        environment(
            "dev",
            "onMerge: apply, limits: { destroys: 9 }, kubernetes: { connection: cluster, namespace: held }",
        ),
        component("held", "manifests: k8s/held, wait: none", ""),
        ("k8s/held/space.yaml".into(), space("held")),
        ("k8s/held/config.yaml".into(), config.into()),
        ("k8s/held/gadgets.yaml".into(), gadgets().to_string()),
        ("k8s/held/stays.yaml".into(), config.replace("name: config", "name: stays, namespace: default")),
    ])
    .await;
    cluster.connect(&mut stage);
    stage.serve();
    stage.ready().await;
    stage.verdict("dev/held", Verdict::InSync).await;
    // An undeclared claim, as a StatefulSet leaves it, and an undeclared gadget.
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data-db-0"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    cluster.create("/api/v1/namespaces/held/persistentvolumeclaims", &claim).await;
    let gadget = json!({"apiVersion": "come.example.com/v1", "kind": "Gadget", "metadata": {"name": "theirs"}});
    cluster.create("/apis/come.example.com/v1/namespaces/default/gadgets", &gadget).await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    cluster.create("/api/v1/namespaces/held/serviceaccounts", &account).await;
    let gone = |name: &str| (format!("k8s/held/{name}.yaml"), String::new());
    stage.push("main", &[gone("space"), gone("config"), gone("gadgets")]);
    let config = "/api/v1/namespaces/held/configmaps/config";
    stage.until("what is ours is gone", async || cluster.get(config).await.is_null().then_some(())).await;
    let status = stage
        .until("it is said why they stay", async || {
            stage.instance("dev/held").await.filter(|status| status.run.is_none() && status.warnings.len() == 2)
        })
        .await;
    let stays = |what: &str, because: &str| format!("`{what}` is not declared any more and stays: {because}");
    assert_eq!(
        status.warnings,
        [
            stays(
                "CustomResourceDefinition.apiextensions.k8s.io/gadgets.come.example.com",
                "`Gadget.come.example.com/default/theirs` would go with it"
            ),
            stays("Namespace/held", "`PersistentVolumeClaim/held/data-db-0` would go with it"),
        ]
    );
    let definition = format!("{DEFINITIONS}/gadgets.come.example.com");
    for path in ["/api/v1/namespaces/held", definition.as_str()] {
        assert!(cluster.get(path).await.pointer("/metadata/deletionTimestamp").is_none(), "{path}");
        assert!(!cluster.get(path).await.is_null(), "{path}");
    }
    // Their owners delete both, and the namespace is deleted.
    cluster.delete("/apis/come.example.com/v1/namespaces/default/gadgets/theirs").await;
    cluster
        .edit("/api/v1/namespaces/held/persistentvolumeclaims/data-db-0", &json!({"metadata": {"finalizers": null}}))
        .await;
    cluster.delete("/api/v1/namespaces/held/persistentvolumeclaims/data-db-0").await;
    // The remaining objects are drift from then on, and the next merge deletes them.
    stage.until("they are drift", async || (stage.drift("dev").0 == 2).then_some(())).await;
    let proposal = stage.proposal().await;
    stage.merge("lin", proposal["number"].as_u64().unwrap()).await;
    stage
        .until("they go", async || {
            let is_going =
                cluster.get("/api/v1/namespaces/held").await.pointer("/metadata/deletionTimestamp").is_some();
            (is_going && cluster.get(&definition).await.is_null()).then_some(())
        })
        .await;
    let what = "warning: `Namespace/held` is being deleted";
    let message = async || stage.instance("dev/held").await.filter(|status| status.message() == what);
    assert_eq!(stage.until(what, message).await.verdict, Verdict::InSync);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_that_is_destroyed_is_not_forgotten_while_something_of_it_stays() {
    let cluster = Cluster::own().await;
    let app = |name: &str, wait: &str| {
        let (path, text) = component(name, &format!("manifests: k8s/{name}, wait: {wait}"), "  onDelete: destroy\n");
        let space = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{ name: {name} }}\n");
        vec![(path, text), (format!("k8s/{name}/space.yaml"), space)]
    };
    let mut files =
        vec![environment("dev", "onMerge: apply, limits: { destroys: 9 }, kubernetes: { connection: cluster }")];
    files.extend(app("crowded", "10m"));
    files.extend(app("slow", "10m"));
    files.extend(app("kept", "none"));
    files.extend(app("rest", "none"));
    let mut stage = Stage::new(&files).await;
    cluster.connect(&mut stage);
    stage.serve();
    stage.ready().await;
    for name in ["crowded", "slow", "kept"] {
        stage.verdict(&format!("dev/{name}"), Verdict::InSync).await;
    }
    let theirs = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "theirs"}});
    cluster.create("/api/v1/namespaces/crowded/configmaps", &theirs).await;
    let gone = |name: &str| (format!("state-repo/components/{name}.yaml"), String::new());
    stage.push("main", &[gone("crowded"), gone("slow")]);
    // No controller empties the namespace, so it waits for its finalizer, and the run waits for it.
    let slow = stage
        .until("it waits for what goes", async || {
            stage.instance("dev/slow").await.filter(|status| status.message().contains("being deleted"))
        })
        .await;
    assert_eq!(slow.verdict, Verdict::Pending, "{}", slow.message());
    let crowded = stage
        .until("it is said why it stays", async || {
            stage.instance("dev/crowded").await.filter(|status| status.message().contains("would go with it"))
        })
        .await;
    assert_eq!(crowded.verdict, Verdict::Orphaned, "{}", crowded.message());
    assert!(cluster.get("/api/v1/namespaces/crowded").await.pointer("/metadata/deletionTimestamp").is_none());
    let finalize =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "slow"}, "spec": {"finalizers": []}});
    let path = "/api/v1/namespaces/slow/finalize";
    let (code, answer) = cluster.ask("admin", Method::PUT, path, "application/json", Some(&finalize)).await;
    assert_eq!(code, 200, "{answer}");
    stage.until("it is forgotten", async || stage.instance("dev/slow").await.is_none().then_some(())).await;
    // The other user deletes the object: `/destroy` deletes the namespace.
    cluster.delete("/api/v1/namespaces/crowded/configmaps/theirs").await;
    stage.run(&["destroy", "dev/crowded", "--yes"]);
    let is_going =
        async || cluster.get("/api/v1/namespaces/crowded").await.pointer("/metadata/deletionTimestamp").cloned();
    stage.until("it goes", is_going).await;
    // A component that does not wait for readiness does not wait for deletions either.
    stage.push("main", &[gone("kept")]);
    stage.until("it is forgotten", async || stage.instance("dev/kept").await.is_none().then_some(())).await;
    assert!(cluster.get("/api/v1/namespaces/kept").await.pointer("/metadata/deletionTimestamp").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn r1_10_objects_of_a_component_with_another_name_are_transferred() {
    let cluster = Cluster::shared().await;
    let text = "apiVersion: v1\nkind: Namespace\nmetadata: { name: renamed }\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: { name: config }\ndata: { a: b }\n";
    let app = |name: &str| component(name, "manifests: k8s/renamed, wait: none", "  onDelete: destroy\n");
    let space = "kubernetes: { connection: cluster, namespace: renamed }";
    let mut stage = Stage::new(&[
        environment("dev", &format!("onMerge: apply, limits: {{ destroys: 9 }}, {space}")),
        app("renamed-old"),
        ("k8s/renamed/all.yaml".into(), text.into()),
    ])
    .await;
    cluster.connect(&mut stage);
    stage.serve();
    stage.ready().await;
    stage.verdict("dev/renamed-old", Verdict::InSync).await;
    let paths = ["/api/v1/namespaces/renamed", "/api/v1/namespaces/renamed/configmaps/config"];
    let mut before = vec![];
    for path in paths {
        before.push(cluster.get(path).await["metadata"]["uid"].clone());
    }
    let (path, new) = app("renamed-new");
    stage.push("main", &[(path, new), (app("renamed-old").0, String::new())]);
    // The old owner is forgotten, and no object is deleted, in either order.
    stage
        .until("they have moved", async || {
            stage.run(&["apply", "dev", "--yes"]);
            let new = stage.instance("dev/renamed-new").await.is_some_and(|new| new.verdict == Verdict::InSync);
            (new && stage.instance("dev/renamed-old").await.is_none()).then_some(())
        })
        .await;
    for (path, uid) in paths.into_iter().zip(before) {
        let live = cluster.get(path).await;
        assert_eq!(live["metadata"]["uid"], uid, "{live}");
        assert_eq!(live["metadata"]["labels"]["evenkeel.dev/component"], "renamed-new");
        assert!(live.pointer("/metadata/deletionTimestamp").is_none(), "{live}");
    }
    let (code, out, err) = stage.drift("dev");
    assert_eq!(code, 0, "{out}{err}");
}
