//! Implements the target kind for Kubernetes objects.

use std::{sync::Arc, time::Duration};

use schemars::{Schema, SchemaGenerator};
use serde_json::{Value, json};

use super::{
    adopt, closure,
    declaration::{Connection, Kubernetes as Declared, Wait},
    drift, plan,
};
use crate::{
    domain::{
        declaration::{
            environment::Environment,
            node::Node,
            walk::{Closure, Looked, Source, WalkError},
        },
        kind::{Adoption, Edits, TargetKind, typed},
    },
    model::{Action, Drift, InstanceId, Place, Problem, ids::Malformed},
    ports::{Files, Observation},
};

/// The fields that name the source of objects.
const SOURCES: [&str; 3] = ["manifests", "kustomize", "helm"];

/// Kubernetes objects.
pub struct KubernetesKind;

impl TargetKind for KubernetesKind {
    fn name(&self) -> &'static str {
        "kubernetes"
    }
    fn schema(&self, generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<Declared>()
    }
    fn summary(&self) -> &'static str {
        "Kubernetes objects."
    }
    fn fixed_fields(&self) -> &'static [&'static str] {
        &[
            "namespace",
            "manifests",
            "kustomize",
            "impersonate",
            "force",
            "ignore",
            "health",
            "wait",
            "helm.chart",
            "helm.release",
            "helm.valueFiles",
        ]
    }
    fn format(&self, format: &str, text: &str) -> Option<Result<(), Malformed>> {
        (format == "evenkeel-wait").then(|| text.parse::<Wait>().map(drop))
    }
    fn check(&self, file: &Arc<str>, declared: &Node) -> Vec<Problem> {
        if SOURCES.iter().filter(|source| declared.get(source).is_some()).count() == 1 {
            return vec![];
        }
        let at = Place { length: 0, ..declared.at };
        let problem = Problem::new("missing-field", file, at, "it has to be made from exactly one thing");
        vec![problem.expected("expected one of `manifests`, `kustomize` and `helm`")]
    }
    fn renames(&self) -> Result<(), (&'static str, &'static str)> {
        // The labels of objects name their instance.
        Err((
            "`renamedFrom` is not needed for Kubernetes objects, and not supported",
            "leave it out: where the old component is removed in the same change, its objects are transferred",
        ))
    }
    fn normalize(&self, declared: &Value) -> Result<Value, String> {
        Ok(json!(typed::<Declared>(declared)?))
    }
    fn with_defaults(&self, declared: &Value, environment: &Environment) -> Option<Value> {
        let declared: Declared = typed(declared).ok()?;
        let defaults = &environment.kubernetes;
        let with = Declared {
            connection: declared.connection.clone().or(defaults.connection.clone().map(Connection::Name)),
            namespace: declared.namespace.clone().or(defaults.namespace.clone()),
            ..declared.clone()
        };
        (with != declared).then(|| json!(with))
    }
    fn is_complete(&self, declared: &Value) -> Result<(), (&'static str, &'static str)> {
        match self.connection(declared) {
            Some(_) => Ok(()),
            None => Err((
                "it names no connection to a cluster",
                "name one here, or for the whole environment: `kubernetes: { connection: cluster }`",
            )),
        }
    }
    fn source(&self, declared: &Value) -> Option<Source> {
        let Declared { manifests, kustomize, helm, .. } = typed(declared).ok()?;
        let (field, paths) = match (manifests, kustomize, helm) {
            (Some(path), None, None) => ("manifests", vec![path]),
            (None, Some(path), None) => ("kustomize", vec![path]),
            (None, None, Some(helm)) => ("helm", [vec![helm.chart], helm.value_files].concat()),
            _ => return None,
        };
        Some(Source { kind: self.name(), field, paths })
    }
    fn closure(&self, files: &dyn Files, source: &Source, looked: &mut Looked) -> Result<Closure, WalkError> {
        let (path, value_files) = source.paths.split_first().expect("a source of objects begins with its folder");
        match source.field {
            "manifests" => closure::of_manifests(files, path, looked),
            "kustomize" => closure::of_kustomize(files, path, looked),
            _ => closure::of_helm(files, path, value_files, looked),
        }
    }
    fn content(&self, declared: &Value) -> Value {
        let Ok(declared) = typed::<Declared>(declared) else { return Value::Null };
        let Declared { connection, namespace, manifests, kustomize, helm, substitute, impersonate, ignore, .. } =
            declared;
        let source = (manifests.is_some(), kustomize.is_some());
        let helm = helm.as_ref().map(|helm| json!({"release": helm.release, "values": helm.values}));
        let ignore: Vec<_> = ignore.iter().map(|ignore| (&ignore.kind, &ignore.name, &ignore.pointers)).collect();
        json!({
            "connection": connection, "namespace": namespace, "source": source, "helm": helm,
            "substitute": substitute, "impersonate": impersonate, "ignore": ignore,
        })
    }
    fn with_settings(&self, applied: &Value, newer: &Value) -> Value {
        let (Ok(before), Ok(newer)) = (typed::<Declared>(applied), typed::<Declared>(newer)) else {
            return applied.clone();
        };
        json!(Declared { force: newer.force, health: newer.health, wait: newer.wait, ..before })
    }
    fn connection(&self, declared: &Value) -> Option<String> {
        typed::<Declared>(declared).ok()?.connection.map(|connection| connection.name().to_owned())
    }
    fn wait(&self, declared: &Value) -> Duration {
        typed::<Declared>(declared).map_or(Duration::ZERO, |declared| declared.waits())
    }
    fn adopt(&self, adoption: &Adoption<'_>, observation: &Observation, edits: &mut dyn Edits) -> Result<(), String> {
        adopt::adopt(adoption, &typed(adoption.declared)?, &observation.changes, edits)
    }
    fn drift(&self, observation: &Observation) -> Vec<Drift> {
        drift::of(observation)
    }
    fn actions(&self, id: &InstanceId, observation: &Observation) -> Vec<Action> {
        plan::actions(id, observation)
    }
}
