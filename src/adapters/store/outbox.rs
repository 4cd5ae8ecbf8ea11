//! Persists the outbox, which contains messages to the forge, and the audit log.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::Row;

use super::{Error, Store, decode, encode, parse_stamp, stamp, statement};
use crate::model::{Digester, PullNumber, Revision};

impl Store {
    /// Puts a message into the outbox under a name. An equal message under that name is not sent again; a different
    /// one replaces the previous message.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn say(&self, name: &str, outgoing: &Outgoing, at: DateTime<Utc>) -> Result<(), Error> {
        let attempt = "put something into the outbox";
        let mut writing = self.writing(attempt, None).await?;
        sqlx::query(
            "INSERT INTO outbox (name, created_at, next_at, document) VALUES (?1, ?2, ?2, ?3)
             ON CONFLICT (name) DO UPDATE SET document = excluded.document, next_at = excluded.next_at, attempts = 0, sent_at = NULL, failed = NULL
             WHERE outbox.document <> excluded.document",
        )
        .bind(name)
        .bind(stamp(at))
        .bind(encode(attempt, outgoing)?)
        .execute(&mut *writing.on)
        .await
        .map_err(statement(attempt))?;
        writing.commit().await
    }

    /// Returns whether the outbox contains a message under a name, delivered or not.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn is_in_outbox(&self, name: &str) -> Result<bool, Error> {
        let row = sqlx::query("SELECT 1 FROM outbox WHERE name = ?")
            .bind(name)
            .fetch_optional(&self.pool)
            .await
            .map_err(statement("list the outbox"))?;
        Ok(row.is_some())
    }

    /// Returns the messages that are due, oldest first, each with its id and its number of attempts.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn undelivered(&self, now: DateTime<Utc>, limit: u32) -> Result<Vec<(i64, u32, Outgoing)>, Error> {
        let attempt = "list the outbox";
        let rows = sqlx::query(
            "SELECT id, attempts, document FROM outbox WHERE sent_at IS NULL AND next_at <= ? ORDER BY id LIMIT ?",
        )
        .bind(stamp(now))
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(statement(attempt))?;
        rows.iter().map(|row| Ok((row.get(0), row.get(1), decode(attempt, row.get(2))?))).collect()
    }

    /// Returns the time at which the next message is due, if there is one.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn next_delivery_at(&self) -> Result<Option<DateTime<Utc>>, Error> {
        let attempt = "list the outbox";
        let row = sqlx::query("SELECT min(next_at) FROM outbox WHERE sent_at IS NULL")
            .fetch_one(&self.pool)
            .await
            .map_err(statement(attempt))?;
        let at: Option<String> = row.get(0);
        at.map(|at| parse_stamp(attempt, &at)).transpose()
    }

    /// Marks a message as delivered, unless another message replaced it meanwhile.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn said(&self, id: i64, outgoing: &Outgoing, at: DateTime<Utc>) -> Result<(), Error> {
        let attempt = "mark the outbox";
        let mut writing = self.writing(attempt, None).await?;
        sqlx::query("UPDATE outbox SET sent_at = ? WHERE id = ? AND document = ?")
            .bind(stamp(at))
            .bind(id)
            .bind(encode(attempt, outgoing)?)
            .execute(&mut *writing.on)
            .await
            .map_err(statement(attempt))?;
        writing.commit().await
    }

    /// Records that a message could not be delivered. Without a next time, the message is abandoned.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn mark_undeliverable(
        &self,
        id: i64,
        outgoing: &Outgoing,
        why: &str,
        next: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> Result<(), Error> {
        let attempt = "mark the outbox";
        let mut writing = self.writing(attempt, None).await?;
        sqlx::query("UPDATE outbox SET attempts = attempts + 1, failed = ?, next_at = coalesce(?, next_at), sent_at = ? WHERE id = ? AND document = ?")
            .bind(why)
            .bind(next.map(stamp))
            .bind(if next.is_none() { Some(stamp(now)) } else { None })
            .bind(id)
            .bind(encode(attempt, outgoing)?)
            .execute(&mut *writing.on)
            .await
            .map_err(statement(attempt))?;
        writing.commit().await
    }

    /// Appends to the audit log; each entry carries the hash of the previous entry.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn audit(
        &self,
        at: DateTime<Utc>,
        principal: &str,
        action: &str,
        subject: &str,
        detail: &str,
    ) -> Result<(), Error> {
        let attempt = "append to the audit";
        let mut writing = self.writing(attempt, None).await?;
        let row = sqlx::query("SELECT hash FROM audit ORDER BY seq DESC LIMIT 1")
            .fetch_optional(&mut *writing.on)
            .await
            .map_err(statement(attempt))?;
        let before: String = row.map(|row| row.get(0)).unwrap_or_default();
        let at = stamp(at);
        let hash = audit_hash(&before, &at, [principal, action, subject, detail]);
        sqlx::query("INSERT INTO audit (at, principal, action, subject, detail, hash) VALUES (?, ?, ?, ?, ?, ?)")
            .bind(&at)
            .bind(principal)
            .bind(action)
            .bind(subject)
            .bind(detail)
            .bind(hash)
            .execute(&mut *writing.on)
            .await
            .map_err(statement(attempt))?;
        writing.commit().await
    }

    /// Returns the subjects on which a principal performed an action since an incoming document was received.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn audited(&self, since: &str, principal: &str, action: &str) -> Result<Vec<String>, Error> {
        let rows = sqlx::query("SELECT DISTINCT subject FROM audit WHERE principal = ? AND action = ? AND at >= (SELECT received_at FROM inbox WHERE id = ?) ORDER BY subject")
            .bind(principal)
            .bind(action)
            .bind(since)
            .fetch_all(&self.pool)
            .await
            .map_err(statement("read the audit"))?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Returns the audit log, oldest first, and the number of the first entry whose hash does not match.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn audit_entries(&self) -> Result<(Vec<AuditEntry>, Option<i64>), Error> {
        let attempt = "read the audit";
        let rows = sqlx::query("SELECT seq, at, principal, action, subject, detail, hash FROM audit ORDER BY seq")
            .fetch_all(&self.pool)
            .await
            .map_err(statement(attempt))?;
        let (mut before, mut broken) = (String::new(), None);
        let mut entries = vec![];
        for row in rows {
            let at: String = row.get(1);
            let entry = AuditEntry {
                seq: row.get(0),
                at: parse_stamp(attempt, &at)?,
                principal: row.get(2),
                action: row.get(3),
                subject: row.get(4),
                detail: row.get(5),
                hash: row.get(6),
            };
            if broken.is_none()
                && audit_hash(&before, &at, [&entry.principal, &entry.action, &entry.subject, &entry.detail])
                    != entry.hash
            {
                broken = Some(entry.seq);
            }
            before.clone_from(&entry.hash);
            entries.push(entry);
        }
        Ok((entries, broken))
    }
}

