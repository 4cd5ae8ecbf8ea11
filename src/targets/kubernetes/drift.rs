//! Compares a live object with the result of applying it. Pure.
//!
//! Decides which fields differ, which values may be shown, and which differences are drift. No applied state is
//! stored: a strict dry-run returns the object as an apply would leave it, with all defaulting and admission.

use serde_json::Value;

use super::{
    fields::{self, Extra, Fields, escaped},
    masking::Masks,
    object::Key,
};
use crate::{
    model::{Change, Drift, DriftField, DriftKind, Field, ResourceChange},
    ports::Observation,
};

/// The maximum number of fields stored for one object; a further entry counts the omitted ones.
const FIELDS_MAX: usize = 500;

/// Returns the drift that an observation at the applied revision shows.
pub fn of(observation: &Observation) -> Vec<Drift> {
    observation
        .changes
        .iter()
        .map(|resource| {
            let added = |field: &Field| field.after.is_none() && field.before.is_some();
            let drift = match resource.change {
                Change::Create => DriftKind::Missing,
                Change::Destroy | Change::Forget => DriftKind::Extra,
                _ if !resource.fields.is_empty() && resource.fields.iter().all(added) => DriftKind::Extra,
                Change::Update | Change::Replace | Change::Run | Change::Move => DriftKind::Changed,
            };
            let shown = |field: &Field| DriftField {
                path: field.path.clone(),
                desired: field.after.clone(),
                observed: field.before.clone(),
            };
            let by = observation.changed_by.get(&resource.resource);
            Drift {
                resource: resource.resource.clone(),
                drift,
                revertible: true,
                fields: if resource.change == Change::Create {
                    vec![]
                } else {
                    resource.fields.iter().map(shown).collect()
                },
                changed_by: by.map(|by| by.manager.clone()),
                changed_at: by.and_then(|by| by.at),
                is_output: false,
            }
        })
        .collect()
}

/// A place where two objects differ.
struct Difference<'v> {
    pointer: String,
    before: Option<&'v Value>,
    after: Option<&'v Value>,
}

impl Masks<'_> {
    /// Returns the fields that an apply would change.
    pub(super) fn differences(&self, live: &Value, predicted: &Value, extras: &[Extra]) -> Vec<Field> {
        let ours = fields::ours(predicted);
        let (before, after) = (stripped(live), stripped(predicted));
        let mut found = vec![];
        compare("", &before, &after, Some(&ours), &mut found);
        let is_secret = live["kind"] == "Secret";
        let mut all: Vec<Field> = found
            .iter()
            .filter(|difference| !extras.iter().any(|extra| difference.pointer == extra.pointer))
            .map(|difference| self.field(is_secret, &difference.pointer, difference.before, difference.after))
            .collect();
        all.extend(extras.iter().map(|extra| self.field(is_secret, &extra.pointer, Some(&extra.value), None)));
        all.sort_by(|a, b| a.path.cmp(&b.path));
        self.bounded(all)
    }

    /// Returns the fields of an object that is created.
    pub(super) fn made(&self, object: &Value) -> Vec<Field> {
        let is_secret = object["kind"] == "Secret";
        let mut all = vec![];
        let mut put = |pointer: String, value: &Value| all.push(self.field(is_secret, &pointer, None, Some(value)));
        for (name, value) in object.as_object().into_iter().flatten() {
            match (name.as_str(), value) {
                ("apiVersion" | "kind" | "status", _) => {}
                ("metadata", _) => {
                    for part in ["labels", "annotations"] {
                        value.get(part).into_iter().for_each(|value| put(format!("/metadata/{part}"), value));
                    }
                }
                ("data" | "stringData", Value::Object(map)) if is_secret => {
                    map.iter().for_each(|(key, value)| put(format!("/{name}/{}", escaped(key)), value));
                }
                _ => put(format!("/{}", escaped(name)), value),
            }
        }
        self.bounded(all)
    }

    fn bounded(&self, mut all: Vec<Field>) -> Vec<Field> {
        if all.len() > FIELDS_MAX {
            let rest = all.split_off(FIELDS_MAX);
            let sealed = self.seal.seal(&serde_json::to_value(&rest).unwrap_or_default());
            all.push(Field {
                path: format!("/… {} more", rest.len()),
                before: None,
                after: Some(sealed.into()),
                sensitive: false,
                unknown: false,
                sealed: None,
            });
        }
        all
    }
}

/// Returns an object without the fields that no apply decides.
fn stripped(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(map) = object.as_object_mut() {
        map.remove("status");
        if let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut) {
            for name in [
                "managedFields",
                "resourceVersion",
                "generation",
                "uid",
                "creationTimestamp",
                "selfLink",
                "deletionTimestamp",
                "deletionGracePeriodSeconds",
            ] {
                metadata.remove(name);
            }
        }
    }
    object
}

