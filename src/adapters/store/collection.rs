//! Reads and writes typed documents by kind and key.
//!
//! Each kind of document is a type that implements [`Record`]. A collection reads and writes the documents of one
//! kind.

use std::marker::PhantomData;

use chrono::{DateTime, Utc};
use serde::{Serialize, de::DeserializeOwned};
use sqlx::Row;

use super::{Error, Store, decode, encode, stamp, statement};
use crate::model::{Digest, InstanceId, PullNumber};

/// A kind of document. The store records the kind and the form of the key, so both never change.
pub trait Record: Serialize + DeserializeOwned + Send + Sync {
    /// The stored name of the kind.
    const KIND: &'static str;
    /// The key of a document of this kind.
    type Key: RecordKey;
}

/// A key of a document, with its stored form.
pub trait RecordKey: Sized + Send + Sync {
    /// Returns the stored form.
    fn encode(&self) -> String;
    /// Parses a stored form; `None` if the text is not a key of this kind.
    fn decode(text: &str) -> Option<Self>;
}

impl RecordKey for String {
    fn encode(&self) -> String {
        self.clone()
    }
    fn decode(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
}

impl RecordKey for InstanceId {
    fn encode(&self) -> String {
        self.to_string()
    }
    fn decode(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl RecordKey for PullNumber {
    fn encode(&self) -> String {
        self.0.to_string()
    }
    fn decode(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }
}

impl RecordKey for Digest {
    fn encode(&self) -> String {
        self.to_string()
    }
    fn decode(text: &str) -> Option<Self> {
        text.to_owned().try_into().ok()
    }
}

/// The documents of one kind.
pub struct Collection<'s, R> {
    store: &'s Store,
    kind: PhantomData<R>,
}

impl Store {
    /// Returns the collection of a kind.
    pub fn collection<R: Record>(&self) -> Collection<'_, R> {
        Collection { store: self, kind: PhantomData }
    }
}

const UPSERT: &str = "INSERT INTO records (sort, name, at, document) VALUES (?, ?, ?, ?) ON CONFLICT (sort, name) DO UPDATE SET at = excluded.at, document = excluded.document";

impl<R: Record> Collection<'_, R> {
    /// Returns the document of a key.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn get(&self, key: &R::Key) -> Result<Option<R>, Error> {
        let attempt = "read a record";
        let row = sqlx::query("SELECT document FROM records WHERE sort = ? AND name = ?")
            .bind(R::KIND)
            .bind(key.encode())
            .fetch_optional(&self.store.pool)
            .await
            .map_err(statement(attempt))?;
        row.map(|row| decode(attempt, row.get(0))).transpose()
    }

    /// Returns all documents of the kind, in the order of the stored keys. Skips keys that do not parse.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn all(&self) -> Result<Vec<(R::Key, R)>, Error> {
        let attempt = "list records";
        let rows = sqlx::query("SELECT name, document FROM records WHERE sort = ? ORDER BY name")
            .bind(R::KIND)
            .fetch_all(&self.store.pool)
            .await
            .map_err(statement(attempt))?;
        let keyed = rows.iter().filter_map(|row| Some((R::Key::decode(row.get(0))?, row)));
        keyed.map(|(key, row)| Ok((key, decode(attempt, row.get(1))?))).collect()
    }

    /// Stores a document and replaces the previous one.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn put(&self, key: &R::Key, at: DateTime<Utc>, document: &R) -> Result<(), Error> {
        let attempt = "keep a record";
        let mut writing = self.store.writing(attempt, None).await?;
        let insert = sqlx::query(UPSERT).bind(R::KIND).bind(key.encode()).bind(stamp(at));
        insert.bind(encode(attempt, document)?).execute(&mut *writing.on).await.map_err(statement(attempt))?;
        writing.commit().await
    }

    /// Replaces a document with the result of `change` and returns the previous and the new document. Both steps
    /// share one transaction, so no other write happens between the read and the write.
    ///
    /// # Errors
    /// When the store can't be read or written; then nothing is changed.
    pub async fn update(
        &self,
        key: &R::Key,
        at: DateTime<Utc>,
        change: impl FnOnce(Option<&R>) -> R + Send,
    ) -> Result<(Option<R>, R), Error> {
        let attempt = "keep a record";
        let mut writing = self.store.writing(attempt, None).await?;
        let row = sqlx::query("SELECT document FROM records WHERE sort = ? AND name = ?")
            .bind(R::KIND)
            .bind(key.encode())
            .fetch_optional(&mut *writing.on)
            .await
            .map_err(statement(attempt))?;
        let before: Option<R> = row.map(|row| decode(attempt, row.get(0))).transpose()?;
        let after = change(before.as_ref());
        let insert = sqlx::query(UPSERT).bind(R::KIND).bind(key.encode()).bind(stamp(at));
        insert.bind(encode(attempt, &after)?).execute(&mut *writing.on).await.map_err(statement(attempt))?;
        writing.commit().await?;
        Ok((before, after))
    }

    /// Stores the document that `decide` returns for all documents of the kind, in one transaction. Of two concurrent
    /// callers, the second reads the document of the first.
    ///
    /// # Errors
    /// When the store can't be read or written. An error of `decide` is returned, and nothing is stored.
    pub async fn put_among<E>(
        &self,
        key: &R::Key,
        at: DateTime<Utc>,
        decide: impl FnOnce(&[(R::Key, R)]) -> Result<R, E> + Send,
    ) -> Result<Result<(), E>, Error> {
        let attempt = "keep a record";
        let mut writing = self.store.writing(attempt, None).await?;
        let rows = sqlx::query("SELECT name, document FROM records WHERE sort = ? ORDER BY name")
            .bind(R::KIND)
            .fetch_all(&mut *writing.on)
            .await
            .map_err(statement(attempt))?;
        let keyed = rows.iter().filter_map(|row| Some((R::Key::decode(row.get(0))?, row)));
        let all = keyed.map(|(key, row)| Ok((key, decode(attempt, row.get(1))?))).collect::<Result<Vec<_>, Error>>()?;
        let document = match decide(&all) {
            Ok(document) => document,
            Err(error) => return Ok(Err(error)),
        };
        let insert = sqlx::query(UPSERT).bind(R::KIND).bind(key.encode()).bind(stamp(at));
        insert.bind(encode(attempt, &document)?).execute(&mut *writing.on).await.map_err(statement(attempt))?;
        writing.commit().await.map(Ok)
    }

    /// Removes a document.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn remove(&self, key: &R::Key) -> Result<(), Error> {
        let attempt = "remove a record";
        let mut writing = self.store.writing(attempt, None).await?;
        sqlx::query("DELETE FROM records WHERE sort = ? AND name = ?")
            .bind(R::KIND)
            .bind(key.encode())
            .execute(&mut *writing.on)
            .await
            .map_err(statement(attempt))?;
        writing.commit().await
    }
}
