//! Masks known secrets in all text that leaves the process.
//!
//! Decides which texts are secrets: readers register each secret value when they read it.
//! *Invariant:* never prints or stores a secret.
//! *Race:* a secret that is registered after a text was redacted can't be in that text. Texts about an observation are
//! redacted after all values of the observation are registered.

use std::{collections::BTreeSet, fmt, sync::Arc};

use parking_lot::RwLock;
use serde_json::Value;

use super::change::MASKED;

/// Shorter texts are not masked. Masking `1` or `no` would hide most of a text; the plan masks such values by their
/// place.
const SECRET_LENGTH_MIN: usize = 6;
/// The bound on memory. Further secrets are not registered.
const SECRETS_MAX: usize = 100_000;

/// Masks known secrets. Clones share the set of secrets.
#[derive(Clone, Default)]
pub struct Redactor(Arc<RwLock<BTreeSet<String>>>);

impl Redactor {
    /// Registers every text inside a secret value.
    pub fn learn(&self, value: &Value) {
        match value {
            Value::String(text) => self.learn_text(text),
            Value::Array(items) => items.iter().for_each(|item| self.learn(item)),
            Value::Object(map) => map.values().for_each(|item| self.learn(item)),
            Value::Number(number) => self.learn_text(&number.to_string()),
            Value::Null | Value::Bool(_) => {}
        }
    }
    fn learn_text(&self, text: &str) {
        let mut known = self.0.write();
        // A tool may print a long secret line by line, so each line is registered on its own.
        for line in text.lines().map(str::trim).filter(|line| line.len() >= SECRET_LENGTH_MIN) {
            if known.len() < SECRETS_MAX && !known.contains(line) {
                known.insert(line.to_owned());
            }
        }
    }
    /// Returns whether a value contains a known secret.
    pub fn touches(&self, value: &Value) -> bool {
        let known = self.0.read();
        fn any(known: &BTreeSet<String>, value: &Value) -> bool {
            match value {
                Value::String(text) => known.iter().any(|secret| text.contains(secret.as_str())),
                Value::Array(items) => items.iter().any(|item| any(known, item)),
                Value::Object(map) => map
                    .iter()
                    .any(|(key, item)| known.iter().any(|secret| key.contains(secret.as_str())) || any(known, item)),
                _ => false,
            }
        }
        any(&known, value)
    }
    /// Returns the text with every known secret masked, the longest secret first.
    pub fn redact(&self, text: &str) -> String {
        let known = self.0.read();
        let mut found: Vec<&String> = known.iter().filter(|secret| text.contains(secret.as_str())).collect();
        found.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        found.into_iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), MASKED))
    }
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Redactor(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_only_registered_secrets() {
        let redactor = Redactor::default();
        redactor
            .learn(&serde_json::json!({"password": "hunter22", "lines": ["first-line\nsecond-line"], "flag": true}));
        assert_eq!(redactor.redact("login with hunter22 failed"), "login with (masked) failed");
        assert_eq!(redactor.redact("x second-line y"), "x (masked) y");
        assert_eq!(redactor.redact("nothing here is true"), "nothing here is true");
    }
}
