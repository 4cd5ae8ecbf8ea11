//! Edits declarations and keeps comments, order and all other text of a file (R4.3).

use std::borrow::Cow;

use serde_json::Value;
use yamlpatch::{Op, Patch, apply_yaml_patches};
use yamlpath::{Component as Step, Route};

use crate::{domain::declaration::node, model::EnvironmentName};

/// A step of a path into a declaration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// A key of a mapping.
    Key(String),
    /// An item of a list.
    Item(usize),
}

/// Returns the file of a component with a new value of a field that the component declares for one environment alone.
///
/// # Errors
/// The reason for which the file can't be edited, as a sentence.
pub fn edit_component(
    text: &str,
    component: &str,
    kind: &str,
    environment: &EnvironmentName,
    way: &[Way],
    key: &str,
    value: &Value,
) -> Result<String, String> {
    let (nodes, _) = node::read(&"component.yaml".into(), text.as_bytes());
    let is_it = |node: &node::Node| {
        node.get("kind").and_then(node::Node::text) == Some("Component")
            && node.get("metadata").and_then(|m| m.get("name")).and_then(node::Node::text) == Some(component)
    };
    let Some(at) = nodes.iter().position(is_it) else {
        return Err(format!("the declaration of `{component}` can't be found in its file"));
    };
    let spec = nodes[at].get("spec").map(node::Node::to_json).unwrap_or_default();
    let single = spec["environments"].as_array().is_some_and(|names| names.len() == 1);
    if !single || !spec["overrides"][environment.as_str()][kind].is_null() {
        return Err(format!(
            "`{component}` declares it for several environments, or in `overrides`; change its declaration"
        ));
    }
    let starts: Vec<usize> = nodes.iter().map(|node| node.at.line as usize).collect();
    let (before, text, after) = document(text, &starts, at);
    let whole: Vec<Way> =
        ["spec", kind].map(|key| Way::Key(key.into())).into_iter().chain(way.iter().cloned()).collect();
    let edited = set(text, &whole, key, &escaped(value))?;
    Ok(format!("{before}{edited}{after}"))
}

/// Returns a value with every `${` escaped, because `${` starts a reference in a declaration.
pub fn escaped(value: &Value) -> Value {
    match value {
        Value::String(text) => text.replace("${", "$${").into(),
        Value::Array(items) => items.iter().map(escaped).collect(),
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), escaped(value))).collect(),
        other => other.clone(),
    }
}

/// Splits a text into the text before a document, the document and the text after it. No part contains the `---` lines.
pub fn document<'t>(text: &'t str, starts: &[usize], at: usize) -> (&'t str, &'t str, &'t str) {
    let lines: Vec<usize> = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
    let line = |number: usize| text[lines[number]..].lines().next().unwrap_or_default();
    // A separator ends one document and starts the next.
    let separators: Vec<usize> = (0..lines.len()).filter(|number| line(*number).starts_with("---")).collect();
    let first = starts.get(at).map_or(0, |line| line - 1);
    let begin = separators
        .iter()
        .rev()
        .find(|line| **line <= first)
        .map_or(0, |line| lines.get(line + 1).copied().unwrap_or(text.len()));
    let end = separators.iter().find(|line| **line > first).map_or(text.len(), |line| lines[*line]);
    (&text[..begin], &text[begin..end], &text[end..])
}

/// Sets a key in the mapping at a path. Missing mappings of the path are created.
///
/// # Errors
/// The reason for which the text can't be edited, as a sentence.
pub fn set(text: &str, way: &[Way], key: &str, value: &Value) -> Result<String, String> {
    let failed = |error: &dyn std::fmt::Display| format!("its file can't be edited by a program: {error}");
    let document = yamlpath::Document::new(text).map_err(|error| failed(&error))?;
    let steps = |way: &[Way]| -> Route<'static> {
        let step = |way: &Way| match way {
            Way::Key(key) => Step::Key(Cow::Owned(key.clone())),
            Way::Item(at) => Step::Index(*at),
        };
        way.iter().map(step).collect::<Vec<_>>().into()
    };
    let whole: Vec<Way> = way.iter().cloned().chain([Way::Key(key.to_owned())]).collect();
    let there = (0..=whole.len()).rev().find(|length| *length == 0 || document.query_exists(&steps(&whole[..*length])));
    let there = there.unwrap_or(0);
    let empty = serde_yaml::Value::Mapping(serde_yaml::Mapping::new());
    // Missing mappings are nested, and the innermost one has the value.
    let mut patches = vec![];
    for at in there..whole.len() {
        let value = if at + 1 == whole.len() { serde_yaml::Value::from(0) } else { empty.clone() };
        let Way::Key(key) = whole[at].clone() else { return Err(failed(&"it has no such item")) };
        patches.push(Patch { route: steps(&whole[..at]), operation: Op::Add { key, value } });
    }
    let made = match &patches[..] {
        [] => document,
        patches => apply_yaml_patches(&document, patches).map_err(|error| failed(&error))?,
    };
    // JSON is valid YAML in every style and keeps texts quoted.
    let place = made.query_exact(&steps(&whole)).map_err(|error| failed(&error))?;
    let Some((from, to)) = place.map(|place| place.location.byte_span) else {
        return Err(failed(&format!("`{key}` has no value")));
    };
    let mut edited = made.source().to_owned();
    edited.replace_range(from..to, &value.to_string());
    let (nodes, problems) = node::read(&"component.yaml".into(), edited.as_bytes());
    let read = whole.iter().try_fold(nodes.first().map(node::Node::to_json).unwrap_or_default(), |at, way| match way {
        Way::Key(key) => at.get(key).cloned(),
        Way::Item(item) => at.get(item).cloned(),
    });
    if !problems.is_empty() || read.as_ref() != Some(value) {
        return Err(failed(&format!("`{key}` would not be read back as it was written")));
    }
    Ok(edited)
}
