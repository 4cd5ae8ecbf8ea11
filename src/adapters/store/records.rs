//! Reads and writes the state of instances and the plans.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use sqlx::{Row, SqliteExecutor};

use super::{Error, Store, decode, encode, parse_stamp, stamp, statement};
use crate::{
    domain::plan::{Applied, Observed, Plan},
    model::{Digest, EnvironmentName, InstanceId},
};

/// The kinds of records whose key is the name of an instance.
const OF_INSTANCES: [&str; 5] = ["stalled", "snooze", "identity", "suspended", "reverted"];

/// A time span: its start, and its end if it has ended.
pub type Span = (DateTime<Utc>, Option<DateTime<Utc>>);

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

fn parse_instance(attempt: &'static str, text: &str) -> Result<InstanceId, Error> {
    text.parse().map_err(|error| Error::Document { attempt, source: serde::de::Error::custom(error) })
}

fn decode_instances<T: serde::de::DeserializeOwned>(
    attempt: &'static str,
    rows: &[sqlx::sqlite::SqliteRow],
) -> Result<BTreeMap<InstanceId, T>, Error> {
    rows.iter().map(|row| Ok((parse_instance(attempt, row.get(0))?, decode(attempt, row.get(1))?))).collect()
}

/// Returns the bounds of the names of an environment's instances: `0` follows `/` in the order of SQLite.
fn instances_of(environment: &EnvironmentName) -> (String, String) {
    (format!("{environment}/"), format!("{environment}0"))
}

