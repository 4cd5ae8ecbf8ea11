//! Finds the variable that an attribute is set from, by the plan's `configuration`. Pure.
//!
//! An attribute has an origin only if its expression is a plain reference to a variable. Computed values and literals
//! in the module have none.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::model::{Change, ResourceChange};

/// Returns the variables of the root module that changed attributes are set from, by resource and attribute.
pub(super) fn variables_of(
    configuration: &Value,
    changes: &[ResourceChange],
) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut origins = BTreeMap::new();
    for change in changes.iter().filter(|change| matches!(change.change, Change::Update | Change::Replace)) {
        let attributes = change.fields.iter().filter_map(|field| field.path.split('/').nth(1));
        let found: BTreeMap<String, String> = attributes
            .filter_map(|attribute| Some((attribute.to_owned(), origin(configuration, &change.resource, attribute)?)))
            .collect();
        if !found.is_empty() {
            origins.insert(change.resource.clone(), found);
        }
    }
    origins
}

fn origin(configuration: &Value, address: &str, attribute: &str) -> Option<String> {
    let parts = without_keys(address)?;
    let mut module = &configuration["root_module"];
    let (mut calls, mut at) = (vec![], 0);
    while parts.get(at).map(String::as_str) == Some("module") {
        let call = &module["module_calls"][parts.get(at + 1)?.as_str()];
        calls.push(&call["expressions"]);
        module = &call["module"];
        at += 2;
    }
    let name = parts.get(at..)?.join(".");
    let resource = module["resources"].as_array()?.iter().find(|resource| resource["address"] == name.as_str())?;
    let mut variable = variable(&resource["expressions"][attribute])?;
    for expressions in calls.into_iter().rev() {
        variable = self::variable(&expressions[variable.as_str()])?;
    }
    Some(variable)
}

/// Returns the variable that an expression refers to, if the expression is nothing else.
fn variable(expression: &Value) -> Option<String> {
    match &expression["references"].as_array()?[..] {
        [reference] => reference.as_str()?.strip_prefix("var.").filter(|name| !name.contains('.')).map(str::to_owned),
        _ => None,
    }
}

/// Returns the parts of an address without instance keys: `module.a["x"].thing.b[0]` is `module`, `a`, `thing`, `b`.
fn without_keys(address: &str) -> Option<Vec<String>> {
    let (mut parts, mut part, mut depth, mut quoted) = (vec![], String::new(), 0, false);
    let mut escaped = false;
    for c in address.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '[' if !quoted => depth += 1,
            ']' if !quoted => depth -= 1,
            _ if depth > 0 => {}
            '.' => parts.push(std::mem::take(&mut part)),
            c => part.push(c),
        }
    }
    parts.push(part);
    parts.iter().all(|part| !part.is_empty()).then_some(parts)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn follows_a_variable_through_modules_and_stops_at_anything_else() {
        let configuration = json!({"root_module": {
            "resources": [{"address": "thing.a", "expressions": {
                "size": {"references": ["var.size"]}, "name": {"references": ["var.one", "var.two"]},
                "zone": {"constant_value": "eu"}, "tag": {"references": ["var.tags.a", "var.tags"]}}}],
            "module_calls": {"net": {"expressions": {"cidr": {"references": ["var.range"]}, "x": {"constant_value": 1}},
                "module": {"resources": [{"address": "thing.b", "expressions": {"cidr": {"references": ["var.cidr"]}, "x": {"references": ["var.x"]}}}]}}}
        }});
        let origin_of = |address: &str, attribute: &str| origin(&configuration, address, attribute);
        assert_eq!(origin_of("thing.a", "size").as_deref(), Some("size"));
        assert_eq!(origin_of("thing.a[\"x.y]\"]", "size").as_deref(), Some("size"));
        assert_eq!(origin_of("module.net[0].thing.b", "cidr").as_deref(), Some("range"));
        for (address, attribute) in [
            ("thing.a", "name"),
            ("thing.a", "zone"),
            ("thing.a", "tag"),
            ("module.net.thing.b", "x"),
            ("thing.c", "size"),
            ("module.gone.thing.b", "cidr"),
        ] {
            assert_eq!(origin_of(address, attribute), None, "{address} {attribute}");
        }
    }
}
