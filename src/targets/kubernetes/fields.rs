//! Reads the field ownership of an object from its `managedFields`. Pure.
//!
//! A field set (`fieldsV1`) describes itself: `f:NAME` is a field, `k:{…}` a list item by its keys, `v:…` a member of
//! a set, `.` the element itself. The fields that Evenkeel owns can therefore be read from the object alone. No schema
//! is needed to detect whether another manager changed a field, took its ownership, or added a field beside it.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use super::object::{EXCLUSIVE, MANAGER, annotation};

/// Managers that work for the declared objects: they set fields that no other manager sets.
const KNOWN: [&str; 12] = [
    "kube-controller-manager",
    "kube-scheduler",
    "kube-apiserver",
    "kubelet",
    "cloud-controller-manager",
    "cluster-autoscaler",
    "vpa-recommender",
    "vpa-updater",
    "cainjector",
    "cert-manager-cainjector",
    "gke-l7",
    "evenkeel-rotate",
];

/// A field set.
pub type Fields = Map<String, Value>;

/// A value that another manager added inside a declared structure.
#[derive(Clone, Debug, PartialEq)]
pub struct Extra {
    /// A JSON pointer into the object.
    pub pointer: String,
    /// The added value.
    pub value: Value,
    /// The manager that added it.
    pub manager: String,
    /// The time of the addition.
    pub at: Option<DateTime<Utc>>,
}

/// One entry of `managedFields`.
struct Entry<'o> {
    manager: &'o str,
    operation: &'o str,
    at: Option<DateTime<Utc>>,
    fields: &'o Fields,
}

/// Returns the entries of the main resource; entries of subresources, such as `status` and `scale`, are excluded.
fn entries(object: &Value) -> impl Iterator<Item = Entry<'_>> {
    let all = object["metadata"]["managedFields"].as_array();
    all.into_iter().flatten().filter(|entry| entry["subresource"].as_str().is_none_or(str::is_empty)).filter_map(
        |entry| {
            Some(Entry {
                manager: entry["manager"].as_str()?,
                operation: entry["operation"].as_str()?,
                at: entry["time"].as_str().and_then(|text| text.parse().ok()),
                fields: entry["fieldsV1"].as_object()?,
            })
        },
    )
}

/// Returns the fields that Evenkeel owns by applying; `None` if it never applied the object.
pub fn applied(object: &Value) -> Option<&Fields> {
    entries(object).find(|entry| entry.manager == MANAGER && entry.operation == "Apply").map(|entry| entry.fields)
}

/// Returns all fields that Evenkeel owns: the applied ones, and the results of admission on them.
pub fn ours(object: &Value) -> Fields {
    let mut all = Fields::new();
    for entry in entries(object).filter(|entry| entry.manager == MANAGER) {
        merge(&mut all, entry.fields);
    }
    all
}

fn merge(into: &mut Fields, from: &Fields) {
    for (key, value) in from {
        match (into.get_mut(key).and_then(Value::as_object_mut), value.as_object()) {
            (Some(there), Some(value)) => merge(there, value),
            _ => drop(into.insert(key.clone(), value.clone())),
        }
    }
}

fn is_leaf(value: &Value) -> bool {
    value.as_object().is_none_or(Map::is_empty)
}

/// Escapes one step of a JSON pointer.
pub fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// Resolves a path element in a value: the step of the pointer, and the value at the step.
fn locate<'v>(element: &str, value: &'v Value) -> Option<(String, &'v Value)> {
    match element.split_at_checked(2)? {
        ("f:", name) => Some((escaped(name), value.get(name)?)),
        ("k:", keys) => {
            let keys: Fields = serde_json::from_str(keys).ok()?;
            let fits = |item: &Value| keys.iter().all(|(key, value)| item.get(key) == Some(value));
            let at = value.as_array()?.iter().position(fits)?;
            Some((at.to_string(), &value[at]))
        }
        ("v:", member) => {
            let member: Value = serde_json::from_str(member).ok()?;
            let at = value.as_array()?.iter().position(|item| *item == member)?;
            Some((at.to_string(), &value[at]))
        }
        ("i:", index) => {
            let at: usize = index.parse().ok()?;
            Some((at.to_string(), value.get(at)?))
        }
        _ => None,
    }
}

/// Returns the values of all owned fields, and the additions inside them, in a canonical form. Two objects with the
/// same text do not differ in any declared field.
pub fn canonical(object: &Value) -> Vec<u8> {
    let ours = ours(object);
    let mut text = vec![];
    write(&ours, object, &mut text);
    for extra in extras(object, &ours) {
        text.extend_from_slice(b"\nextra ");
        text.extend_from_slice(extra.pointer.as_bytes());
        text.extend_from_slice(extra.value.to_string().as_bytes());
    }
    text
}

