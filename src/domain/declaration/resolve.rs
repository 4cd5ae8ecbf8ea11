//! Merges overrides, resolves `${…}`, and collects references to outputs.
//!
//! Decides the declaration of a component in one environment. References to outputs are resolved later, when the
//! outputs of the upstream are known (R1.2, R1.3). Never reads another component; `load.rs` checks that a referenced
//! component exists.

use std::{collections::BTreeSet, sync::Arc};

use serde_json::Value;

use super::node::{Key, Kind, Node};
use crate::model::{ComponentName, EnvironmentName, Place, Problem};

/// An output of another component that a declaration uses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// The component in the same environment.
    pub component: ComponentName,
    /// The key of the output. Dots select a nested value.
    pub key: String,
}

/// A piece of a text with `${…}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Literal text.
    Literal(String),
    /// `${environment}`.
    Environment,
    /// `${NAME.outputs.KEY}`.
    Output(Reference),
}

/// Splits a text into pieces; `$${` is a literal `${`.
///
/// # Errors
/// The unknown name between the braces, or a missing closing brace.
pub fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = vec![];
    let mut literal = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            literal.push_str(&rest[..at - 1]);
            literal.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        literal.push_str(&rest[..at]);
        let inner = &rest[at + 2..];
        let end = inner.find('}').ok_or_else(|| "`${` without its `}`".to_owned())?;
        let name = inner[..end].trim();
        if !literal.is_empty() {
            pieces.push(Piece::Literal(std::mem::take(&mut literal)));
        }
        pieces.push(match name {
            "environment" => Piece::Environment,
            name => {
                let unknown = || format!("`${{{name}}}` is not known");
                let (component, key) = name.split_once(".outputs.").ok_or_else(unknown)?;
                if key.is_empty() {
                    return Err(unknown());
                }
                Piece::Output(Reference { component: component.parse().map_err(|_| unknown())?, key: key.to_owned() })
            }
        });
        rest = &inner[end + 1..];
    }
    literal.push_str(rest);
    if !literal.is_empty() || pieces.is_empty() {
        pieces.push(Piece::Literal(literal));
    }
    Ok(pieces)
}

/// The references and problems of a declaration.
#[derive(Default)]
pub struct Found {
    /// The used outputs, with their places.
    pub references: Vec<(Reference, Place)>,
    /// The problems.
    pub problems: Vec<Problem>,
}

/// Resolves `${environment}` everywhere below a node, and collects the references to outputs.
pub fn interpolate(
    node: &mut Node,
    environment: &EnvironmentName,
    file: &Arc<str>,
    outputs_allowed: bool,
    found: &mut Found,
) {
    match &mut node.value {
        Kind::List(items) => {
            items.iter_mut().for_each(|item| interpolate(item, environment, file, outputs_allowed, found))
        }
        Kind::Map(entries) => {
            entries.iter_mut().for_each(|(_, item)| interpolate(item, environment, file, outputs_allowed, found))
        }
        Kind::Text(text) if text.contains("${") => match pieces(text) {
            Err(why) => {
                let problem = Problem::new("interpolation", file, node.at, why);
                found.problems.push(
                    problem
                        .expected("expected `${environment}` or `${NAME.outputs.KEY}`")
                        .hint("write `$${` for a literal `${`"),
                );
            }
            Ok(pieces) => {
                let mut written = String::new();
                for piece in &pieces {
                    match piece {
                        Piece::Literal(literal) => written.push_str(&literal.replace("${", "$${")),
                        Piece::Environment => written.push_str(environment.as_str()),
                        Piece::Output(reference) => {
                            written.push_str(&format!("${{{}.outputs.{}}}", reference.component, reference.key));
                            if outputs_allowed {
                                found.references.push((reference.clone(), node.at));
                            } else {
                                let problem = Problem::new(
                                    "interpolation",
                                    file,
                                    node.at,
                                    "an output is used where only `${environment}` may stand",
                                );
                                found.problems.push(problem.hint("what an instance is made from may not depend on outputs; pass the output as a variable"));
                            }
                        }
                    }
                }
                *text = written.into();
            }
        },
        _ => {}
    }
}

/// Resolves references to known outputs. A text that is exactly one reference gets the type of the output.
///
/// # Errors
/// The reference that is a part of a longer text and is not a scalar.
pub fn fill(value: &Value, output: &dyn Fn(&Reference) -> Option<Value>) -> Result<Value, String> {
    Ok(match value {
        Value::Array(items) => Value::Array(items.iter().map(|item| fill(item, output)).collect::<Result<_, _>>()?),
        Value::Object(map) => Value::Object(
            map.iter().map(|(key, item)| Ok((key.clone(), fill(item, output)?))).collect::<Result<_, String>>()?,
        ),
        Value::String(text) if text.contains("${") => {
            let pieces = pieces(text)?;
            if let [Piece::Output(reference)] = &pieces[..] {
                return output(reference).ok_or_else(|| missing(reference));
            }
            let mut written = String::new();
            for piece in &pieces {
                match piece {
                    Piece::Literal(literal) => written.push_str(literal),
                    Piece::Environment => written.push_str("${environment}"),
                    Piece::Output(reference) => match output(reference).ok_or_else(|| missing(reference))? {
                        Value::String(text) => written.push_str(&text),
                        Value::Number(number) => written.push_str(&number.to_string()),
                        Value::Bool(flag) => written.push_str(&flag.to_string()),
                        _ => {
                            return Err(format!(
                                "`{}.outputs.{}` is not a text, number or boolean and can't stand inside a text",
                                reference.component, reference.key
                            ));
                        }
                    },
                }
            }
            Value::String(written)
        }
        other => other.clone(),
    })
}

