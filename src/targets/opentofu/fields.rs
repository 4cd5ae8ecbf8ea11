//! Extracts the changed fields of a resource, with sensitive values masked.

use crate::model::{
    Field, Redactor, Seal,
    change::{KNOWN_AFTER_APPLY, MASKED},
};
use crate::targets::opentofu::plan_json::RawChange;
use serde_json::Value;

/// Returns the fields that differ, with sensitive values masked and unknown ones marked.
pub(super) fn fields(raw: &RawChange, seal: &Seal, redactor: &Redactor) -> Vec<Field> {
    let mut walk = Walk { seal, redactor, found: vec![] };
    let sides = Sides {
        before: &raw.before,
        after: &raw.after,
        unknown: &raw.after_unknown,
        masked_before: &raw.before_sensitive,
        masked_after: &raw.after_sensitive,
    };
    walk.compare(String::new(), &sides);
    walk.found
}

pub(super) struct Walk<'a> {
    seal: &'a Seal,
    redactor: &'a Redactor,
    found: Vec<Field>,
}

pub(super) struct Sides<'a> {
    before: &'a Value,
    after: &'a Value,
    unknown: &'a Value,
    masked_before: &'a Value,
    masked_after: &'a Value,
}

/// The maximum number of fields stored for one resource; the digest covers the omitted ones by a hash.
pub(super) const FIELDS_MAX: usize = 2000;

pub(super) fn child<'v>(value: &'v Value, key: &str) -> &'v Value {
    const NULL: &Value = &Value::Null;
    match value {
        Value::Object(map) => map.get(key).unwrap_or(NULL),
        Value::Array(items) => key.parse::<usize>().ok().and_then(|at| items.get(at)).unwrap_or(NULL),
        // A mark on a whole value applies to each of its parts.
        Value::Bool(true) => value,
        _ => NULL,
    }
}

impl Walk<'_> {
    fn compare(&mut self, path: String, sides: &Sides<'_>) {
        let whole_masked = sides.masked_before == &Value::Bool(true) || sides.masked_after == &Value::Bool(true);
        let whole_unknown = sides.unknown == &Value::Bool(true);
        let keys: Vec<String> = match (sides.before, sides.after, sides.unknown) {
            _ if whole_masked || whole_unknown => vec![],
            (Value::Object(_) | Value::Null, Value::Object(_), _) | (Value::Object(_), Value::Null, _) => {
                let mut keys: Vec<String> = [sides.before, sides.after, sides.unknown]
                    .iter()
                    .filter_map(|v| v.as_object())
                    .flat_map(|map| map.keys().cloned())
                    .collect();
                keys.sort();
                keys.dedup();
                keys
            }
            (Value::Array(before), Value::Array(after), _) => {
                (0..before.len().max(after.len())).map(|at| at.to_string()).collect()
            }
            _ => vec![],
        };
        if keys.is_empty() || self.found.len() >= FIELDS_MAX {
            return self.leaf(path, sides, whole_masked, whole_unknown);
        }
        for key in keys {
            let inner = Sides {
                before: child(sides.before, &key),
                after: child(sides.after, &key),
                unknown: child(sides.unknown, &key),
                masked_before: child(sides.masked_before, &key),
                masked_after: child(sides.masked_after, &key),
            };
            self.compare(format!("{path}/{}", key.replace('~', "~0").replace('/', "~1")), &inner);
        }
    }

    fn leaf(&mut self, path: String, sides: &Sides<'_>, masked: bool, unknown: bool) {
        let masked = masked
            || has_mark(sides.masked_before)
            || has_mark(sides.masked_after)
            || self.redactor.touches(sides.before)
            || self.redactor.touches(sides.after);
        if sides.before == sides.after && !unknown {
            return;
        }
        let shown = |value: &Value| (!value.is_null()).then(|| if masked { MASKED.into() } else { value.clone() });
        self.found.push(Field {
            path,
            before: shown(sides.before),
            after: if unknown { Some(KNOWN_AFTER_APPLY.into()) } else { shown(sides.after) },
            sensitive: masked,
            unknown,
            sealed: masked.then(|| (self.seal.seal(sides.before), self.seal.seal(sides.after))),
        });
    }
}

/// Whether a mark (`true`, or a structure that contains `true`) is set anywhere.
pub(super) fn has_mark(mark: &Value) -> bool {
    match mark {
        Value::Bool(flag) => *flag,
        Value::Array(items) => items.iter().any(has_mark),
        Value::Object(map) => map.values().any(has_mark),
        _ => false,
    }
}
