//! Implements the target kind for Citus clusters.

use crate::targets::citus::placement::table_name;
use std::sync::Arc;

use schemars::{Schema, SchemaGenerator};
use serde_json::{Value, json};

use super::{
    adopt::edit_cluster,
    declaration::{self, Citus as Declared, contradicting_pins},
    drift, plan,
    work::declared_nodes,
};
use crate::{
    domain::{
        declaration::{
            node::Node,
            walk::{Closure, Looked, Source, WalkError},
        },
        kind::{Adoption, DeclaredNode, Edits, TargetKind, typed},
    },
    model::{Action, Change, Drift, InstanceId, Problem, ResourceChange, ids::Malformed},
    ports::{Files, Observation},
};

/// The shard layout of Citus clusters.
pub struct CitusKind;

impl TargetKind for CitusKind {
    fn name(&self) -> &'static str {
        "citus"
    }
    fn schema(&self, generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<Declared>()
    }
    fn summary(&self) -> &'static str {
        "The shard layout of a Citus cluster."
    }
    fn fixed_fields(&self) -> &'static [&'static str] {
        &["connection", "tables", "schemas", "moves", "allowRewrite", "migrations", "capacity"]
    }
    fn format(&self, format: &str, text: &str) -> Option<Result<(), Malformed>> {
        (format == "evenkeel-table").then(|| table_name(text).map(drop))
    }
    fn check(&self, file: &Arc<str>, declared: &Node) -> Vec<Problem> {
        declaration::check(file, declared)
    }
    fn normalize(&self, declared: &Value) -> Result<Value, String> {
        let declared: Declared = typed(declared)?;
        contradicting_pins(&declared.placement.pins).map_or_else(|| Ok(json!(declared)), Err)
    }
    fn source(&self, declared: &Value) -> Option<Source> {
        let Declared { migrations, .. } = typed(declared).ok()?;
        Some(Source { kind: self.name(), field: "migrations", paths: migrations.into_iter().collect() })
    }
    fn closure(&self, files: &dyn Files, source: &Source, looked: &mut Looked) -> Result<Closure, WalkError> {
        declaration::closure(files, source.paths.first().map(String::as_str), looked)
    }
    fn content(&self, declared: &Value) -> Value {
        let Ok(Declared { connection, nodes, tables, schemas, placement, migrations, .. }) = typed(declared) else {
            return Value::Null;
        };
        json!({
            "connection": connection, "nodes": nodes, "tables": tables, "schemas": schemas,
            "placement": placement, "migrations": migrations.is_some(),
        })
    }
    fn with_settings(&self, applied: &Value, newer: &Value) -> Value {
        let (Ok(before), Ok(newer)) = (typed::<Declared>(applied), typed::<Declared>(newer)) else {
            return applied.clone();
        };
        let Declared { moves, allow_rewrite, capacity, .. } = newer;
        json!(Declared { moves, allow_rewrite, capacity, ..before })
    }
    fn connection(&self, declared: &Value) -> Option<String> {
        Some(typed::<Declared>(declared).ok()?.connection)
    }
    fn allows_rewrites(&self, declared: &Value) -> Option<bool> {
        Some(typed::<Declared>(declared).ok()?.allow_rewrite)
    }
    fn relocates(&self) -> bool {
        true
    }
    fn lists_nodes(&self) -> bool {
        true
    }
    fn nodes<'d>(&self, declared: &'d Value) -> Option<&'d Value> {
        declared.get("nodes")
    }
    fn read_nodes(&self, nodes: &Value) -> Result<Vec<DeclaredNode>, String> {
        let nodes = declared_nodes(nodes)?.into_iter();
        Ok(nodes.map(|node| DeclaredNode { address: node.address.to_string(), runs_on: node.runs_on }).collect())
    }
    fn removed_node<'c>(&self, change: &'c ResourceChange) -> Option<&'c str> {
        if change.change == Change::Destroy { change.resource.strip_prefix(drift::NODE) } else { None }
    }
    fn concerns_node(&self, change: &ResourceChange, node: &str) -> bool {
        change.resource.strip_prefix(drift::NODE) == Some(node) || change.resource.ends_with(&format!(" on {node}"))
    }
    fn adopt(&self, adoption: &Adoption<'_>, observation: &Observation, edits: &mut dyn Edits) -> Result<(), String> {
        let path = edits.declaration()?;
        let (text, citus) = (edits.read(&path)?, typed(adoption.declared)?);
        let InstanceId { component, environment } = adoption.instance;
        let edited = edit_cluster(&text, component.as_str(), environment, &citus, &observation.changes)?;
        edits.write(&path, edited);
        Ok(())
    }
    fn drift(&self, observation: &Observation) -> Vec<Drift> {
        drift::of(observation)
    }
    fn actions(&self, id: &InstanceId, observation: &Observation) -> Vec<Action> {
        plan::actions(id, observation)
    }
}
