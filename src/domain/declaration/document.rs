//! Parses a file to documents, and validates each document on its own.
//!
//! Checks the envelope, the schema of the document's kind, and rules that no schema expresses. `assemble.rs` and
//! `load.rs` check names of other documents. Never follows a link out of the repository.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::Value;

use super::{
    kinds::Kinds,
    node::{self, Node},
    schema::{API_VERSION, DOCUMENTS},
    select::Selector,
    validate::{Validator, Whole, nearest},
};
use crate::{
    domain::{calendar::Calendar, kind::TargetKind},
    model::{ComponentName, Place, Problem},
    ports::{EntryKind, Files, FilesError, join},
};

/// One document of a file.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) file: Arc<str>,
    pub(super) kind: &'static str,
    pub(super) name: ComponentName,
    pub(super) name_at: Place,
    pub(super) labels: Arc<BTreeMap<String, String>>,
    /// The former name, with its place.
    pub(super) renamed_from: Option<(ComponentName, Place)>,
    pub(super) spec: Node,
    /// The problems of this document.
    pub(super) problems: Vec<Problem>,
}

/// One file: its documents, and problems outside of them.
#[derive(Debug)]
pub(super) struct File {
    /// Its path below the root of the declarations.
    pub(super) name: Arc<str>,
    pub(super) documents: Vec<Arc<Document>>,
    pub(super) problems: Vec<Problem>,
    /// Whether the whole file was parsed. Only then is a document that is not here a removed one.
    pub(super) whole: bool,
    pub(super) text: Arc<[u8]>,
}

/// Reads a file and its problems.
pub(super) fn read_file(kinds: &'static Kinds, files: &dyn Files, root: &str, path: &str) -> File {
    let name: Arc<str> = path.into();
    let whole = join(root, path).unwrap_or_default();
    let bytes = match follow(files, &whole) {
        Ok(bytes) => bytes,
        Err((kind, why)) => {
            let problem = Problem::new(kind, &name, Place::default(), why).hint("replace the link by the file");
            return File { name, documents: vec![], problems: vec![problem], whole: false, text: Arc::new([]) };
        }
    };
    let (nodes, mut problems) = node::read(&name, &bytes);
    let whole = problems.is_empty();
    let starts: Vec<u32> = nodes.iter().map(|node| node.at.line).collect();
    let text = String::from_utf8_lossy(&bytes);
    let mut documents = vec![];
    for (index, node) in nodes.into_iter().enumerate() {
        // A duplicate key invalidates its own document and no other document of the file.
        let ends = starts.get(index + 1).copied().unwrap_or(u32::MAX);
        let within = |problem: &mut Problem| {
            ["duplicate-key", "yaml-trap", "key", "tag"].contains(&&*problem.kind)
                && (starts[index]..ends).contains(&problem.line)
        };
        let own: Vec<Problem> = problems.extract_if(.., within).collect();
        match document(kinds, &name, node) {
            Ok(mut document) => {
                document.problems.splice(0..0, own);
                document.problems = document.problems.into_iter().map(|problem| problem.quote(&text)).collect();
                documents.push(Arc::new(document));
            }
            Err(found) => problems.extend(own.into_iter().chain(found).map(|problem| problem.quote(&text))),
        }
    }
    if documents.is_empty() && problems.is_empty() {
        problems.push(
            Problem::new("empty", &name, Place::default(), "the file holds no document")
                .hint("remove it, or write a declaration"),
        );
    }
    File { name, documents, whole: whole && problems.is_empty(), problems, text: bytes }
}

/// Reads the bytes of a file. Links inside of the repository are followed.
fn follow(files: &dyn Files, path: &str) -> Result<Arc<[u8]>, (&'static str, String)> {
    let mut target = path.to_owned();
    for _ in 0..8 {
        let unreadable = |error: FilesError| ("unreadable", error.to_string());
        match files.entry(&target).map_err(unreadable)?.map(|entry| entry.sort) {
            Some(EntryKind::File | EntryKind::Program) => return files.read(&target).map_err(unreadable),
            Some(EntryKind::Link) => {
                let link = String::from_utf8_lossy(&files.read(&target).map_err(unreadable)?).into_owned();
                let folder = target.rsplit_once('/').map_or("", |(folder, _)| folder);
                let outside = || ("link-outside", format!("the link leads out of the repository, to `{link}`"));
                if link.starts_with('/') {
                    return Err(outside());
                }
                target = join(folder, &link).ok_or_else(outside)?;
            }
            _ => return Err(("link-dangling", format!("the link leads to `{target}`, which is no file"))),
        }
    }
    Err(("link-dangling", "the link leads to links without end".into()))
}

