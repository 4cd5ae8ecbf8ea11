//! Passes each job to the adapter of its kind of target.
//!
//! Each kind has one folder, a vertical slice; `kind.rs` lists the kinds.
//! *Invariant:* all text that leaves this module is redacted. A sensitive value leaves it only as the value of an
//! output, in memory.

pub mod citus;
pub mod concurrency;
#[cfg(test)]
mod file;
mod kind;
pub mod kubernetes;
pub mod opentofu;
pub mod probe;
mod worktree;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use async_trait::async_trait;
use futures::future::select_all;

pub use kind::{Kind, kind, kinds};

use crate::{
    model::{InstanceId, PullNumber},
    ports::{
        Attached, Fence, Health, Job, Observation, Output, Prepared, Progress, TargetAdapter, TargetError,
        TargetErrorKind,
    },
};

/// The adapters of all kinds of target.
pub struct Targets {
    adapters: BTreeMap<&'static str, Arc<dyn TargetAdapter>>,
}

impl Targets {
    /// Creates the dispatcher for the adapters of these kinds.
    pub fn new(adapters: impl IntoIterator<Item = (Kind, Arc<dyn TargetAdapter>)>) -> Self {
        Self { adapters: adapters.into_iter().map(|(kind, adapter)| (kind.answers().name(), adapter)).collect() }
    }

    /// Returns the adapter of a job.
    fn adapter(&self, job: &Job) -> Result<&Arc<dyn TargetAdapter>, TargetError> {
        self.adapters.get(job.target.kind.as_str()).ok_or_else(|| {
            let message = format!("`{}` is a target of kind `{}`, which is not set up", job.instance, job.target.kind);
            TargetError::new(TargetErrorKind::Unsupported, message)
        })
    }
}

#[async_trait]
impl TargetAdapter for Targets {
    async fn observe(&self, job: &Job) -> Result<Observation, TargetError> {
        self.adapter(job)?.observe(job).await
    }
    async fn prepare(&self, job: &Job) -> Result<Prepared, TargetError> {
        self.adapter(job)?.prepare(job).await
    }
    async fn apply(&self, job: &Job, prepared: Prepared, fence: Fence, progress: Progress) -> Result<(), TargetError> {
        self.adapter(job)?.apply(job, prepared, fence, progress).await
    }
    async fn health(&self, job: &Job) -> Result<Health, TargetError> {
        self.adapter(job)?.health(job).await
    }
    async fn changed(&self) -> InstanceId {
        select_all(self.adapters.values().map(|adapter| adapter.changed())).await.0
    }
    fn is_suspect(&self, id: &InstanceId) -> bool {
        self.adapters.values().any(|adapter| adapter.is_suspect(id))
    }
    async fn declares(&self, job: &Job) -> Result<BTreeSet<String>, TargetError> {
        self.adapter(job)?.declares(job).await
    }
    async fn attach(&self, job: &Job, fence: Fence, progress: Progress) -> Result<Attached, TargetError> {
        self.adapter(job)?.attach(job, fence, progress).await
    }
    async fn interrupt(&self, id: &InstanceId) -> Result<bool, TargetError> {
        for adapter in self.adapters.values() {
            if adapter.interrupt(id).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }
    async fn take_over(&self) {
        for adapter in self.adapters.values() {
            adapter.take_over().await;
        }
    }
    async fn unlock(&self, job: &Job) -> Result<Option<String>, TargetError> {
        self.adapter(job)?.unlock(job).await
    }
    async fn outputs(&self, job: &Job) -> Result<BTreeMap<String, Output>, TargetError> {
        self.adapter(job)?.outputs(job).await
    }
    async fn restore_point(&self, job: &Job, name: &str) -> Result<String, TargetError> {
        self.adapter(job)?.restore_point(job, name).await
    }
    async fn forget_pull(&self, pull: PullNumber) {
        for adapter in self.adapters.values() {
            adapter.forget_pull(pull).await;
        }
    }
    async fn rename(&self, from: &InstanceId, to: &InstanceId) -> Result<(), TargetError> {
        for adapter in self.adapters.values() {
            adapter.rename(from, to).await?;
        }
        Ok(())
    }
    async fn release(&self, id: &InstanceId) {
        for adapter in self.adapters.values() {
            adapter.release(id).await;
        }
    }
}
