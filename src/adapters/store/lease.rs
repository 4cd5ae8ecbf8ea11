//! Implements the lease, its fencing tokens and the transaction of every write of a daemon (R7.3).
//!
//! One lease covers the whole store, and one lease covers each environment. Each lease has a token that grows
//! when its holder changes. A daemon that takes over takes all leases in one transaction. Every write of the
//! store first reads the token of its lease, in the same transaction. The store refuses the write if that token
//! is no longer the writer's.
//! *Race:* a holder was suspended, another daemon took over, and the first one resumes: the store refuses each of
//! its writes, regardless of its clock. *Race:* two daemons take over at once: SQLite serialises them, and the
//! second finds the lease of the first.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use sqlx::{
    Connection, Row, Sqlite, SqliteConnection, Transaction,
    sqlite::{SqliteConnectOptions, SqliteSynchronous},
};

use super::{BUSY_TIMEOUT, Error, Store, parse_stamp, stamp, statement};
use crate::{
    model::EnvironmentName,
    ports::{Boundary, CrashPoint},
};

/// The lease over data that belongs to no environment: comments, the inbox, the audit log.
const ALL: &str = "*";

/// The identity under which a handle of the store writes.
#[derive(Debug, Default)]
pub(super) struct Writer {
    holder: Mutex<String>,
    tokens: Mutex<BTreeMap<String, i64>>,
}

/// The lease over the whole store, as recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The name of the holder.
    pub holder: String,
    /// The fencing token.
    pub token: i64,
    /// The time at which the lease expires unless its holder renews it.
    pub expires_at: DateTime<Utc>,
}

/// A write transaction whose token is valid from its beginning to its end.
pub(super) struct Writing {
    pub(super) on: Transaction<'static, Sqlite>,
    /// The token of the lease that covers the write.
    pub(super) token: i64,
    attempt: &'static str,
    boundary: Option<Arc<dyn Boundary>>,
}

impl Writing {
    /// Commits the transaction.
    pub(super) async fn commit(self) -> Result<(), Error> {
        let attempt = self.attempt;
        self.commit_as(attempt).await
    }

    /// Commits the transaction and reports `what` as the name of the crash point.
    pub(super) async fn commit_as(self, what: &str) -> Result<(), Error> {
        self.on.commit().await.map_err(statement(self.attempt))?;
        if let Some(boundary) = &self.boundary {
            boundary.pass(CrashPoint::AfterWrite, what).await;
        }
        Ok(())
    }
}

impl Store {
    /// Takes the lease over the whole store for this handle. Succeeds if the lease is free, expired, already held by
    /// `holder`, or held by a process that is known to be dead. Returns the token, or `None` if another holder has a
    /// valid lease.
    ///
    /// # Errors
    /// When the store can't be read or written.
    pub async fn take(
        &self,
        holder: &str,
        now: DateTime<Utc>,
        until: DateTime<Utc>,
        holder_is_dead: bool,
    ) -> Result<Option<i64>, Error> {
        let attempt = "take the lease";
        let mut on = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(statement(attempt))?;
        let row = sqlx::query("SELECT holder, expires_at FROM leases WHERE environment = ?")
            .bind(ALL)
            .fetch_optional(&mut *on)
            .await
            .map_err(statement(attempt))?;
        let free = match &row {
            None => true,
            Some(row) if row.get::<String, _>(0) == holder => true,
            Some(row) => holder_is_dead || parse_stamp(attempt, row.get(1))? <= now,
        };
        if !free {
            return Ok(None);
        }
        sqlx::query("INSERT INTO leases (environment, holder, token, expires_at) VALUES (?, '', 0, ?) ON CONFLICT (environment) DO NOTHING")
            .bind(ALL)
            .bind(stamp(until))
            .execute(&mut *on)
            .await
            .map_err(statement(attempt))?;
        sqlx::query("UPDATE leases SET token = token + (holder <> ?1), holder = ?1, expires_at = ?2")
            .bind(holder)
            .bind(stamp(until))
            .execute(&mut *on)
            .await
            .map_err(statement(attempt))?;
        let rows = sqlx::query("SELECT environment, token FROM leases")
            .fetch_all(&mut *on)
            .await
            .map_err(statement(attempt))?;
        on.commit().await.map_err(statement(attempt))?;
        let tokens: BTreeMap<String, i64> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let token = tokens.get(ALL).copied();
        *self.writer.holder.lock() = holder.to_owned();
        *self.writer.tokens.lock() = tokens;
        Ok(token)
    }

