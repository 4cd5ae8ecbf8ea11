//! Implements the target adapter: passes each job on with the work that it describes.

use async_trait::async_trait;

use super::{Citus, work::CitusWork};
use crate::{
    model::InstanceId,
    ports::{Attached, Fence, Job, Observation, Prepared, Progress, TargetAdapter, TargetError},
};

#[async_trait]
impl TargetAdapter for Citus {
    async fn observe(&self, job: &Job) -> Result<Observation, TargetError> {
        self.observe_work(job, &CitusWork::new(job)?).await
    }
    async fn prepare(&self, job: &Job) -> Result<Prepared, TargetError> {
        self.prepare_work(job, &CitusWork::new(job)?).await
    }
    async fn apply(&self, job: &Job, prepared: Prepared, fence: Fence, progress: Progress) -> Result<(), TargetError> {
        self.apply_work(job, &CitusWork::new(job)?, prepared, fence, progress).await
    }
    async fn changed(&self) -> InstanceId {
        self.watches.changed().await
    }
    async fn attach(&self, job: &Job, _fence: Fence, progress: Progress) -> Result<Attached, TargetError> {
        self.wait_for_effect(job, progress).await
    }
    async fn interrupt(&self, id: &InstanceId) -> Result<bool, TargetError> {
        Ok(self.interrupt_effect(id))
    }
    async fn restore_point(&self, job: &Job, name: &str) -> Result<String, TargetError> {
        self.create_restore_point(job, name).await
    }
    async fn rename(&self, from: &InstanceId, to: &InstanceId) -> Result<(), TargetError> {
        self.rename_records(from, to).await
    }
    async fn release(&self, id: &InstanceId) {
        self.watches.forget(id);
        if let Err(error) = self.store.keep(id, None).await {
            tracing::warn!(kind = "records-not-removed", instance = %id, %error, "the records of a cluster could not be removed");
        }
    }
}