fn write(fields: &Fields, value: &Value, text: &mut Vec<u8>) {
    for (element, inner) in fields {
        if element == "." {
            continue;
        }
        text.extend_from_slice(element.as_bytes());
        match locate(element, value) {
            None => text.extend_from_slice(b"?"),
            Some((_, value)) if is_leaf(inner) => {
                text.push(b'=');
                // Writing to a vector never fails.
                drop(serde_json::to_writer(&mut *text, value));
            }
            Some((_, value)) => {
                text.push(b'{');
                write(inner.as_object().unwrap_or(&Map::new()), value, text);
                text.push(b'}');
            }
        }
        text.push(b'\n');
    }
}

/// Returns the additions of other managers strictly inside owned structures. Only declared labels and annotations are
/// owned, unless the object is exclusive; all other metadata belongs to the cluster.
pub fn extras(object: &Value, ours: &Fields) -> Vec<Extra> {
    let exclusive = annotation(object, EXCLUSIVE) == Some("enabled");
    let mut found: Vec<Extra> = vec![];
    for entry in entries(object).filter(|entry| entry.manager != MANAGER && !KNOWN.contains(&entry.manager)) {
        let mut walk = Walk { entry: &entry, found: &mut found };
        for (element, inner) in entry.fields {
            let (Some(own), Some(theirs)) = (ours.get(element).and_then(Value::as_object), inner.as_object()) else {
                continue;
            };
            let Some((step, value)) = locate(element, object) else { continue };
            match element.as_str() {
                "f:status" => {}
                "f:metadata" if !exclusive => {}
                "f:metadata" => {
                    let only = |fields: &Fields| -> Fields {
                        let stored =
                            fields.iter().filter(|(key, _)| matches!(key.as_str(), "f:labels" | "f:annotations"));
                        stored.map(|(key, value)| (key.clone(), value.clone())).collect()
                    };
                    walk.inside(&only(theirs), own, value, "/metadata");
                }
                _ if is_leaf(&Value::Object(own.clone())) => {}
                _ => walk.inside(theirs, own, value, &format!("/{step}")),
            }
        }
    }
    found.sort_by(|a, b| a.pointer.cmp(&b.pointer));
    found.dedup_by(|a, b| a.pointer == b.pointer);
    found
}

struct Walk<'w, 'o> {
    entry: &'w Entry<'o>,
    found: &'w mut Vec<Extra>,
}

impl Walk<'_, '_> {
    fn inside(&mut self, theirs: &Fields, ours: &Fields, value: &Value, pointer: &str) {
        for (element, inner) in theirs.iter().filter(|(element, _)| *element != ".") {
            let Some((step, value)) = locate(element, value) else { continue };
            let pointer = format!("{pointer}/{step}");
            match ours.get(element).and_then(Value::as_object) {
                // A field that is owned as a whole is compared as a whole.
                Some(own) if own.is_empty() => {}
                Some(own) => {
                    if let Some(inner) = inner.as_object() {
                        self.inside(inner, own, value, &pointer);
                    }
                }
                None => self.found.push(Extra {
                    pointer,
                    value: value.clone(),
                    manager: self.entry.manager.to_owned(),
                    at: self.entry.at,
                }),
            }
        }
    }
}

/// Returns the other manager that last wrote the field at a pointer.
pub fn writer(object: &Value, pointer: &str) -> Option<(String, Option<DateTime<Utc>>)> {
    let steps: Vec<String> =
        pointer.split('/').skip(1).map(|step| step.replace("~1", "/").replace("~0", "~")).collect();
    entries(object)
        .filter(|entry| entry.manager != MANAGER && owns(entry.fields, object, &steps))
        .max_by_key(|entry| entry.at)
        .map(|entry| (entry.manager.to_owned(), entry.at))
}

fn owns(fields: &Fields, value: &Value, steps: &[String]) -> bool {
    let Some((step, rest)) = steps.split_first() else { return true };
    fields.iter().any(|(element, inner)| {
        locate(element, value).is_some_and(|(found, inner_value)| {
            found == escaped(step)
                && (is_leaf(inner) || owns(inner.as_object().unwrap_or(&Map::new()), inner_value, rest))
        })
    })
}

