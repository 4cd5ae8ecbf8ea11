//! Parses YAML text to a tree of nodes with source places.
//!
//! Decides the type of a scalar (YAML 1.2 core, with the traps of YAML 1.1 marked) and which texts are refused unread.
//! A problem in one document does not stop the others: the parsed documents and all problems are returned.
//! *Invariant:* parsing is bounded in bytes, nodes and depth for any text.

use std::{collections::HashMap, sync::Arc};

use granit_parser::{Event, Options, Parser, ScalarStyle, Span};
use serde_json::{Map, Number, Value};

use crate::model::{Place, Problem};

/// The largest file that is read, in bytes. A declaration of a thousand components is smaller than 1 MiB.
pub const FILE_BYTES_MAX: usize = 4 << 20;
/// The most nodes of one file after its aliases are expanded. An alias bomb has billions.
pub const NODES_MAX: usize = 250_000;
/// The deepest nesting. Declarations need about ten levels.
pub const DEPTH_MAX: usize = 64;

/// A value with its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The value.
    pub value: Kind,
    /// The place of the value.
    pub at: Place,
}

/// The content of a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(Number),
    /// A text.
    Text(Arc<str>),
    /// An unquoted scalar that other YAML readers take for a boolean or an octal number.
    Trap(Arc<str>),
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order of the file, without duplicates.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping with its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// The key.
    pub name: Arc<str>,
    /// The place of the key.
    pub at: Place,
}

impl Node {
    /// Returns the value of a key, if this node is a mapping that has the key.
    pub fn get(&self, name: &str) -> Option<&Node> {
        match &self.value {
            Kind::Map(entries) => entries.iter().find(|(key, _)| &*key.name == name).map(|(_, node)| node),
            _ => None,
        }
    }
    /// Returns the text, if this node is one.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Kind::Text(text) => Some(text),
            _ => None,
        }
    }
    /// Returns the items of a list; empty for any other node.
    pub fn items(&self) -> &[Node] {
        match &self.value {
            Kind::List(items) => items,
            _ => &[],
        }
    }
    /// Returns the entries, if this node is a mapping.
    pub fn entries(&self) -> &[(Key, Node)] {
        match &self.value {
            Kind::Map(entries) => entries,
            _ => &[],
        }
    }
    /// Returns the name of the value's type, for messages.
    pub fn sort(&self) -> &'static str {
        match &self.value {
            Kind::Null => "nothing",
            Kind::Bool(_) => "a boolean",
            Kind::Number(_) => "a number",
            Kind::Text(_) | Kind::Trap(_) => "a text",
            Kind::List(_) => "a list",
            Kind::Map(_) => "a mapping",
        }
    }
    /// Returns the JSON value, without places.
    pub fn to_json(&self) -> Value {
        match &self.value {
            Kind::Null => Value::Null,
            Kind::Bool(flag) => Value::Bool(*flag),
            Kind::Number(number) => Value::Number(number.clone()),
            Kind::Text(text) | Kind::Trap(text) => Value::String(text.to_string()),
            Kind::List(items) => Value::Array(items.iter().map(Node::to_json).collect()),
            Kind::Map(entries) => Value::Object(
                entries.iter().map(|(key, node)| (key.name.to_string(), node.to_json())).collect::<Map<_, _>>(),
            ),
        }
    }
    /// Returns the node at a JSON pointer, or its deepest existing ancestor.
    pub fn nearest(&self, pointer: &[String]) -> &Node {
        let next = pointer.first().and_then(|name| match &self.value {
            Kind::List(items) => name.parse::<usize>().ok().and_then(|index| items.get(index)),
            _ => self.get(name),
        });
        match next {
            Some(node) => node.nearest(&pointer[1..]),
            None => self,
        }
    }
}

