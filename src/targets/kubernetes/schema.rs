//! Checks objects against the schemas that the server publishes. Pure except for reading the schemas.
//!
//! Decides whether a missing object clearly fits its schema, so that thousands of missing objects need no dry-run
//! each. Never refuses an object: the server decides all other cases by a dry-run.

use std::collections::HashMap;

use serde_json::Value;

use super::{client::Cluster, rendered::Object};

/// The maximum depth of a schema; schemas of pods are about fifteen deep.
const DEPTH_MAX: usize = 64;

#[derive(Default)]
pub(super) struct Schemas(HashMap<String, Value>);

impl Schemas {
    /// Reads the schemas for the kinds of some objects; unpublished schemas are omitted.
    pub(super) async fn of(cluster: &Cluster, objects: &[&Object]) -> Self {
        let mut all = HashMap::new();
        for object in objects {
            let version = object.version.to_string();
            if all.contains_key(&version) {
                continue;
            }
            let group = if version.contains('/') { "apis" } else { "api" };
            let document = cluster.read(&format!("/openapi/v3/{group}/{version}")).await.unwrap_or_default();
            all.insert(version, document);
        }
        Self(all)
    }

    /// Whether an object clearly fits its schema.
    pub(super) fn accept(&self, object: &Object) -> bool {
        let Some(document) = self.0.get(&*object.version) else { return false };
        let schemas = &document["components"]["schemas"];
        let is_it = |schema: &Value| {
            schema["x-kubernetes-group-version-kind"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|gvk| gvk["kind"] == *object.key.kind && gvk["group"] == *object.key.group)
        };
        let schema = schemas.as_object().into_iter().flatten().map(|(_, schema)| schema).find(|schema| is_it(schema));
        schema.is_some_and(|schema| fits(schemas, schema, &object.value(), 0))
    }
}

/// Whether a value clearly fits a schema.
fn fits(schemas: &Value, schema: &Value, value: &Value, depth: usize) -> bool {
    if value.is_null() {
        return true;
    }
    if depth > DEPTH_MAX {
        return false;
    }
    if let Some(name) = schema["$ref"].as_str().and_then(|name| name.rsplit('/').next()) {
        return schemas.get(name).is_some_and(|schema| fits(schemas, schema, value, depth + 1));
    }
    if let Some(parts) = schema["allOf"].as_array() {
        return parts.iter().all(|part| fits(schemas, part, value, depth + 1));
    }
    if let Some(parts) = schema["oneOf"].as_array().or(schema["anyOf"].as_array()) {
        return parts.iter().any(|part| fits(schemas, part, value, depth + 1));
    }
    if schema["x-kubernetes-int-or-string"] == true || schema["format"] == "int-or-string" {
        return value.is_string() || value.is_i64();
    }
    if schema["x-kubernetes-preserve-unknown-fields"] == true {
        return true;
    }
    if let Some(words) = schema["enum"].as_array()
        && !words.contains(value)
    {
        return false;
    }
    match (schema["type"].as_str(), value) {
        (Some("string"), Value::String(_)) | (Some("boolean"), Value::Bool(_)) | (Some("number"), Value::Number(_)) => {
            true
        }
        (Some("integer"), Value::Number(number)) => number.is_i64() || number.is_u64(),
        (Some("array"), Value::Array(items)) => {
            items.iter().all(|item| fits(schemas, &schema["items"], item, depth + 1))
        }
        (Some("object"), Value::Object(map)) => {
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let rest = &schema["additionalProperties"];
            let each = |(name, value): (&String, &Value)| match schema["properties"].get(name) {
                Some(schema) => fits(schemas, schema, value, depth + 1),
                None => rest.is_object() && fits(schemas, rest, value, depth + 1),
            };
            required.into_iter().all(|name| map.contains_key(name)) && map.iter().all(each)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_plainly_right_is_not_accepted() {
        let schemas = json!({"Port": {"type": "object", "required": ["port"], "properties": {
            "port": {"type": "integer"}, "target": {"oneOf": [{"type": "integer"}, {"type": "string"}]}, "labels": {"type": "object", "additionalProperties": {"type": "string"}}}}});
        let schema = json!({"type": "object", "properties": {"ports": {"type": "array", "items": {"allOf": [{"$ref": "#/components/schemas/Port"}], "default": {}}}}});
        let accepts = |value: Value| fits(&schemas, &schema, &value, 0);
        assert!(accepts(
            json!({"ports": [{"port": 80, "target": "http", "labels": {"a": "b"}}, {"port": 1, "target": null}]})
        ));
        for wrong in [
            json!({"prots": []}),
            json!({"ports": [{"port": "80"}]}),
            json!({"ports": [{"target": 1}]}),
            json!({"ports": {}}),
            json!({"ports": [{"port": 1, "labels": {"a": 1}}]}),
            json!({"ports": [{"port": 1.5}]}),
        ] {
            assert!(!accepts(wrong.clone()), "{wrong}");
        }
        assert!(!fits(&schemas, &json!({"$ref": "#/components/schemas/Lost"}), &json!({}), 0));
    }
}
