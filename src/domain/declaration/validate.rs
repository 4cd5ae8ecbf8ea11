//! Validates a node against a JSON Schema, and reports every problem with its place.
//!
//! Decides whether a document has the structure of its Rust type, so that a later deserialization can't fail. Never
//! stops at the first problem, and knows no kind by name: the schemas are generated from `schema.rs`. Supports only the
//! keywords of those schemas; a test finds an unsupported keyword.

use std::sync::Arc;

use serde_json::Value;

use super::{
    kinds::Kinds,
    node::{Key, Kind, Node},
};
use crate::model::{Digest, Duration, Percent, Place, Problem, Size};

/// Whether required fields must exist. An override is a patch and may omit them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whole {
    /// A whole document: required fields must exist.
    Yes,
    /// A merge patch: no field is required, and `null` removes a field.
    Patch,
}

/// Validates documents of one file.
pub struct Validator<'a> {
    /// The file, for problems.
    pub file: &'a Arc<str>,
    /// The kinds of target, for their formats.
    pub kinds: &'static Kinds,
    /// The root of the schema, for `$defs`.
    pub root: &'a Value,
    /// Whether required fields must exist.
    pub whole: Whole,
    /// The problems so far.
    pub problems: Vec<Problem>,
}

const EXPECTED_NAMES_MAX: usize = 12;