/// Parses the documents of a file; returns them with the problems of the text.
pub fn read(file: &Arc<str>, bytes: &[u8]) -> (Vec<Node>, Vec<Problem>) {
    let whole =
        |kind: &str, message: String, hint: &str| Problem::new(kind, file, Place::default(), message).hint(hint);
    if bytes.len() > FILE_BYTES_MAX {
        let message = format!("the file has {} bytes, more than the {FILE_BYTES_MAX} that are read", bytes.len());
        return (vec![], vec![whole("file-too-large", message, "split it into several files")]);
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(error) => {
            let line = bytes[..error.valid_up_to()].iter().filter(|c| **c == b'\n').count() + 1;
            let at = Place { line: u32::try_from(line).unwrap_or(u32::MAX), column: 1, length: 0 };
            let problem = Problem::new("invalid-utf8", file, at, "the file is not UTF-8 from this line on");
            return (vec![], vec![problem.hint("save it as UTF-8")]);
        }
    };
    let mut options = Options::default();
    options.block_nesting_limit = DEPTH_MAX;
    options.flow_nesting_limit = DEPTH_MAX;
    let mut reader = Reader { file, anchors: HashMap::new(), nodes: 0, problems: vec![] };
    let documents = reader.documents(&mut Parser::new_from_str_with_options(text, options));
    let problems = reader.problems.into_iter().map(|problem| problem.quote(text)).collect();
    (documents, problems)
}

struct Reader<'a> {
    file: &'a Arc<str>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    problems: Vec<Problem>,
}

/// A list or mapping that is still open.
enum Open {
    List(Vec<Node>),
    Map(Vec<(Key, Node)>, Option<Key>),
}

fn place(span: &Span) -> Place {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let length = if span.start.line() == span.end.line() { span.end.col().saturating_sub(span.start.col()) } else { 0 };
    Place { line: number(span.start.line()), column: number(span.start.col() + 1), length: number(length) }
}

fn anchor(id: usize) -> Option<usize> {
    (id != 0).then_some(id)
}

fn unreadable(file: &Arc<str>, error: &granit_parser::ScanError) -> Problem {
    let at = place(&Span::empty(*error.marker()));
    let (kind, message) = if matches!(error.kind(), granit_parser::ErrorKind::RecursionLimitExceeded) {
        ("too-deep", format!("nested deeper than the {DEPTH_MAX} levels that are read"))
    } else {
        ("syntax", format!("not YAML: {}", error.info()))
    };
    Problem::new(kind, file, at, message).hint("nothing after this place was read")
}

