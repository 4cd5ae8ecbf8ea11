//! Adopt (R4.3): which value of which variable would declare what was observed, and the edit that says so.
//!
//! Decides where a value is edited: where the instance's own environment says it, else in `overrides` of that
//! environment. Comments, order and everything else of a file stay. Never edits a module, and never a value that comes from an
//! output: whoever applies that upstream again would undo it.

use std::{borrow::Cow, collections::BTreeMap, str::FromStr};

use hcl_edit::{Decorate, expr::Expression, structure::Body};
use serde_json::Value;
use yamlpatch::{Op, Patch, apply_yaml_patches};
use yamlpath::{Component as Step, Route};

use crate::{
    domain::declaration::{node, schema::Tofu},
    model::{Change, EnvironmentName, Field, ResourceChange, change::MASKED},
};

/// A value that a variable takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Adopted {
    /// The variable.
    pub variable: String,
    /// Where in its value, as the keys that lead there; empty for the whole.
    pub keys: Vec<String>,
    /// The observed value.
    pub value: Value,
}

/// Returns the edits that declare drifted values, or the reason for which that is impossible.
///
/// # Errors
/// For each resource that no variable could declare, why.
pub fn adopted(
    changes: &[ResourceChange],
    origins: &BTreeMap<String, BTreeMap<String, String>>,
) -> Result<Vec<Adopted>, String> {
    let mut found: Vec<Adopted> = vec![];
    for change in changes.iter().filter(|change| change.r#type != "output") {
        let name = &change.resource;
        match change.change {
            Change::Update | Change::Replace => {}
            Change::Create => return Err(format!("`{name}` is gone, and no variable can declare that")),
            _ => return Err(format!("`{name}` is not in the declaration; write it into the module")),
        }
        for field in change.fields.iter().filter(|field| !field.unknown) {
            let one = of_field(name, field, origins)?;
            match found.iter().find(|other| other.variable == one.variable && other.keys == one.keys) {
                Some(other) if other.value == one.value => {}
                Some(_) => {
                    return Err(format!("`{}` is used twice, and was changed to two different values", one.variable));
                }
                None => found.push(one),
            }
        }
    }
    if found.is_empty() { Err("nothing of it comes from a variable".into()) } else { Ok(found) }
}

fn of_field(
    resource: &str,
    field: &Field,
    origins: &BTreeMap<String, BTreeMap<String, String>>,
) -> Result<Adopted, String> {
    let mut keys: Vec<String> =
        field.path.split('/').skip(1).map(|key| key.replace("~1", "/").replace("~0", "~")).collect();
    let attribute = if keys.is_empty() { String::new() } else { keys.remove(0) };
    let Some(variable) = origins.get(resource).and_then(|origins| origins.get(&attribute)) else {
        return Err(format!(
            "`{attribute}` of `{resource}` does not come straight from a variable; change it in the module"
        ));
    };
    match &field.before {
        _ if field.sensitive => Err(format!("`{attribute}` of `{resource}` is sensitive, and no file may say it")),
        Some(value) if value.as_str() != Some(MASKED) => {
            Ok(Adopted { variable: variable.clone(), keys, value: value.clone() })
        }
        _ => Err(format!("`{attribute}` of `{resource}` was removed, and no value of `{variable}` says that")),
    }
}

/// Puts what was observed into the value that a variable has.
fn within(current: Option<&Value>, adopted: &Adopted) -> Result<Value, String> {
    let Some((last, way)) = adopted.keys.split_last() else { return Ok(adopted.value.clone()) };
    let unknown = || {
        let keys = adopted.keys.join(".");
        format!("only `{keys}` of `{}` was changed, and the rest of its value is not declared", adopted.variable)
    };
    let mut value = current.cloned().ok_or_else(unknown)?;
    let mut at = &mut value;
    for key in way {
        at = step(at, key).ok_or_else(unknown)?;
    }
    match at {
        Value::Object(map) => drop(map.insert(last.clone(), adopted.value.clone())),
        other => *step(other, last).ok_or_else(unknown)? = adopted.value.clone(),
    }
    Ok(value)
}

