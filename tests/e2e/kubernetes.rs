//! Tests objects on a real API server: apply, observation, changes by others, and deletion.

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

/// Returns a component with a namespace, a deployment and a config map. It does not wait for the rollout, as no
/// controller runs.
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
    // A user changes a field; no drift check is requested.
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

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_moves_and_another_policy_comes_with_it() {
    let cluster = Cluster::shared().await;
    let files = |folder: &str| {
        let list = "resources: [namespace.yaml, config.yaml]\n".to_owned();
        let config = "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: config }\ndata: { colour: blue }\n".to_owned();
        vec![
            (format!("k8s/{folder}/kustomization.yaml"), list),
            (format!("k8s/{folder}/namespace.yaml"), namespace("moves")),
            (format!("k8s/{folder}/config.yaml"), config),
        ]
    };
    let mut all = files("one");
    all.push(environment("dev", "onMerge: apply, kubernetes: { connection: cluster, namespace: moves }"));
    all.push(component("moves", "kustomize: k8s/one, wait: none", "  drift: { mode: report }\n"));
    let mut stage = start(&cluster, &all).await;
    stage.verdict("dev/moves", Verdict::InSync).await;
    // The move changes no object, and the applied objects are found by their earlier path.
    let mut moved = files("two");
    moved.extend(files("one").into_iter().map(|(path, _)| (path, String::new())));
    moved.push(component(
        "moves",
        "kustomize: k8s/two, wait: none, force: [{ kind: Job }]",
        "  drift: { mode: report }\n",
    ));
    moved.push(component("moves-more", "manifests: k8s/more, wait: none", "  dependsOn: [moves]\n"));
    moved.push(("k8s/more/more.yaml".into(), "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: more }\n".into()));
    stage.push("main", &moved);
    stage.verdict("dev/moves-more", Verdict::InSync).await;
    assert_eq!(stage.stop(), 0);
    stage.serve();
    stage.ready().await;
    let (_, out, err) = stage.run(&["doctor"]);
    assert!(
        out.contains("v1.34") && out.contains("answers, the cluster is") && out.contains("kustomize"),
        "{out}{err}"
    );
    let (code, out, err) = stage.drift("dev");
    assert_eq!(code, 0, "{out}{err}");
    cluster.edit(&config("moves"), &json!({"data": {"colour": "red"}})).await;
    stage.verdict("dev/moves", Verdict::Drifted).await;
}