/// Returns the keys that identify the items of a list; `None` if the field set is not a list with keys.
pub fn keys(fields: Option<&Fields>) -> Option<Vec<String>> {
    let first = fields?.keys().find_map(|element| element.strip_prefix("k:"))?;
    let keys: Fields = serde_json::from_str(first).ok()?;
    Some(keys.into_iter().map(|(key, _)| key).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment() -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web", "labels": {"a": "1"}, "managedFields": [
                {"manager": "evenkeel", "operation": "Apply", "fieldsV1": {
                    "f:metadata": {"f:labels": {"f:a": {}}},
                    "f:spec": {"f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {}, "f:args": {}}}}}}
                }},
                {"manager": "kube-controller-manager", "operation": "Update", "subresource": "status", "fieldsV1": {"f:status": {"f:replicas": {}}}},
            ]},
            "spec": {"replicas": 1, "template": {"spec": {"containers": [{"name": "c", "image": "c:1", "args": ["x"], "pullPolicy": "Always"}]}}},
            "status": {"replicas": 1},
        })
    }

    fn also(object: &mut Value, manager: &str, fields: Value) {
        object["metadata"]["managedFields"].as_array_mut().unwrap().push(
            json!({"manager": manager, "operation": "Update", "time": "2026-11-19T22:41:07Z", "fieldsV1": fields}),
        );
    }

    fn pointers(object: &Value) -> Vec<String> {
        extras(object, &ours(object)).into_iter().map(|extra| extra.pointer).collect()
    }

    #[test]
    fn what_we_do_not_own_does_not_count() {
        let object = deployment();
        let mut changed = deployment();
        changed["spec"]["replicas"] = json!(5);
        changed["status"]["replicas"] = json!(5);
        changed["spec"]["template"]["spec"]["containers"][0]["pullPolicy"] = json!("Never");
        changed["metadata"]["resourceVersion"] = json!("17");
        assert_eq!(canonical(&object), canonical(&changed));
        changed["spec"]["template"]["spec"]["containers"][0]["image"] = json!("c:2");
        assert_ne!(canonical(&object), canonical(&changed));
    }

    #[test]
    fn a_field_that_was_taken_and_one_that_is_gone_count() {
        let object = deployment();
        let mut taken = deployment();
        let fields =
            &mut taken["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"]["f:template"]["f:spec"]["f:containers"];
        fields["k:{\"name\":\"c\"}"].as_object_mut().unwrap().remove("f:image");
        assert_ne!(canonical(&object), canonical(&taken));
        let mut gone = deployment();
        gone["spec"]["template"]["spec"]["containers"] = json!([]);
        assert_ne!(canonical(&object), canonical(&gone));
    }

    #[test]
    fn what_somebody_put_inside_what_we_declare_is_found_at_its_top() {
        let mut object = deployment();
        let containers = "f:containers";
        object["spec"]["template"]["spec"]["containers"][0]["env"] = json!([{"name": "DEBUG", "value": "1"}]);
        object["spec"]["template"]["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "side"}));
        object["spec"]["paused"] = json!(true);
        also(
            &mut object,
            "kubectl-edit",
            json!({"f:spec": {"f:paused": {}, "f:template": {"f:spec": {containers: {
                "k:{\"name\":\"c\"}": {"f:env": {".": {}, "k:{\"name\":\"DEBUG\"}": {".": {}, "f:name": {}, "f:value": {}}}},
                "k:{\"name\":\"side\"}": {".": {}, "f:name": {}},
            }}}}}),
        );
        assert_eq!(
            pointers(&object),
            ["/spec/paused", "/spec/template/spec/containers/0/env", "/spec/template/spec/containers/1"]
        );
        assert_eq!(writer(&object, "/spec/paused").unwrap().0, "kubectl-edit");
        assert_eq!(writer(&object, "/spec/template/spec/containers/0/env/0/value").unwrap().0, "kubectl-edit");
        assert_eq!(writer(&object, "/spec/replicas"), None);
    }

    #[test]
    fn controllers_and_what_is_beside_our_fields_are_no_extras() {
        let mut object = deployment();
        object["spec"]["nodeName"] = json!("n1");
        object["metadata"]["labels"]["b"] = json!("2");
        object["metadata"]["finalizers"] = json!(["x"]);
        object["immutable"] = json!(true);
        also(&mut object, "kube-scheduler", json!({"f:spec": {"f:nodeName": {}}}));
        also(
            &mut object,
            "kubectl-edit",
            json!({"f:immutable": {}, "f:metadata": {"f:labels": {"f:b": {}}, "f:finalizers": {}}}),
        );
        assert_eq!(pointers(&object), Vec::<String>::new());
        object["metadata"]["annotations"] = json!({EXCLUSIVE: "enabled"});
        assert_eq!(pointers(&object), ["/metadata/labels/b"]);
    }

    #[test]
    fn a_set_and_a_path_with_a_slash() {
        let object = json!({"metadata": {"annotations": {"a/b": "x"}, "finalizers": ["one", "two"]}});
        assert_eq!(locate("f:a/b", &object["metadata"]["annotations"]).unwrap().0, "a~1b");
        assert_eq!(locate("v:\"two\"", &object["metadata"]["finalizers"]).unwrap().0, "1");
        assert!(locate("k:{\"name\"", &object).is_none() && locate("", &object).is_none());
    }
}