fn step<'v>(value: &'v mut Value, key: &str) -> Option<&'v mut Value> {
    match value {
        Value::Object(map) => map.get_mut(key),
        Value::Array(items) => items.get_mut(key.parse::<usize>().ok()?),
        _ => None,
    }
}

/// The declaration of a component, with its file.
pub struct Declared<'d> {
    /// The text of its file.
    pub text: &'d str,
    /// Its name.
    pub component: &'d str,
    /// The environment.
    pub environment: &'d EnvironmentName,
    /// Its value in this environment.
    pub tofu: &'d Tofu,
}

impl Declared<'_> {
    /// The file with a variable's new value, in the declaration itself where it is of one environment, and in its
    /// `overrides` else.
    ///
    /// # Errors
    /// Why it can't be edited, in a sentence.
    pub fn edit(&self, adopted: &Adopted) -> Result<String, String> {
        let (nodes, _) = node::read(&"component.yaml".into(), self.text.as_bytes());
        let is_it = |node: &node::Node| {
            node.get("kind").and_then(node::Node::text) == Some("Component")
                && node.get("metadata").and_then(|m| m.get("name")).and_then(node::Node::text) == Some(self.component)
        };
        let Some(at) = nodes.iter().position(is_it) else {
            return Err(format!("the declaration of `{}` can't be found in its file", self.component));
        };
        let spec = nodes[at].get("spec").map(node::Node::to_json).unwrap_or_default();
        let environment = self.environment.as_str();
        let own = ["spec", "tofu", "variables"].map(str::to_owned);
        let over = ["spec", "overrides", environment, "tofu", "variables"].map(str::to_owned);
        let variable = adopted.variable.as_str();
        let overridden = spec["overrides"][environment]["tofu"]["variables"].get(variable);
        let single = spec["environments"].as_array().is_some_and(|names| names.len() == 1);
        let written = overridden.or_else(|| spec["tofu"]["variables"].get(variable));
        if written.is_some_and(|written| written.to_string().contains(".outputs.")) {
            return Err(format!("`{variable}` comes from an output; change what that comes from"));
        }
        let value = within(self.tofu.variables.get(variable), adopted)?;
        let way = if single && overridden.is_none() { &own[..] } else { &over[..] };
        let way: Vec<Way> = way.iter().map(|key| Way::Key(key.clone())).collect();
        let starts: Vec<usize> = nodes.iter().map(|node| node.at.line as usize).collect();
        let (before, text, after) = document(self.text, &starts, at);
        let edited = set(text, &way, variable, &escaped(&value))?;
        Ok(format!("{before}{edited}{after}"))
    }
}

/// A step into a declaration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// A key of a mapping.
    Key(String),
    /// An item of a list.
    Item(usize),
}

/// The file of a component's declaration with another value of a field that it says for one environment alone.
pub(super) fn declaration(
    text: &str,
    component: &str,
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
    if !single || !spec["overrides"][environment.as_str()]["citus"].is_null() {
        return Err(format!(
            "`{component}` says it for several environments, or in `overrides`; change its declaration"
        ));
    }
    let starts: Vec<usize> = nodes.iter().map(|node| node.at.line as usize).collect();
    let (before, text, after) = document(text, &starts, at);
    let whole: Vec<Way> =
        ["spec", "citus"].map(|key| Way::Key(key.into())).into_iter().chain(way.iter().cloned()).collect();
    let edited = set(text, &whole, key, &escaped(value))?;
    Ok(format!("{before}{edited}{after}"))
}

/// A value as a declaration says it: `${` begins a reference there.
fn escaped(value: &Value) -> Value {
    match value {
        Value::String(text) => text.replace("${", "$${").into(),
        Value::Array(items) => items.iter().map(escaped).collect(),
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), escaped(value))).collect(),
        other => other.clone(),
    }
}

