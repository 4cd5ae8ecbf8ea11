//! Defines the port to the forge: pull requests, comments, reviews and commit statuses.
//!
//! *Invariant:* a write is idempotent. An adapter finds its own earlier result by a marker.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::model::{PullNumber, Retry, Revision};

/// A pull request, with the fields that controllers use.
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
    /// The branch that the pull request targets.
    pub base: String,
    /// The branch that the pull request comes from.
    pub branch: String,
    /// The head commit of `branch`.
    pub head: Revision,
    /// Whether `branch` is in another repository.
    pub fork: bool,
    /// The merge commit; `None` if the pull request is not merged.
    pub merged_as: Option<Revision>,
    /// The login of the user who merged the pull request.
    pub merged_by: Option<String>,
    /// The time of the last change of any kind.
    pub updated_at: DateTime<Utc>,
}

/// A comment on a pull request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Comment {
    /// Its id.
    pub id: u64,
    /// The GraphQL node id.
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
    /// Whether the review approves the pull request.
    pub approves: bool,
    /// Whether the review approves, requests changes or is dismissed. A plain comment does none of these.
    pub says_something: bool,
    /// The head commit that was reviewed.
    pub head: Revision,
    /// The time at which the review was submitted.
    pub at: DateTime<Utc>,
}

/// The error of a request to the forge.
#[derive(Debug, thiserror::Error)]
#[error("could not {attempt}: {why}")]
pub struct ForgeError {
    /// The attempted operation, such as "list pull requests".
    pub attempt: String,
    /// The HTTP status of the forge's response; `None` if there was no response.
    pub status: Option<u16>,
    /// The forge's message, or the error of the connection.
    pub why: String,
    /// When the same attempt may succeed.
    pub retry: Retry,
    /// The earliest time at which the forge accepts another request, if the forge reports one.
    pub not_before: Option<DateTime<Utc>>,
}

/// The operations of a forge. Reads are retried. A write first searches for its marker and can be repeated.
#[async_trait]
pub trait Forge: Send + Sync {
    /// Returns the login under which the daemon writes comments.
    ///
    /// # Errors
    /// When the forge does not answer.
    async fn own_login(&self) -> Result<String, ForgeError>;
    /// Returns the newest pull requests, open or closed, most recently updated first.
    ///
    /// # Errors
    /// When the forge does not answer.
    async fn list_pulls(&self) -> Result<Vec<Pull>, ForgeError>;
    /// Returns one pull request.
    ///
    /// # Errors
    /// When the forge does not answer.
    async fn get_pull(&self, number: PullNumber) -> Result<Pull, ForgeError>;
    /// Returns the comments of a pull request, oldest first.
    ///
    /// # Errors
    /// When the forge does not answer.
    async fn list_comments(&self, number: PullNumber) -> Result<Vec<Comment>, ForgeError>;
    /// Returns the reviews of a pull request, oldest first.
    ///
    /// # Errors
    /// When the forge does not answer.
    async fn list_reviews(&self, number: PullNumber) -> Result<Vec<Review>, ForgeError>;
    /// Creates the daemon's comment with this marker, or updates its body; returns the comment's id.
    ///
    /// # Errors
    /// When the forge does not answer.
    async fn ensure_comment(&self, number: PullNumber, marker: &str, body: &str) -> Result<u64, ForgeError>;
    /// Minimizes the daemon's comments with this marker as outdated, except the one with the id `except`.
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
    /// Returns whether a commit has a status that the daemon set.
    ///
    /// # Errors
    /// When the forge does not answer.
    async fn has_own_status(&self, revision: &Revision) -> Result<bool, ForgeError>;
    /// Opens a pull request from a branch, or updates the title and body of the open one.
    ///
    /// # Errors
    /// When the forge does not answer.
    async fn ensure_pull(&self, branch: &str, base: &str, title: &str, body: &str) -> Result<PullNumber, ForgeError>;
    /// Closes a pull request without a merge, if it is open.
    ///
    /// # Errors
    /// When the forge does not answer.
    async fn close_pull(&self, number: PullNumber) -> Result<(), ForgeError>;
    /// Returns the permission of a login on the repository, by the forge's name for the permission.
    ///
    /// # Errors
    /// When the forge does not answer.
    async fn get_permission(&self, login: &str) -> Result<String, ForgeError>;
    /// Returns whether a login is a member of a team, `organisation/team`.
    ///
    /// # Errors
    /// When the forge does not answer.
    async fn is_member(&self, team: &str, login: &str) -> Result<bool, ForgeError>;
    /// Returns a valid token for git; `None` if the forge issues none.
    ///
    /// # Errors
    /// When the forge does not answer.
    async fn git_token(&self) -> Result<Option<SecretString>, ForgeError>;
}
