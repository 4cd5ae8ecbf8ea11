//! The step that one object needs, and what was found of the object.

use super::{fields::Extra, inventory::Held, object::Key};
use crate::model::{Change, ChangedBy, Field};

/// An object that is to be changed, as it was found.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) key: Key,
    pub(super) change: Change,
    pub(super) fields: Vec<Field>,
    /// The object that it is about; absent where there is none.
    pub(super) uid: Option<String>,
    pub(super) version: Option<String>,
    /// Places that nobody declared, to be removed.
    pub(super) extras: Vec<Extra>,
}

/// The finding on one object.
pub(super) enum Found {
    /// It is as it should be.
    Same(Held),
    /// It is to be changed.
    Differs(Box<Step>, Option<ChangedBy>),
    /// Why it can't be, with the place where it was written.
    Problem(String),
}
