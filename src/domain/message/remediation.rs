//! Formats the reasons for which a remediation does not run.

use std::fmt;

use crate::domain::remediation::Unusable;

/// Returns the comment on a remediation that never runs.
pub fn spent(reason: &Unusable) -> String {
    format!("Nothing was run: {reason}.")
}

/// Returns the comment on a remediation that is merged and waits.
pub fn waiting(reason: &Unusable) -> String {
    format!("Merged and waiting: {reason}")
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotWritten => {
                f.write_str("it was not written by this daemon, so its actions were never shown in a plan")
            }
            Self::ActionEdited(id) => {
                write!(f, "the action of `{id}` was edited; whole actions may be cut, and nothing else")
            }
            Self::FieldsEdited => f.write_str(
                "its environment, direction or dates were edited; whole actions may be cut, and nothing else",
            ),
            Self::EditedAfterMerge => f.write_str("it was edited after it was merged"),
            Self::Empty => f.write_str("every action was cut from it, so there is nothing to run"),
            Self::Expired(at) => write!(f, "it expired at {at}"),
            Self::InstanceCut(id) => write!(f, "`{id}` was cut from the remediation"),
            Self::UpstreamCut(id) => write!(f, "an upstream of `{id}` was cut from the remediation"),
            Self::Unreadable(name) => write!(f, "the remediation `{name}` can't be read any more"),
            Self::NotByPullRequest(environment, name) => write!(
                f,
                "it did not come by a pull request, so no principal authorised it; run `evenkeel apply {environment} --remediation {name}`"
            ),
            Self::NotAllowed(refusal) => {
                write!(f, "{refusal} A principal who is allowed to can comment `/apply` here.")
            }
            Self::NotApproved(missing) => write!(f, "{missing}. It runs as soon as they are given."),
            Self::NotCovered(gap) => write!(f, "the plan differs from the one in the remediation: {gap}"),
        }
    }
}
