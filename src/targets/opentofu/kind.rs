//! Implements the target kind for OpenTofu root modules.

use std::collections::BTreeMap;

use schemars::{Schema, SchemaGenerator};
use serde_json::{Value, json};

use super::{
    adopt::{self, Adopted},
    closure,
    declaration::Tofu,
    drift,
    plan::{self, Details},
};
use crate::{
    domain::{
        declaration::walk::{Closure, Looked, Source, WalkError},
        kind::{Adoption, Edits, TargetKind, typed},
    },
    model::{Action, Drift, InstanceId},
    ports::{Files, Observation},
};

/// OpenTofu root modules.
pub struct OpenTofu;

impl TargetKind for OpenTofu {
    fn name(&self) -> &'static str {
        "tofu"
    }
    fn schema(&self, generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<Tofu>()
    }
    fn summary(&self) -> &'static str {
        "An OpenTofu root module."
    }
    fn fixed_fields(&self) -> &'static [&'static str] {
        &["connection", "root", "workspace", "varFiles"]
    }
    fn normalize(&self, declared: &Value) -> Result<Value, String> {
        Ok(json!(typed::<Tofu>(declared)?))
    }
    fn source(&self, declared: &Value) -> Option<Source> {
        let Tofu { root, var_files, .. } = typed(declared).ok()?;
        Some(Source { kind: self.name(), field: "root", paths: [vec![root], var_files].concat() })
    }
    fn closure(&self, files: &dyn Files, source: &Source, looked: &mut Looked) -> Result<Closure, WalkError> {
        let (root, var_files) = source.paths.split_first().expect("the source of a root module begins with the module");
        closure::closure(files, root, var_files, looked)
    }
    fn content(&self, declared: &Value) -> Value {
        let Ok(Tofu { connection, root: _, workspace, variables, var_files: _, backend_config }) = typed(declared)
        else {
            return Value::Null;
        };
        json!({
            "connection": connection, "workspace": workspace, "variables": variables, "backendConfig": backend_config,
        })
    }
    fn connection(&self, declared: &Value) -> Option<String> {
        typed::<Tofu>(declared).ok()?.connection
    }
    fn drift(&self, observation: &Observation) -> Vec<Drift> {
        drift::of(observation)
    }
    fn actions(&self, id: &InstanceId, observation: &Observation) -> Vec<Action> {
        plan::actions(id, observation)
    }
    fn adopt(&self, adoption: &Adoption<'_>, observation: &Observation, edits: &mut dyn Edits) -> Result<(), String> {
        let tofu: Tofu = typed(adoption.declared)?;
        let origins = observation.own::<Details>().map(|details| &details.origins);
        for adopted in adopt::adopted(&observation.changes, origins.unwrap_or(&BTreeMap::new()))? {
            adopt::edit(adoption, &tofu, &adopted, edits)?;
        }
        Ok(())
    }
    fn variable<'d>(&self, declared: &'d Value, name: &str) -> Option<&'d Value> {
        declared.get("variables")?.get(name)
    }
    fn set_variable(
        &self,
        adoption: &Adoption<'_>,
        name: &str,
        value: &Value,
        edits: &mut dyn Edits,
    ) -> Result<(), String> {
        let adopted = Adopted { variable: name.to_owned(), keys: vec![], value: value.clone() };
        adopt::edit(adoption, &typed(adoption.declared)?, &adopted, edits)
    }
    fn refresh_operation(&self) -> Option<&'static str> {
        Some(plan::REFRESH)
    }
    fn refresh(&self, id: &InstanceId, observation: &Observation) -> Vec<Action> {
        let changes = drift::refreshes(&observation.adopt_only);
        plan::actions(id, &Observation { changes, own: observation.own.clone(), ..Observation::default() })
    }
}
