//! Implements the target adapter: passes each job on with the work that it describes.

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::{Tofu, work::TofuWork};
use crate::{
    model::{InstanceId, PullNumber},
    ports::{Attached, Fence, Job, Observation, Output, Prepared, Progress, TargetAdapter, TargetError},
};

#[async_trait]
impl TargetAdapter for Tofu {
    async fn observe(&self, job: &Job) -> Result<Observation, TargetError> {
        self.observe_work(job, &TofuWork::new(job)?).await
    }
    async fn prepare(&self, job: &Job) -> Result<Prepared, TargetError> {
        self.prepare_work(job, &TofuWork::new(job)?).await
    }
    async fn apply(&self, job: &Job, prepared: Prepared, fence: Fence, progress: Progress) -> Result<(), TargetError> {
        self.apply_work(job, &TofuWork::new(job)?, prepared, fence, progress).await
    }
    async fn attach(&self, job: &Job, fence: Fence, progress: Progress) -> Result<Attached, TargetError> {
        self.attach_process(&job.instance, fence, progress).await
    }
    async fn interrupt(&self, id: &InstanceId) -> Result<bool, TargetError> {
        self.interrupt_process(id).await
    }
    async fn take_over(&self) {
        self.remove_leftovers();
    }
    async fn unlock(&self, job: &Job) -> Result<Option<String>, TargetError> {
        self.unlock_state(job, &TofuWork::new(job)?).await
    }
    async fn outputs(&self, job: &Job) -> Result<BTreeMap<String, Output>, TargetError> {
        self.read_outputs(job, &TofuWork::new(job)?).await
    }
    async fn forget_pull(&self, pull: PullNumber) {
        self.remove_pull(pull).await;
    }
    async fn rename(&self, from: &InstanceId, to: &InstanceId) -> Result<(), TargetError> {
        self.rename_folders(from, to)
    }
    async fn release(&self, id: &InstanceId) {
        self.remove_work_tree(id);
    }
}
