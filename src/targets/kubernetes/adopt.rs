//! Adopts observed values of Kubernetes objects into manifests, patches and value files (R4.3).
//!
//! Owns the edits of the files. Does not decide whether an edit is correct: the caller plans the edited files and
//! requires an empty plan.
//! *Invariant:* comments, order and all other content of a file stay unchanged.

use std::borrow::Cow;

use serde_json::Value;
use yamlpatch::{Op, Patch, apply_yaml_patches};
use yamlpath::{Component as Step, Route};

use super::{closure::is_manifest, declaration::Kubernetes};
use crate::{
    domain::{
        declaration::node,
        kind::{Adoption, Edits},
        remediation::edit::document,
    },
    model::{Change, Field, ResourceChange},
    ports::join,
};

/// Edits the files that declare the fields, each at the narrowest place that affects this instance alone.
pub(super) fn adopt(
    adoption: &Adoption<'_>,
    declared: &Kubernetes,
    changes: &[ResourceChange],
    edits: &mut dyn Edits,
) -> Result<(), String> {
    for change in changes {
        let name = &change.resource;
        match change.change {
            Change::Update => {}
            Change::Create => return Err(format!("`{name}` was deleted; remove its declaration to keep it deleted")),
            _ => return Err(format!("`{name}` is not a matter of its fields; change its declaration")),
        }
        // Iterates from the end, so that the positions of earlier list items stay valid.
        for field in change.fields.iter().rev() {
            if field.sensitive {
                return Err(format!("`{}` of `{name}` is sensitive, and no file may say it", field.path));
            }
            edit_field(adoption, declared, name, field, edits)?;
        }
    }
    Ok(())
}

fn edit_field(
    adoption: &Adoption<'_>,
    declared: &Kubernetes,
    name: &str,
    field: &Field,
    edits: &mut dyn Edits,
) -> Result<(), String> {
    let kind = name.split(['.', '/']).next().unwrap_or_default();
    let object = name.rsplit('/').next().unwrap_or_default();
    let (mut paths, values): (Vec<String>, bool) = match &declared.helm {
        Some(helm) => (helm.value_files.iter().rev().filter_map(|path| join("", path)).collect(), true),
        None => (adoption.files.iter().filter(|path| is_manifest(path)).cloned().collect(), false),
    };
    if let Some(folder) = &declared.kustomize {
        // An overlay belongs to this instance only.
        let folder = format!("{}/", join("", folder).unwrap_or_default());
        paths.sort_by_key(|path| !path.starts_with(&folder));
    }
    let mut why = None;
    for path in paths {
        let Ok(text) = edits.read(&path) else { continue };
        let edited = if values { edit_values(&text, field) } else { edit_object(&text, kind, object, field) };
        match edited {
            Ok(None) => {}
            Err(reason) => why = Some(format!("`{path}`: {reason}")),
            Ok(Some(edited)) => {
                if edits.write_own(&path, edited) {
                    return Ok(());
                }
                why = Some(format!("`{path}`, which declares it, belongs to other instances as well"));
            }
        }
    }
    Err(why.unwrap_or_else(|| {
        let what = if values { "no single value of its value files is" } else { "no file of its own declares" };
        format!("{what} `{}` of `{name}`; change its source", field.path)
    }))
}

/// Returns the manifest or patch with the observed value of a field, or `None` if the file does not set that field of
/// that object.
///
/// # Errors
/// A message that explains why the file can't be edited.
fn edit_object(text: &str, kind: &str, name: &str, field: &Field) -> Result<Option<String>, String> {
    let (nodes, problems) = node::read(&"manifest.yaml".into(), text.as_bytes());
    if let Some(problem) = problems.first() {
        return Err(format!("it can't be read: {problem}"));
    }
    let named = |node: &node::Node| node.get("metadata")?.get("name")?.text().map(str::to_owned);
    let is_it = |node: &node::Node| {
        // An overlay may add a prefix and a suffix to the name in the base.
        node.get("kind").and_then(node::Node::text) == Some(kind)
            && named(node).is_some_and(|found| name.contains(&found))
    };
    let Some(at) = nodes.iter().position(is_it) else { return Ok(None) };
    let steps: Vec<String> =
        field.path.split('/').skip(1).map(|step| step.replace("~1", "/").replace("~0", "~")).collect();
    let Some((last, way)) = steps.split_last() else { return Ok(None) };
    let starts: Vec<usize> = nodes.iter().map(|node| node.at.line as usize).collect();
    let (before, inner, after) = document(text, &starts, at);
    let edited = match (&field.before, &field.after) {
        (Some(value), Some(_)) => replaced(inner, &steps, value)?,
        (None, Some(_)) => patched(inner, &steps, &steps, Op::Remove)?,
        (Some(value), None) => {
            let value = serde_yaml::to_value(value).map_err(|error| error.to_string())?;
            let operation = match last.parse::<usize>() {
                Ok(_) => Op::Append { value },
                Err(_) => Op::Add { key: last.clone(), value },
            };
            patched(inner, way, way, operation)?
        }
        (None, None) => None,
    };
    Ok(edited.map(|edited| format!("{before}{edited}{after}")))
}

