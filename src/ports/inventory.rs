//! What a target asks to be remembered for it.

use async_trait::async_trait;

use crate::model::InstanceId;

/// Remembers one text for each instance, for the target alone; what is there is replaced as a whole.
#[async_trait]
pub trait InventoryStore: Send + Sync {
    /// Returns the stored inventory, if there is one.
    ///
    /// # Errors
    /// When it can't be read.
    async fn kept(&self, id: &InstanceId) -> Result<Option<String>, InventoryStoreError>;
    /// Keeps a text, durably; nothing in its place lets go of it.
    ///
    /// # Errors
    /// When it can't be written, or somebody else is responsible for the instance now.
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