impl Validator<'_> {
    fn say(&mut self, kind: &str, at: Place, message: String, expected: impl Into<String>) -> &mut Problem {
        self.problems.push(Problem::new(kind, self.file, at, message).expected(expected));
        let last = self.problems.len() - 1;
        &mut self.problems[last]
    }

    /// Validates one node.
    pub fn check(&mut self, schema: &Value, node: &Node) {
        let root = self.root;
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            if let Some(target) = reference.strip_prefix('#').and_then(|pointer| root.pointer(pointer)) {
                self.check(target, node);
            }
            return;
        }
        if schema.as_bool() == Some(true) || schema.as_object().is_some_and(serde_json::Map::is_empty) {
            return self.check_free(node);
        }
        for word in ["oneOf", "anyOf"] {
            if let Some(variants) = schema.get(word).and_then(Value::as_array) {
                return self.check_variants(variants, node);
            }
        }
        if let Some(words) = schema.get("enum").and_then(Value::as_array) {
            return self.check_enum(words, node);
        }
        if let Some(word) = schema.get("const") {
            return self.check_enum(std::slice::from_ref(word), node);
        }
        if self.check_type(schema, node) {
            match &node.value {
                Kind::Map(entries) => self.check_map(schema, node, entries),
                Kind::List(items) => {
                    if let Some(item_schema) = schema.get("items") {
                        items.iter().for_each(|item| self.check(item_schema, item));
                    } else {
                        items.iter().for_each(|item| self.check_free(item));
                    }
                    let least = schema.get("minItems").and_then(Value::as_u64).unwrap_or(0);
                    if (items.len() as u64) < least {
                        self.say("empty", node.at, "an empty list".into(), format!("expected at least {least}"));
                    }
                }
                Kind::Text(text) => self.check_format(schema, node, text),
                Kind::Number(number) => {
                    let least = schema.get("minimum").and_then(Value::as_f64);
                    if let (Some(least), Some(found)) = (least, number.as_f64())
                        && found < least
                    {
                        self.say("too-small", node.at, format!("found {number}"), format!("expected {least} or more"));
                    }
                    let most = schema.get("maximum").and_then(Value::as_f64);
                    if let (Some(most), Some(found)) = (most, number.as_f64())
                        && found > most
                    {
                        self.say("too-large", node.at, format!("found {number}"), format!("expected {most} or less"));
                    }
                }
                _ => {}
            }
        }
    }

    /// Validates a value that may be any JSON. Only the traps of YAML 1.1 are problems.
    fn check_free(&mut self, node: &Node) {
        match &node.value {
            Kind::Trap(text) => self.trap(node, text),
            Kind::List(items) => items.iter().for_each(|item| self.check_free(item)),
            Kind::Map(entries) => entries.iter().for_each(|(_, item)| self.check_free(item)),
            _ => {}
        }
    }

    fn trap(&mut self, node: &Node, text: &str) {
        let what = if text.starts_with(|c: char| c.is_ascii_alphabetic()) { "a boolean" } else { "another number" };
        let message = format!("unquoted `{text}` is a text here and {what} for other YAML readers");
        let hint = format!("write \"{text}\" for the text, or the value that you mean");
        self.say("yaml-trap", node.at, message, "expected quotes").hint = Some(hint);
    }

    fn check_type(&mut self, schema: &Value, node: &Node) -> bool {
        let names: Vec<&str> = match schema.get("type") {
            Some(Value::String(name)) => vec![name],
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            _ => return true,
        };
        let found = type_names(node);
        if let (Kind::Trap(text), true) = (&node.value, names.contains(&"string")) {
            let text = Arc::clone(text);
            self.trap(node, &text);
            return false;
        }
        if names.iter().any(|name| found.contains(name)) || (self.whole == Whole::Patch && node.value == Kind::Null) {
            return true;
        }
        let shown = shown(node);
        let expected =
            names.iter().filter(|name| **name != "null").map(|name| type_words(name)).collect::<Vec<_>>().join(" or ");
        let problem = self.say("wrong-type", node.at, format!("found {shown}"), format!("expected {expected}"));
        if names.contains(&"string") && matches!(node.value, Kind::Number(_) | Kind::Bool(_)) {
            problem.hint = Some(format!("write \"{}\"", node.to_json()));
        }
        false
    }

    fn check_format(&mut self, schema: &Value, node: &Node, text: &str) {
        let checked = match schema.get("format").and_then(Value::as_str) {
            Some("evenkeel-duration") => text.parse::<Duration>().err(),
            Some("evenkeel-size") => text.parse::<Size>().err(),
            Some("evenkeel-percent") => text.parse::<Percent>().err(),
            Some("evenkeel-digest") => text.parse::<Digest>().err(),
            Some("evenkeel-name") => text.parse::<crate::model::ComponentName>().err(),
            Some("evenkeel-instance") => text.parse::<crate::model::InstanceId>().err(),
            Some("date-time") => {
                chrono::DateTime::parse_from_rfc3339(text).err().map(|_| crate::model::ids::Malformed {
                    found: text.into(),
                    expected: "a time (RFC 3339, such as 2026-11-20T02:00:14Z)",
                })
            }
            Some(format) => self.kinds.iter().find_map(|kind| kind.format(format, text)).and_then(Result::err),
            None => None,
        };
        if let Some(malformed) = checked {
            self.say(
                "wrong-value",
                node.at,
                format!("found `{}`", malformed.found),
                format!("expected {}", malformed.expected),
            );
        }
    }

    fn check_enum(&mut self, words: &[Value], node: &Node) {
        let names: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
        match node.text() {
            Some(text) if names.contains(&text) => {}
            _ => {
                let shown = shown(node);
                let hint = node.text().and_then(|text| nearest(text, names.iter().copied()));
                let problem = self.say("wrong-value", node.at, format!("found {shown}"), one_of(&names));
                problem.hint = hint.map(|name| format!("did you mean `{name}`?"));
            }
        }
    }

    /// Validates against the one variant that allows the node's type. If there is none, the problem lists all variants.
    fn check_variants(&mut self, variants: &[Value], node: &Node) {
        let root = self.root;
        let target = |variant: &Value| -> Value {
            variant
                .get("$ref")
                .and_then(Value::as_str)
                .and_then(|reference| reference.strip_prefix('#'))
                .and_then(|pointer| root.pointer(pointer))
                .unwrap_or(variant)
                .clone()
        };
        let variants: Vec<Value> =
            variants.iter().map(target).filter(|v| v.get("type").and_then(Value::as_str) != Some("null")).collect();
        if variants.iter().all(|v| v.get("enum").is_some() || v.get("const").is_some()) {
            let words: Vec<Value> = variants
                .iter()
                .flat_map(|v| {
                    v.get("enum")
                        .and_then(Value::as_array)
                        .cloned()
                        .unwrap_or_else(|| v.get("const").cloned().into_iter().collect())
                })
                .collect();
            return self.check_enum(&words, node);
        }
        let found = type_names(node);
        let fits = |v: &&Value| match v.get("type") {
            Some(Value::String(name)) => found.contains(&name.as_str()),
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).any(|name| found.contains(&name)),
            // A variant that is an enum matches by the type of its values.
            _ => v.get("oneOf").and_then(Value::as_array).is_none_or(|words| {
                words.iter().filter_map(|word| word.get("type")?.as_str()).any(|name| found.contains(&name))
            }),
        };
        let fitting: Vec<&Value> = variants.iter().filter(fits).collect();
        // Of several mappings, the variant whose required key exists is chosen.
        let chosen = fitting.iter().copied().find(|v| {
            let required = v.get("required").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            required.iter().filter_map(Value::as_str).all(|name| node.get(name).is_some())
        });
        match chosen.or(fitting.first().copied()) {
            Some(variant) => self.check(variant, node),
            None if node.value == Kind::Null => {}
            None => {
                let shown = shown(node);
                let words: Vec<String> = variants
                    .iter()
                    .filter_map(|v| v.get("type").and_then(Value::as_str))
                    .map(|name| type_words(name).to_owned())
                    .collect();
                self.say("wrong-type", node.at, format!("found {shown}"), format!("expected {}", words.join(" or ")));
            }
        }
    }

    fn check_map(&mut self, schema: &Value, node: &Node, entries: &[(Key, Node)]) {
        let empty = serde_json::Map::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
        let closed = schema.get("additionalProperties").and_then(Value::as_bool) == Some(false);
        for (key, value) in entries {
            if let Some(property) = properties.get(&*key.name) {
                self.check(property, value);
            } else if closed {
                self.unknown_field(schema, key, properties);
            } else if let Some(extra) = schema.get("additionalProperties") {
                if schema.get("propertyNames").is_some() && key.name.parse::<crate::model::ComponentName>().is_err() {
                    self.say("wrong-value", key.at, format!("found `{}`", key.name), "expected a name");
                }
                self.check(extra, value);
            } else {
                self.check_free(value);
            }
        }
        if self.whole == Whole::Patch {
            return;
        }
        let required = schema.get("required").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        for name in required.iter().filter_map(Value::as_str) {
            if node.get(name).is_none() {
                let at = Place { length: 0, ..node.at };
                self.say("missing-field", at, format!("`{name}` is missing"), format!("expected the field `{name}`"));
            }
        }
    }

    fn unknown_field(&mut self, schema: &Value, key: &Key, properties: &serde_json::Map<String, Value>) {
        if let Some(later) =
            schema.get("x-not-supported-yet").and_then(|later| later.get(&*key.name)).and_then(Value::as_str)
        {
            let message = format!("`{}` is not supported yet", key.name);
            self.say("not-supported-yet", key.at, message, later.to_owned()).hint =
                Some("remove it: what is accepted is enforced".into());
            return;
        }
        let names: Vec<&str> = properties.keys().map(String::as_str).collect();
        let hint = nearest(&key.name, names.iter().copied()).map(|name| format!("did you mean `{name}`?"));
        let message = format!("unknown field `{}`", key.name);
        self.say("unknown-field", key.at, message, one_of(&names)).hint = hint;
    }
}

