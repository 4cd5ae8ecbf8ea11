//! The forge, as conductors ask for it.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::model::{PullNumber, Retry, Revision};

/// A pull request, as far as anybody asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pull {
    /// Its number.
    pub number: PullNumber,
    /// Whether it is open.
    pub open: bool,
    /// Whether it is a draft.
    pub draft: bool,
    /// Its title.
    pub title: String,
    /// Its description.
    pub body: String,
    /// The login of its author.
    pub author: String,
    /// The branch that it is to be merged into.
    pub base: String,
    /// Its own branch.
    pub branch: String,
    /// The head of its own branch.
    pub head: Revision,
    /// Whether its branch lies in another repository.
    pub fork: bool,
    /// The commit that it was merged as.
    pub merged_as: Option<Revision>,
    /// The login that merged it.
    pub merged_by: Option<String>,
    /// When it last changed in any way.
    pub updated_at: DateTime<Utc>,
}

/// A comment on a pull request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Comment {
    /// Its id.
    pub id: u64,
    /// Its id for GraphQL.
    pub node_id: String,
    /// The login of its author.
    pub author: String,
    /// The text.
    pub body: String,
    /// When it was written.
    pub created_at: DateTime<Utc>,
    /// When it was last edited.
    pub updated_at: DateTime<Utc>,
}

/// A review of a pull request.
#[derive(Clone, Debug, PartialEq)]
pub struct Review {
    /// The login of the reviewer.
    pub author: String,
    /// Whether it approves.
    pub approves: bool,
    /// Whether it approves or takes that back; a mere comment does neither.
    pub says_something: bool,
    /// The head that it is about.
    pub head: Revision,
    /// When it was given.
    pub at: DateTime<Utc>,
}

/// A forge that did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("could not {attempt}: {why}")]
pub struct ForgeError {
    /// "list pull requests".
    pub attempt: String,
    /// The HTTP status of the forge's answer; `None` where there was no answer.
    pub status: Option<u16>,
    /// The forge's message, or the error of the connection.
    pub why: String,
    /// When the same attempt may succeed.
    pub retry: Retry,
    /// When the forge says that it may be asked again.
    pub not_before: Option<DateTime<Utc>>,
}

/// The operations of a forge. Reads are retried; a write looks for its marker first, so that it can be repeated.
#[async_trait]
pub trait Forge: Send + Sync {
    /// The login that our comments carry.
    ///
    /// # Errors
    /// When the forge does not answer.
    async fn own_login(&self) -> Result<String, ForgeError>;
    /// The newest pull requests, open or not, those that changed last first.
    ///
    /// # Errors
    /// When the forge does not answer.
    async fn list_pulls(&self) -> Result<Vec<Pull>, ForgeError>;
    /// One pull request.
    ///
    /// # Errors
    /// When the forge does not answer.
    async fn get_pull(&self, number: PullNumber) -> Result<Pull, ForgeError>;
    /// The comments of a pull request, oldest first.
    ///
    /// # Errors
    /// When the forge does not answer.
    async fn list_comments(&self, number: PullNumber) -> Result<Vec<Comment>, ForgeError>;
    /// The reviews of a pull request, oldest first.
    ///
    /// # Errors
    /// When the forge does not answer.
    async fn list_reviews(&self, number: PullNumber) -> Result<Vec<Review>, ForgeError>;
    /// Makes the comment with this marker say this: edits ours if it is there, writes it else.
    ///
    /// # Errors
    /// When the forge does not answer.
    async fn ensure_comment(&self, number: PullNumber, marker: &str, body: &str) -> Result<u64, ForgeError>;
    /// Folds our comments with this marker away as outdated, except one.
    ///
    /// # Errors
    /// When the forge does not answer.
    async fn outdate_comments(&self, number: PullNumber, marker: &str, except: u64) -> Result<(), ForgeError>;
    /// Sets a status of a commit.
    ///
    /// # Errors
    /// When the forge does not answer.
    async fn ensure_status(
        &self,
        revision: &Revision,
        context: &str,
        state: &str,
        description: &str,
    ) -> Result<(), ForgeError>;
    /// Whether a commit carries a status of ours.
    ///
    /// # Errors
    /// When the forge does not answer.
    async fn has_own_status(&self, revision: &Revision) -> Result<bool, ForgeError>;
    /// Opens a pull request from a branch, or makes the open one say this.
    ///
    /// # Errors
    /// When the forge does not answer.
    async fn ensure_pull(&self, branch: &str, base: &str, title: &str, body: &str) -> Result<PullNumber, ForgeError>;
    /// Closes a pull request unmerged, if it is open.
    ///
    /// # Errors
    /// When the forge does not answer.
    async fn close_pull(&self, number: PullNumber) -> Result<(), ForgeError>;
    /// Returns the permission of a login on the repository, as the forge names it.
    ///
    /// # Errors
    /// When the forge does not answer.
    async fn get_permission(&self, login: &str) -> Result<String, ForgeError>;
    /// Whether somebody is in a team, `organisation/team`.
    ///
    /// # Errors
    /// When the forge does not answer.
    async fn is_member(&self, team: &str, login: &str) -> Result<bool, ForgeError>;
    /// A fresh token for git, where the forge gives one out.
    ///
    /// # Errors
    /// When the forge does not answer.
    async fn git_token(&self) -> Result<Option<SecretString>, ForgeError>;
}