/// The text before a document, the document, and the text behind it; `---` belongs to neither.
pub(super) fn document<'t>(text: &'t str, starts: &[usize], at: usize) -> (&'t str, &'t str, &'t str) {
    let lines: Vec<usize> = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
    let line = |number: usize| text[lines[number]..].lines().next().unwrap_or_default();
    // A separator ends one document and begins the next.
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

/// Sets a key at the end of a way of keys, which is made as far as it is missing.
fn set(text: &str, way: &[Way], key: &str, value: &Value) -> Result<String, String> {
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
    // The mappings that are missing are made one within the other, and the value in the last of them.
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
    // JSON is YAML in every style, and a text stays a text in it.
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

/// A file of variables with a variable's new value; nothing where it does not set it.
///
/// # Errors
/// Why it can't be edited, in a sentence.
pub fn edit_tfvars(text: &str, adopted: &Adopted) -> Result<Option<String>, String> {
    let mut body = Body::from_str(text).map_err(|error| format!("it can't be read: {error}"))?;
    let Some(mut attribute) = body.get_attribute_mut(&adopted.variable) else { return Ok(None) };
    let current = json(attribute.get().value.to_string().trim());
    let value = within(current.as_ref(), adopted)?;
    let mut fresh = Expression::from_str(&hcl(&value)).map_err(|error| format!("it can't be written: {error}"))?;
    let old = attribute.value_mut();
    *fresh.decor_mut() = old.decor().clone();
    *old = fresh;
    Ok(Some(body.to_string()))
}

/// A value as HCL writes it.
fn hcl(value: &Value) -> String {
    match value {
        Value::String(_) => value.to_string().replace("${", "$${").replace("%{", "%%{"),
        Value::Array(items) => format!("[{}]", items.iter().map(hcl).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let entry = |(key, item): (&String, &Value)| format!("{} = {}", Value::from(key.as_str()), hcl(item));
            format!("{{ {} }}", map.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

/// The value of a plain expression of HCL: texts, numbers, booleans, lists and maps of them.
fn json(text: &str) -> Option<Value> {
    fn of(expression: &Expression) -> Option<Value> {
        Some(match expression {
            Expression::Null(_) => Value::Null,
            Expression::Bool(flag) => Value::from(**flag),
            Expression::Number(number) => serde_json::from_str(&number.to_string()).ok()?,
            Expression::String(text) => Value::from(text.as_str()),
            Expression::Array(items) => items.iter().map(of).collect::<Option<Vec<_>>>()?.into(),
            Expression::Object(map) => {
                let entry = |(key, value): (&hcl_edit::expr::ObjectKey, &hcl_edit::expr::ObjectValue)| {
                    let key = match key {
                        hcl_edit::expr::ObjectKey::Ident(name) => name.to_string().trim().to_owned(),
                        hcl_edit::expr::ObjectKey::Expression(Expression::String(text)) => text.to_string(),
                        hcl_edit::expr::ObjectKey::Expression(_) => return None,
                    };
                    Some((key, of(value.expr())?))
                };
                Value::Object(map.iter().map(entry).collect::<Option<serde_json::Map<_, _>>>()?)
            }
            _ => return None,
        })
    }
    of(&Expression::from_str(text).ok()?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn adopted(variable: &str, keys: &[&str], value: Value) -> Adopted {
        Adopted { variable: variable.into(), keys: keys.iter().map(|key| (*key).to_owned()).collect(), value }
    }

    fn edit(text: &str, tofu: Value, adopted: &Adopted) -> Result<String, String> {
        let environment = "staging".parse().unwrap();
        let tofu = serde_json::from_value(tofu).unwrap();
        Declared { text, component: "network", environment: &environment, tofu: &tofu }.edit(adopted)
    }

    const FILE: &str = "# Who looks here?\nkind: StateRepo\nmetadata: { name: acme }\n---\n# The network.\nkind: Component\nmetadata: { name: network }   # do not rename\nspec:\n  environments: [staging, production]\n  tofu:\n    root: tf/network\n    variables:\n      region: eu   # never us\n      size: 1\n---\nkind: Component\nmetadata: { name: other }\nspec: {}\n";

    #[test]
    fn r4_3_an_edit_keeps_comments_order_and_the_other_documents() {
        let tofu = json!({"root": "tf/network", "variables": {"region": "eu", "size": 1}});
        insta::assert_snapshot!(edit(FILE, tofu.clone(), &adopted("size", &[], json!(3))).unwrap());
        let single = FILE.replace("[staging, production]", "[staging]");
        insta::assert_snapshot!(edit(&single, tofu.clone(), &adopted("size", &[], json!(3))).unwrap());
        let over = FILE.replace("---\nkind: Component\nmetadata: { name: other }", "  overrides:\n    staging: { tofu: { variables: { size: 2 } } }  # small\n---\nkind: Component\nmetadata: { name: other }");
        insta::assert_snapshot!(edit(&over, tofu, &adopted("size", &[], json!("3"))).unwrap());
    }

    #[test]
    fn r4_3_any_value_is_read_back_as_it_was_observed_in_every_style() {
        let flow = FILE.replace(
            "    variables:\n      region: eu   # never us\n      size: 1\n",
            "    variables: { region: \"eu\", size: \"1\" } # flow\n",
        );
        let tofu = json!({"root": "tf/network", "variables": {"region": "eu", "size": "1"}});
        for text in [FILE, &flow, &flow.replace("[staging, production]", "[staging]")] {
            for value in [
                json!("large"),
                json!("yes"),
                json!("a\n"),
                json!("a: b # c"),
                json!("a${x}b"),
                json!("'\"\\"),
                json!(3),
                json!([1, "no"]),
                json!({"a": {"b": null}}),
                json!(""),
                json!("0x1F"),
            ] {
                let edited = edit(text, tofu.clone(), &adopted("size", &[], value.clone())).unwrap();
                assert!(edited.contains("# never us") || edited.contains("# flow"), "{edited}");
                let (nodes, problems) = node::read(&"x".into(), edited.as_bytes());
                assert!(problems.is_empty() && nodes.len() == 3, "{edited}");
                let spec = nodes[1].get("spec").unwrap().to_json();
                let own = &spec["tofu"]["variables"]["size"];
                let found = spec.pointer("/overrides/staging/tofu/variables/size").unwrap_or(own);
                assert_eq!(*found, escaped(&value), "{edited}");
            }
        }
    }

    #[test]
    fn r4_3_what_comes_from_an_output_or_is_not_known_whole_is_refused() {
        let file = FILE.replace("size: 1", "size: \"${other.outputs.size}\"");
        let tofu = json!({"root": "tf/network", "variables": {"region": "eu", "size": "${other.outputs.size}"}});
        assert!(
            edit(&file, tofu.clone(), &adopted("size", &[], json!(3))).unwrap_err().contains("comes from an output")
        );
        assert!(
            edit(&file, tofu, &adopted("tags", &["team"], json!("a"))).unwrap_err().contains("only `team` of `tags`")
        );
    }

    #[test]
    fn r4_3_a_file_of_variables_keeps_its_comments() {
        let text =
            "# shared\nregion = \"eu\" # never us\ntags = { team = \"a\", tier = \"one\" }\n\nsize   =   1 // small\n";
        insta::assert_snapshot!(edit_tfvars(text, &adopted("size", &[], json!(3))).unwrap().unwrap());
        insta::assert_snapshot!(edit_tfvars(text, &adopted("tags", &["tier"], json!("t${wo}"))).unwrap().unwrap());
        assert_eq!(edit_tfvars(text, &adopted("zone", &[], json!(3))).unwrap(), None);
        assert!(edit_tfvars("a = {", &adopted("a", &[], json!(3))).is_err());
    }
}
