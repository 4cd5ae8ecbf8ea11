//! The documents of the store, and the statements that keep them.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{Row, SqliteExecutor};

use super::{Error, Store, decode, encode, parse_stamp, stamp, statement};
use crate::{
    journal::{self, Approved, Event, JournalRecord, Run, RunState, Status},
    model::{Digester, InstanceId, PullNumber, Revision, RunId},
    plan::{Applied, Observed, Plan},
};

/// Something to be said to the forge.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "camelCase")]
pub enum Outgoing {
    /// A comment, found again by its marker and edited in place.
    Comment {
        /// The pull request.
        pull: PullNumber,
        /// The hidden line.
        marker: String,
        /// The text, with the marker in it.
        body: String,
        /// A marker whose other comments are outdated by this one.
        outdates: Option<String>,
    },
    /// A commit status.
    Status {
        /// The commit.
        revision: Revision,
        /// `evenkeel/plan`.
        context: String,
        /// `pending`, `success`, `failure`, `error`.
        state: String,
        /// At most 140 characters.
        description: String,
    },
}

/// One entry of the audit.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditEntry {
    /// Its number.
    pub seq: i64,
    /// When.
    pub at: DateTime<Utc>,
    /// Who.
    pub principal: String,
    /// What: `apply`, `refused`.
    pub action: String,
    /// On what.
    pub subject: String,
    /// More.
    pub detail: String,
    /// The hash over this entry and the hash before.
    pub hash: String,
}

fn audit_hash(before: &str, at: &str, fields: [&str; 4]) -> String {
    fields.iter().fold(Digester::new("audit").field(before.as_bytes()).field(at.as_bytes()), |d, field| d.field(field.as_bytes())).finish().to_string()
}

async fn set_applied(store: impl SqliteExecutor<'_>, id: &InstanceId, applied: &Applied) -> Result<(), Error> {
    let attempt = "record what is applied";
    sqlx::query("INSERT INTO applied (instance, applied_at, document) VALUES (?, ?, ?) ON CONFLICT (instance) DO UPDATE SET applied_at = excluded.applied_at, document = excluded.document")
        .bind(id.to_string())
        .bind(stamp(applied.at))
        .bind(encode(attempt, applied)?)
        .execute(store)
        .await
        .map_err(statement(attempt))?;
    Ok(())
}

async fn set_observed(store: impl SqliteExecutor<'_>, id: &InstanceId, observed: &Observed) -> Result<(), Error> {
    let attempt = "record an observation";
    sqlx::query("INSERT INTO observations (instance, observed_at, document) VALUES (?, ?, ?) ON CONFLICT (instance) DO UPDATE SET observed_at = excluded.observed_at, document = excluded.document")
        .bind(id.to_string())
        .bind(stamp(observed.at))
        .bind(encode(attempt, observed)?)
        .execute(store)
        .await
        .map_err(statement(attempt))?;
    Ok(())
}

