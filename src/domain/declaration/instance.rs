//! One component in one environment, as far as its own document says.
//!
//! Decides what overrides and interpolation make of a declaration, and its component digest (R1.2).
//! Never looks at other documents: what a name means is `assemble.rs`'s question.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::de::DeserializeOwned;

use super::{
    citus::contradicting_pins,
    document::{Document, schemas},
    node::{self, Node},
    resolve::{self, Reference},
    schema::{Check, Citus, Component, Kubernetes, Tofu},
    validate::{Validator, Whole},
};
use crate::domain::declaration::walk::Closure;
use crate::model::{Digest, Digester, EnvironmentName, InstanceId, Place, Problem};

/// A component in an environment, as a revision declares it.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Its name.
    pub id: InstanceId,
    /// Its kind; `unknown` where its declaration can't be read.
    pub kind: &'static str,
    /// The resolved declaration; absent where it can't be read.
    pub spec: Option<Arc<Component>>,
    /// For selectors.
    pub labels: Arc<BTreeMap<String, String>>,
    /// The name that it had before (R1.10).
    pub renamed_from: Option<InstanceId>,
    /// The outputs that it uses, of other components.
    pub references: BTreeSet<Reference>,
    /// The instances that have to be applied before it.
    pub upstreams: BTreeSet<InstanceId>,
    /// The same component of the environment that comes first (R3.5).
    pub after: Option<InstanceId>,
    /// Everything that it is made from.
    pub closure: Arc<Closure>,
    /// The component digest (R1.2); absent where there is a problem.
    pub digest: Option<Digest>,
    /// Its problems; it is stalled while there are any.
    pub problems: Vec<Problem>,
}

/// The component digest (R1.2): what it is made from, with references as they are written; guards, labels, drift
/// policy, checks and paths are not in it.
pub(super) fn digest(spec: &Component, closure: &Closure) -> Digest {
    let (kind, made_from) = match (&spec.tofu, &spec.kubernetes, &spec.citus) {
        (Some(tofu), ..) => {
            let Tofu { connection, root: _, workspace, variables, var_files: _, backend_config } = tofu;
            let made_from = serde_json::json!({
                "connection": connection, "workspace": workspace, "variables": variables,
                "backendConfig": backend_config,
            });
            ("tofu", made_from)
        }
        (None, Some(kubernetes), _) => {
            let Kubernetes {
                connection, namespace, manifests, kustomize, helm, substitute, impersonate, ignore, ..
            } = kubernetes;
            let source = (manifests.is_some(), kustomize.is_some());
            let helm = helm.as_ref().map(|helm| serde_json::json!({"release": helm.release, "values": helm.values}));
            let ignore: Vec<_> = ignore.iter().map(|ignore| (&ignore.kind, &ignore.name, &ignore.pointers)).collect();
            let made_from = serde_json::json!({
                "connection": connection, "namespace": namespace, "source": source, "helm": helm,
                "substitute": substitute, "impersonate": impersonate, "ignore": ignore,
            });
            ("kubernetes", made_from)
        }
        (None, None, Some(citus)) => {
            let Citus { connection, nodes, tables, schemas, placement, migrations, .. } = citus;
            let made_from = serde_json::json!({
                "connection": connection, "nodes": nodes, "tables": tables, "schemas": schemas,
                "placement": placement, "migrations": migrations.is_some(),
            });
            ("citus", made_from)
        }
        (None, None, None) => ("unknown", serde_json::Value::Null),
    };
    let content = closure.digest.map(|digest| digest.to_string()).unwrap_or_default();
    let digester = Digester::new("component").field(kind.as_bytes());
    digester.field(made_from.to_string().as_bytes()).field(content.as_bytes()).finish()
}

/// The environments that a component lists, with their places.
pub(super) fn environments_of(document: &Document) -> Vec<(EnvironmentName, Place)> {
    match document.spec.get("environments").map(|node| &node.value) {
        Some(node::Kind::List(items)) => {
            items.iter().filter_map(|item| Some((item.text()?.parse().ok()?, item.at))).collect()
        }
        _ => vec![],
    }
}

/// Where only `${environment}` may stand, by kind: what an instance is made from can't depend on outputs.
const WITHOUT_OUTPUTS: [(&str, &[&str]); 3] = [
    ("tofu", &["connection", "root", "workspace", "varFiles"]),
    ("citus", &["connection", "tables", "schemas", "moves", "allowRewrite", "migrations", "capacity"]),
    ("kubernetes", &["namespace", "manifests", "kustomize", "impersonate", "force", "ignore", "health", "wait"]),
];
/// The same, of a chart.
const WITHOUT_OUTPUTS_OF_HELM: [&str; 3] = ["chart", "release", "valueFiles"];

