//! Resolves one component in one environment, from its own document alone.
//!
//! Decides the result of overrides and interpolation, and the component digest (R1.2). Never reads other documents;
//! `assemble.rs` resolves names.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::de::DeserializeOwned;

use super::{
    document::Document,
    kinds::Kinds,
    node::{self, Node},
    resolve::{self, Reference},
    schema::{Check, Component},
    validate::{Validator, Whole},
};
use crate::domain::{declaration::walk::Closure, kind::TargetKind};
use crate::model::{Digest, Digester, EnvironmentName, InstanceId, Place, Problem};

/// A component in an environment, as a revision declares it.
#[derive(Clone, Debug)]
pub struct Instance {
    /// The environment and the component.
    pub id: InstanceId,
    /// The kind of the component; `unknown` if the declaration can't be read.
    pub kind: &'static str,
    /// The resolved declaration; `None` if the declaration can't be read.
    pub spec: Option<Arc<Component>>,
    /// Whether the declaration allows stored data to be rewritten; `None` if the kind has no such data.
    pub allows_rewrites: Option<bool>,
    /// The labels, for selectors.
    pub labels: Arc<BTreeMap<String, String>>,
    /// The former name (R1.10).
    pub renamed_from: Option<InstanceId>,
    /// The outputs of other components that the declaration uses.
    pub references: BTreeSet<Reference>,
    /// The instances that must be applied first.
    pub upstreams: BTreeSet<InstanceId>,
    /// The same component in the earlier environment (R3.5).
    pub after: Option<InstanceId>,
    /// The files that the instance is made from.
    pub closure: Arc<Closure>,
    /// The component digest (R1.2); `None` if the instance has a problem.
    pub digest: Option<Digest>,
    /// The problems. An instance with a problem is stalled.
    pub problems: Vec<Problem>,
}

/// Computes the component digest (R1.2) of the declaration's content, with unresolved references, and the closure.
/// Guards, labels, drift policy, checks and paths are not part of the digest.
pub(super) fn digest(kind: &dyn TargetKind, spec: &Component, closure: &Closure) -> Digest {
    let content = closure.digest.map(|digest| digest.to_string()).unwrap_or_default();
    let declared = kind.content(&spec.target.declared).to_string();
    let digester = Digester::new("component").field(kind.name().as_bytes());
    digester.field(declared.as_bytes()).field(content.as_bytes()).finish()
}

/// Returns the environments that a component lists, with their places.
pub(super) fn environments_of(document: &Document) -> Vec<(EnvironmentName, Place)> {
    match document.spec.get("environments").map(|node| &node.value) {
        Some(node::Kind::List(items)) => {
            items.iter().filter_map(|item| Some((item.text()?.parse().ok()?, item.at))).collect()
        }
        _ => vec![],
    }
}

/// Resolves one component in one environment, from its own document alone.
pub(super) fn resolve_instance(
    kinds: &'static Kinds,
    document: &Arc<Document>,
    environment: &EnvironmentName,
) -> Instance {
    let id = InstanceId::new(environment, &document.name);
    let mut instance = Instance {
        kind: kinds.names().find(|kind| document.spec.get(kind).is_some()).unwrap_or("unknown"),
        spec: None,
        allows_rewrites: None,
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
    let mut found = interpolated(kinds, &mut spec, document, environment);
    if overridden {
        let schema = &kinds.schemas()["Component"];
        let mut validator =
            Validator { file: &document.file, kinds, root: schema, whole: Whole::Yes, problems: vec![] };
        validator.check(&schema["properties"]["spec"], &spec);
        found.problems.extend(validator.problems);
    }
    instance.problems = found.problems;
    if instance.problems.is_empty() {
        match decode::<Component>(document, &spec) {
            Ok(mut spec) => {
                match kinds.of(&spec.target).map(|kind| kind.normalize(&spec.target.declared)) {
                    Some(Ok(declared)) => spec.target.declared = declared,
                    Some(Err(message)) => {
                        let at = document.spec.get(instance.kind).map_or(document.spec.at, |node| node.at);
                        instance.problems.push(Problem::new("wrong-value", &document.file, at, message));
                    }
                    None => {}
                }
                instance.allows_rewrites =
                    kinds.of(&spec.target).and_then(|kind| kind.allows_rewrites(&spec.target.declared));
                instance.problems.extend(spec.checks.iter().filter_map(|check| wrong_check(document, check)));
                instance.spec = Some(Arc::new(spec));
            }
            Err(problem) => instance.problems.push(*problem),
        }
    }
    instance.references = found.references.into_iter().map(|(reference, _)| reference).collect();
    instance
}

/// Resolves `${environment}`, and collects the references to outputs. A reference in a field that must not contain one
/// is a problem.
fn interpolated(kinds: &Kinds, spec: &mut Node, document: &Document, environment: &EnvironmentName) -> resolve::Found {
    let mut found = resolve::Found::default();
    let node::Kind::Map(entries) = &mut spec.value else { return found };
    for (key, node) in entries {
        let fixed = kinds.get(&key.name).map(TargetKind::fixed_fields);
        let node::Kind::Map(fields) = &mut node.value else {
            resolve::interpolate(node, environment, &document.file, &*key.name == "checks", &mut found);
            continue;
        };
        for (field, node) in fields {
            let is_fixed = |path: &str| fixed.is_none_or(|fixed| fixed.contains(&path));
            let path = &*field.name;
            let holds_fixed =
                fixed.is_some_and(|fixed| fixed.iter().any(|fixed| fixed.starts_with(&format!("{path}."))));
            match &mut node.value {
                node::Kind::Map(parts) if holds_fixed => {
                    for (part, node) in parts {
                        let allowed = !is_fixed(&format!("{path}.{}", part.name));
                        resolve::interpolate(node, environment, &document.file, allowed, &mut found);
                    }
                }
                _ => resolve::interpolate(node, environment, &document.file, !is_fixed(path), &mut found),
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

/// Deserializes a document that passed its schema. A failure is a problem with a place, and never a panic.
pub(super) fn decode<T: DeserializeOwned>(document: &Document, spec: &Node) -> Result<T, Box<Problem>> {
    serde_json::from_value(spec.to_json())
        .map_err(|error| Box::new(Problem::new("wrong-value", &document.file, spec.at, error.to_string())))
}

/// Returns the place of a reference in a declaration.
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