impl Store {
    /// What is applied, of all instances.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn all_applied(&self) -> Result<BTreeMap<InstanceId, Applied>, Error> {
        self.by_instance("SELECT instance, document FROM applied", "list what is applied").await
    }

    /// The last observation of all instances.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn all_observed(&self) -> Result<BTreeMap<InstanceId, Observed>, Error> {
        self.by_instance("SELECT instance, document FROM observations", "list observations").await
    }

    /// What is applied, of one instance.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn applied(&self, id: &InstanceId) -> Result<Option<Applied>, Error> {
        self.of_instance("SELECT document FROM applied WHERE instance = ?", "read what is applied", id).await
    }

    /// The last observation of one instance.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn observed(&self, id: &InstanceId) -> Result<Option<Observed>, Error> {
        self.of_instance("SELECT document FROM observations WHERE instance = ?", "read an observation", id).await
    }

    async fn of_instance<T: serde::de::DeserializeOwned>(&self, sql: &'static str, attempt: &'static str, id: &InstanceId) -> Result<Option<T>, Error> {
        let row = sqlx::query(sql).bind(id.to_string()).fetch_optional(&self.pool).await.map_err(statement(attempt))?;
        row.map(|row| decode(attempt, row.get(0))).transpose()
    }

    async fn by_instance<T: serde::de::DeserializeOwned>(&self, sql: &'static str, attempt: &'static str) -> Result<BTreeMap<InstanceId, T>, Error> {
        let rows = sqlx::query(sql).fetch_all(&self.pool).await.map_err(statement(attempt))?;
        rows.iter()
            .map(|row| {
                let id: String = row.get(0);
                let id = id.parse().map_err(|error| Error::Document { attempt, source: serde::de::Error::custom(error) })?;
                Ok((id, decode(attempt, row.get(1))?))
            })
            .collect()
    }

    /// Records what is applied.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn set_applied(&self, id: &InstanceId, applied: &Applied) -> Result<(), Error> {
        set_applied(&self.pool, id, applied).await
    }

    /// Records what is applied now, with a first observation against it; what was stalled is so no longer.
    ///
    /// # Errors
    /// When the store can't be written; then nothing of it is recorded.
    pub async fn advance(&self, id: &InstanceId, applied: &Applied, observed: &Observed) -> Result<(), Error> {
        let attempt = "record what is applied";
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(statement(attempt))?;
        set_applied(&mut *transaction, id, applied).await?;
        set_observed(&mut *transaction, id, observed).await?;
        sqlx::query("DELETE FROM records WHERE sort = 'stalled' AND name = ?").bind(id.to_string()).execute(&mut *transaction).await.map_err(statement(attempt))?;
        transaction.commit().await.map_err(statement(attempt))
    }

    /// Records an observation in place of the one before.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn set_observed(&self, id: &InstanceId, observed: &Observed) -> Result<(), Error> {
        set_observed(&self.pool, id, observed).await
    }

    /// Keeps a plan that is shown about a subject, unless the last one about it is the same; answers whether it is new.
    ///
    /// # Errors
    /// When the store can't be read or written.
    pub async fn keep_plan(&self, subject: &str, plan: &Plan, at: DateTime<Utc>) -> Result<bool, Error> {
        let attempt = "keep a plan";
        if let Some((last, _)) = self.last_plan(subject, None).await?
            && last.digest == plan.digest
        {
            return Ok(false);
        }
        sqlx::query("INSERT INTO plans (subject, digest, planned_at, document) VALUES (?, ?, ?, ?)")
            .bind(subject)
            .bind(plan.digest.to_string())
            .bind(stamp(at))
            .bind(encode(attempt, plan)?)
            .execute(&self.pool)
            .await
            .map_err(statement(attempt))?;
        Ok(true)
    }

    /// The plan about a subject that was kept last, before a time where one is given.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn last_plan(&self, subject: &str, before: Option<DateTime<Utc>>) -> Result<Option<(Plan, DateTime<Utc>)>, Error> {
        let attempt = "read a plan";
        let row = sqlx::query("SELECT document, planned_at FROM plans WHERE subject = ? AND planned_at <= ? ORDER BY id DESC LIMIT 1")
            .bind(subject)
            .bind(before.map_or_else(|| "9".to_owned(), stamp))
            .fetch_optional(&self.pool)
            .await
            .map_err(statement(attempt))?;
        row.map(|row| Ok((decode(attempt, row.get(0))?, parse_stamp(attempt, row.get(1))?))).transpose()
    }

    /// Plans whose digest begins so, newest first.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn plans(&self, limit: u32) -> Result<Vec<(String, Plan, DateTime<Utc>)>, Error> {
        let attempt = "list plans";
        let rows = sqlx::query("SELECT subject, document, planned_at FROM plans ORDER BY id DESC LIMIT ?").bind(limit).fetch_all(&self.pool).await.map_err(statement(attempt))?;
        rows.iter().map(|row| Ok((row.get(0), decode(attempt, row.get(1))?, parse_stamp(attempt, row.get(2))?))).collect()
    }

    /// Numbers and keeps a new run, with what was approved of each instance.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn create_run(&self, run: &mut Run, approved: &BTreeMap<InstanceId, Approved>) -> Result<(), Error> {
        let attempt = "create a run";
        let mut transaction = self.pool.begin().await.map_err(statement(attempt))?;
        let done = sqlx::query("INSERT INTO runs (environment, state, created_at, document) VALUES (?, 'open', ?, '{}')")
            .bind(run.environment.as_str())
            .bind(stamp(run.created_at))
            .execute(&mut *transaction)
            .await
            .map_err(statement(attempt))?;
        run.id = RunId(done.last_insert_rowid());
        sqlx::query("UPDATE runs SET document = ? WHERE id = ?").bind(encode(attempt, run)?).bind(run.id.0).execute(&mut *transaction).await.map_err(statement(attempt))?;
        for (id, approved) in approved {
            let insert = sqlx::query("INSERT INTO approved (run, instance, document) VALUES (?, ?, ?)").bind(run.id.0).bind(id.to_string()).bind(encode(attempt, approved)?);
            insert.execute(&mut *transaction).await.map_err(statement(attempt))?;
        }
        transaction.commit().await.map_err(statement(attempt))
    }

    /// What was approved of an instance when a run was authorised.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn approved(&self, run: RunId, id: &InstanceId) -> Result<Option<Approved>, Error> {
        let attempt = "read what was approved";
        let row = sqlx::query("SELECT document FROM approved WHERE run = ? AND instance = ?").bind(run.0).bind(id.to_string()).fetch_optional(&self.pool).await.map_err(statement(attempt))?;
        row.map(|row| decode(attempt, row.get(0))).transpose()
    }

    /// Records where a run stands, and lets go of its instances when it ended.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn set_run(&self, run: &Run) -> Result<(), Error> {
        let attempt = "record a run";
        let ended = matches!(run.state, RunState::Ended { .. });
        let mut transaction = self.pool.begin().await.map_err(statement(attempt))?;
        sqlx::query("UPDATE runs SET state = ?, ended_at = ?, document = ? WHERE id = ?")
            .bind(if ended { "ended" } else { "open" })
            .bind(run.ended_at.map(stamp))
            .bind(encode(attempt, run)?)
            .bind(run.id.0)
            .execute(&mut *transaction)
            .await
            .map_err(statement(attempt))?;
        if ended {
            sqlx::query("DELETE FROM run_locks WHERE run = ?").bind(run.id.0).execute(&mut *transaction).await.map_err(statement(attempt))?;
        }
        transaction.commit().await.map_err(statement(attempt))
    }

    /// Runs that did not end, oldest first.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn open_runs(&self) -> Result<Vec<Run>, Error> {
        let attempt = "list open runs";
        let rows = sqlx::query("SELECT document FROM runs WHERE ended_at IS NULL ORDER BY id").fetch_all(&self.pool).await.map_err(statement(attempt))?;
        rows.iter().map(|row| decode(attempt, row.get(0))).collect()
    }

    /// The newest runs, newest first.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn runs(&self, limit: u32) -> Result<Vec<Run>, Error> {
        let attempt = "list runs";
        let rows = sqlx::query("SELECT document FROM runs ORDER BY id DESC LIMIT ?").bind(limit).fetch_all(&self.pool).await.map_err(statement(attempt))?;
        rows.iter().map(|row| decode(attempt, row.get(0))).collect()
    }

    /// One run.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn run(&self, id: RunId) -> Result<Option<Run>, Error> {
        let attempt = "read a run";
        let row = sqlx::query("SELECT document FROM runs WHERE id = ?").bind(id.0).fetch_optional(&self.pool).await.map_err(statement(attempt))?;
        row.map(|row| decode(attempt, row.get(0))).transpose()
    }

    /// Takes an instance for a run, unless another run holds it; answers who holds it now.
    ///
    /// # Errors
    /// When the store can't be read or written.
    pub async fn lock_instance(&self, id: &InstanceId, run: RunId) -> Result<RunId, Error> {
        let attempt = "take the run lock";
        sqlx::query("INSERT INTO run_locks (instance, run) VALUES (?, ?) ON CONFLICT (instance) DO NOTHING").bind(id.to_string()).bind(run.0).execute(&self.pool).await.map_err(statement(attempt))?;
        let row = sqlx::query("SELECT run FROM run_locks WHERE instance = ?").bind(id.to_string()).fetch_one(&self.pool).await.map_err(statement(attempt))?;
        Ok(RunId(row.get(0)))
    }

    /// The runs that are newer than one.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn runs_after(&self, id: RunId) -> Result<Vec<Run>, Error> {
        let attempt = "list runs";
        let rows = sqlx::query("SELECT document FROM runs WHERE id > ? ORDER BY id").bind(id.0).fetch_all(&self.pool).await.map_err(statement(attempt))?;
        rows.iter().map(|row| decode(attempt, row.get(0))).collect()
    }

    /// Lets go of every instance: at start nothing of this daemon is in flight.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn unlock_all(&self) -> Result<(), Error> {
        sqlx::query("DELETE FROM run_locks").execute(&self.pool).await.map_err(statement("release the run locks"))?;
        Ok(())
    }

    /// Appends to the journal, if the table of `journal::next_status` allows it after what stands there, and brings the
    /// run's document up to date in the same transaction, so that neither tells what the other does not.
    ///
    /// # Errors
    /// [`Error::Illegal`] when it can't follow; else when the store can't be written.
    pub async fn append(&self, run: &Run, instance: &InstanceId, token: i64, event: &Event, at: DateTime<Utc>) -> Result<Status, Error> {
        let (document, run) = (run, run.id);
        let attempt = "append to the journal";
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(statement(attempt))?;
        let rows = sqlx::query("SELECT event FROM journal WHERE run = ? AND instance = ? ORDER BY seq").bind(run.0).bind(instance.to_string()).fetch_all(&mut *transaction).await.map_err(statement(attempt))?;
        let events: Vec<Event> = rows.iter().map(|row| decode(attempt, row.get(0))).collect::<Result<_, _>>()?;
        let status = journal::next_status(instance, journal::replay(instance, &events)?, event)?;
        sqlx::query("INSERT INTO journal (run, instance, at, token, event) VALUES (?, ?, ?, ?, ?)")
            .bind(run.0)
            .bind(instance.to_string())
            .bind(stamp(at))
            .bind(token)
            .bind(encode(attempt, event)?)
            .execute(&mut *transaction)
            .await
            .map_err(statement(attempt))?;
        if matches!(event, Event::Started { .. }) {
            // From here on, what the target holds is ours, whatever becomes of this run (R1.6).
            sqlx::query("INSERT INTO begun (instance) VALUES (?) ON CONFLICT (instance) DO NOTHING").bind(instance.to_string()).execute(&mut *transaction).await.map_err(statement(attempt))?;
        }
        sqlx::query("UPDATE runs SET document = ? WHERE id = ?").bind(encode(attempt, document)?).bind(run.0).execute(&mut *transaction).await.map_err(statement(attempt))?;
        // What waits or ended holds nothing (R5.2).
        if status.ended() || status == Status::Waiting {
            sqlx::query("DELETE FROM run_locks WHERE instance = ? AND run = ?").bind(instance.to_string()).bind(run.0).execute(&mut *transaction).await.map_err(statement(attempt))?;
        }
        transaction.commit().await.map_err(statement(attempt))?;
        Ok(status)
    }

    /// Whether a run of ours ever began to change an instance, so that what its target holds is ours.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn begun(&self, id: &InstanceId) -> Result<bool, Error> {
        let row = sqlx::query("SELECT 1 FROM begun WHERE instance = ?").bind(id.to_string()).fetch_optional(&self.pool).await.map_err(statement("read what was begun"))?;
        Ok(row.is_some())
    }

    /// The journal of a run, or the newest records of all, oldest first.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn journal(&self, run: Option<RunId>, limit: u32) -> Result<Vec<JournalRecord>, Error> {
        let attempt = "read the journal";
        let rows = sqlx::query("SELECT seq, run, instance, at, token, event FROM journal WHERE (?1 IS NULL OR run = ?1) ORDER BY seq DESC LIMIT ?2")
            .bind(run.map(|run| run.0))
            .bind(limit)
            .fetch_all(&self.pool)
            .await
            .map_err(statement(attempt))?;
        rows.iter()
            .rev()
            .map(|row| {
                let instance: String = row.get(2);
                let instance = instance.parse().map_err(|error| Error::Document { attempt, source: serde::de::Error::custom(error) })?;
                Ok(JournalRecord { seq: row.get(0), run: RunId(row.get(1)), instance, at: parse_stamp(attempt, row.get(3))?, token: row.get(4), event: decode(attempt, row.get(5))? })
            })
            .collect()
    }

    /// Puts something into the outbox under a name. What was said under that name and is the same is not said again;
    /// what differs takes its place.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn say(&self, name: &str, outgoing: &Outgoing, at: DateTime<Utc>) -> Result<(), Error> {
        let attempt = "put something into the outbox";
        sqlx::query(
            "INSERT INTO outbox (name, created_at, next_at, document) VALUES (?1, ?2, ?2, ?3)
             ON CONFLICT (name) DO UPDATE SET document = excluded.document, next_at = excluded.next_at, attempts = 0, sent_at = NULL, failed = NULL
             WHERE outbox.document <> excluded.document",
        )
        .bind(name)
        .bind(stamp(at))
        .bind(encode(attempt, outgoing)?)
        .execute(&self.pool)
        .await
        .map_err(statement(attempt))?;
        Ok(())
    }

    /// What is to be said now, oldest first, with how often it was tried.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn unsaid(&self, now: DateTime<Utc>, limit: u32) -> Result<Vec<(i64, u32, Outgoing)>, Error> {
        let attempt = "list the outbox";
        let rows = sqlx::query("SELECT id, attempts, document FROM outbox WHERE sent_at IS NULL AND next_at <= ? ORDER BY id LIMIT ?")
            .bind(stamp(now))
            .bind(limit)
            .fetch_all(&self.pool)
            .await
            .map_err(statement(attempt))?;
        rows.iter().map(|row| Ok((row.get(0), row.get(1), decode(attempt, row.get(2))?))).collect()
    }

    /// When the next thing in the outbox is due, if there is any.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn next_unsaid(&self) -> Result<Option<DateTime<Utc>>, Error> {
        let attempt = "list the outbox";
        let row = sqlx::query("SELECT min(next_at) FROM outbox WHERE sent_at IS NULL").fetch_one(&self.pool).await.map_err(statement(attempt))?;
        let at: Option<String> = row.get(0);
        at.map(|at| parse_stamp(attempt, &at)).transpose()
    }

    /// Marks something as said, unless it was replaced meanwhile.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn said(&self, id: i64, outgoing: &Outgoing, at: DateTime<Utc>) -> Result<(), Error> {
        let attempt = "mark the outbox";
        sqlx::query("UPDATE outbox SET sent_at = ? WHERE id = ? AND document = ?").bind(stamp(at)).bind(id).bind(encode(attempt, outgoing)?).execute(&self.pool).await.map_err(statement(attempt))?;
        Ok(())
    }

    /// Records that something could not be said; without a next time it is given up.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn unsayable(&self, id: i64, outgoing: &Outgoing, why: &str, next: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Result<(), Error> {
        let attempt = "mark the outbox";
        sqlx::query("UPDATE outbox SET attempts = attempts + 1, failed = ?, next_at = coalesce(?, next_at), sent_at = ? WHERE id = ? AND document = ?")
            .bind(why)
            .bind(next.map(stamp))
            .bind(if next.is_none() { Some(stamp(now)) } else { None })
            .bind(id)
            .bind(encode(attempt, outgoing)?)
            .execute(&self.pool)
            .await
            .map_err(statement(attempt))?;
        Ok(())
    }

    /// Appends to the audit; each entry carries the hash of the one before.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn audit(&self, at: DateTime<Utc>, principal: &str, action: &str, subject: &str, detail: &str) -> Result<(), Error> {
        let attempt = "append to the audit";
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(statement(attempt))?;
        let row = sqlx::query("SELECT hash FROM audit ORDER BY seq DESC LIMIT 1").fetch_optional(&mut *transaction).await.map_err(statement(attempt))?;
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
            .execute(&mut *transaction)
            .await
            .map_err(statement(attempt))?;
        transaction.commit().await.map_err(statement(attempt))
    }

    /// The audit, oldest first, and the number of the first entry whose hash does not fit.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn audit_entries(&self) -> Result<(Vec<AuditEntry>, Option<i64>), Error> {
        let attempt = "read the audit";
        let rows = sqlx::query("SELECT seq, at, principal, action, subject, detail, hash FROM audit ORDER BY seq").fetch_all(&self.pool).await.map_err(statement(attempt))?;
        let (mut before, mut broken) = (String::new(), None);
        let mut entries = vec![];
        for row in rows {
            let at: String = row.get(1);
            let entry = AuditEntry { seq: row.get(0), at: parse_stamp(attempt, &at)?, principal: row.get(2), action: row.get(3), subject: row.get(4), detail: row.get(5), hash: row.get(6) };
            if broken.is_none() && audit_hash(&before, &at, [&entry.principal, &entry.action, &entry.subject, &entry.detail]) != entry.hash {
                broken = Some(entry.seq);
            }
            before.clone_from(&entry.hash);
            entries.push(entry);
        }
        Ok((entries, broken))
    }

    /// Takes or renews the lease of an environment, if nobody else's holds; answers the fencing token.
    ///
    /// # Errors
    /// When the store can't be read or written.
    pub async fn lease(&self, environment: &str, holder: &str, now: DateTime<Utc>, until: DateTime<Utc>) -> Result<Option<i64>, Error> {
        let attempt = "take the lease";
        let row = sqlx::query(
            "INSERT INTO leases (environment, holder, token, expires_at) VALUES (?1, ?2, 1, ?4)
             ON CONFLICT (environment) DO UPDATE SET
               token = CASE WHEN leases.holder = excluded.holder THEN leases.token ELSE leases.token + 1 END,
               holder = excluded.holder, expires_at = excluded.expires_at
             WHERE leases.holder = excluded.holder OR leases.expires_at <= ?3
             RETURNING token",
        )
        .bind(environment)
        .bind(holder)
        .bind(stamp(now))
        .bind(stamp(until))
        .fetch_optional(&self.pool)
        .await
        .map_err(statement(attempt))?;
        Ok(row.map(|row| row.get(0)))
    }
}
