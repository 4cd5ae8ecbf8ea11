//! Decides whether the reviews of a pull request are the approvals that a command needs (R3.6).
//!
//! A review counts if all of these are true: the reviewer is one of the required subjects and not the author, the review
//! is the reviewer's latest one, it is on the present head, and a plan that covers the present plan was shown for a
//! minimum time before it. Never queries the forge.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::Principal;
use crate::{
    domain::declaration::schema::Approvals,
    model::{InstanceId, PullNumber, Revision},
    ports::{Pull, Review},
};

/// Returns the latest review of each reviewer, if it approves. A dismissed or changed approval does not count.
pub fn standing(pull: &Pull, reviews: Vec<Review>) -> Vec<Review> {
    let mut newest: BTreeMap<String, Review> = BTreeMap::new();
    for review in reviews {
        if review.says_something && !review.author.eq_ignore_ascii_case(&pull.author) {
            newest.insert(review.author.to_ascii_lowercase(), review);
        }
    }
    newest.into_values().filter(|review| review.approves).collect()
}

/// An approval that may count, with its reviewer.
pub struct Given {
    /// The reviewer.
    pub by: Principal,
    /// The reviewed head.
    pub head: Revision,
    /// The time of the review.
    pub at: DateTime<Utc>,
    /// Whether the plan that the reviewer could read, shown for a minimum time before the review, covers the present plan.
    pub covers: bool,
}

/// The approvals that a command needs and that are missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MissingApprovals {
    /// Reviews are missing on a pull request.
    Reviews {
        /// The pull request.
        pull: PullNumber,
        /// The required approvals.
        needs: Approvals,
        /// The number of reviews that count.
        count: usize,
        /// The reviewers whose reviews don't count. The flag is true for a review of an older head and false for an
        /// older plan.
        stale: Vec<(String, bool)>,
    },
    /// Approvals are required, and no forge is configured.
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
        let is_required = |review: &&Given| needs.from.is_empty() || needs.from.iter().any(|to| review.by.is(to));
        let reviews: Vec<&Given> = given.iter().filter(is_required).collect();
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
