//! What can be looked at and changed: one folder for each kind of target, each a vertical slice.
//!
//! Decides which slice a job belongs to, and nothing else.
//! *Invariant:* what leaves this room is redacted; a sensitive value travels only as an output's value, in memory.

pub mod lanes;
pub mod probe;
pub mod tofu;

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;

use crate::{
    model::{InstanceId, PullNumber},
    port::{Attached, Fence, Job, Observation, Output, Prepared, Progress, Target, TargetError, Work},
};

/// All kinds of target of this machine.
pub struct Targets {
    tofu: tofu::Tofu,
}

impl Targets {
    /// The targets with their settings.
    pub fn new(tofu: tofu::Tofu) -> Self {
        Self { tofu }
    }
}

#[async_trait]
impl Target for Targets {
    async fn observe(&self, job: &Job) -> Result<Observation, TargetError> {
        match &job.work {
            Work::Tofu(work) => self.tofu.observe(job, work).await,
        }
    }
    async fn prepare(&self, job: &Job) -> Result<Prepared, TargetError> {
        match &job.work {
            Work::Tofu(work) => self.tofu.prepare(job, work).await,
        }
    }
    async fn apply(&self, job: &Job, prepared: Prepared, fence: Fence, progress: Progress) -> Result<(), TargetError> {
        match &job.work {
            Work::Tofu(work) => self.tofu.apply(job, work, prepared, fence, progress).await,
        }
    }
    async fn attach(&self, id: &InstanceId, fence: Fence, progress: Progress) -> Result<Attached, TargetError> {
        self.tofu.attach(id, fence, progress).await
    }
    async fn interrupt(&self, id: &InstanceId) -> Result<bool, TargetError> {
        self.tofu.interrupt(id).await
    }
    async fn take_over(&self) {
        self.tofu.take_over();
    }
    async fn unlock(&self, job: &Job) -> Result<Option<String>, TargetError> {
        match &job.work {
            Work::Tofu(work) => self.tofu.unlock(job, work).await,
        }
    }
    async fn outputs(&self, job: &Job) -> Result<BTreeMap<String, Output>, TargetError> {
        match &job.work {
            Work::Tofu(work) => self.tofu.outputs(job, work).await,
        }
    }
    async fn forget_pull(&self, pull: PullNumber) {
        self.tofu.forget_pull(pull).await;
    }
    async fn rename(&self, from: &InstanceId, to: &InstanceId) -> Result<(), TargetError> {
        self.tofu.rename(from, to)
    }
    async fn let_go(&self, id: &InstanceId) {
        self.tofu.let_go(id);
    }
    async fn probe(&self, http: Option<&str>, tcp: Option<&str>, timeout: Duration) -> Result<(), String> {
        probe::probe(http, tcp, timeout).await
    }
}
