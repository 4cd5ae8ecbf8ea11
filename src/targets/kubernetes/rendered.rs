//! Defines the declared objects of an instance in the form that is sent.

use std::sync::Arc;

use serde_json::Value;

use super::object::{Key, rank};
use crate::{
    model::{InstanceId, Retry},
    ports::{Diagnostic, TargetError, TargetErrorKind},
};

/// The maximum number of problems in one error.
const PROBLEMS_MAX: usize = 20;

/// A keyed hash of an object, with the key of the store.
pub(super) type Mark = [u8; 16];

/// An object in the form that is applied.
#[derive(Clone, Debug)]
pub(super) struct Object {
    pub key: Key,
    /// The API version in which the object is written.
    pub version: Arc<str>,
    /// The hash of the whole object.
    pub mark: Mark,
    /// The place: `file:line`.
    pub place: Arc<str>,
    /// The object as JSON, which is smaller than a parsed value.
    pub(super) json: Box<str>,
}

impl Object {
    /// Parses the object.
    pub(super) fn value(&self) -> Value {
        serde_json::from_str(&self.json).unwrap_or_default()
    }
    /// Returns the object as sent.
    pub(super) fn json(&self) -> &str {
        &self.json
    }
}

/// The objects of an instance, in the order of applying.
#[derive(Debug, Default)]
pub(super) struct Rendered {
    pub objects: Vec<Object>,
    pub warnings: Vec<String>,
}

impl Rendered {
    pub(super) fn get(&self, key: &Key) -> Option<&Object> {
        let place = |key: &Key| rank(&key.kind);
        let found = self.objects.binary_search_by(|object| (place(&object.key), &object.key).cmp(&(place(key), key)));
        found.ok().map(|at| &self.objects[at])
    }
}

/// Returns an error of the declaration, which only another content resolves.
pub(super) fn wrong(id: &InstanceId, problems: Vec<String>) -> TargetError {
    let count = problems.len();
    let mut diagnostics: Vec<Diagnostic> = problems
        .into_iter()
        .take(PROBLEMS_MAX)
        .map(|summary| Diagnostic { summary, detail: String::new(), address: None, place: None })
        .collect();
    if count > PROBLEMS_MAX {
        let summary = format!("and {} more", count - PROBLEMS_MAX);
        diagnostics.push(Diagnostic { summary, detail: String::new(), address: None, place: None });
    }
    let message = if count == 1 {
        format!("the objects of `{id}` can't be used")
    } else {
        format!("the objects of `{id}` can't be used ({count} problems)")
    };
    TargetError { retry: Retry::WhenInputChanges, diagnostics, ..TargetError::new(TargetErrorKind::Manifest, message) }
}