/// Returns the value file with the observed value at the only place that has the declared value, or `None` if there is
/// no such place or more than one.
///
/// # Errors
/// A message that explains why the file can't be edited.
fn edit_values(text: &str, field: &Field) -> Result<Option<String>, String> {
    let (Some(observed), Some(declared)) = (&field.before, &field.after) else { return Ok(None) };
    let (nodes, _) = node::read(&"values.yaml".into(), text.as_bytes());
    let mut places = vec![];
    for node in nodes.iter().take(1) {
        leaves(&node.to_json(), declared, &mut vec![], &mut places);
    }
    match &places[..] {
        [place] => replaced(text, place, observed),
        _ => Ok(None),
    }
}

/// Collects the paths of all leaves that equal a value.
fn leaves(value: &Value, wanted: &Value, way: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    let mut into = |step: String, value: &Value| {
        way.push(step);
        leaves(value, wanted, way, found);
        way.pop();
    };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| into(key.clone(), value)),
        Value::Array(items) => items.iter().enumerate().for_each(|(at, value)| into(at.to_string(), value)),
        leaf if leaf == wanted => found.push(way.clone()),
        _ => {}
    }
}

fn route(steps: &[String]) -> Route<'static> {
    let step = |step: &String| match step.parse::<usize>() {
        Ok(at) => Step::Index(at),
        Err(_) => Step::Key(Cow::Owned(step.clone())),
    };
    steps.iter().map(step).collect::<Vec<_>>().into()
}

fn failed(error: &dyn std::fmt::Display) -> String {
    format!("it can't be edited by a program: {error}")
}

/// Replaces a value, whatever its YAML style.
fn replaced(text: &str, steps: &[String], value: &Value) -> Result<Option<String>, String> {
    let document = yamlpath::Document::new(text).map_err(|error| failed(&error))?;
    if !document.query_exists(&route(steps)) {
        return Ok(None);
    }
    let place = document.query_exact(&route(steps)).map_err(|error| failed(&error))?;
    let Some((from, to)) = place.map(|place| place.location.byte_span) else { return Ok(None) };
    let mut edited = text.to_owned();
    // JSON is valid YAML in every style, and keeps the type of a string.
    edited.replace_range(from..to, &value.to_string());
    Ok(Some(edited))
}

fn patched(text: &str, exists: &[String], steps: &[String], operation: Op<'static>) -> Result<Option<String>, String> {
    let document = yamlpath::Document::new(text).map_err(|error| failed(&error))?;
    if !document.query_exists(&route(exists)) {
        return Ok(None);
    }
    let patches = [Patch { route: route(steps), operation }];
    let added = apply_yaml_patches(&document, &patches).map_err(|error| failed(&error))?;
    Ok(Some(added.source().to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const MANIFEST: &str = "# ours\napiVersion: v1\nkind: ConfigMap\nmetadata: { name: other }\ndata: { a: b }\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web # the shop\nspec:\n  replicas: 2 # enough\n  template:\n    spec:\n      containers:\n      - name: web\n        image: \"web:1\" # pinned\n        env:\n        - name: A\n          value: \"1\"\n";

    fn edit(path: &str, observed: Option<Value>, declared: Option<Value>) -> String {
        let field = Field {
            path: path.into(),
            before: observed,
            after: declared,
            sensitive: false,
            unknown: false,
            sealed: None,
        };
        let edited = edit_object(MANIFEST, "Deployment", "web", &field).unwrap().unwrap();
        let changes = similar(MANIFEST, &edited);
        changes.join("\n")
    }

    /// Returns the lines that differ.
    fn similar(before: &str, after: &str) -> Vec<String> {
        let removed =
            before.lines().filter(|line| !after.lines().any(|other| other == *line)).map(|line| format!("-{line}"));
        let added =
            after.lines().filter(|line| !before.lines().any(|other| other == *line)).map(|line| format!("+{line}"));
        removed.chain(added).collect()
    }

    #[test]
    fn r4_3_an_object_takes_over_what_was_observed_and_keeps_its_comments() {
        insta::assert_snapshot!(edit("/spec/replicas", Some(json!(5)), Some(json!(2))), @"
        -  replicas: 2 # enough
        +  replicas: 5 # enough
        ");
        insta::assert_snapshot!(edit("/spec/template/spec/containers/0/image", Some(json!("web:2")), Some(json!("web:1"))), @r#"
        -        image: "web:1" # pinned
        +        image: "web:2" # pinned
        "#);
        insta::assert_snapshot!(edit("/spec/paused", Some(json!(true)), None), @"+  paused: true");
        insta::assert_snapshot!(edit("/spec/template/spec/containers/0/env/1", Some(json!({"name": "B", "value": "2"})), None), @"
        +        - name: B
        +          value: '2'
        ");
        assert!(!edit("/spec/template/spec/containers/0/env", None, Some(json!([]))).contains("+"));
    }

    #[test]
    fn what_a_file_does_not_say_is_not_edited_in_it() {
        let field = |path: &str| Field {
            path: path.into(),
            before: Some(json!(1)),
            after: Some(json!(2)),
            sensitive: false,
            unknown: false,
            sealed: None,
        };
        assert_eq!(edit_object(MANIFEST, "Deployment", "web", &field("/spec/minReadySeconds")), Ok(None));
        assert_eq!(edit_object(MANIFEST, "Service", "web", &field("/spec/replicas")), Ok(None));
        assert_eq!(
            edit_values("a: 2\nb: { c: 3 } # why\n", &field("/x")).unwrap().unwrap(),
            "a: 1\nb: { c: 3 } # why\n"
        );
        assert_eq!(edit_values("a: 2\nb: 2\n", &field("/x")), Ok(None));
    }
}