fn missing(reference: &Reference) -> String {
    format!("`{}` has no output `{}`", reference.component, reference.key)
}

/// Returns an output by its key. Dots select a nested value.
pub fn lookup(outputs: &Value, key: &str) -> Option<Value> {
    if let Some(value) = outputs.get(key) {
        return Some(value.clone());
    }
    key.split('.')
        .try_fold(outputs, |value, part| match value {
            Value::Array(items) => part.parse::<usize>().ok().and_then(|index| items.get(index)),
            value => value.get(part),
        })
        .cloned()
}

/// Collects the references below a value.
pub fn references(value: &Value, found: &mut BTreeSet<Reference>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        Value::Object(map) => map.values().for_each(|item| references(item, found)),
        Value::String(text) if text.contains("${") => {
            for piece in pieces(text).unwrap_or_default() {
                if let Piece::Output(reference) = piece {
                    found.insert(reference);
                }
            }
        }
        _ => {}
    }
}

/// Merges a patch into a node by RFC 7396. Lists whose items all have a `name` merge by name.
pub fn merge(target: &mut Node, patch: &Node) {
    let Kind::Map(changes) = &patch.value else {
        *target = patch.clone();
        return;
    };
    if !matches!(target.value, Kind::Map(_)) {
        target.value = Kind::Map(vec![]);
    }
    let Kind::Map(entries) = &mut target.value else { return };
    for (key, change) in changes {
        let position = entries.iter().position(|(other, _)| other.name == key.name);
        match (position, &change.value) {
            (Some(at), Kind::Null) => {
                entries.remove(at);
            }
            (None, Kind::Null) => {}
            (Some(at), Kind::List(items))
                if named(items) && matches!(&entries[at].1.value, Kind::List(there) if named(there)) =>
            {
                merge_named(&mut entries[at].1, items);
            }
            (Some(at), _) => merge(&mut entries[at].1, change),
            (None, _) => {
                let mut fresh = Node { value: Kind::Null, at: change.at };
                merge(&mut fresh, change);
                entries.push((Key { name: Arc::clone(&key.name), at: key.at }, fresh));
            }
        }
    }
}

fn named(items: &[Node]) -> bool {
    !items.is_empty() && items.iter().all(|item| item.get("name").and_then(Node::text).is_some())
}

fn merge_named(target: &mut Node, changes: &[Node]) {
    let Kind::List(items) = &mut target.value else { return };
    for change in changes {
        let name = change.get("name").and_then(Node::text);
        match items.iter_mut().find(|item| item.get("name").and_then(Node::text) == name) {
            Some(item) => merge(item, change),
            None => items.push(change.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_are_taken_apart() {
        assert_eq!(pieces("plain"), Ok(vec![Piece::Literal("plain".into())]));
        assert_eq!(pieces("$${x}"), Ok(vec![Piece::Literal("${x}".into())]));
        assert!(pieces("${env}").is_err());
        assert!(pieces("${environment").is_err());
        assert!(pieces("${a.outputs.}").is_err());
    }

    #[test]
    fn a_lone_reference_keeps_its_type() {
        let outputs = json!({"ports": [1, 2], "ip": "10.0.0.1"});
        let output = |reference: &Reference| lookup(&outputs, &reference.key);
        assert_eq!(fill(&json!("${net.outputs.ports}"), &output), Ok(json!([1, 2])));
        assert_eq!(fill(&json!("${net.outputs.ports.1}"), &output), Ok(json!(2)));
        assert_eq!(fill(&json!("http://${net.outputs.ip}/$${x}"), &output), Ok(json!("http://10.0.0.1/${x}")));
        assert!(fill(&json!("x ${net.outputs.ports}"), &output).is_err());
        assert!(fill(&json!("${net.outputs.nope}"), &output).is_err());
    }

    #[test]
    fn patches_merge_by_rfc_7396_and_by_name() {
        let read = |text: &str| super::super::node::read(&"x.yaml".into(), text.as_bytes()).0.remove(0);
        let mut target = read("{a: 1, b: {c: 2, d: 3}, l: [{name: one, v: 1}, {name: two, v: 2}], p: [1]}");
        merge(&mut target, &read("{a: null, b: {c: 9}, l: [{name: two, v: 3}, {name: three}], p: [2, 3]}"));
        let expected = json!({"b": {"c": 9, "d": 3}, "l": [{"name": "one", "v": 1}, {"name": "two", "v": 3}, {"name": "three"}], "p": [2, 3]});
        assert_eq!(target.to_json(), expected);
    }
}