/// Returns the first drift of an instance, as `drift path desired → observed`.
fn told(status: &evenkeel::controller::InstanceStatus) -> Vec<String> {
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

/// Waits until the drift of an instance is exactly as expected, without a requested drift check.
async fn drifts(stage: &Stage, id: &str, expected: &[&str]) {
    let last = std::sync::Mutex::new(vec![]);
    let found = tokio::time::timeout(crate::stage::LIMIT, async {
        loop {
            if let Some(status) = stage.instance(id).await {
                let drift = told(&status);
                if drift == expected {
                    return;
                }
                *last.lock().unwrap() = drift;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
    assert!(found.await.is_ok(), "found {:#?}, expected {expected:#?}", last.lock().unwrap());
}

/// Returns a stage whose app is applied and whose drift is only reported.
async fn reporting(cluster: &Cluster, space: &str) -> Stage {
    let mut files = app(space);
    files[1] = component(space, "manifests: k8s/app, wait: none", "  drift: { mode: report }\n");
    let stage = start(cluster, &files).await;
    stage.verdict(&format!("dev/{space}"), Verdict::InSync).await;
    // The watches are established after a full drift check.
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
    // The user changes it back.
    cluster.edit(&config, &json!({"data": {"colour": "blue"}})).await;
    drifts(&stage, "dev/sorts", &[]).await;
    // A removed field.
    cluster.edit(&config, &json!({"data": {"colour": null}})).await;
    drifts(&stage, "dev/sorts", &["changed ConfigMap/sorts/config /data/colour \"blue\" -> -"]).await;
    cluster.edit(&config, &json!({"data": {"colour": "blue"}})).await;
    drifts(&stage, "dev/sorts", &[]).await;
    // An added field, which a dry-run can't detect.
    cluster.edit(&config, &json!({"data": {"more": "x"}})).await;
    drifts(&stage, "dev/sorts", &["extra ConfigMap/sorts/config /data/more - -> \"x\""]).await;
    cluster.edit(&config, &json!({"data": {"more": null}})).await;
    drifts(&stage, "dev/sorts", &[]).await;
    // A declared label; and an undeclared one, which is ignored.
    cluster.edit(&config, &json!({"metadata": {"labels": {"evenkeel.dev/component": null, "mine": "yes"}}})).await;
    drifts(
        &stage,
        "dev/sorts",
        &["changed ConfigMap/sorts/config /metadata/labels/evenkeel.dev~1component \"sorts\" -> -"],
    )
    .await;
    cluster.edit(&config, &json!({"metadata": {"labels": {"evenkeel.dev/component": "sorts"}}})).await;
    drifts(&stage, "dev/sorts", &[]).await;
    // Deleted; and created again by a user, which is a different object.
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
    // Not drift: status, a controller's annotation, a user's own label, another notation of a quantity, a finalizer.
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
    // An HPA scales through the subresource. Declared replicas make that drift; ignored replicas do not.
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
    // A user's own object with the labels of Evenkeel, and an owned object with a label of another user.
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

/// Returns a component that is applied only on command.
fn waiting(space: &str, objects: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut files = vec![
        environment(
            "dev",
            &format!("onMerge: wait, deferred: apply, kubernetes: {{ connection: cluster, namespace: {space} }}"),
        ),
        component(space, "manifests: k8s/app, wait: none", "  drift: { mode: report }\n"),
    ];
    files.extend(objects.iter().map(|(name, text)| (format!("k8s/app/{name}.yaml"), (*text).to_owned())));
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn r1_6_what_kubectl_applied_is_shown_and_taken_over_cleanly() {
    let cluster = Cluster::shared().await;
    cluster
        .create("/api/v1/namespaces", &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "taken"}}))
        .await;
    // The result of `kubectl apply`: an update under its field manager, and the applied content in an annotation.
    let applied = json!({"kind": "Secret", "stringData": {"password": "canary-of-kubectl"}}).to_string();
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "db", "annotations": {"kubectl.kubernetes.io/last-applied-configuration": applied}}, "stringData": {"password": "canary-of-kubectl", "old": "canary-of-old"}});
    let path = "/api/v1/namespaces/taken/secrets";
    let (status, answer) = cluster
        .ask(
            "admin",
            http::Method::POST,
            &format!("{path}?fieldManager=kubectl-client-side-apply"),
            "application/json",
            Some(&secret),
        )
        .await;
    assert_eq!(status, 201, "{answer}");
    let text = "apiVersion: v1\nkind: Secret\nmetadata: { name: db }\nstringData: { password: canary-of-git }\n";
    let mut files = waiting("taken", &[("db", text)]);
    files[0] = environment("dev", "onMerge: apply, kubernetes: { connection: cluster, namespace: taken }");
    let stage = start(&cluster, &files).await;
    let (code, out, err) = stage.run(&["plan", "dev"]);
    assert_eq!(code, 2, "{out}{err}");
    assert!(out.contains("Secret/taken/db") && out.contains("data/old"), "{out}");
    assert!(out.contains("metadata/annotations/kubectl.kubernetes.io~1last-applied-configuration"), "{out}");
    // A merge alone does not authorize changes to objects that existed before.
    stage
        .until("it waits", async || {
            stage
                .instance("dev/taken")
                .await
                .filter(|i| i.waiting_on.iter().any(|on| matches!(on, evenkeel::model::WaitingOn::FirstContact)))
        })
        .await;
    let (code, out, err) = stage.run(&["apply", "dev", "--yes"]);
    assert_eq!(code, 0, "{out}{err}");
    let live = cluster.get(&format!("{path}/db")).await;
    assert_eq!(live["data"].as_object().unwrap().len(), 1, "{live}");
    assert!(live["metadata"]["annotations"].get("kubectl.kubernetes.io/last-applied-configuration").is_none());
    let (code, out, _) = stage.drift("dev");
    assert_eq!(code, 0, "{out}");
    // The drift of a secret shows that it changed, and none of its content.
    cluster.edit(&format!("{path}/db"), &json!({"stringData": {"password": "canary-of-mallory"}})).await;
    let drifted = stage.verdict("dev/taken", Verdict::Drifted).await;
    assert_eq!(told(&drifted), ["changed Secret/taken/db /data/password \"(masked)\" -> \"(masked)\""]);
    let (_, out, err) = stage.run(&["explain", "dev/taken"]);
    let everything = format!(
        "{out}{err}{}{}",
        stage.log(),
        std::fs::read_dir(stage.place("data"))
            .unwrap()
            .flatten()
            .filter(|file| file.path().is_file())
            .map(|file| String::from_utf8_lossy(&std::fs::read(file.path()).unwrap()).into_owned())
            .collect::<String>()
    );
    for canary in ["canary-of", "Y2FuYXJ5"] {
        assert!(!everything.contains(canary), "{canary} got out");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_changed_in_place_is_made_again_where_that_is_allowed() {
    let cluster = Cluster::shared().await;
    let job = |image: &str| {
        format!(
            "apiVersion: batch/v1\nkind: Job\nmetadata: {{ name: migrate }}\nspec:\n  template:\n    spec: {{ restartPolicy: Never, containers: [{{ name: c, image: {image} }}] }}\n"
        )
    };
    let mut files = waiting("again", &[("namespace", &namespace("again")), ("job", &job("m:1"))]);
    files[0] = environment(
        "dev",
        "onMerge: wait, limits: { replaces: 1 }, kubernetes: { connection: cluster, namespace: again }",
    );
    let stage = start(&cluster, &files).await;
    let (code, out, err) = stage.run(&["apply", "dev", "--yes"]);
    assert_eq!(code, 0, "{out}{err}");
    let before = cluster.get("/apis/batch/v1/namespaces/again/jobs/migrate").await["metadata"]["uid"].clone();
    stage.push("main", &[("k8s/app/job.yaml".into(), job("m:2"))]);
    stage.verdict("dev/again", Verdict::Pending).await;
    let (_, out, err) = stage.run(&["plan", "dev"]);
    assert!(
        format!("{out}{err}")
            .contains("`Job.batch/again/migrate` can't be changed in place: say `force: [{ kind: Job }]`"),
        "{out}{err}"
    );
    let (code, _, _) = stage.run(&["apply", "dev", "--yes"]);
    assert_ne!(code, 0);
    assert_eq!(cluster.get("/apis/batch/v1/namespaces/again/jobs/migrate").await["metadata"]["uid"], before);
    stage.push(
        "main",
        &[component("again", "manifests: k8s/app, wait: none, force: [{ kind: Job }]", "  drift: { mode: report }\n")],
    );
    stage
        .until("it may be replaced", async || {
            let (_, out, _) = stage.run(&["plan", "dev"]);
            (out.contains("to replace") && !out.contains("can't be changed")).then_some(())
        })
        .await;
    let (code, out, err) = stage.run(&["apply", "dev", "--yes"]);
    assert_eq!(code, 0, "{out}{err}");
    let after = cluster.get("/apis/batch/v1/namespaces/again/jobs/migrate").await;
    assert_ne!(after["metadata"]["uid"], before);
    assert_eq!(after["spec"]["template"]["spec"]["containers"][0]["image"], "m:2");
}

const WIDGETS: &str = "apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: { name: widgets.KIND.example.com }
spec:
  group: KIND.example.com
  scope: Namespaced
  names: { kind: Widget, plural: widgets, singular: widget, listKind: WidgetList }
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: { type: object, properties: { size: { type: integer }, colour: { type: string, default: grey } } }
";

#[tokio::test(flavor = "multi_thread")]
async fn definitions_and_their_objects_are_applied_together_and_across_components() {
    let cluster = Cluster::shared().await;
    let widget = |group: &str, size: &str| {
        format!(
            "apiVersion: {group}.example.com/v1\nkind: Widget\nmetadata: {{ name: one }}\nspec: {{ size: {size} }}\n"
        )
    };
    let crd = WIDGETS.replace("KIND", "here");
    let mut files =
        waiting("crds", &[("namespace", &namespace("crds")), ("crd", &crd), ("widget", &widget("here", "3"))]);
    files.push(component("later", "manifests: k8s/later, namespace: crds, wait: none", "  dependsOn: [definitions]\n"));
    files.push(component("definitions", "manifests: k8s/definitions, wait: none", "  dependsOn: [crds]\n"));
    files.push(("k8s/definitions/crd.yaml".into(), WIDGETS.replace("KIND", "there")));
    files.push(("k8s/later/widget.yaml".into(), widget("there", "4")));
    let stage = start(&cluster, &files).await;
    let (_, out, _) = stage.run(&["plan", "dev"]);
    assert!(out.contains("known after `definitions` is applied"), "{out}");
    let (code, out, err) = stage.run(&["apply", "dev", "--yes"]);
    assert_eq!(code, 0, "{out}{err}");
    let live = cluster.get("/apis/here.example.com/v1/namespaces/crds/widgets/one").await;
    assert_eq!(live["spec"], json!({"size": 3, "colour": "grey"}));
    assert_eq!(cluster.get("/apis/there.example.com/v1/namespaces/crds/widgets/one").await["spec"]["size"], 4);
    let (code, out, _) = stage.drift("dev");
    assert_eq!(code, 0, "{out}");
    // A user changes a defaulted field: the field is not declared, but it is inside the declared object.
    cluster.edit("/apis/here.example.com/v1/namespaces/crds/widgets/one", &json!({"spec": {"colour": "pink"}})).await;
    let drifted = stage.verdict("dev/crds", Verdict::Drifted).await;
    assert_eq!(told(&drifted), ["extra Widget.here.example.com/crds/one /spec/colour - -> \"pink\""]);
    // A schema error is reported with its position before any object is applied.
    stage.push(
        "main",
        &[
            ("k8s/app/widget.yaml".into(), widget("here", "many")),
            ("k8s/app/deployment.yaml".into(), DEPLOYMENT.replace("replicas: 2", "replicsa: 2")),
        ],
    );
    stage
        .until("the plan says what is wrong", async || {
            let (_, out, err) = stage.run(&["plan", "dev"]);
            let output = format!("{out}{err}");
            (output.contains("k8s/app/widget.yaml:1")
                && output.contains("k8s/app/deployment.yaml:1")
                && output.contains("replicsa"))
            .then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r1_8_an_object_moves_to_another_component_and_belongs_to_one() {
    let cluster = Cluster::shared().await;
    let config = "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: shared }\ndata: { a: b }\n";
    let mut files = waiting("from", &[("namespace", &namespace("moving")), ("shared", config)]);
    files[0] = environment(
        "dev",
        "onMerge: wait, deferred: apply, limits: { destroys: 1 }, kubernetes: { connection: cluster, namespace: moving }",
    );
    files.push(component("to", "manifests: k8s/to, wait: none", "  dependsOn: [from]\n  drift: { mode: report }\n"));
    files.push(("k8s/to/other.yaml".into(), config.replace("shared", "other")));
    let stage = start(&cluster, &files).await;
    let (code, out, err) = stage.run(&["apply", "dev", "--yes"]);
    assert_eq!(code, 0, "{out}{err}");
    let path = "/api/v1/namespaces/moving/configmaps/shared";
    let uid = cluster.get(path).await["metadata"]["uid"].clone();
    // If two components declare an object, the plan of each names the other.
    let pull = stage.pull("both", &[("k8s/to/shared.yaml".into(), config.into())]).await;
    let comment = stage.comment(pull, "is declared by `dev/from` as well").await;
    assert!(comment.contains("`ConfigMap/moving/shared`"), "{comment}");
    // One component releases the object and another adopts it: the object remains, although the releasing component
    // runs first.
    stage.push("main", &[("k8s/to/shared.yaml".into(), config.into()), ("k8s/app/shared.yaml".into(), String::new())]);
    stage.verdict("dev/to", Verdict::Pending).await;
    let (code, out, err) = stage.run(&["apply", "dev", "--yes"]);
    assert_eq!(code, 0, "{out}{err}");
    let live = cluster.get(path).await;
    assert_eq!((&live["metadata"]["uid"], &live["metadata"]["labels"]["evenkeel.dev/component"]), (&uid, &json!("to")));
    let (code, out, _) = stage.drift("dev");
    assert_eq!(code, 0, "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn overlays_and_charts_are_rendered_alone_with_what_they_are_made_from() {
    let cluster = Cluster::shared().await;
    let files = vec![
        environment("dev", "onMerge: wait, deferred: apply, kubernetes: { connection: cluster, namespace: made }"),
        component("space", "manifests: k8s/space, wait: none", ""),
        ("k8s/space/namespace.yaml".into(), namespace("made")),
        component("overlay", "kustomize: \"k8s/overlays/${environment}\", wait: none, substitute: { HOST: db.local }", "  dependsOn: [space]\n"),
        ("k8s/base/kustomization.yaml".into(), "resources: [web.yaml]\nconfigMapGenerator:\n- name: settings\n  files: [settings.txt]\n".into()),
        ("k8s/base/web.yaml".into(), DEPLOYMENT.into()),
        ("k8s/base/settings.txt".into(), "host=${HOST}".into()),
        ("k8s/overlays/dev/kustomization.yaml".into(), "resources: [../../base]\nnamePrefix: dev-\nlabels:\n- pairs: { flag: \"no\" }\npatches:\n- path: more.yaml\n".into()),
        ("k8s/overlays/dev/more.yaml".into(), "apiVersion: apps/v1\nkind: Deployment\nmetadata: { name: web }\nspec: { replicas: 5 }\n".into()),
        component("chart", "helm: { chart: charts/app, release: shop, valueFiles: [charts/dev.yaml], values: { size: 7 } }, wait: none", "  dependsOn: [space]\n"),
        ("charts/app/Chart.yaml".into(), "apiVersion: v2\nname: app\nversion: 1.0.0\n".into()),
        ("charts/app/values.yaml".into(), "size: 1\ncolour: grey\n".into()),
        ("charts/dev.yaml".into(), "size: 2\ncolour: blue\n".into()),
        ("charts/app/templates/config.yaml".into(), "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}-config\ndata:\n  size: {{ .Values.size | quote }}\n  colour: {{ .Values.colour }}\n".into()),
        ("charts/app/templates/hook.yaml".into(), "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: hook\n  annotations: { helm.sh/hook: pre-install }\n".into()),
    ];
    let stage = start(&cluster, &files).await;
    let (code, out, err) = stage.run(&["apply", "dev", "--yes"]);
    assert_eq!(code, 0, "{out}{err}");
    let live = cluster.get("/apis/apps/v1/namespaces/made/deployments/dev-web").await;
    assert_eq!((&live["spec"]["replicas"], &live["metadata"]["labels"]["flag"]), (&json!(5), &json!("no")));
    let maps = cluster.get("/api/v1/namespaces/made/configmaps").await;
    let maps: Vec<(String, Value)> = maps["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|map| (map["metadata"]["name"].as_str().unwrap().to_owned(), map["data"].clone()))
        .collect();
    let has = |name: &str, data: Value| maps.iter().any(|(found, with)| found.starts_with(name) && *with == data);
    assert!(has("dev-settings-", json!({"settings.txt": "host=db.local"})), "{maps:?}");
    assert!(has("shop-config", json!({"size": "7", "colour": "blue"})), "{maps:?}");
    assert!(!maps.iter().any(|(name, _)| name == "hook"), "{maps:?}");
    let (code, out, _) = stage.drift("dev");
    assert_eq!(code, 0, "{out}");
    // A base outside the repository, and a template with a different result each time.
    stage.push("main", &[("k8s/base/kustomization.yaml".into(), "resources: [\"https://example.com/web.yaml\"]\n".into()), ("charts/app/templates/more.yaml".into(), "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: more }\ndata: { token: {{ randAlphaNum 9 | quote }} }\n".into())]);
    stage
        .until("the remote base is refused", async || {
            stage
                .instance("dev/overlay")
                .await
                .filter(|i| i.message().contains("is not in the repository, and rendering has no network"))
        })
        .await;
    stage
        .until("the chart is refused", async || {
            let (_, out, err) = stage.run(&["plan", "dev/chart"]);
            format!("{out}{err}").contains("differs each time it is rendered").then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_is_waited_for_says_why_it_fails_and_gives_way_to_a_newer_revision() {
    let cluster = Cluster::shared().await;
    let mut files = waiting("roll", &[("namespace", &namespace("roll")), ("web", DEPLOYMENT)]);
    files[0] = environment("dev", "onMerge: apply, kubernetes: { connection: cluster, namespace: roll }");
    files[1] = component("roll", "manifests: k8s/app, wait: 12s", "  drift: { mode: report }\n");
    let stage = start(&cluster, &files).await;
    let rolling = stage
        .until("it waits for the rollout", async || {
            stage
                .instance("dev/roll")
                .await
                .filter(|i| i.waiting_on.iter().any(|on| matches!(on, evenkeel::model::WaitingOn::Rollout { .. })))
        })
        .await;
    assert!(rolling.message().contains("0 of 2 are updated"), "{}", rolling.message());
    // A fix is pushed: no run waits for the old rollout any more.
    stage.push("main", &[("k8s/app/web.yaml".into(), DEPLOYMENT.replace("1.4.2", "1.4.3"))]);
    let path = "/apis/apps/v1/namespaces/roll/deployments/web";
    stage
        .until("the newer one is applied", async || {
            (cluster.get(path).await["spec"]["template"]["spec"]["containers"][0]["image"] == "web:1.4.3").then_some(())
        })
        .await;
    stage
        .until("the older run gave way", async || {
            let (_, journal, _) = stage.run(&["journal", "--run", "1"]);
            journal.contains("superseded: the branch declares other content by now").then_some(())
        })
        .await;
    // The status of a pod contains the reason why it does not become ready.
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-1", "labels": {"app": "web"}}, "spec": {"containers": [{"name": "web", "image": "web:1.4.3"}]}});
    cluster.create("/api/v1/namespaces/roll/pods", &pod).await;
    let status = json!({"status": {"containerStatuses": [{"name": "web", "image": "x", "imageID": "", "ready": false, "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}}]}});
    let (code, answer) = cluster
        .ask(
            "admin",
            http::Method::PATCH,
            "/api/v1/namespaces/roll/pods/web-1/status",
            "application/merge-patch+json",
            Some(&status),
        )
        .await;
    assert_eq!(code, 200, "{answer}");
    let stalled = stage.verdict("dev/roll", Verdict::Stalled).await;
    assert!(
        stalled.message().contains("did not become ready within 12 s")
            && stalled.message().contains("container `web` is in CrashLoopBackOff"),
        "{}",
        stalled.message()
    );
    // The pod becomes ready, and another `/apply` succeeds.
    let live = cluster.get(path).await;
    let up = json!({"status": {"observedGeneration": live["metadata"]["generation"], "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2, "availableReplicas": 2}});
    let (code, answer) = cluster
        .ask("admin", http::Method::PATCH, &format!("{path}/status"), "application/merge-patch+json", Some(&up))
        .await;
    assert_eq!(code, 200, "{answer}");
    let (code, out, err) = stage.run(&["apply", "dev", "--yes"]);
    assert_eq!(code, 0, "{out}{err}");
    stage.verdict("dev/roll", Verdict::InSync).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r4_3_what_somebody_changed_is_declared_where_only_this_instance_is_made_from_it() {
    let cluster = Cluster::shared().await;
    let overlay = |name: &str| {
        vec![
            component(
                name,
                &format!("kustomize: k8s/{name}, namespace: {name}, wait: none"),
                "  dependsOn: [adopt-space]\n",
            ),
            (format!("k8s/{name}/kustomization.yaml"), "resources: [../base]\npatches:\n- path: more.yaml\n".into()),
            (
                format!("k8s/{name}/more.yaml"),
                "apiVersion: apps/v1\nkind: Deployment\nmetadata: { name: web }\nspec:\n  replicas: 5 # enough\n"
                    .into(),
            ),
        ]
    };
    let mut files = vec![
        environment("dev", "onMerge: apply, kubernetes: { connection: cluster }"),
        component("adopt-space", "manifests: k8s/space, wait: none", ""),
        ("k8s/space/one.yaml".into(), namespace("adopt-one")),
        ("k8s/space/two.yaml".into(), namespace("adopt-two")),
        ("k8s/base/kustomization.yaml".into(), "resources: [web.yaml]\n".into()),
        ("k8s/base/web.yaml".into(), DEPLOYMENT.into()),
    ];
    files.extend(overlay("adopt-one"));
    files.extend(overlay("adopt-two"));
    let stage = start(&cluster, &files).await;
    stage.verdict("dev/adopt-one", Verdict::InSync).await;
    stage.verdict("dev/adopt-two", Verdict::InSync).await;
    let path = web("adopt-one");
    cluster.edit(&path, &json!({"spec": {"replicas": 7}})).await;
    let proposal = stage.proposal().await;
    let (code, out, err) = stage.run(&["adopt", "dev/adopt-one"]);
    assert_eq!(code, 0, "{out}{err}");
    let number = proposal["number"].as_u64().unwrap();
    stage
        .until("it adopts", async || {
            let (_, pull) = stage.forge("lin", reqwest::Method::GET, &format!("pulls/{number}"), Value::Null).await;
            (pull["title"] == "Adopt drift in dev/adopt-one").then_some(())
        })
        .await;
    stage.merge("lin", number).await;
    stage.verdict("dev/adopt-one", Verdict::InSync).await;
    stage.push("look", &[("note".into(), "x".into())]);
    let text = std::fs::read_to_string(stage.place("checkout/k8s/adopt-one/more.yaml")).unwrap();
    assert!(text.contains("  replicas: 7 # enough"), "{text}");
    assert_eq!(cluster.get(&path).await["spec"]["replicas"], 7);
    let (code, out, err) = stage.drift("dev");
    assert_eq!(code, 0, "{out}{err}");
    // Other overlays use the base as well, so a value can't be adopted there.
    cluster
        .patch(&path, &json!({"spec": {"template": {"spec": {"containers": [{"name": "web", "image": "web:9"}]}}}}))
        .await;
    stage.verdict("dev/adopt-one", Verdict::Drifted).await;
    stage.proposal().await;
    let (code, out, err) = stage.run(&["adopt", "dev/adopt-one"]);
    assert_ne!(code, 0);
    assert!(
        format!("{out}{err}").contains("`k8s/base/web.yaml`, which declares it, belongs to other instances as well"),
        "{out}{err}"
    );
}
