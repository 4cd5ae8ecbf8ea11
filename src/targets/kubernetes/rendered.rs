//! The objects that an instance declares, as they are sent.

use std::sync::Arc;

use serde_json::Value;

use super::object::{Key, rank};
use crate::{
    model::{InstanceId, Retry},
    ports::{Diagnostic, TargetError, TargetErrorKind},
};

/// The most problems that are told at once.
const PROBLEMS_MAX: usize = 20;

/// A hash of an object under the store's key.
pub(super) type Mark = [u8; 16];

/// An object as it is applied.
#[derive(Clone, Debug)]
pub(super) struct Object {
    /// Its name.
    pub key: Key,
    /// The version of its kind that it is written in.
    pub version: Arc<str>,
    /// A hash of all of it.
    pub mark: Mark,
    /// Where it was written.
    pub place: Arc<str>,
    /// Itself, as JSON: small as long as nobody needs it.
    pub(super) json: Box<str>,
}

impl Object {
    /// The object.
    pub(super) fn value(&self) -> Value {
        serde_json::from_str(&self.json).unwrap_or_default()
    }
    /// The object as it is sent.
    pub(super) fn json(&self) -> &str {
        &self.json
    }
}

/// The objects of an instance, in the order of applying.
#[derive(Debug, Default)]
pub(super) struct Rendered {
    /// The objects.
    pub objects: Vec<Object>,
    /// Warnings.
    pub warnings: Vec<String>,
}

impl Rendered {
    /// An object by its key.
    pub(super) fn get(&self, key: &Key) -> Option<&Object> {
        let place = |key: &Key| rank(&key.kind);
        let found = self.objects.binary_search_by(|object| (place(&object.key), &object.key).cmp(&(place(key), key)));
        found.ok().map(|at| &self.objects[at])
    }
}

/// An error of the declaration: another content is needed.
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
