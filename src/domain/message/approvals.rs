//! Formats the approvals that a command needs, and the missing ones (R3.6).

use std::fmt;

use crate::domain::{authorization::MissingApprovals, declaration::schema::Approvals};

/// Returns the required approvals: "2 approving reviews by `team:platform`".
pub fn needed(needs: &Approvals) -> String {
    let s = if needs.count == 1 { "" } else { "s" };
    let from: Vec<String> = needs.from.iter().map(|to| format!("`{to}`")).collect();
    let from = if from.is_empty() { String::new() } else { format!(" by {}", from.join(" or ")) };
    format!("{} approving review{s}{from}", needs.count)
}

impl fmt::Display for MissingApprovals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reviews { pull, needs, count, stale } => {
                write!(f, "{pull} needs {} and has {count}", needed(needs))?;
                let stale: Vec<String> = stale
                    .iter()
                    .map(|(name, is_older_head)| {
                        let basis = if *is_older_head { "an older head" } else { "an older plan" };
                        format!("that of {name} is of {basis}")
                    })
                    .collect();
                if stale.is_empty() { Ok(()) } else { write!(f, " ({})", stale.join(", ")) }
            }
            Self::NoForge => f.write_str("there is no forge to approve on"),
            Self::RemovedWithoutPullRequest(id) => write!(
                f,
                "`{id}` needs approvals, and no pull request that removed it showed what would be destroyed; declare it again with `onDelete: destroy`, and remove it by a pull request whose reviews count"
            ),
            Self::ChangedWithoutPullRequest(id) => write!(
                f,
                "`{id}` needs approvals and was not changed by a pull request; `evenkeel propose {id} --apply` opens one whose reviews count"
            ),
            Self::ProtectedPath(path, missing) => write!(f, "`{path}` is protected: {missing}"),
        }
    }
}
