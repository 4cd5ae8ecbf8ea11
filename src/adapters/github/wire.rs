//! Defines the fields of the forge's responses that the client reads.

use serde::Deserialize;

use super::At;
use crate::{model::PullNumber, ports};

/// The response to a refused request.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Refusal {
    pub(super) message: String,
    pub(super) errors: Vec<serde_json::Value>,
}

#[derive(Deserialize, Clone)]
pub(super) struct User {
    pub(super) login: String,
}

#[derive(Deserialize)]
pub(super) struct Id {
    pub(super) id: u64,
}

#[derive(Deserialize)]
pub(super) struct Number {
    pub(super) number: u64,
}

#[derive(Deserialize)]
pub(super) struct Permission {
    pub(super) permission: String,
    pub(super) role_name: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Membership {
    pub(super) state: String,
}

#[derive(Deserialize)]
pub(super) struct Side {
    pub(super) r#ref: String,
    sha: String,
    repo: Option<Repository>,
}

#[derive(Deserialize)]
struct Repository {
    full_name: String,
}

#[derive(Deserialize)]
pub(super) struct Pull {
    pub(super) number: u64,
    state: String,
    #[serde(default)]
    draft: bool,
    pub(super) title: String,
    pub(super) body: Option<String>,
    user: Option<User>,
    pub(super) head: Side,
    base: Side,
    merge_commit_sha: Option<String>,
    merged_at: Option<At>,
    merged_by: Option<User>,
    updated_at: At,
}

impl Pull {
    pub(super) fn into_pull(self) -> Result<ports::Pull, String> {
        let malformed = |error: crate::model::ids::Malformed| error.to_string();
        let merged_as = match (self.merged_at, self.merge_commit_sha) {
            (Some(_), Some(sha)) => Some(sha.parse().map_err(malformed)?),
            _ => None,
        };
        let name = |side: &Side| side.repo.as_ref().map(|repo| repo.full_name.to_ascii_lowercase());
        Ok(ports::Pull {
            number: PullNumber(self.number),
            open: self.state == "open",
            draft: self.draft,
            title: self.title,
            body: self.body.unwrap_or_default(),
            author: self.user.map(|user| user.login).unwrap_or_default(),
            fork: name(&self.head).is_none() || name(&self.head) != name(&self.base),
            base: self.base.r#ref,
            branch: self.head.r#ref,
            head: self.head.sha.parse().map_err(malformed)?,
            merged_as,
            merged_by: self.merged_by.map(|user| user.login),
            updated_at: self.updated_at,
        })
    }
}

#[derive(Deserialize)]
pub(super) struct Comment {
    id: u64,
    #[serde(default)]
    node_id: String,
    user: Option<User>,
    body: Option<String>,
    created_at: At,
    updated_at: At,
}

impl Comment {
    pub(super) fn into_comment(self) -> ports::Comment {
        ports::Comment {
            id: self.id,
            node_id: self.node_id,
            author: self.user.map(|user| user.login).unwrap_or_default(),
            body: self.body.unwrap_or_default(),
            created_at: self.created_at,
            updated_at: self.updated_at,
        }
    }
}

#[derive(Deserialize)]
pub(super) struct Review {
    user: Option<User>,
    state: String,
    commit_id: Option<String>,
    submitted_at: Option<At>,
}

impl Review {
    /// Returns `None` if the commit of the review no longer exists or the review is not submitted.
    pub(super) fn into_review(self) -> Option<ports::Review> {
        let approves = self.state.eq_ignore_ascii_case("APPROVED");
        let takes_back = ["CHANGES_REQUESTED", "DISMISSED"].iter().any(|word| self.state.eq_ignore_ascii_case(word));
        Some(ports::Review {
            author: self.user?.login,
            approves,
            says_something: approves || takes_back,
            head: self.commit_id?.parse().ok()?,
            at: self.submitted_at?,
        })
    }
}

#[derive(Deserialize)]
pub(super) struct Installation {
    pub(super) id: u64,
    pub(super) app_slug: String,
}

#[derive(Deserialize)]
pub(super) struct Status {
    pub(super) context: String,
    pub(super) creator: Option<User>,
}