/// Parses the envelope and validates the whole document against the schema of its kind.
fn document(kinds: &'static Kinds, file: &Arc<str>, node: Node) -> Result<Document, Vec<Problem>> {
    if !matches!(node.value, node::Kind::Map(_)) {
        let message = format!("a document is {} and has to be a mapping", node.sort());
        return Err(vec![
            Problem::new("wrong-type", file, node.at, message)
                .expected("expected `apiVersion`, `kind`, `metadata`, `spec`"),
        ]);
    }
    let missing = |name: &str| {
        let message = format!("`{name}` is missing");
        vec![
            Problem::new("missing-field", file, Place { length: 0, ..node.at }, message)
                .expected("expected `apiVersion`, `kind`, `metadata`, `spec`"),
        ]
    };
    let kind_node = node.get("kind").ok_or_else(|| missing("kind"))?;
    let Some(kind) = DOCUMENTS.iter().find(|kind| Some(**kind) == kind_node.text()) else {
        let found = kind_node.to_json();
        let hint = kind_node
            .text()
            .and_then(|text| nearest(text, DOCUMENTS.iter().copied()))
            .map(|name| format!("did you mean `{name}`?"));
        let mut problem = Problem::new("unknown-kind", file, kind_node.at, format!("unknown kind {found}"));
        problem.hint = hint;
        return Err(vec![
            problem.expected(format!("expected one of {}", DOCUMENTS.map(|kind| format!("`{kind}`")).join(", "))),
        ]);
    };
    let name_node =
        node.get("metadata").ok_or_else(|| missing("metadata"))?.get("name").ok_or_else(|| missing("metadata.name"))?;
    let schema = &kinds.schemas()[kind];
    let mut validator = Validator { file, kinds, root: schema, whole: Whole::Yes, problems: vec![] };
    if let Some(version) = node.get("apiVersion")
        && version.text() != Some(API_VERSION)
    {
        let problem = Problem::new("wrong-value", file, version.at, format!("found {}", version.to_json()));
        return Err(vec![problem.expected(format!("expected `{API_VERSION}`"))]);
    }
    validator.check(schema, &node);
    let name: ComponentName = match name_node.text().and_then(|text| text.parse().ok()) {
        Some(name) => name,
        None => return Err(validator.problems),
    };
    let spec = node.get("spec").cloned().unwrap_or(Node { value: node::Kind::Null, at: node.at });
    let labels = node.get("metadata").and_then(|m| m.get("labels")).map(Node::to_json);
    let labels = labels.and_then(|labels| serde_json::from_value(labels).ok()).unwrap_or_default();
    let renamed_from = node
        .get("metadata")
        .and_then(|m| m.get("renamedFrom"))
        .and_then(|old| Some((old.text()?.parse().ok()?, old.at)));
    let mut document = Document {
        file: Arc::clone(file),
        kind,
        renamed_from,
        name,
        name_at: name_node.at,
        labels: Arc::new(labels),
        spec,
        problems: validator.problems,
    };
    match document.kind {
        "Component" => check_component(kinds, &mut document, schema),
        "Schedule" => check_schedule(&mut document),
        "StateRepo" => check_state_repo(&mut document),
        _ => {}
    }
    Ok(document)
}

/// Validates the target of a component beyond its schema.
fn check_target(kind: &dyn TargetKind, document: &Document) -> Vec<Problem> {
    let (file, spec) = (&document.file, &document.spec);
    let mut problems = vec![];
    if let (Some((_, at)), Err((message, hint))) = (&document.renamed_from, kind.renames()) {
        problems.push(Problem::new("not-supported-yet", file, *at, message).hint(hint));
    }
    if let Some(declared) = spec.get(kind.name()).filter(|_| document.problems.is_empty()) {
        problems.extend(kind.check(file, declared));
    }
    problems
}

/// Formats names in backticks: `a`, `b` and `c`.
fn one_of(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("expected one of {} and {last}", rest.join(", ")),
        _ => format!("expected {}", quoted.join("")),
    }
}

