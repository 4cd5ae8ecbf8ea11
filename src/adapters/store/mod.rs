//! What the daemon remembers: SQLite in WAL mode, one file, one writer at a time.
//!
//! Decides nothing about meaning; keeps documents and the order of the journal. Every write is durable when its call
//! returns (`synchronous = FULL`), and carries its writer's fencing token (`lease`). Never keeps a secret: what is handed in is redacted or sealed.
//! *Race:* two writers: SQLite lets one wait, up to [`BUSY_TIMEOUT`].
//! *Race:* the same delivery twice: the second insert finds the first and says so.

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

/// How long a writer waits for another.
const BUSY_TIMEOUT: Duration = Duration::from_secs(20);
/// How long what is over is kept: a remediation expires in a week, and a question about a run comes within a quarter.
const KEPT: chrono::Duration = chrono::Duration::days(90);
/// How many plans of a subject are kept: comments bind to the last ones.
const PLANS_KEPT: u32 = 50;
/// How many runs are kept, however old.
const RUNS_KEPT: u32 = 1000;
/// How many readers there are at once; SQLite has one writer whatever this is.
const CONNECTIONS_MAX: u32 = 4;

/// What the store could not do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be opened.
    #[error("could not open the store `{path}`")]
    Open {
        /// The file.
        path: String,
        /// What SQLite says.
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
        /// "record a journal entry".
        attempt: &'static str,
        /// What SQLite says.
        source: sqlx::Error,
    },
    /// A document is not what this version expects.
    #[error("could not read a document while trying to {attempt}")]
    Document {
        /// "list runs".
        attempt: &'static str,
        /// The error.
        source: serde_json::Error,
    },
    /// Somebody else has taken over.
    #[error("could not {attempt}: another daemon has taken over from `{holder}`, or it never had the lease")]
    Fenced {
        /// "record a journal entry".
        attempt: &'static str,
        /// As whom it was tried.
        holder: String,
    },
    /// A journal record that can't follow the ones before.
    #[error(transparent)]
    Illegal(#[from] crate::domain::journal::Illegal),
}

impl Error {
    /// When the same attempt may succeed.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Open { .. } | Self::Statement { .. } => Retry::After(Backoff::REMOTE),
            Self::Migrate { .. } | Self::Document { .. } => Retry::WhenInputChanges,
            Self::Illegal(_) | Self::Fenced { .. } => Retry::Never,
        }
    }
    /// A stable word for metrics and JSON.
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
        let mut said = TargetError::new(kind, crate::error_chain(&error));
        said.retry = error.retry();
        said
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
    /// Opens the store's file, makes it where there is none, and brings it up to date.
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
        // The mode stays with the file. It is set by one connection alone, because SQLite refuses it at once, and does
        // not wait, where two of a pool ask for it side by side.
        let opened = |source| Error::Open { path: shown.clone(), source };
        let first = options.clone().journal_mode(SqliteJournalMode::Wal);
        let first = SqliteConnection::connect_with(&first).await.map_err(opened)?;
        first.close().await.map_err(opened)?;
        Self::connect(options, CONNECTIONS_MAX, &shown).await
    }

    /// A store that lives in memory, for tests and the simulated world; its lease is this handle's.
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

    /// Reads a value by name, or keeps the one that is made now.
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

    /// The key under which secrets enter digests; it never leaves the store.
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

    /// Whether the file is whole, as SQLite sees it.
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

    /// Writes a copy of the store as it is at one moment, also while somebody writes to it.
    ///
    /// # Errors
    /// When the file is there already or can't be written.
    pub async fn copy(&self, file: &Path) -> Result<(), Error> {
        let attempt = "copy the store";
        sqlx::query("VACUUM INTO ?")
            .bind(file.display().to_string())
            .execute(&self.pool)
            .await
            .map_err(statement(attempt))?;
        Ok(())
    }

    /// Forgets what nothing can ask for any more: what was handled and said long ago, and all but the newest plans of a
    /// subject and the newest ended runs. What is open, applied or observed stays, and so does the audit.
    ///
    /// # Errors
    /// When the store can't be written; then nothing is forgotten.
    pub async fn prune(&self, now: DateTime<Utc>) -> Result<(), Error> {
        let attempt = "forget what is old";
        let old = stamp(now - KEPT);
        let mut writing = self.writing(attempt, None).await?;
        let by_age = [
            // A comment that was obeyed stands on its pull request for ever, and must not be obeyed again.
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

    /// Ends all connections, so that the file is complete without its log.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Keeps what came in, once for each id; answers whether it is new.
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

    /// Whether something that came in was looked at to its end.
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

    /// Marks something that came in as looked at.
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