fn one_of(names: &[&str]) -> String {
    let shown: Vec<String> = names.iter().take(EXPECTED_NAMES_MAX).map(|name| format!("`{name}`")).collect();
    let more = if names.len() > EXPECTED_NAMES_MAX { ", …" } else { "" };
    match shown.len() {
        0 => "expected nothing here".into(),
        1 => format!("expected {}", shown[0]),
        _ => format!("expected one of {}{more}", shown.join(", ")),
    }
}

/// Returns the name that is most similar to the given one, if any is similar enough for a suggestion.
pub fn nearest<'n>(found: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let folded = found.to_ascii_lowercase().replace(['_', '-'], "");
    names
        .map(|name| {
            let plain = name.to_ascii_lowercase().replace(['_', '-'], "");
            let score = strsim::normalized_damerau_levenshtein(&folded, &plain);
            // A prefix counts as similar: `root_dir` suggests `root`, although many letters differ.
            let prefix =
                plain.len() >= 3 && (folded.starts_with(&plain) || (folded.len() >= 3 && plain.starts_with(&folded)));
            (if prefix { score.max(0.75) } else { score }, name)
        })
        .filter(|(score, _)| *score >= 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

fn type_names(node: &Node) -> &'static [&'static str] {
    match &node.value {
        Kind::Null => &["null"],
        Kind::Bool(_) => &["boolean"],
        Kind::Number(number) if number.is_f64() => &["number"],
        Kind::Number(_) => &["integer", "number"],
        Kind::Text(_) => &["string"],
        Kind::Trap(_) => &[],
        Kind::List(_) => &["array"],
        Kind::Map(_) => &["object"],
    }
}

fn type_words(name: &str) -> &str {
    match name {
        "string" => "a text",
        "integer" => "a whole number",
        "number" => "a number",
        "boolean" => "`true` or `false`",
        "array" => "a list",
        "object" => "a mapping",
        other => other,
    }
}

/// The longest value that a message quotes, in characters.
const SHOWN_MAX: usize = 60;

fn shown(node: &Node) -> String {
    match &node.value {
        Kind::Text(text) | Kind::Trap(text) => format!("`{}`", text.chars().take(SHOWN_MAX).collect::<String>()),
        Kind::Bool(_) | Kind::Number(_) => format!("`{}`", node.to_json()),
        _ => node.sort().to_owned(),
    }
}
