//! Persists the state of the daemon: SQLite in WAL mode, one file, one writer at a time.
//!
//! Stores documents and the order of the journal, and does not interpret them. Every write is durable when its
//! call returns (`synchronous = FULL`), and carries its writer's fencing token (`lease`). *Invariant:* the store
//! never contains a secret: callers redact or seal secrets first.
//! *Race:* two writers: SQLite makes one wait, up to [`BUSY_TIMEOUT`].
//! *Race:* the same delivery arrives twice: the second insert finds the first and reports it.

mod collection;
mod inventory;
mod lease;
mod outbox;
mod records;
mod runs;

use std::{path::Path, str::FromStr, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use serde::{Serialize, de::DeserializeOwned};
use sqlx::{
    Connection, Row, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

pub use collection::{Collection, Record, RecordKey};
pub use lease::{Lease, token_in};
pub use outbox::{AuditEntry, Outgoing};
pub use records::Span;

use crate::{
    model::{Backoff, Retry, Seal},
    ports::{Boundary, TargetError, TargetErrorKind},
};

/// The time for which a writer waits for another writer.
const BUSY_TIMEOUT: Duration = Duration::from_secs(20);
/// How long handled and ended records are kept. A remediation expires after a week, and a question about a run is
/// asked within a quarter.
const KEPT: chrono::Duration = chrono::Duration::days(90);
/// How many plans of a subject are kept: comments bind to the newest ones.
const PLANS_KEPT: u32 = 50;
/// How many runs are kept, whatever their age.
const RUNS_KEPT: u32 = 1000;
/// The limit of concurrent readers; SQLite has one writer regardless of this limit.
const CONNECTIONS_MAX: u32 = 4;

/// An error of the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be opened.
    #[error("could not open the store `{path}`")]
    Open {
        /// The file.
        path: String,
        /// The error of SQLite.
        source: sqlx::Error,
    },
    /// The file is of a newer version, or damaged.
    #[error("could not bring the store `{path}` up to date")]
    Migrate {
        /// The file.
        path: String,
        /// The error.
        source: sqlx::migrate::MigrateError,
    },
    /// A statement failed: the disk is full, the file is locked or damaged.
    #[error("could not {attempt}")]
    Statement {
        /// The attempted operation, such as "record a journal entry".
        attempt: &'static str,
        /// The error of SQLite.
        source: sqlx::Error,
    },
    /// A document does not match the schema of this version.
    #[error("could not read a document while trying to {attempt}")]
    Document {
        /// The attempted operation, such as "list runs".
        attempt: &'static str,
        /// The error.
        source: serde_json::Error,
    },
    /// Another holder has taken over.
    #[error("could not {attempt}: another daemon has taken over from `{holder}`, or it never had the lease")]
    Fenced {
        /// The attempted operation, such as "record a journal entry".
        attempt: &'static str,
        /// The holder that attempted the write.
        holder: String,
    },
    /// A journal record that is not legal after the records before.
    #[error(transparent)]
    Illegal(#[from] crate::domain::journal::Illegal),
}

impl Error {
    /// Returns when the same attempt may succeed.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Open { .. } | Self::Statement { .. } => Retry::After(Backoff::REMOTE),
            Self::Migrate { .. } | Self::Document { .. } => Retry::WhenInputChanges,
            Self::Illegal(_) | Self::Fenced { .. } => Retry::Never,
        }
    }
    /// Returns a stable kebab-case name for metrics and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Open { .. } => "store-open",
            Self::Migrate { .. } => "store-migrate",
            Self::Statement { .. } => "store-statement",
            Self::Document { .. } => "store-document",
            Self::Illegal(_) => "journal-illegal",
            Self::Fenced { .. } => "store-fenced",
        }
    }
}

impl From<Error> for TargetError {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Open { .. } => TargetErrorKind::StoreOpen,
            Error::Migrate { .. } => TargetErrorKind::StoreMigrate,
            Error::Statement { .. } => TargetErrorKind::StoreStatement,
            Error::Document { .. } => TargetErrorKind::StoreDocument,
            Error::Illegal(_) => TargetErrorKind::JournalIllegal,
            Error::Fenced { .. } => TargetErrorKind::StoreFenced,
        };
        let mut target_error = TargetError::new(kind, crate::error_chain(&error));
        target_error.retry = error.retry();
        target_error
    }
}