impl Store {
    /// Returns the applied state of all instances.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn all_applied(&self) -> Result<BTreeMap<InstanceId, Applied>, Error> {
        self.by_instance("SELECT instance, document FROM applied", "list what is applied").await
    }

    /// Returns the last observation of all instances.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn all_observed(&self) -> Result<BTreeMap<InstanceId, Observed>, Error> {
        self.by_instance("SELECT instance, document FROM observations", "list observations").await
    }

    /// Returns the names of the applied instances.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn applied_instances(&self) -> Result<BTreeSet<InstanceId>, Error> {
        let attempt = "list what is applied";
        let rows =
            sqlx::query("SELECT instance FROM applied").fetch_all(&self.pool).await.map_err(statement(attempt))?;
        rows.iter().map(|row| parse_instance(attempt, row.get(0))).collect()
    }

    /// Returns the applied state of the instances of an environment.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn applied_in(&self, environment: &EnvironmentName) -> Result<BTreeMap<InstanceId, Applied>, Error> {
        self.in_environment(
            "SELECT instance, document FROM applied WHERE instance >= ? AND instance < ?",
            "list what is applied",
            environment,
        )
        .await
    }

    /// Returns the applied state of the instances of one kind in an environment, declared or not.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn applied_of_kind(
        &self,
        environment: &EnvironmentName,
        kind: &str,
    ) -> Result<BTreeMap<InstanceId, Applied>, Error> {
        let attempt = "list what is applied";
        let sql = "SELECT instance, document FROM applied WHERE instance >= ? AND instance < ? AND json_extract(document, '$.spec.' || ?) IS NOT NULL";
        let (from, to) = instances_of(environment);
        let rows = sqlx::query(sql).bind(from).bind(to).bind(kind).fetch_all(&self.pool).await;
        decode_instances(attempt, &rows.map_err(statement(attempt))?)
    }

    /// Returns the last observations of the instances of an environment.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn observed_in(&self, environment: &EnvironmentName) -> Result<BTreeMap<InstanceId, Observed>, Error> {
        self.in_environment(
            "SELECT instance, document FROM observations WHERE instance >= ? AND instance < ?",
            "list observations",
            environment,
        )
        .await
    }

    async fn in_environment<T: serde::de::DeserializeOwned>(
        &self,
        sql: &'static str,
        attempt: &'static str,
        environment: &EnvironmentName,
    ) -> Result<BTreeMap<InstanceId, T>, Error> {
        let (from, to) = instances_of(environment);
        let rows = sqlx::query(sql).bind(from).bind(to).fetch_all(&self.pool).await.map_err(statement(attempt))?;
        decode_instances(attempt, &rows)
    }

    /// Returns the applied state of one instance.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn applied(&self, id: &InstanceId) -> Result<Option<Applied>, Error> {
        self.of_instance("SELECT document FROM applied WHERE instance = ?", "read what is applied", id).await
    }

    /// Returns the last observation of one instance.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn observed(&self, id: &InstanceId) -> Result<Option<Observed>, Error> {
        self.of_instance("SELECT document FROM observations WHERE instance = ?", "read an observation", id).await
    }

    async fn of_instance<T: serde::de::DeserializeOwned>(
        &self,
        sql: &'static str,
        attempt: &'static str,
        id: &InstanceId,
    ) -> Result<Option<T>, Error> {
        let row = sqlx::query(sql).bind(id.to_string()).fetch_optional(&self.pool).await.map_err(statement(attempt))?;
        row.map(|row| decode(attempt, row.get(0))).transpose()
    }

    async fn by_instance<T: serde::de::DeserializeOwned>(
        &self,
        sql: &'static str,
        attempt: &'static str,
    ) -> Result<BTreeMap<InstanceId, T>, Error> {
        let rows = sqlx::query(sql).fetch_all(&self.pool).await.map_err(statement(attempt))?;
        decode_instances(attempt, &rows)
    }

    /// Records the applied state of an instance.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn set_applied(&self, id: &InstanceId, applied: &Applied) -> Result<(), Error> {
        let mut writing = self.writing("record what is applied", Some(&id.environment)).await?;
        set_applied(&mut *writing.on, id, applied).await?;
        writing.commit().await
    }

    /// Records a new applied state with its first observation, and clears the stalled state of the instance.
    ///
    /// # Errors
    /// When the store can't be written; then nothing is recorded.
    pub async fn advance(&self, id: &InstanceId, applied: &Applied, observed: &Observed) -> Result<(), Error> {
        let attempt = "record what is applied";
        let mut writing = self.writing(attempt, Some(&id.environment)).await?;
        set_applied(&mut *writing.on, id, applied).await?;
        set_observed(&mut *writing.on, id, observed).await?;
        sqlx::query("DELETE FROM records WHERE sort = 'stalled' AND name = ?")
            .bind(id.to_string())
            .execute(&mut *writing.on)
            .await
            .map_err(statement(attempt))?;
        sqlx::query("UPDATE had_applied SET until = ?1 WHERE instance = ?2 AND until IS NULL AND digest <> ?3")
            .bind(stamp(applied.at))
            .bind(id.to_string())
            .bind(String::from(applied.digest))
            .execute(&mut *writing.on)
            .await
            .map_err(statement(attempt))?;
        sqlx::query(
            "INSERT INTO had_applied (instance, digest, since) SELECT ?1, ?2, ?3
             WHERE NOT EXISTS (SELECT 1 FROM had_applied WHERE instance = ?1 AND digest = ?2 AND until IS NULL)",
        )
        .bind(id.to_string())
        .bind(String::from(applied.digest))
        .bind(stamp(applied.at))
        .execute(&mut *writing.on)
        .await
        .map_err(statement(attempt))?;
        writing.commit().await
    }

    /// Returns the spans in which an instance had a component digest applied, the newest first. The current span has
    /// no end.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn had_applied(&self, id: &InstanceId, digest: Digest) -> Result<Vec<Span>, Error> {
        let attempt = "read what was applied";
        let rows =
            sqlx::query("SELECT since, until FROM had_applied WHERE instance = ? AND digest = ? ORDER BY since DESC")
                .bind(id.to_string())
                .bind(String::from(digest))
                .fetch_all(&self.pool)
                .await
                .map_err(statement(attempt))?;
        let span = |row: &sqlx::sqlite::SqliteRow| -> Result<Span, Error> {
            let until: Option<String> = row.get(1);
            Ok((parse_stamp(attempt, row.get(0))?, until.map(|until| parse_stamp(attempt, &until)).transpose()?))
        };
        rows.iter().map(span).collect()
    }

    /// Deletes the state of an instance that was destroyed or forgotten. The record that it was applied remains.
    ///
    /// # Errors
    /// When the store can't be written; then nothing is deleted.
    pub async fn let_go(&self, id: &InstanceId, now: DateTime<Utc>) -> Result<(), Error> {
        let attempt = "forget an instance";
        let mut writing = self.writing(attempt, Some(&id.environment)).await?;
        let sorts = OF_INSTANCES.map(|sort| format!("'{sort}'")).join(", ");
        let records = format!("DELETE FROM records WHERE sort IN ({sorts}) AND name = ?");
        for sql in [
            "DELETE FROM applied WHERE instance = ?",
            "DELETE FROM observations WHERE instance = ?",
            "DELETE FROM begun WHERE instance = ?",
        ] {
            sqlx::query(sql).bind(id.to_string()).execute(&mut *writing.on).await.map_err(statement(attempt))?;
        }
        sqlx::query(sqlx::AssertSqlSafe(records))
            .bind(id.to_string())
            .execute(&mut *writing.on)
            .await
            .map_err(statement(attempt))?;
        sqlx::query("UPDATE had_applied SET until = ? WHERE instance = ? AND until IS NULL")
            .bind(stamp(now))
            .bind(id.to_string())
            .execute(&mut *writing.on)
            .await
            .map_err(statement(attempt))?;
        writing.commit().await
    }

    /// Moves the state of an instance to another name.
    ///
    /// # Errors
    /// When the store can't be written; then nothing is moved.
    pub async fn rename(&self, from: &InstanceId, to: &InstanceId) -> Result<(), Error> {
        let attempt = "rename an instance";
        let mut writing = self.writing(attempt, Some(&from.environment)).await?;
        let sorts = OF_INSTANCES.map(|sort| format!("'{sort}'")).join(", ");
        let tables = ["applied", "observations", "begun", "had_applied"]
            .map(|table| format!("UPDATE OR REPLACE {table} SET instance = ?2 WHERE instance = ?1"));
        let records = format!("UPDATE OR REPLACE records SET name = ?2 WHERE sort IN ({sorts}) AND name = ?1");
        // The same transaction moves the ownership of the target. Otherwise the target would seem to belong to another
        // instance.
        let owner =
            "UPDATE records SET document = json_quote(?2) WHERE sort = 'identity-of' AND document = json_quote(?1)"
                .to_owned();
        for sql in tables.into_iter().chain([records, owner]) {
            sqlx::query(sqlx::AssertSqlSafe(sql))
                .bind(from.to_string())
                .bind(to.to_string())
                .execute(&mut *writing.on)
                .await
                .map_err(statement(attempt))?;
        }
        writing.commit().await
    }

    /// Restarts the soak time of an instance: the time for which it has been healthy with its applied state.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn restart_soak(&self, id: &InstanceId, now: DateTime<Utc>) -> Result<(), Error> {
        let attempt = "record that an instance is not healthy";
        let mut writing = self.writing(attempt, Some(&id.environment)).await?;
        sqlx::query("UPDATE had_applied SET since = ? WHERE instance = ? AND until IS NULL")
            .bind(stamp(now))
            .bind(id.to_string())
            .execute(&mut *writing.on)
            .await
            .map_err(statement(attempt))?;
        writing.commit().await
    }

    /// Records an observation and replaces the previous one.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn set_observed(&self, id: &InstanceId, observed: &Observed) -> Result<(), Error> {
        let mut writing = self.writing("record an observation", Some(&id.environment)).await?;
        set_observed(&mut *writing.on, id, observed).await?;
        writing.commit().await
    }

    /// Stores a plan that was shown about a subject, unless the last plan of the subject is equal; returns whether
    /// the plan is new.
    ///
    /// # Errors
    /// When the store can't be read or written.
    pub async fn record_plan(&self, subject: &str, plan: &Plan, at: DateTime<Utc>) -> Result<bool, Error> {
        let attempt = "keep a plan";
        if let Some((last, _)) = self.last_plan(subject, None).await?
            && last.digest == plan.digest
        {
            let problems =
                |plan: &Plan| plan.instances.iter().map(|instance| instance.problem.clone()).collect::<Vec<_>>();
            if problems(&last) != problems(plan) {
                // The plan has the same effect, and only the problems of its instances differ.
                let mut writing = self.writing(attempt, None).await?;
                sqlx::query("UPDATE plans SET document = ? WHERE id = (SELECT max(id) FROM plans WHERE subject = ?)")
                    .bind(encode(attempt, plan)?)
                    .bind(subject)
                    .execute(&mut *writing.on)
                    .await
                    .map_err(statement(attempt))?;
                writing.commit().await?;
            }
            return Ok(false);
        }
        let mut writing = self.writing(attempt, None).await?;
        sqlx::query("INSERT INTO plans (subject, digest, planned_at, document) VALUES (?, ?, ?, ?)")
            .bind(subject)
            .bind(plan.digest.to_string())
            .bind(stamp(at))
            .bind(encode(attempt, plan)?)
            .execute(&mut *writing.on)
            .await
            .map_err(statement(attempt))?;
        writing.commit().await?;
        Ok(true)
    }

    /// Returns the plan about a subject that was stored last, before a time if one is given.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn last_plan(
        &self,
        subject: &str,
        before: Option<DateTime<Utc>>,
    ) -> Result<Option<(Plan, DateTime<Utc>)>, Error> {
        let attempt = "read a plan";
        let row = sqlx::query(
            "SELECT document, planned_at FROM plans WHERE subject = ? AND planned_at <= ? ORDER BY id DESC LIMIT 1",
        )
        .bind(subject)
        .bind(before.map_or_else(|| "9".to_owned(), stamp))
        .fetch_optional(&self.pool)
        .await
        .map_err(statement(attempt))?;
        row.map(|row| Ok((decode(attempt, row.get(0))?, parse_stamp(attempt, row.get(1))?))).transpose()
    }

    /// Returns plans whose digest begins with a prefix, newest first.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn plans(&self, limit: u32) -> Result<Vec<(String, Plan, DateTime<Utc>)>, Error> {
        let attempt = "list plans";
        let rows = sqlx::query("SELECT subject, document, planned_at FROM plans ORDER BY id DESC LIMIT ?")
            .bind(limit)
            .fetch_all(&self.pool)
            .await
            .map_err(statement(attempt))?;
        rows.iter()
            .map(|row| Ok((row.get(0), decode(attempt, row.get(1))?, parse_stamp(attempt, row.get(2))?)))
            .collect()
    }
}
