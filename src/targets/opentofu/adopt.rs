//! Adopts observed values of resources into variables of the declaration (R4.3).
//!
//! Owns the search for the variable of an attribute and the edit of its value. A value is edited in the instance's own
//! environment if that environment sets it, else in `overrides` of that environment.
//! *Invariant:* comments, order and all other content of a file stay unchanged. Neither modules nor values from
//! outputs are edited: the next apply of the upstream would revert an edited output.

use std::{collections::BTreeMap, str::FromStr};

use hcl_edit::{Decorate, expr::Expression, structure::Body};
use serde_json::Value;

use super::declaration::Tofu;
use crate::{
    domain::{
        declaration::node,
        kind::{Adoption, Edits},
        remediation::edit::{Way, document, escaped, set},
    },
    model::{Change, EnvironmentName, Field, ResourceChange, change::MASKED},
    ports::{EntryKind, Files, join},
};

/// An observed value for a variable.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Adopted {
    /// The variable.
    pub variable: String,
    /// The path inside the variable's value; empty for the whole value.
    pub keys: Vec<String>,
    /// The observed value.
    pub value: Value,
}

/// Returns the edits that declare drifted values.
///
/// # Errors
/// The reason for each resource that no variable can declare.
pub(super) fn adopted(
    changes: &[ResourceChange],
    origins: &BTreeMap<String, BTreeMap<String, String>>,
) -> Result<Vec<Adopted>, String> {
    let mut found: Vec<Adopted> = vec![];
    for change in changes.iter().filter(|change| change.r#type != "output") {
        let name = &change.resource;
        match change.change {
            Change::Update | Change::Replace => {}
            Change::Create => return Err(format!("`{name}` was deleted, and no variable can declare that")),
            _ => return Err(format!("`{name}` is not in the declaration; write it into the module")),
        }
        for field in change.fields.iter().filter(|field| !field.unknown) {
            let edit = of_field(name, field, origins)?;
            match found.iter().find(|other| other.variable == edit.variable && other.keys == edit.keys) {
                Some(other) if other.value == edit.value => {}
                Some(_) => {
                    return Err(format!("`{}` is used twice, and was changed to two different values", edit.variable));
                }
                None => found.push(edit),
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
        _ => Err(format!("`{attribute}` of `{resource}` was removed, and no value of `{variable}` declares that")),
    }
}

/// Sets the observed value inside the current value of a variable.
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

/// Returns the variable files that tofu reads by default, in order of precedence.
fn files_of_variables(content: &dyn Files, root: &str) -> Vec<String> {
    let entries = content.list(root).unwrap_or_default();
    let names = entries.into_iter().filter(|entry| entry.sort == EntryKind::File).map(|entry| entry.name);
    let mut names: Vec<String> =
        names.filter(|name| name.ends_with(".auto.tfvars") || name == "terraform.tfvars").collect();
    names.sort_by_key(|name| (name.ends_with(".auto.tfvars"), name.clone()));
    names.into_iter().rev().filter_map(|name| join(root, &name)).collect()
}

/// Edits a value at the narrowest place that affects this instance alone.
pub(super) fn edit(
    adoption: &Adoption<'_>,
    tofu: &Tofu,
    adopted: &Adopted,
    edits: &mut dyn Edits,
) -> Result<(), String> {
    if !tofu.variables.contains_key(&adopted.variable) {
        let root = join("", &tofu.root).unwrap_or_default();
        let listed = tofu.var_files.iter().rev().filter_map(|path| join("", path));
        for path in listed.chain(files_of_variables(edits.content(), &root)) {
            let Ok(text) = edits.read(&path) else { continue };
            let Ok(Some(edited)) = edit_tfvars(&text, adopted) else { continue };
            // A file that other instances share is not edited.
            if edits.write_own(&path, edited) {
                return Ok(());
            }
            break;
        }
    }
    let path = edits.declaration()?;
    let text = edits.read(&path)?;
    let (component, environment) = (adoption.instance.component.as_str(), &adoption.instance.environment);
    let edited = Declared { text: &text, component, environment, tofu }.edit(adopted)?;
    edits.write(&path, edited);
    Ok(())
}

/// The declaration of a component, with its file.
pub(super) struct Declared<'d> {
    /// The text of the file.
    pub text: &'d str,
    /// The name of the component.
    pub component: &'d str,
    /// The environment.
    pub environment: &'d EnvironmentName,
    /// The declaration in this environment.
    pub tofu: &'d Tofu,
}

impl Declared<'_> {
    /// Returns the file with a new value of a variable: in the declaration if it has one environment, else in its
    /// `overrides`.
    ///
    /// # Errors
    /// A message that explains why the file can't be edited.
    pub(super) fn edit(&self, adopted: &Adopted) -> Result<String, String> {
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

/// Returns a variable file with a new value of a variable, or `None` if the file does not set the variable.
///
/// # Errors
/// A message that explains why the file can't be edited.
pub(super) fn edit_tfvars(text: &str, adopted: &Adopted) -> Result<Option<String>, String> {
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

/// Formats a value as HCL.
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

/// Parses a literal HCL expression: texts, numbers, booleans, and lists and maps of them.
fn json(text: &str) -> Option<Value> {
    fn literal(expression: &Expression) -> Option<Value> {
        Some(match expression {
            Expression::Null(_) => Value::Null,
            Expression::Bool(flag) => Value::from(**flag),
            Expression::Number(number) => serde_json::from_str(&number.to_string()).ok()?,
            Expression::String(text) => Value::from(text.as_str()),
            Expression::Array(items) => items.iter().map(literal).collect::<Option<Vec<_>>>()?.into(),
            Expression::Object(map) => {
                let entry = |(key, value): (&hcl_edit::expr::ObjectKey, &hcl_edit::expr::ObjectValue)| {
                    let key = match key {
                        hcl_edit::expr::ObjectKey::Ident(name) => name.to_string().trim().to_owned(),
                        hcl_edit::expr::ObjectKey::Expression(Expression::String(text)) => text.to_string(),
                        hcl_edit::expr::ObjectKey::Expression(_) => return None,
                    };
                    Some((key, literal(value.expr())?))
                };
                Value::Object(map.iter().map(entry).collect::<Option<serde_json::Map<_, _>>>()?)
            }
            _ => return None,
        })
    }
    literal(&Expression::from_str(text).ok()?)
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