/// The store. Clones share the connections.
#[derive(Clone)]
pub struct Store {
    pool: SqlitePool,
    writer: Arc<lease::Writer>,
    boundary: Option<Arc<dyn Boundary>>,
}

fn statement(attempt: &'static str) -> impl Fn(sqlx::Error) -> Error {
    move |source| Error::Statement { attempt, source }
}

fn encode<T: Serialize>(attempt: &'static str, document: &T) -> Result<String, Error> {
    serde_json::to_string(document).map_err(|source| Error::Document { attempt, source })
}

fn decode<T: DeserializeOwned>(attempt: &'static str, text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|source| Error::Document { attempt, source })
}

fn stamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}

fn parse_stamp(attempt: &'static str, text: &str) -> Result<DateTime<Utc>, Error> {
    DateTime::from_str(text).map_err(|error| Error::Document { attempt, source: serde::de::Error::custom(error) })
}

impl Store {
    /// Opens the store's file, creates the file if necessary, and migrates the file to this version.
    ///
    /// # Errors
    /// When the file can't be opened, is damaged, or is of a newer version.
    pub async fn open(path: &Path) -> Result<Self, Error> {
        let shown = path.display().to_string();
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        // The journal mode persists in the file. Only one connection sets the mode: if two connections of a pool set it
        // concurrently, SQLite fails at once and does not wait.
        let opened = |source| Error::Open { path: shown.clone(), source };
        let first = options.clone().journal_mode(SqliteJournalMode::Wal);
        let first = SqliteConnection::connect_with(&first).await.map_err(opened)?;
        first.close().await.map_err(opened)?;
        Self::connect(options, CONNECTIONS_MAX, &shown).await
    }

    /// Opens a store in memory, for tests and the simulation. This handle holds its lease.
    ///
    /// # Errors
    /// When SQLite refuses, which is a bug.
    pub async fn in_memory() -> Result<Self, Error> {
        let options = SqliteConnectOptions::new().in_memory(true).foreign_keys(true);
        let store = Self::connect(options, 1, ":memory:").await?;
        store.take("memory", DateTime::UNIX_EPOCH, DateTime::UNIX_EPOCH, true).await?;
        Ok(store)
    }

