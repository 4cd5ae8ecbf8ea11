//! Formats all texts for users: comments, tables and diffs.
//!
//! Decides wording and layout alone. Every text has a limit, and omitted parts are counted.
//! *Invariant:* a value can't end its code fence, and a hidden marker is alone on the last line.

pub mod adoption;
pub mod answer;
pub mod approvals;
pub mod capacity;
pub mod comment;
pub mod explanation;
pub mod layout;
pub mod list;
pub mod observation;
mod plan;
pub mod plan_status;
mod refusal;
pub mod remediation;
pub mod run;
mod suspension;
pub mod terminal;
pub mod verdict;

pub use refusal::{EmptySelection, Refusal};
use serde_json::Value;
pub use suspension::SuspensionReason;

use crate::model::{Change, Field, ResourceChange};

/// The longest value that is shown on one line, in characters.
const VALUE_LENGTH_MAX: usize = 400;

/// Formats a value on one line, as JSON, without control characters.
pub fn value(value: Option<&Value>) -> String {
    let Some(value) = value else { return "(nothing)".into() };
    let text = match value {
        Value::String(text)
            if text == crate::model::change::MASKED || text == crate::model::change::KNOWN_AFTER_APPLY =>
        {
            text.clone()
        }
        value => value.to_string(),
    };
    if text.chars().count() > VALUE_LENGTH_MAX {
        let shown: String = text.chars().take(VALUE_LENGTH_MAX).collect();
        format!("{shown}… ({} characters)", text.chars().count())
    } else {
        text
    }
}

/// Returns the number of changes by kind: `1 to create, 2 to update`, or `nothing to change`.
pub fn counts(resources: &[&ResourceChange]) -> String {
    let count = |change: Change| resources.iter().filter(|r| r.change == change && r.r#type != "output").count();
    let mut parts: Vec<String> =
        [Change::Create, Change::Update, Change::Replace, Change::Destroy, Change::Forget, Change::Move, Change::Run]
            .into_iter()
            .filter_map(|change| match count(change) {
                0 => None,
                n => Some(format!("{n} to {}", change.verb())),
            })
            .collect();
    let outputs = resources.iter().filter(|r| r.r#type == "output").count();
    if parts.is_empty() && outputs > 0 {
        parts.push(if outputs == 1 { "1 output".into() } else { format!("{outputs} outputs") });
    }
    if parts.is_empty() { "nothing to change".into() } else { parts.join(", ") }
}

/// Returns the difference of a field, in one line. The values of masked fields are not shown (R2.3).
pub fn differs(desired: Option<&Value>, observed: Option<&Value>) -> String {
    let masked = |value: Option<&Value>| value.and_then(Value::as_str) == Some(crate::model::change::MASKED);
    if masked(desired) && masked(observed) {
        return "changed (masked)".into();
    }
    format!("{} → {}", value(desired), value(observed))
}

/// Returns the lines of a diff for one resource, for a ```diff fence.
pub fn diff(resource: &ResourceChange) -> Vec<String> {
    let sign = match resource.change {
        Change::Create => "+",
        Change::Destroy => "-",
        _ => "!",
    };
    let mut lines = vec![format!("{sign} {} ({})", resource.resource, resource.change.verb())];
    for Field { path, before, after, unknown: _, sensitive, sealed: _ } in &resource.fields {
        let name = path.trim_start_matches('/');
        let name = if name.is_empty() { "value" } else { name };
        match (before, after) {
            (Some(_), Some(_)) if *sensitive => lines.push(format!("!   {name}: changed (masked)")),
            _ => {
                if before.is_some() {
                    lines.push(format!("-   {name}: {}", value(before.as_ref())));
                }
                if after.is_some() && resource.change != Change::Destroy {
                    lines.push(format!("+   {name}: {}", value(after.as_ref())));
                }
            }
        }
    }
    lines
}

/// Converts the text of a comment for a terminal: removes backticks, and replaces links by their texts.
pub fn plain(text: &str) -> String {
    let mut rest = text;
    let mut plain = String::new();
    while let Some((before, (words, after))) =
        rest.split_once('[').and_then(|(before, link)| Some((before, link.split_once("](")?)))
    {
        let Some((_, after)) = after.split_once(')') else { break };
        plain.push_str(before);
        plain.push_str(words);
        rest = after;
    }
    plain.push_str(rest);
    plain.replace('`', "")
}

/// Formats a duration in its largest unit: `in 5 s`, `3 h ago`.
pub fn ago(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..=59 => format!("{s} s"),
        s @ 60..=3599 => format!("{} min", s / 60),
        s @ 3600..=86_399 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}