/// A message to the forge.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "camelCase")]
pub enum Outgoing {
    /// A comment, identified by its marker and edited in place.
    Comment {
        /// The pull request.
        pull: PullNumber,
        /// The hidden line that identifies the comment.
        marker: String,
        /// The text, with the marker in it.
        body: String,
        /// A marker. This comment marks other comments with that marker as outdated.
        outdates: Option<String>,
    },
    /// A commit status.
    Status {
        /// The commit.
        revision: Revision,
        /// The context, such as `evenkeel/plan`.
        context: String,
        /// `pending`, `success`, `failure`, `error`.
        state: String,
        /// The description, at most 140 characters.
        description: String,
    },
}

/// One entry of the audit log.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditEntry {
    /// The number of the entry.
    pub seq: i64,
    /// The time of the action.
    pub at: DateTime<Utc>,
    /// The principal that acted.
    pub principal: String,
    /// The action, such as `apply` or `refused`.
    pub action: String,
    /// The subject of the action.
    pub subject: String,
    /// Further details.
    pub detail: String,
    /// The hash over this entry and the previous hash.
    pub hash: String,
}

fn audit_hash(before: &str, at: &str, fields: [&str; 4]) -> String {
    fields
        .iter()
        .fold(Digester::new("audit").field(before.as_bytes()).field(at.as_bytes()), |d, field| {
            d.field(field.as_bytes())
        })
        .finish()
        .to_string()
}
