//! Whether the reviews of a pull request are the approvals that a command needs (R3.6).
//!
//! Decides which reviews count: of somebody who is asked, never of the author, the newest word of each, on the present
//! head, given after a plan that covers the present one stood for a while. Never asks the forge.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::Principal;
use crate::{
    domain::declaration::schema::Approvals,
    model::{InstanceId, PullNumber, Revision},
    ports::{Pull, Review},
};

/// A word of each person: whoever approves and takes it back does not approve.
pub fn standing(pull: &Pull, reviews: Vec<Review>) -> Vec<Review> {
    let mut newest: BTreeMap<String, Review> = BTreeMap::new();
    for review in reviews {
        if review.says_something && !review.author.eq_ignore_ascii_case(&pull.author) {
            newest.insert(review.author.to_ascii_lowercase(), review);
        }
    }
    newest.into_values().filter(|review| review.approves).collect()
}

/// A review that may count, with who gave it.
pub struct Given {
    /// Who.
    pub by: Principal,
    /// The head that they looked at.
    pub head: Revision,
    /// When.
    pub at: DateTime<Utc>,
    /// Whether the plan that stood then covers the present one.
    pub covers: bool,
}

/// The approvals that a command needs and does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MissingApprovals {
    /// Reviews are missing on a pull request.
    Reviews {
        /// The pull request.
        pull: PullNumber,
        /// The approvals that are needed.
        needs: Approvals,
        /// How many reviews count.
        count: usize,
        /// The principals whose reviews don't count, and whether they are of an older head; else of an older plan.
        stale: Vec<(String, bool)>,
    },
    /// Approvals are needed, and no forge is configured.
    NoForge,
    /// No pull request that removed the instance showed the plan.
    RemovedWithoutPullRequest(InstanceId),
    /// No pull request changed the instance.
    ChangedWithoutPullRequest(InstanceId),
    /// Reviews are missing for a protected path.
    ProtectedPath(String, Box<MissingApprovals>),
}

/// Returns the missing approvals; `None` if none is missing.
pub fn missing(needs: &[&Approvals], pull: PullNumber, head: &Revision, given: &[Given]) -> Option<MissingApprovals> {
    needs.iter().find_map(|needs| {
        let asked = |review: &&Given| needs.from.is_empty() || needs.from.iter().any(|to| review.by.is(to));
        let reviews: Vec<&Given> = given.iter().filter(asked).collect();
        let counts = |review: &Given| review.head == *head && review.covers;
        let count = reviews.iter().filter(|review| counts(review)).count();
        if count >= needs.count as usize {
            return None;
        }
        let stale = reviews.iter().filter(|review| !counts(review));
        let stale = stale.map(|review| (review.by.mention(), review.head != *head)).collect();
        Some(MissingApprovals::Reviews { pull, needs: (*needs).clone(), count, stale })
    })
}