fn compare<'v>(
    pointer: &str,
    before: &'v Value,
    after: &'v Value,
    fields: Option<&Fields>,
    found: &mut Vec<Difference<'v>>,
) {
    if before == after {
        return;
    }
    match (before, after) {
        (Value::Object(live), Value::Object(predicted)) => {
            for (name, value) in live {
                let pointer = format!("{pointer}/{}", escaped(name));
                match predicted.get(name) {
                    Some(other) => compare(&pointer, value, other, within(fields, &format!("f:{name}")), found),
                    None => found.push(Difference { pointer, before: Some(value), after: None }),
                }
            }
            for (name, value) in predicted.iter().filter(|(name, _)| !live.contains_key(*name)) {
                let pointer = format!("{pointer}/{}", escaped(name));
                found.push(Difference { pointer, before: None, after: Some(value) });
            }
        }
        (Value::Array(live), Value::Array(predicted)) => {
            let keys = fields::keys(fields).or_else(|| by_name(live, predicted));
            let Some(keys) = keys else {
                return found.push(Difference {
                    pointer: pointer.to_owned(),
                    before: Some(before),
                    after: Some(after),
                });
            };
            let same = |a: &Value, b: &Value| keys.iter().all(|key| a.get(key) == b.get(key));
            for (at, item) in live.iter().enumerate() {
                let pointer = format!("{pointer}/{at}");
                match predicted.iter().find(|other| same(item, other)) {
                    Some(other) => compare(&pointer, item, other, element(fields, item, &keys), found),
                    None => found.push(Difference { pointer, before: Some(item), after: None }),
                }
            }
            // Two lists that differ only in order are equal: the API treats such lists as unordered.
            let made = predicted.iter().filter(|item| !live.iter().any(|other| same(item, other)));
            for (at, item) in made.enumerate() {
                let pointer = format!("{pointer}/{}", live.len() + at);
                found.push(Difference { pointer, before: None, after: Some(item) });
            }
        }
        _ => found.push(Difference { pointer: pointer.to_owned(), before: Some(before), after: Some(after) }),
    }
}

fn within<'f>(fields: Option<&'f Fields>, element: &str) -> Option<&'f Fields> {
    fields?.get(element)?.as_object()
}

/// Returns the field set of a list item, by its keys.
fn element<'f>(fields: Option<&'f Fields>, item: &Value, keys: &[String]) -> Option<&'f Fields> {
    let named: Fields = keys.iter().filter_map(|key| Some((key.clone(), item.get(key)?.clone()))).collect();
    within(fields, &format!("k:{}", Value::Object(named)))
}

/// Identifies the items of a list by name if the field set defines no keys.
fn by_name(live: &[Value], predicted: &[Value]) -> Option<Vec<String>> {
    let named = |items: &[Value]| items.iter().all(|item| item["name"].is_string());
    (named(live) && named(predicted) && !live.is_empty() && !predicted.is_empty()).then(|| vec!["name".into()])
}

/// Returns the change of one object.
pub fn change(key: &Key, change: Change, fields: Vec<Field>) -> ResourceChange {
    ResourceChange {
        resource: key.to_string(),
        r#type: key.sort(),
        change,
        reverts_drift: false,
        protected: false,
        fields,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        model::{Redactor, Seal},
        targets::kubernetes::masking::LAST_APPLIED,
    };

    fn differences(live: &Value, predicted: &Value, extras: &[Extra]) -> Vec<String> {
        let (seal, redactor) = (Seal::new(vec![7]), Redactor::default());
        let masks = Masks { seal: &seal, redactor: &redactor };
        masks.learn(live);
        masks.learn(predicted);
        let shown = |value: &Option<Value>| value.as_ref().map_or("-".to_owned(), Value::to_string);
        masks
            .differences(live, predicted, extras)
            .iter()
            .map(|field| format!("{} {} -> {}", field.path, shown(&field.before), shown(&field.after)))
            .collect()
    }

    #[test]
    fn items_of_lists_are_told_apart_by_their_keys() {
        let live = json!({"spec": {"containers": [{"name": "side", "image": "s:1"}, {"name": "web", "image": "w:hot"}], "args": ["a"]}});
        let predicted = json!({"spec": {"containers": [{"name": "web", "image": "w:1"}, {"name": "side", "image": "s:1"}], "args": ["a", "b"]}});
        assert_eq!(
            differences(&live, &predicted, &[]),
            [r#"/spec/args ["a"] -> ["a","b"]"#, r#"/spec/containers/1/image "w:hot" -> "w:1""#]
        );
    }

    #[test]
    fn what_the_cluster_decides_is_no_difference() {
        let live = json!({"metadata": {"resourceVersion": "1", "generation": 3, "uid": "u"}, "status": {"x": 1}});
        assert_eq!(differences(&live, &json!({"metadata": {"resourceVersion": "2"}}), &[]), Vec::<String>::new());
    }

    #[test]
    fn secrets_are_masked_in_every_form() {
        let applied = json!({"kind": "Secret", "stringData": {"password": "canary-old"}}).to_string();
        let live = json!({"kind": "Secret", "metadata": {"annotations": {LAST_APPLIED: applied, "note": "is canary-old"}}, "data": {"password": "Y2FuYXJ5LW9sZA=="}});
        let predicted =
            json!({"kind": "Secret", "metadata": {}, "data": {"password": "Y2FuYXJ5LW5ldw==", "more": "eA=="}});
        let shown = differences(&live, &predicted, &[]);
        assert!(shown.iter().all(|line| !line.contains("canary") && !line.contains("Y2Fu")), "{shown:?}");
        assert_eq!(shown.len(), 3, "{shown:?}");
    }

    #[test]
    fn an_extra_is_a_field_without_an_after() {
        let live = json!({"spec": {"paused": true}});
        let extra =
            Extra { pointer: "/spec/paused".into(), value: json!(true), manager: "kubectl-edit".into(), at: None };
        assert_eq!(differences(&live, &live, &[extra]), ["/spec/paused true -> -"]);
    }
}
