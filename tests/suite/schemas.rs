//! Tests that the checked-in schemas match the types, and that the demo's declarations conform to them.

use std::path::Path;

use evenkeel::{domain::declaration::schema::DOCUMENTS, targets::kinds};

#[test]
fn the_checked_in_schemas_are_current() {
    for kind in DOCUMENTS {
        let path = format!("docs/schemas/{}.json", kind.to_lowercase());
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let current = serde_json::to_string_pretty(&kinds().schema(kind).unwrap()).unwrap() + "\n";
        assert!(text == current, "{path} is not what the types say; run `make schemas`");
    }
}

#[test]
fn every_keyword_of_the_schemas_is_understood() {
    // The validator supports only these keywords: a type with another one would be checked in part.
    const KNOWN: [&str; 24] = [
        "$schema",
        "$defs",
        "$ref",
        "title",
        "description",
        "type",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "enum",
        "const",
        "oneOf",
        "anyOf",
        "format",
        "minimum",
        "minItems",
        "default",
        "uniqueItems",
        "x-not-supported-yet",
        "propertyNames",
        "maximum",
        "examples",
        "pattern",
    ];
    fn walk(value: &serde_json::Value, inside: &str) {
        match value {
            serde_json::Value::Object(map) => {
                for (key, value) in map {
                    if !matches!(inside, "properties" | "$defs" | "x-not-supported-yet" | "default") {
                        assert!(KNOWN.contains(&key.as_str()), "the keyword `{key}` is not known to the validator");
                    }
                    walk(value, key);
                }
            }
            serde_json::Value::Array(items) => items.iter().for_each(|item| walk(item, inside)),
            _ => {}
        }
    }
    for kind in DOCUMENTS {
        walk(&kinds().schema(kind).unwrap(), "");
    }
}

#[test]
fn the_demo_is_without_problems_for_us_and_for_a_json_schema_validator() {
    let desired =
        evenkeel::domain::declaration::load(kinds(), &evenkeel::adapters::git::WorkingFiles::new("demo"), "state-repo");
    assert_eq!(desired.problems, []);
    assert_eq!(desired.instances.len(), 8);
    for (path, kind) in [
        ("staterepo.yaml", "StateRepo"),
        ("environments/dev.yaml", "Environment"),
        ("components/network.yaml", "Component"),
        ("schedules/nightly.yaml", "Schedule"),
    ] {
        let bytes = std::fs::read(Path::new("demo/state-repo").join(path)).unwrap();
        let (nodes, _) = evenkeel::domain::declaration::node::read(&path.into(), &bytes);
        let validator = jsonschema::validator_for(&kinds().schema(kind).unwrap()).unwrap();
        let errors: Vec<String> = validator.iter_errors(&nodes[0].to_json()).map(|error| error.to_string()).collect();
        assert_eq!(errors, Vec::<String>::new(), "{path}");
    }
}
