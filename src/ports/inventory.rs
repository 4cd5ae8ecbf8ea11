//! Defines the port through which a target stores its inventory.

use async_trait::async_trait;

use crate::model::InstanceId;

/// Stores one text per instance for its target. A write replaces the whole text.
#[async_trait]
pub trait InventoryStore: Send + Sync {
    /// Returns the stored inventory, if there is one.
    ///
    /// # Errors
    /// When the inventory can't be read.
    async fn kept(&self, id: &InstanceId) -> Result<Option<String>, InventoryStoreError>;
    /// Stores a text durably; `None` deletes the stored text.
    ///
    /// # Errors
    /// When the text can't be written, or another daemon owns the lease of the instance.
    async fn keep(&self, id: &InstanceId, text: Option<&str>) -> Result<(), InventoryStoreError>;
}

/// The error of an inventory store.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct InventoryStoreError(pub String);

impl From<InventoryStoreError> for super::TargetError {
    fn from(error: InventoryStoreError) -> Self {
        Self::new(super::TargetErrorKind::Store, error.0)
    }
}
