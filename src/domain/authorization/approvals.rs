//! Whether the reviews of a pull request are the approvals that a command needs (R3.6).
//!
//! Decides which reviews count: of somebody who is asked, never of the author, the newest word of each, on the present
//! head, given after a plan that covers the present one stood for a while. Never asks the forge.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::Principal;
use crate::{
    domain::declaration::schema::Approvals,
    model::{PullNumber, Revision},
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

/// What is asked for: "2 approving reviews by `team:platform`".
pub fn asked(needs: &Approvals) -> String {
    let s = if needs.count == 1 { "" } else { "s" };
    let from: Vec<String> = needs.from.iter().map(|to| format!("`{to}`")).collect();
    let whom = if from.is_empty() { String::new() } else { format!(" by {}", from.join(" or ")) };
    format!("{} approving review{s}{whom}", needs.count)
}

/// Returns the missing approvals as text; `None` if none is missing.
pub fn lacking(needs: &[&Approvals], pull: PullNumber, head: &Revision, given: &[Given]) -> Option<String> {
    needs.iter().find_map(|needs| {
        let from: Vec<&Given> =
            given.iter().filter(|one| needs.from.is_empty() || needs.from.iter().any(|to| one.by.is(to))).collect();
        let counts = from.iter().filter(|one| one.head == *head && one.covers).count();
        if counts >= needs.count as usize {
            return None;
        }
        let stale: Vec<String> = from
            .iter()
            .filter(|one| one.head != *head || !one.covers)
            .map(|one| {
                let name = one.by.name().replace("user:", "@");
                let why = if one.head == *head { "an older plan" } else { "an older head" };
                format!("that of {name} is of {why}")
            })
            .collect();
        let stale = if stale.is_empty() { String::new() } else { format!(" ({})", stale.join(", ")) };
        Some(format!("{pull} needs {} and has {counts}{stale}", asked(needs)))
    })
}