    async fn connect(options: SqliteConnectOptions, connections: u32, path: &str) -> Result<Self, Error> {
        let opened = |source| Error::Open { path: path.to_owned(), source };
        let pool = SqlitePoolOptions::new()
            .max_connections(connections)
            .min_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options)
            .await
            .map_err(opened)?;
        sqlx::migrate!("src/adapters/store/migrations")
            .run(&pool)
            .await
            .map_err(|source| Error::Migrate { path: path.to_owned(), source })?;
        Ok(Self { pool, writer: Arc::default(), boundary: None })
    }

    /// Reads a value by name, or stores the value that `make` returns.
    ///
    /// # Errors
    /// When the store can't be read or written.
    pub async fn meta(&self, name: &str, make: impl FnOnce() -> Vec<u8>) -> Result<Vec<u8>, Error> {
        let attempt = statement("read the store's own values");
        sqlx::query("INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING")
            .bind(name)
            .bind(make())
            .execute(&self.pool)
            .await
            .map_err(&attempt)?;
        let row = sqlx::query("SELECT value FROM meta WHERE name = ?")
            .bind(name)
            .fetch_one(&self.pool)
            .await
            .map_err(&attempt)?;
        Ok(row.get(0))
    }

    /// Returns the key under which secrets enter digests. The key never leaves the store.
    ///
    /// # Errors
    /// When the store can't be read or written.
    pub async fn seal(&self) -> Result<Seal, Error> {
        let fresh = || {
            let mut key = vec![0; 32];
            getrandom::fill(&mut key).expect("the system gives randomness");
            key
        };
        Ok(Seal::new(self.meta("seal", fresh).await?))
    }

    /// Runs the integrity check of SQLite on the file.
    ///
    /// # Errors
    /// When the file can't be read.
    pub async fn check(&self) -> Result<(), Error> {
        let row =
            sqlx::query("PRAGMA quick_check(1)").fetch_one(&self.pool).await.map_err(statement("check the store"))?;
        let answer: String = row.get(0);
        if answer == "ok" {
            Ok(())
        } else {
            Err(Error::Statement { attempt: "check the store", source: sqlx::Error::Protocol(answer) })
        }
    }

    /// Writes a consistent copy of the store, also during concurrent writes.
    ///
    /// # Errors
    /// When the file exists already or can't be written.
    pub async fn copy(&self, file: &Path) -> Result<(), Error> {
        let attempt = "copy the store";
        sqlx::query("VACUUM INTO ?")
            .bind(file.display().to_string())
            .execute(&self.pool)
            .await
            .map_err(statement(attempt))?;
        Ok(())
    }

    /// Deletes records that no query needs any more: inbox and outbox entries handled long ago, all but the newest
    /// plans of a subject, and all but the newest ended runs. Keeps open runs, applied and observed state, and the
    /// audit log.
    ///
    /// # Errors
    /// When the store can't be written; then nothing is deleted.
    pub async fn prune(&self, now: DateTime<Utc>) -> Result<(), Error> {
        let attempt = "forget what is old";
        let old = stamp(now - KEPT);
        let mut writing = self.writing(attempt, None).await?;
        let by_age = [
            // Only webhook deliveries are deleted. A comment stays on its pull request indefinitely, and its commands
            // must not run again.
            "DELETE FROM inbox WHERE received_at < ? AND id LIKE 'delivery/%'",
            "DELETE FROM outbox WHERE sent_at < ?",
            "DELETE FROM records WHERE sort = 'action' AND at < ?",
        ];
        for sql in by_age {
            sqlx::query(sql).bind(&old).execute(&mut *writing.on).await.map_err(statement(attempt))?;
        }
        let plans = "DELETE FROM plans WHERE id IN (SELECT id FROM (SELECT id, row_number() OVER (PARTITION BY subject ORDER BY id DESC) AS place FROM plans) WHERE place > ?)";
        sqlx::query(plans).bind(PLANS_KEPT).execute(&mut *writing.on).await.map_err(statement(attempt))?;
        let runs = "CREATE TEMP TABLE old_runs AS SELECT id FROM runs WHERE ended_at < ?1 AND id NOT IN (SELECT id FROM runs ORDER BY id DESC LIMIT ?2)";
        sqlx::query(runs).bind(&old).bind(RUNS_KEPT).execute(&mut *writing.on).await.map_err(statement(attempt))?;
        for sql in [
            "DELETE FROM journal WHERE run IN (SELECT id FROM old_runs)",
            "DELETE FROM approved WHERE run IN (SELECT id FROM old_runs)",
            "DELETE FROM runs WHERE id IN (SELECT id FROM old_runs)",
            "DROP TABLE old_runs",
        ] {
            sqlx::query(sql).execute(&mut *writing.on).await.map_err(statement(attempt))?;
        }
        writing.commit().await
    }

    /// Closes all connections, so that the file is complete without its write-ahead log.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Stores an incoming document once for each id; returns whether the id is new.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn receive<T: Serialize>(&self, id: &str, at: DateTime<Utc>, document: &T) -> Result<bool, Error> {
        let attempt = "keep what came in";
        let mut writing = self.writing(attempt, None).await?;
        let done =
            sqlx::query("INSERT INTO inbox (id, received_at, document) VALUES (?, ?, ?) ON CONFLICT (id) DO NOTHING")
                .bind(id)
                .bind(stamp(at))
                .bind(encode(attempt, document)?)
                .execute(&mut *writing.on)
                .await
                .map_err(statement(attempt))?;
        writing.commit().await?;
        Ok(done.rows_affected() == 1)
    }

    /// Returns whether an incoming document was handled completely.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn is_handled(&self, id: &str) -> Result<bool, Error> {
        let row = sqlx::query("SELECT 1 FROM inbox WHERE id = ? AND handled_at IS NOT NULL")
            .bind(id)
            .fetch_optional(&self.pool)
            .await
            .map_err(statement("look into the inbox"))?;
        Ok(row.is_some())
    }

    /// Marks an incoming document as handled.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn handled(&self, id: &str, at: DateTime<Utc>) -> Result<(), Error> {
        let attempt = "mark the inbox";
        let mut writing = self.writing(attempt, None).await?;
        sqlx::query("UPDATE inbox SET handled_at = ? WHERE id = ?")
            .bind(stamp(at))
            .bind(id)
            .execute(&mut *writing.on)
            .await
            .map_err(statement(attempt))?;
        writing.commit().await
    }
}
