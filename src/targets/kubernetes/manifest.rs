//! Reads objects from YAML in the same way as kubectl. Pure.
//!
//! Decides the type of each scalar. kubectl reads YAML 1.1, where `0644` is 420 and an unquoted `no` is false. The
//! output of kustomize is read as YAML 1.2, its output format. A scalar that other readers interpret differently
//! causes a warning.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::{
    domain::declaration::node::{self, Kind, Node},
    model::Problem,
};

/// The maximum number of objects of one instance; the largest known install has a few thousand.
pub const OBJECTS_MAX: usize = 50_000;

/// The rules for scalars.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// The rules of kubectl and helm: YAML 1.1.
    Kubectl,
    /// The rules of kustomize output: YAML 1.2.
    Kustomize,
}

/// An object as written in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// The object as JSON: a compact form, since thousands of objects are in memory at once.
    pub json: Box<str>,
    /// The place: `file:line`.
    pub place: String,
}

impl Written {
    /// Parses the object.
    pub fn value(&self) -> Value {
        serde_json::from_str(&self.json).unwrap_or_default()
    }
}

/// The result of reading a text.
#[derive(Default)]
pub struct Read {
    /// The objects; lists of objects are flattened.
    pub objects: Vec<Written>,
    /// Problems, each with its place.
    pub problems: Vec<String>,
    /// Warnings, each with its place.
    pub warnings: Vec<String>,
}

/// Reads the objects of one text.
pub fn read(file: &str, text: &str, reader: Reader) -> Read {
    let mut found = Read::default();
    let mut line = 0;
    for document in documents(text) {
        let lines = document.lines().count();
        read_document(file, line, document, reader, &mut found);
        line += lines;
    }
    found
}

/// Splits a stream into documents, each with its start marker. A line that begins with the marker always starts a
/// document, so that large streams are parsed in parts.
fn documents(text: &str) -> Vec<&str> {
    let mut starts = vec![0];
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let is_marker = line.starts_with("---") && line[3..].chars().next().is_none_or(char::is_whitespace);
        if is_marker && at > 0 {
            starts.push(at);
        }
        at += line.len();
    }
    starts.push(text.len());
    starts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect()
}

fn read_document(file: &str, offset: usize, text: &str, reader: Reader, found: &mut Read) {
    // Charts name the template of each document.
    let source = text.lines().take(3).find_map(|line| line.strip_prefix("# Source: "));
    let name: Arc<str> = source.unwrap_or(file).into();
    let offset = if source.is_some() { 0 } else { u32::try_from(offset).unwrap_or(u32::MAX) };
    let (nodes, problems) = node::read(&name, text.as_bytes());
    let moved = |problem: &Problem| format!("{name}:{}: {}", problem.line + offset, problem.message);
    found.problems.extend(problems.iter().map(moved));
    for node in nodes {
        let place = if source.is_some() { name.to_string() } else { format!("{name}:{}", node.at.line + offset) };
        let mut convert = Convert { name: &name, offset, reader, found };
        let value = convert.value(&node);
        flatten(value, place, found);
    }
}

struct Convert<'c> {
    name: &'c str,
    offset: u32,
    reader: Reader,
    found: &'c mut Read,
}

impl Convert<'_> {
    fn value(&mut self, node: &Node) -> Value {
        match &node.value {
            Kind::Trap(text) => self.trap(node, text),
            Kind::List(items) => items.iter().map(|item| self.value(item)).collect(),
            Kind::Map(entries) => {
                let mut map = Map::new();
                let merged = entries.iter().filter(|(key, _)| &*key.name == "<<");
                for (_, from) in merged {
                    let all = match self.value(from) {
                        Value::Array(all) => all,
                        object => vec![object],
                    };
                    for (key, value) in all.into_iter().filter_map(|item| item.as_object().cloned()).flatten() {
                        map.entry(key).or_insert(value);
                    }
                }
                for (key, item) in entries.iter().filter(|(key, _)| &*key.name != "<<") {
                    let value = self.value(item);
                    map.insert(key.name.to_string(), value);
                }
                Value::Object(map)
            }
            Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::Text(_) => node.to_json(),
        }
    }

    /// Reports an unquoted scalar that readers interpret differently.
    fn trap(&mut self, node: &Node, text: &str) -> Value {
        if self.reader == Reader::Kustomize {
            return text.into();
        }
        let flag = match text.to_ascii_lowercase().as_str() {
            "yes" | "on" | "y" => Some(true),
            "no" | "off" | "n" => Some(false),
            _ => None,
        };
        if let Some(flag) = flag {
            let line = node.at.line + self.offset;
            self.found
                .warnings
                .push(format!("{}:{line}: `{text}` is read as {flag}; write \"{text}\" if a text is meant", self.name));
            return flag.into();
        }
        let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
        match i64::from_str_radix(digits.trim_start_matches('+'), 8) {
            Ok(number) if digits.len() > 1 && digits.starts_with('0') => (sign * number).into(),
            _ => text.into(),
        }
    }
}

