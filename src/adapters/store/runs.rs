//! Persists runs, the journal, and the locks of runs on instances.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::Row;

use super::{Error, Store, decode, encode, parse_stamp, stamp, statement};
use crate::{
    domain::journal::{self, Approved, Event, JournalRecord, Run, RunState, Status},
    model::{InstanceId, RunId},
};

impl Store {
    /// Assigns an id to a new run and stores the run, with the approved actions of each instance.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn create_run(&self, run: &mut Run, approved: &BTreeMap<InstanceId, Approved>) -> Result<(), Error> {
        let attempt = "create a run";
        let mut writing = self.writing(attempt, Some(&run.environment)).await?;
        let done =
            sqlx::query("INSERT INTO runs (environment, state, created_at, document) VALUES (?, 'open', ?, '{}')")
                .bind(run.environment.as_str())
                .bind(stamp(run.created_at))
                .execute(&mut *writing.on)
                .await
                .map_err(statement(attempt))?;
        run.id = RunId(done.last_insert_rowid());
        sqlx::query("UPDATE runs SET document = ? WHERE id = ?")
            .bind(encode(attempt, run)?)
            .bind(run.id.0)
            .execute(&mut *writing.on)
            .await
            .map_err(statement(attempt))?;
        for (id, approved) in approved {
            let insert = sqlx::query("INSERT INTO approved (run, instance, document) VALUES (?, ?, ?)")
                .bind(run.id.0)
                .bind(id.to_string())
                .bind(encode(attempt, approved)?);
            insert.execute(&mut *writing.on).await.map_err(statement(attempt))?;
        }
        writing.commit().await
    }

    /// Replaces the approval of an instance, which was unspecific before, by a more specific one.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn choose(&self, run: RunId, id: &InstanceId, chosen: &Approved) -> Result<(), Error> {
        let attempt = "say what was chosen";
        let mut writing = self.writing(attempt, Some(&id.environment)).await?;
        sqlx::query("UPDATE approved SET document = ? WHERE run = ? AND instance = ?")
            .bind(encode(attempt, chosen)?)
            .bind(run.0)
            .bind(id.to_string())
            .execute(&mut *writing.on)
            .await
            .map_err(statement(attempt))?;
        writing.commit().await
    }

    /// Returns the approved actions of an instance, as of the authorization of a run.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn approved(&self, run: RunId, id: &InstanceId) -> Result<Option<Approved>, Error> {
        let attempt = "read what was approved";
        let row = sqlx::query("SELECT document FROM approved WHERE run = ? AND instance = ?")
            .bind(run.0)
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await
            .map_err(statement(attempt))?;
        row.map(|row| decode(attempt, row.get(0))).transpose()
    }

    /// Records the state of a run, and releases its instances if the run ended.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn set_run(&self, run: &Run) -> Result<(), Error> {
        let attempt = "record a run";
        let ended = matches!(run.state, RunState::Ended { .. });
        let mut writing = self.writing(attempt, Some(&run.environment)).await?;
        sqlx::query("UPDATE runs SET state = ?, ended_at = ?, document = ? WHERE id = ?")
            .bind(if ended { "ended" } else { "open" })
            .bind(run.ended_at.map(stamp))
            .bind(encode(attempt, run)?)
            .bind(run.id.0)
            .execute(&mut *writing.on)
            .await
            .map_err(statement(attempt))?;
        if ended {
            sqlx::query("DELETE FROM run_locks WHERE run = ?")
                .bind(run.id.0)
                .execute(&mut *writing.on)
                .await
                .map_err(statement(attempt))?;
        }
        writing.commit().await
    }

    /// Returns the runs that have not ended, oldest first.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn open_runs(&self) -> Result<Vec<Run>, Error> {
        let attempt = "list open runs";
        let rows = sqlx::query("SELECT document FROM runs WHERE ended_at IS NULL ORDER BY id")
            .fetch_all(&self.pool)
            .await
            .map_err(statement(attempt))?;
        rows.iter().map(|row| decode(attempt, row.get(0))).collect()
    }

    /// Returns the ids of the runs that have not ended, oldest first.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn open_run_ids(&self) -> Result<Vec<RunId>, Error> {
        let rows = sqlx::query("SELECT id FROM runs WHERE ended_at IS NULL ORDER BY id")
            .fetch_all(&self.pool)
            .await
            .map_err(statement("list open runs"))?;
        Ok(rows.iter().map(|row| RunId(row.get(0))).collect())
    }

    /// Returns the newest runs, newest first.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn runs(&self, limit: u32) -> Result<Vec<Run>, Error> {
        let attempt = "list runs";
        let rows = sqlx::query("SELECT document FROM runs ORDER BY id DESC LIMIT ?")
            .bind(limit)
            .fetch_all(&self.pool)
            .await
            .map_err(statement(attempt))?;
        rows.iter().map(|row| decode(attempt, row.get(0))).collect()
    }

    /// Returns one run.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn run(&self, id: RunId) -> Result<Option<Run>, Error> {
        let attempt = "read a run";
        let row = sqlx::query("SELECT document FROM runs WHERE id = ?")
            .bind(id.0)
            .fetch_optional(&self.pool)
            .await
            .map_err(statement(attempt))?;
        row.map(|row| decode(attempt, row.get(0))).transpose()
    }

    /// Returns the runs that a command created.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn runs_by_command(&self, word: &str) -> Result<Vec<Run>, Error> {
        let attempt = "read the runs of a word";
        let rows = sqlx::query("SELECT document FROM runs WHERE json_extract(document, '$.word') = ? ORDER BY id")
            .bind(word)
            .fetch_all(&self.pool)
            .await
            .map_err(statement(attempt))?;
        rows.iter().map(|row| decode(attempt, row.get(0))).collect()
    }

    /// Locks an instance for a run, unless another run has locked it; returns the run that now owns the lock.
    ///
    /// # Errors
    /// When the store can't be read or written.
    pub async fn lock_instance(&self, id: &InstanceId, run: RunId) -> Result<RunId, Error> {
        let attempt = "take the run lock";
        let mut writing = self.writing(attempt, Some(&id.environment)).await?;
        sqlx::query("INSERT INTO run_locks (instance, run) VALUES (?, ?) ON CONFLICT (instance) DO NOTHING")
            .bind(id.to_string())
            .bind(run.0)
            .execute(&mut *writing.on)
            .await
            .map_err(statement(attempt))?;
        let row = sqlx::query("SELECT run FROM run_locks WHERE instance = ?")
            .bind(id.to_string())
            .fetch_one(&mut *writing.on)
            .await
            .map_err(statement(attempt))?;
        writing.commit().await?;
        Ok(RunId(row.get(0)))
    }

    /// Releases the lock of a run on an instance.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn unlock_instance(&self, id: &InstanceId, run: RunId) -> Result<(), Error> {
        let attempt = "let go of an instance";
        let mut writing = self.writing(attempt, Some(&id.environment)).await?;
        sqlx::query("DELETE FROM run_locks WHERE instance = ? AND run = ?")
            .bind(id.to_string())
            .bind(run.0)
            .execute(&mut *writing.on)
            .await
            .map_err(statement(attempt))?;
        writing.commit().await
    }

    /// Returns the runs that are newer than a run, oldest first.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn runs_after(&self, id: RunId) -> Result<Vec<Run>, Error> {
        let attempt = "list runs";
        let rows = sqlx::query("SELECT document FROM runs WHERE id > ? ORDER BY id")
            .bind(id.0)
            .fetch_all(&self.pool)
            .await
            .map_err(statement(attempt))?;
        rows.iter().map(|row| decode(attempt, row.get(0))).collect()
    }

    /// Appends an event to the journal, if `journal::next_status` allows the event after the recorded ones. Updates
    /// the run's document in the same transaction, so that the journal and the document always agree.
    ///
    /// # Errors
    /// [`Error::Illegal`] when the event is not legal here; else when the store can't be written.
    pub async fn append(
        &self,
        run: &Run,
        instance: &InstanceId,
        event: &Event,
        at: DateTime<Utc>,
    ) -> Result<Status, Error> {
        let (document, run) = (run, run.id);
        let attempt = "append to the journal";
        let mut writing = self.writing(attempt, Some(&document.environment)).await?;
        let rows = sqlx::query("SELECT event FROM journal WHERE run = ? AND instance = ? ORDER BY seq")
            .bind(run.0)
            .bind(instance.to_string())
            .fetch_all(&mut *writing.on)
            .await
            .map_err(statement(attempt))?;
        let events: Vec<Event> = rows.iter().map(|row| decode(attempt, row.get(0))).collect::<Result<_, _>>()?;
        let status = journal::next_status(instance, journal::replay(instance, &events)?, event)?;
        sqlx::query("INSERT INTO journal (run, instance, at, token, event) VALUES (?, ?, ?, ?, ?)")
            .bind(run.0)
            .bind(instance.to_string())
            .bind(stamp(at))
            .bind(writing.token)
            .bind(encode(attempt, event)?)
            .execute(&mut *writing.on)
            .await
            .map_err(statement(attempt))?;
        if matches!(event, Event::Started { .. }) {
            // From the first effect on, the contents of the target belong to this instance, whatever the outcome of the
            // run (R1.6).
            sqlx::query("INSERT INTO begun (instance) VALUES (?) ON CONFLICT (instance) DO NOTHING")
                .bind(instance.to_string())
                .execute(&mut *writing.on)
                .await
                .map_err(statement(attempt))?;
        }
        sqlx::query("UPDATE runs SET document = ? WHERE id = ?")
            .bind(encode(attempt, document)?)
            .bind(run.0)
            .execute(&mut *writing.on)
            .await
            .map_err(statement(attempt))?;
        // A waiting or ended instance holds no lock (R5.2).
        if status.ended() || status == Status::Waiting {
            sqlx::query("DELETE FROM run_locks WHERE instance = ? AND run = ?")
                .bind(instance.to_string())
                .bind(run.0)
                .execute(&mut *writing.on)
                .await
                .map_err(statement(attempt))?;
        }
        writing.commit_as(&format!("journal {} {instance} {}", run.0, event.name())).await?;
        Ok(status)
    }

    /// Returns whether any run began to change an instance. If so, the contents of its target belong to the instance.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn begun(&self, id: &InstanceId) -> Result<bool, Error> {
        let row = sqlx::query("SELECT 1 FROM begun WHERE instance = ?")
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await
            .map_err(statement("read what was begun"))?;
        Ok(row.is_some())
    }

    /// Returns the journal of a run, or the newest records of all runs, oldest first.
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
                let instance = instance
                    .parse()
                    .map_err(|error| Error::Document { attempt, source: serde::de::Error::custom(error) })?;
                Ok(JournalRecord {
                    seq: row.get(0),
                    run: RunId(row.get(1)),
                    instance,
                    at: parse_stamp(attempt, row.get(3))?,
                    token: row.get(4),
                    event: decode(attempt, row.get(5))?,
                })
            })
            .collect()
    }
}
