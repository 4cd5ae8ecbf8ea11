//! Implements the inventory port: stores records on behalf of the targets.

use async_trait::async_trait;
use sqlx::Row;

use super::{Error, Store, stamp, statement};
use crate::{
    model::InstanceId,
    ports::{InventoryStore, InventoryStoreError},
};

/// The kind under which inventory records are stored.
const SORT: &str = "inventory";

impl Store {
    async fn keep_text(&self, id: &InstanceId, text: Option<&str>) -> Result<(), Error> {
        let attempt = "keep an inventory";
        let mut writing = self.writing(attempt, Some(&id.environment)).await?;
        let query = match text {
            Some(text) => sqlx::query("INSERT INTO records (sort, name, at, document) VALUES (?, ?, ?, ?) ON CONFLICT (sort, name) DO UPDATE SET at = excluded.at, document = excluded.document")
                .bind(SORT)
                .bind(id.to_string())
                .bind(stamp(chrono::Utc::now()))
                .bind(text),
            None => sqlx::query("DELETE FROM records WHERE sort = ? AND name = ?").bind(SORT).bind(id.to_string()),
        };
        query.execute(&mut *writing.on).await.map_err(statement(attempt))?;
        writing.commit().await
    }
}

#[async_trait]
impl InventoryStore for Store {
    async fn kept(&self, id: &InstanceId) -> Result<Option<String>, InventoryStoreError> {
        let attempt = "read an inventory";
        let query =
            sqlx::query("SELECT document FROM records WHERE sort = ? AND name = ?").bind(SORT).bind(id.to_string());
        let row = query.fetch_optional(&self.pool).await.map_err(statement(attempt));
        Ok(row.map_err(|error| InventoryStoreError(crate::error_chain(&error)))?.map(|row| row.get(0)))
    }
    async fn keep(&self, id: &InstanceId, text: Option<&str>) -> Result<(), InventoryStoreError> {
        self.keep_text(id, text).await.map_err(|error| InventoryStoreError(crate::error_chain(&error)))
    }
}
