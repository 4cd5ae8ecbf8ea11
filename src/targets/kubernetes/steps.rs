//! Defines the result of observing one object, and the step that the object needs.

use super::{fields::Extra, inventory::InventoryEntry, object::Key};
use crate::model::{Change, ChangedBy, Field};

/// A change of an object, with the observed state as its precondition.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) key: Key,
    pub(super) change: Change,
    pub(super) fields: Vec<Field>,
    /// The uid of the observed object; `None` if it does not exist.
    pub(super) uid: Option<String>,
    pub(super) version: Option<String>,
    /// Undeclared values to remove.
    pub(super) extras: Vec<Extra>,
}

/// The result of observing one object.
pub(super) enum Found {
    /// The object needs no change.
    Same(InventoryEntry),
    /// The object needs a change.
    Differs(Box<Step>, Option<ChangedBy>),
    /// The object can't be applied; the message names its place.
    Problem(String),
}
