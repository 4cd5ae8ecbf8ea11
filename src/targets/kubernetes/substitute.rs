//! Substitutes outputs in rendered objects. Pure.

use std::collections::BTreeMap;

use serde_json::Value;

/// Replaces `${KEY}` in every text. A text that consists of one `${KEY}` takes the type of the value. `$${` escapes
/// `${`.
pub(super) fn substituted(value: &mut Value, by: &BTreeMap<String, Value>) -> Result<(), String> {
    match value {
        Value::String(text) if text.contains("${") => {
            *value = filled(text, by)?;
            Ok(())
        }
        Value::Array(items) => items.iter_mut().try_for_each(|item| substituted(item, by)),
        Value::Object(map) => map.values_mut().try_for_each(|item| substituted(item, by)),
        _ => Ok(()),
    }
}

fn filled(text: &str, by: &BTreeMap<String, Value>) -> Result<Value, String> {
    let mut made = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            made.push_str(&rest[..at]);
            made.push('{');
            rest = &rest[at + 2..];
            continue;
        }
        made.push_str(&rest[..at]);
        let inner = &rest[at + 2..];
        let end = inner.find('}').ok_or_else(|| format!("`{text}` begins a `${{` that does not end"))?;
        let key = &inner[..end];
        let value = by.get(key).ok_or_else(|| {
            let known: Vec<String> = by.keys().map(|key| format!("`{key}`")).collect();
            format!(
                "`${{{key}}}` has no value; `substitute` has {}, and `$${{` is written for a literal `${{`",
                known.join(", ")
            )
        })?;
        if made.is_empty() && end + 3 == text.len() {
            return Ok(value.clone());
        }
        match value {
            Value::String(value) => made.push_str(value),
            Value::Number(_) | Value::Bool(_) => made.push_str(&value.to_string()),
            _ => return Err(format!("`${{{key}}}` is a list or mapping, and can't stand inside a text")),
        }
        rest = &inner[end + 1..];
    }
    made.push_str(rest);
    Ok(made.into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_replaced_and_undefined_ones_refused() {
        let by = BTreeMap::from([("HOST".to_owned(), json!("db")), ("PORT".to_owned(), json!(5432))]);
        let fill = |text: &str| filled(text, &by);
        assert_eq!(fill("${HOST}:${PORT}").unwrap(), json!("db:5432"));
        assert_eq!(fill("${PORT}").unwrap(), json!(5432));
        assert_eq!(fill("$${HOST} ${HOST}").unwrap(), json!("${HOST} db"));
        assert_eq!(fill("none").unwrap(), json!("none"));
        insta::assert_snapshot!(fill("x ${OTHER}").unwrap_err(), @"`${OTHER}` has no value; `substitute` has `HOST`, `PORT`, and `$${` is written for a literal `${`");
        assert!(fill("${HOST").is_err());
    }
}