/// Validates a component beyond its schema.
fn check_component(kinds: &'static Kinds, document: &mut Document, schema: &Value) {
    let file = &document.file;
    let mut problems = vec![];
    let spec = &document.spec;
    let names: Vec<&str> = kinds.names().collect();
    let declared_kinds: Vec<&str> = names.iter().copied().filter(|kind| spec.get(kind).is_some()).collect();
    if declared_kinds.len() != 1 && document.problems.is_empty() {
        let message = match declared_kinds.get(..2) {
            Some([one, other]) => format!("the component is of two kinds, `{one}` and `{other}`"),
            _ => "the component has no kind".into(),
        };
        let at = Place { length: 0, ..spec.at };
        problems.push(Problem::new("missing-field", file, at, message).expected(one_of(&names)));
    }
    for kind in declared_kinds.iter().filter_map(|name| kinds.get(name)) {
        problems.extend(check_target(kind, document));
    }
    let declared: Vec<&str> = match spec.get("environments").map(|node| &node.value) {
        Some(node::Kind::List(items)) => items.iter().filter_map(Node::text).collect(),
        _ => vec![],
    };
    let mut seen = BTreeSet::new();
    if let Some(node::Kind::List(items)) = spec.get("environments").map(|node| &node.value) {
        for item in items.iter().filter(|item| item.text().is_some_and(|text| !seen.insert(text))) {
            problems.push(Problem::new(
                "duplicate",
                file,
                item.at,
                format!("{} is here a second time", item.to_json()),
            ));
        }
    }
    for (key, patch) in spec.get("overrides").map(Node::entries).unwrap_or_default() {
        if !declared.contains(&&*key.name) {
            let message = format!("an override for `{}`, which is not among its environments", key.name);
            problems.push(
                Problem::new("unknown-environment", file, key.at, message)
                    .hint("add it to `environments`, or remove the override"),
            );
        }
        for forbidden in ["environments", "overrides"] {
            if let Some((key, _)) = patch.entries().iter().find(|(key, _)| &*key.name == forbidden) {
                problems.push(Problem::new("override", file, key.at, format!("`{forbidden}` can't be overridden")));
            }
        }
        let is_other = |kind: &&str| match patch.get(kind) {
            Some(node) => node.value == node::Kind::Null || spec.get(kind).is_none(),
            None => false,
        };
        if names.iter().any(is_other) {
            problems.push(Problem::new("override", file, patch.at, "the kind of a component can't be overridden"));
        }
        let mut validator = Validator { file, kinds, root: schema, whole: Whole::Patch, problems: vec![] };
        validator.check(&schema["properties"]["spec"], patch);
        problems.extend(validator.problems);
    }
    document.problems.extend(problems);
}

/// Options that no command supports yet. A permission for one would be accepted and never enforced.
const OPTIONS_NOT_SUPPORTED: [&str; 2] = ["now", "emergency"];

fn check_schedule(document: &mut Document) {
    let spec = &document.spec;
    let at = |name: &str| spec.get(name).map_or(spec.at, |node| node.at);
    if let Some(line) = spec.get("cron").and_then(Node::text) {
        match Calendar::new(line, spec.get("timeZone").and_then(Node::text)) {
            Ok(_) => {}
            Err(error @ crate::domain::calendar::Error::Cron { .. }) => {
                document.problems.push(
                    Problem::new("cron", &document.file, at("cron"), error.to_string())
                        .hint("such as `30 1 * * MON-FRI`"),
                );
            }
            Err(error) => {
                document.problems.push(
                    Problem::new("time-zone", &document.file, at("timeZone"), error.to_string())
                        .hint("such as `Europe/London`"),
                );
            }
        }
    }
    if let Some(run @ ("rotate" | "report")) = spec.get("run").and_then(Node::text) {
        let message = format!("a schedule of `{run}` is not supported yet");
        let problem = Problem::new("not-supported-yet", &document.file, at("run"), message);
        document.problems.push(problem.hint("remove it: what is accepted is enforced"));
    }
    if let Some(text) = spec.get("select").and_then(Node::text)
        && let Err(error) = text.parse::<Selector>()
    {
        document.problems.push(
            Problem::new("selector", &document.file, at("select"), error.to_string())
                .hint("such as `env:staging and kind:tofu`"),
        );
    }
}

fn check_state_repo(document: &mut Document) {
    let teams: Vec<&str> =
        document.spec.get("teams").map(Node::entries).unwrap_or_default().iter().map(|(key, _)| &*key.name).collect();
    let mut problems = vec![];
    let permissions = match document.spec.get("permissions").map(|node| &node.value) {
        Some(node::Kind::List(items)) => &items[..],
        _ => &[],
    };
    for allowed in permissions.iter().filter_map(|item| item.get("allow")).flat_map(Node::items) {
        if let Some(option) = allowed.text().filter(|option| OPTIONS_NOT_SUPPORTED.contains(option)) {
            let message = format!("a permission for `{option}` is not supported yet");
            let problem = Problem::new("not-supported-yet", &document.file, allowed.at, message);
            problems.push(problem.hint("remove it: what is accepted is enforced"));
        }
    }
    for to in permissions.iter().filter_map(|item| item.get("to")) {
        let node::Kind::List(items) = &to.value else { continue };
        for item in items {
            let Some(text) = item.text() else { continue };
            let known = match text.split_once(':') {
                Some(("team", name)) => teams.contains(&name),
                Some(("user" | "token", name)) => !name.is_empty(),
                Some(("permission", level)) => matches!(level, "read" | "triage" | "write" | "maintain" | "admin"),
                _ => false,
            };
            if !known {
                let problem =
                    Problem::new("principal", &document.file, item.at, format!("`{text}` is no known principal"));
                let hint = text
                    .strip_prefix("team:")
                    .and_then(|name| nearest(name, teams.iter().copied()))
                    .map(|name| format!("did you mean `team:{name}`?"));
                let problem = problem.expected("expected `team:NAME` of `teams`, `user:LOGIN`, `token:NAME` or `permission:read|triage|write|maintain|admin`");
                problems.push(if let Some(hint) = hint { problem.hint(hint) } else { problem });
            }
        }
    }
    document.problems.extend(problems);
}