/// Adds an object, or the items of a list object.
fn flatten(value: Value, place: String, found: &mut Read) {
    if value.is_null() {
        return;
    }
    let is_list = value["kind"].as_str().is_some_and(|kind| kind.ends_with("List")) && value.get("items").is_some();
    if is_list {
        for item in value["items"].as_array().into_iter().flatten() {
            flatten(item.clone(), place.clone(), found);
        }
        return;
    }
    let problem = |why: &str| format!("{place}: {why}");
    let metadata = &value["metadata"];
    if !value.is_object() {
        return found.problems.push(problem("an object was expected"));
    }
    for field in ["apiVersion", "kind"] {
        if value[field].as_str().is_none_or(str::is_empty) {
            return found.problems.push(problem(&format!("the object has no `{field}`")));
        }
    }
    if metadata["name"].as_str().is_none_or(str::is_empty) {
        let why = if metadata["generateName"].is_string() {
            "`generateName` makes another object each time; give it a `name`"
        } else {
            "the object has no `metadata.name`"
        };
        return found.problems.push(problem(why));
    }
    if found.objects.len() >= OBJECTS_MAX {
        return found
            .problems
            .push(problem(&format!("more than the {OBJECTS_MAX} objects that one instance may have")));
    }
    found.objects.push(Written { json: value.to_string().into(), place });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scalars_are_read_as_kubectl_reads_them() {
        let text = "apiVersion: v1\nkind: X\nmetadata: {name: a}\nmode: 0644\nflag: no\nquoted: \"no\"\nport: 80\nversion: 1.10\nbad: 089\n";
        let read = read("x.yaml", text, Reader::Kubectl);
        let value = &read.objects[0].value();
        assert_eq!(value["mode"], 420);
        assert_eq!(value["flag"], false);
        assert_eq!(value["quoted"], "no");
        assert_eq!(value["bad"], "089");
        assert_eq!(read.warnings, ["x.yaml:5: `no` is read as false; write \"no\" if a text is meant"]);
        let written = super::read("x.yaml", text, Reader::Kustomize);
        assert_eq!(written.objects[0].value()["flag"], "no");
        assert!(written.warnings.is_empty());
    }

    #[test]
    fn lists_and_streams_are_written_out_with_their_places() {
        let text = "# a comment\n---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: A, metadata: {name: a}}\n- {apiVersion: v1, kind: B, metadata: {name: b}}\n---\n# nothing\n---\napiVersion: v1\nkind: C\nmetadata: {name: c}\ntext: |\n  ---\n  not a marker\n";
        let read = read("x.yaml", text, Reader::Kubectl);
        assert!(read.problems.is_empty(), "{:?}", read.problems);
        let found: Vec<_> = read
            .objects
            .iter()
            .map(|object| (object.value()["kind"].as_str().unwrap().to_owned(), object.place.as_str()))
            .collect();
        assert_eq!(found, [("A".into(), "x.yaml:3"), ("B".into(), "x.yaml:3"), ("C".into(), "x.yaml:11")]);
    }

    #[test]
    fn what_can_not_be_an_object_is_said_with_its_place() {
        let problems = |text: &str| read("x.yaml", text, Reader::Kubectl).problems;
        assert_eq!(problems("kind: A\n"), ["x.yaml:1: the object has no `apiVersion`"]);
        assert_eq!(
            problems("apiVersion: v1\nkind: A\nmetadata: {generateName: a-}\n"),
            ["x.yaml:1: `generateName` makes another object each time; give it a `name`"]
        );
        assert_eq!(problems("a: 1\n---\n- x\n").len(), 2);
        assert_eq!(problems("apiVersion: v1\nkind: A\nmetadata: {name: a}\n---\na: [\n").len(), 1);
        assert_eq!(problems(""), Vec::<String>::new());
    }

    #[test]
    fn anchors_merge() {
        let text = "apiVersion: v1\nkind: A\nmetadata: {name: a}\nbase: &b {x: 1, y: 2}\nmore: {<<: *b, y: 3}\n";
        assert_eq!(read("x", text, Reader::Kubectl).objects[0].value()["more"], json!({"x": 1, "y": 3}));
    }
}
