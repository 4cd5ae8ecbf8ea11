//! Implements the target adapter: passes each job on with the work that it describes.

use std::collections::BTreeSet;

use async_trait::async_trait;

use super::{Kubernetes, work::KubernetesWork};
use crate::{
    model::InstanceId,
    ports::{Fence, Health, Job, Observation, Prepared, Progress, TargetAdapter, TargetError},
};

#[async_trait]
impl TargetAdapter for Kubernetes {
    async fn observe(&self, job: &Job) -> Result<Observation, TargetError> {
        self.observe_work(job, &KubernetesWork::new(job)?).await
    }
    async fn prepare(&self, job: &Job) -> Result<Prepared, TargetError> {
        self.prepare_work(job, &KubernetesWork::new(job)?).await
    }
    async fn apply(&self, job: &Job, prepared: Prepared, fence: Fence, progress: Progress) -> Result<(), TargetError> {
        self.apply_work(job, &KubernetesWork::new(job)?, prepared, fence, progress).await
    }
    async fn health(&self, job: &Job) -> Result<Health, TargetError> {
        self.health_of_work(job, &KubernetesWork::new(job)?).await
    }
    async fn changed(&self) -> InstanceId {
        self.watches.changed().await
    }
    fn is_suspect(&self, id: &InstanceId) -> bool {
        !self.watches.suspects(id).is_empty()
    }
    async fn declares(&self, job: &Job) -> Result<BTreeSet<String>, TargetError> {
        self.declared_objects(job, &KubernetesWork::new(job)?).await
    }
    async fn release(&self, id: &InstanceId) {
        self.forget(id).await;
    }
}