impl Reader<'_> {
    fn documents<'i>(&mut self, parser: &mut Parser<'i, granit_parser::StrInput<'i>>) -> Vec<Node> {
        let mut documents = vec![];
        let mut open: Vec<(Open, Place, Option<usize>)> = vec![];
        while let Some(next) = parser.next_event() {
            let (event, span) = match next {
                Ok(next) => next,
                Err(error) => {
                    self.problems.push(unreadable(self.file, &error));
                    break;
                }
            };
            let at = place(&span);
            let done = match event {
                Event::Scalar(text, style, id, tag) => {
                    let plain = style == ScalarStyle::Plain && tag.is_none();
                    if let Some(tag) = &tag
                        && !tag.is_yaml_core_schema_tag("str")
                    {
                        let message = format!("the tag `{}` is not read", tag.original());
                        self.problems.push(Problem::new("tag", self.file, at, message).hint("remove it"));
                    }
                    Some((Node { value: scalar(&text, plain), at }, anchor(id)))
                }
                Event::SequenceStart(_, id, _) => {
                    open.push((Open::List(vec![]), at, anchor(id)));
                    None
                }
                Event::MappingStart(_, id, _) => {
                    open.push((Open::Map(vec![], None), at, anchor(id)));
                    None
                }
                Event::SequenceEnd | Event::MappingEnd => open.pop().map(|(open, at, id)| {
                    let value = match open {
                        Open::List(items) => Kind::List(items),
                        Open::Map(entries, _) => Kind::Map(entries),
                    };
                    (Node { value, at }, id)
                }),
                Event::Alias(id) => {
                    let node = self.anchors.get(&id).cloned().unwrap_or(Node { value: Kind::Null, at });
                    self.nodes += size(&node);
                    Some((node, None))
                }
                Event::DocumentStart(..) => {
                    self.anchors.clear();
                    None
                }
                _ => None,
            };
            if let Some((node, id)) = done {
                self.nodes += 1;
                if let Some(id) = id {
                    self.anchors.insert(id, node.clone());
                }
                self.attach(&mut open, &mut documents, node);
            }
            if self.nodes > NODES_MAX {
                let message = format!("the file has more than {NODES_MAX} values once its aliases are written out");
                self.problems.push(
                    Problem::new("too-many-values", self.file, at, message)
                        .hint("write the values out without aliases, in several files"),
                );
                break;
            }
        }
        documents
    }

    fn attach(&mut self, open: &mut [(Open, Place, Option<usize>)], documents: &mut Vec<Node>, node: Node) {
        match open.last_mut() {
            None if node.value == Kind::Null => {} // a document of comments alone
            None => documents.push(node),
            Some((Open::List(items), ..)) => items.push(node),
            Some((Open::Map(entries, pending), ..)) => match pending.take() {
                None => *pending = Some(self.key(node)),
                Some(key) => {
                    if let Some((first, _)) = entries.iter().find(|(other, _)| other.name == key.name) {
                        let message = format!("`{}` is here a second time", key.name);
                        let hint = format!("the first stands in line {}; keep one of them", first.at.line);
                        self.problems.push(Problem::new("duplicate-key", self.file, key.at, message).hint(hint));
                    } else {
                        entries.push((key, node));
                    }
                }
            },
        }
    }

    fn key(&mut self, node: Node) -> Key {
        let name = match &node.value {
            Kind::Text(text) => Arc::clone(text),
            Kind::Trap(text) => {
                let message = format!("the key `{text}` is a boolean for other YAML readers");
                self.problems
                    .push(Problem::new("yaml-trap", self.file, node.at, message).hint(format!("write \"{text}\"")));
                Arc::clone(text)
            }
            Kind::Null | Kind::Bool(_) | Kind::Number(_) => node.to_json().to_string().into(),
            Kind::List(_) | Kind::Map(_) => {
                self.problems.push(
                    Problem::new("key", self.file, node.at, "a list or mapping is used as a key").hint("use a text"),
                );
                "".into()
            }
        };
        Key { name, at: node.at }
    }
}

fn size(node: &Node) -> usize {
    match &node.value {
        Kind::List(items) => 1 + items.iter().map(size).sum::<usize>(),
        Kind::Map(entries) => 1 + entries.iter().map(|(_, node)| 1 + size(node)).sum::<usize>(),
        _ => 1,
    }
}

/// Returns the type of a scalar: YAML 1.2 core, with the traps of YAML 1.1 marked.
fn scalar(text: &str, plain: bool) -> Kind {
    if !plain {
        return Kind::Text(text.into());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Kind::Null,
        "true" | "True" | "TRUE" => return Kind::Bool(true),
        "false" | "False" | "FALSE" => return Kind::Bool(false),
        _ => {}
    }
    if matches!(text.to_ascii_lowercase().as_str(), "yes" | "no" | "on" | "off" | "y" | "n") {
        return Kind::Trap(text.into());
    }
    let digits = text.strip_prefix('-').or_else(|| text.strip_prefix('+')).unwrap_or(text);
    if !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit()) {
        if digits.len() > 1 && digits.starts_with('0') {
            return Kind::Trap(text.into());
        }
        let number = text.trim_start_matches('+');
        if let Ok(number) = number.parse::<i64>() {
            return Kind::Number(number.into());
        }
        if let Ok(number) = number.parse::<u64>() {
            return Kind::Number(number.into());
        }
        return Kind::Trap(text.into());
    }
    let numeric = digits.starts_with(|c: char| c.is_ascii_digit())
        && digits.bytes().all(|c| matches!(c, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'));
    if numeric && let Some(number) = text.parse::<f64>().ok().and_then(Number::from_f64) {
        return Kind::Number(number);
    }
    Kind::Text(text.into())
}
