//! Defines the reasons for which drift can't be adopted (R4.3), and their text.

use std::fmt;

use crate::model::{Change, InstanceId, Problem};

/// The reason for which drift can't be adopted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotAdoptable {
    /// The instance is not declared, or not applied.
    NotApplied(InstanceId),
    /// A change of the instance is pending.
    Pending(InstanceId),
    /// The declaration of the instance has problems.
    Problems(InstanceId),
    /// No file can declare a value; the text comes from the kind of target.
    Value(String),
    /// The edited declaration has a problem.
    EditedProblem(Box<Problem>),
    /// The edit would change another instance.
    OtherInstance(InstanceId),
    /// The edit would remove the instance.
    Removed(InstanceId),
    /// A plan of the edited declaration is not empty.
    NotEmpty {
        /// The instance.
        id: InstanceId,
        /// The change that remains.
        change: Change,
        /// The resource that it changes.
        resource: String,
    },
}

impl fmt::Display for NotAdoptable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotApplied(id) => write!(f, "`{id}` is not declared and applied"),
            Self::Pending(id) => write!(f, "`{id}` is pending; apply that first"),
            Self::Problems(id) => write!(f, "the declaration of `{id}` has problems"),
            Self::Value(text) => f.write_str(text),
            Self::EditedProblem(problem) => write!(f, "the edited declaration has a problem: {problem}"),
            Self::OtherInstance(id) => write!(f, "the edit would change the declaration of `{id}` as well"),
            Self::Removed(id) => write!(f, "the edit would remove `{id}`"),
            Self::NotEmpty { id, change, resource } => write!(
                f,
                "with the observed value, a plan of `{id}` would still {} `{resource}`; its module computes another value from it",
                change.verb()
            ),
        }
    }
}

/// Returns the comment on a proposal that could not adopt and now reverts.
pub fn not_adopted(reason: &NotAdoptable) -> String {
    format!("Not adopted any more: {reason}. Merging this reverts the drift.")
}