/// One component in one environment, as far as its own document says.
pub(super) fn resolve_instance(document: &Arc<Document>, environment: &EnvironmentName) -> Instance {
    let id = InstanceId::new(environment, &document.name);
    let mut instance = Instance {
        kind: WITHOUT_OUTPUTS
            .iter()
            .map(|(kind, _)| *kind)
            .find(|kind| document.spec.get(kind).is_some())
            .unwrap_or("unknown"),
        spec: None,
        labels: Arc::clone(&document.labels),
        renamed_from: document.renamed_from.as_ref().map(|(old, _)| InstanceId::new(environment, old)),
        references: BTreeSet::new(),
        upstreams: BTreeSet::new(),
        after: None,
        closure: Arc::default(),
        digest: None,
        problems: document.problems.clone(),
        id,
    };
    if !instance.problems.is_empty() {
        return instance;
    }
    let mut spec = document.spec.clone();
    let mut overridden = false;
    if let node::Kind::Map(entries) = &mut spec.value
        && let Some(at) = entries.iter().position(|(key, _)| &*key.name == "overrides")
    {
        let (_, overrides) = entries.remove(at);
        if let Some(patch) = overrides.get(environment.as_str()) {
            resolve::merge(&mut spec, patch);
            overridden = true;
        }
    }
    let mut found = interpolated(&mut spec, document, environment);
    if overridden {
        let schema = &schemas()["Component"];
        let mut validator = Validator { file: &document.file, root: schema, whole: Whole::Yes, problems: vec![] };
        validator.check(&schema["properties"]["spec"], &spec);
        found.problems.extend(validator.problems);
    }
    instance.problems = found.problems;
    if instance.problems.is_empty() {
        match decode::<Component>(document, &spec) {
            Ok(spec) => {
                let pins = spec.citus.as_ref().and_then(|citus| contradicting_pins(&citus.placement.pins));
                if let Some(why) = pins {
                    let at = document.spec.get("citus").map_or(document.spec.at, |node| node.at);
                    instance.problems.push(Problem::new("wrong-value", &document.file, at, why));
                }
                instance.problems.extend(spec.checks.iter().filter_map(|check| wrong_check(document, check)));
                instance.spec = Some(Arc::new(spec));
            }
            Err(problem) => instance.problems.push(*problem),
        }
    }
    instance.references = found.references.into_iter().map(|(reference, _)| reference).collect();
    instance
}

/// Fills `${environment}` in, and finds the references to outputs, which may stand where they are allowed.
fn interpolated(spec: &mut Node, document: &Document, environment: &EnvironmentName) -> resolve::Found {
    let mut found = resolve::Found::default();
    if let node::Kind::Map(entries) = &mut spec.value {
        for (key, node) in entries {
            let fixed = WITHOUT_OUTPUTS.iter().find(|(kind, _)| *kind == &*key.name);
            if let (node::Kind::Map(fields), Some((_, fixed))) = (&mut node.value, fixed) {
                for (field, node) in fields {
                    match &mut node.value {
                        node::Kind::Map(parts) if &*field.name == "helm" => {
                            for (part, node) in parts {
                                let allowed = !WITHOUT_OUTPUTS_OF_HELM.contains(&&*part.name);
                                resolve::interpolate(node, environment, &document.file, allowed, &mut found);
                            }
                        }
                        _ => {
                            let allowed = !fixed.contains(&&*field.name);
                            resolve::interpolate(node, environment, &document.file, allowed, &mut found);
                        }
                    }
                }
            } else {
                resolve::interpolate(node, environment, &document.file, &*key.name == "checks", &mut found);
            }
        }
    }
    found
}

fn wrong_check(document: &Document, check: &Check) -> Option<Problem> {
    (check.http.is_some() == check.tcp.is_some()).then(|| {
        let at = document.spec.get("checks").map_or(document.spec.at, |node| node.at);
        Problem::new(
            "check",
            &document.file,
            at,
            format!("the check `{}` has to have one of `http` and `tcp`", check.name),
        )
    })
}

/// A document that passed its schema; what fails here still is a problem with a place, never a crash.
pub(super) fn decode<T: DeserializeOwned>(document: &Document, spec: &Node) -> Result<T, Box<Problem>> {
    serde_json::from_value(spec.to_json())
        .map_err(|error| Box::new(Problem::new("wrong-value", &document.file, spec.at, error.to_string())))
}

/// Where a reference stands in a declaration.
pub(super) fn find_reference(node: &Node, reference: &Reference) -> Option<Place> {
    match &node.value {
        node::Kind::Text(text) => {
            text.contains(&format!("{}.outputs.{}", reference.component, reference.key)).then_some(node.at)
        }
        node::Kind::List(items) => items.iter().find_map(|item| find_reference(item, reference)),
        node::Kind::Map(entries) => entries.iter().find_map(|(_, item)| find_reference(item, reference)),
        _ => None,
    }
}