    /// Extends this handle's lease.
    ///
    /// # Errors
    /// [`Error::Fenced`] when another holder has taken over; else when the store can't be written.
    pub async fn renew(&self, until: DateTime<Utc>) -> Result<(), Error> {
        let attempt = "renew the lease";
        let mut writing = self.writing(attempt, None).await?;
        sqlx::query("UPDATE leases SET expires_at = ? WHERE holder = ?")
            .bind(stamp(until))
            .bind(self.holder())
            .execute(&mut *writing.on)
            .await
            .map_err(statement(attempt))?;
        writing.commit().await
    }

    /// Returns the lease over the whole store, or `None` if no daemon ever took it.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn lease(&self) -> Result<Option<Lease>, Error> {
        let attempt = "read the lease";
        let row = sqlx::query("SELECT holder, token, expires_at FROM leases WHERE environment = ?")
            .bind(ALL)
            .fetch_optional(&self.pool)
            .await
            .map_err(statement(attempt))?;
        let read = |row: sqlx::sqlite::SqliteRow| {
            Ok(Lease { holder: row.get(0), token: row.get(1), expires_at: parse_stamp(attempt, row.get(2))? })
        };
        row.map(read).transpose()
    }

    /// Returns the fencing token of an environment under which this handle acts.
    ///
    /// # Errors
    /// [`Error::Fenced`] when another holder has taken over; else when the store can't be read or written.
    pub async fn token(&self, environment: &EnvironmentName) -> Result<i64, Error> {
        let writing = self.writing("take the lease", Some(environment)).await?;
        let token = writing.token;
        writing.on.commit().await.map_err(statement("take the lease"))?;
        Ok(token)
    }

    /// Returns whether a token is the current token of an environment.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn is_in_force(&self, environment: &EnvironmentName, token: i64) -> Result<bool, Error> {
        let attempt = "read the lease";
        let mut connection = self.pool.acquire().await.map_err(statement(attempt))?;
        Ok(token_of(&mut connection, environment.as_str()).await.map_err(statement(attempt))? == Some(token))
    }

    /// Begins a write to data of an environment, or of none.
    pub(super) async fn writing(
        &self,
        attempt: &'static str,
        environment: Option<&EnvironmentName>,
    ) -> Result<Writing, Error> {
        let scope = environment.map_or(ALL, EnvironmentName::as_str);
        let mut on = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(statement(attempt))?;
        let mine = |scope: &str| self.writer.tokens.lock().get(scope).copied();
        let mut token = token_of(&mut on, scope).await.map_err(statement(attempt))?;
        if token.is_none() && scope != ALL {
            // The holder of the lease over the whole store may create the lease of an environment.
            let all = token_of(&mut on, ALL).await.map_err(statement(attempt))?;
            if all.is_none() || all != mine(ALL) {
                return Err(self.fenced(attempt));
            }
            let new = "INSERT INTO leases (environment, holder, token, expires_at) SELECT ?1, holder, 1, expires_at FROM leases WHERE environment = ?2";
            sqlx::query(new).bind(scope).bind(ALL).execute(&mut *on).await.map_err(statement(attempt))?;
            self.writer.tokens.lock().insert(scope.to_owned(), 1);
            token = Some(1);
        }
        match token {
            Some(token) if mine(scope) == Some(token) => {
                Ok(Writing { on, token, attempt, boundary: self.boundary.clone() })
            }
            _ => Err(self.fenced(attempt)),
        }
    }

    fn fenced(&self, attempt: &'static str) -> Error {
        Error::Fenced { attempt, holder: self.holder() }
    }

    fn holder(&self) -> String {
        self.writer.holder.lock().clone()
    }

    /// Returns another handle of the same store. The handle has no lease yet, and `boundary` may interrupt its
    /// writes.
    pub fn another(&self, boundary: Option<Arc<dyn Boundary>>) -> Self {
        Self { pool: self.pool.clone(), writer: Arc::default(), boundary }
    }
}

async fn token_of(on: &mut SqliteConnection, environment: &str) -> Result<Option<i64>, sqlx::Error> {
    let row =
        sqlx::query("SELECT token FROM leases WHERE environment = ?").bind(environment).fetch_optional(on).await?;
    Ok(row.map(|row| row.get(0)))
}

/// Reads the current token of an environment from a store's file, for a process that does not open the store
/// otherwise.
///
/// # Errors
/// When the file can't be read.
pub async fn token_in(file: &Path, environment: &str) -> Result<Option<i64>, Error> {
    let opened = |source| Error::Open { path: file.display().to_string(), source };
    let options =
        SqliteConnectOptions::new().filename(file).synchronous(SqliteSynchronous::Full).busy_timeout(BUSY_TIMEOUT);
    let mut connection = SqliteConnection::connect_with(&options).await.map_err(opened)?;
    let token = token_of(&mut connection, environment).await.map_err(opened)?;
    connection.close().await.map_err(opened)?;
    Ok(token)
}
