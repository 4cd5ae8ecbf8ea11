//! Collects all kinds of target, and derives the JSON Schemas of documents.

use std::{collections::BTreeMap, fmt, sync::OnceLock};

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use super::schema::{Component, DOCUMENTS, Document, Environment, Remediation, Schedule, StateRepo};
use crate::{domain::kind::TargetKind, model::TargetSpec};

/// All kinds of target, with the derived schemas of documents.
pub struct Kinds {
    all: Vec<&'static dyn TargetKind>,
    schemas: OnceLock<BTreeMap<&'static str, Value>>,
}

impl fmt::Debug for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

impl Kinds {
    /// Creates the collection. Messages list the kinds in this order.
    pub fn new(all: Vec<&'static dyn TargetKind>) -> Self {
        Self { all, schemas: OnceLock::new() }
    }

    /// Returns the names of all kinds.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.all.iter().map(|kind| kind.name())
    }

    /// Returns all kinds.
    pub fn iter(&self) -> impl Iterator<Item = &'static dyn TargetKind> {
        self.all.iter().copied()
    }

    /// Returns the kind with a name.
    pub fn get(&self, name: &str) -> Option<&'static dyn TargetKind> {
        self.iter().find(|kind| kind.name() == name)
    }

    /// Returns the kind of a declared target.
    pub fn of(&self, target: &TargetSpec) -> Option<&'static dyn TargetKind> {
        self.get(&target.kind)
    }

    /// Returns the JSON Schemas of all documents, by document kind.
    pub fn schemas(&self) -> &BTreeMap<&'static str, Value> {
        self.schemas.get_or_init(|| DOCUMENTS.iter().filter_map(|kind| Some((*kind, self.schema(kind)?))).collect())
    }

    /// Returns the JSON Schema of one document, by its kind in [`DOCUMENTS`].
    pub fn schema(&self, document: &str) -> Option<Value> {
        let mut generator = SchemaSettings::draft2020_12().into_generator();
        let schema = match document {
            "StateRepo" => generator.root_schema_for::<Document<StateRepo>>(),
            "Environment" => generator.root_schema_for::<Document<Environment>>(),
            "Component" => {
                let targets: Vec<(&str, Value)> = self
                    .iter()
                    .map(|kind| {
                        let schema = kind.schema(&mut generator).to_value();
                        let optional = json!({"anyOf": [schema, {"type": "null"}], "description": kind.summary()});
                        (kind.name(), optional)
                    })
                    .collect();
                let mut schema = generator.root_schema_for::<Document<Component>>();
                let component = schema.pointer_mut("/$defs/Component/properties").and_then(Value::as_object_mut)?;
                component.extend(targets.into_iter().map(|(name, schema)| (name.to_owned(), schema)));
                schema
            }
            "Schedule" => generator.root_schema_for::<Document<Schedule>>(),
            "Remediation" => generator.root_schema_for::<Document<Remediation>>(),
            _ => return None,
        };
        let mut value = schema.to_value();
        value["title"] = document.into();
        value["properties"]["kind"] = json!({"type": "string", "const": document});
        Some(value)
    }
}
