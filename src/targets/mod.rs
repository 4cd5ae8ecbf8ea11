//! What can be looked at and changed: one folder for each kind of target, each a vertical slice.
//!
//! Decides which slice a job belongs to, and nothing else.
//! *Invariant:* what leaves this room is redacted; a sensitive value travels only as an output's value, in memory.

pub mod citus;
pub mod concurrency;
pub mod kubernetes;
pub mod opentofu;
pub mod probe;
mod worktree;

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;

use crate::{
    model::{Action, Drift, InstanceId, PullNumber},
    ports::{
        Attached, Fence, Health, Job, Observation, Output, Prepared, Progress, Target, TargetError, TargetErrorKind,
        Work,
    },
};

/// All kinds of target of this machine.
pub struct Targets {
    tofu: opentofu::Tofu,
    kubernetes: kubernetes::Kubernetes,
    citus: citus::Citus,
}

impl Targets {
    /// The targets with their settings.
    pub fn new(tofu: opentofu::Tofu, kubernetes: kubernetes::Kubernetes, citus: citus::Citus) -> Self {
        Self { tofu, kubernetes, citus }
    }
}

/// How the world differs from what was applied, as an observation of it shows.
pub fn drift(work: &Work, observation: &Observation) -> Vec<Drift> {
    match work {
        Work::Tofu(_) => opentofu::drift::of(observation),
        Work::Kubernetes(_) => kubernetes::drift::of(observation),
        Work::Citus(_) => citus::drift::of(observation),
    }
}

/// Returns the plan for an observation.
pub fn actions(work: &Work, id: &InstanceId, observation: &Observation) -> Vec<Action> {
    match work {
        Work::Tofu(_) => opentofu::plan::actions(id, observation),
        Work::Kubernetes(_) => kubernetes::plan::actions(id, observation),
        Work::Citus(_) => citus::plan::actions(id, observation),
    }
}

/// Returns the values that an adoption would declare.
pub fn refresh(work: &Work, id: &InstanceId, observation: &Observation) -> Vec<Action> {
    match work {
        Work::Tofu(_) => {
            let changes = opentofu::drift::refreshes(&observation.adopt_only);
            opentofu::plan::actions(id, &Observation { changes, serial: observation.serial, ..Observation::default() })
        }
        Work::Kubernetes(_) | Work::Citus(_) => vec![],
    }
}

#[async_trait]
impl Target for Targets {
    async fn observe(&self, job: &Job) -> Result<Observation, TargetError> {
        match &job.work {
            Work::Tofu(work) => self.tofu.observe(job, work).await,
            Work::Kubernetes(work) => self.kubernetes.observe(job, work).await,
            Work::Citus(work) => self.citus.observe(job, work).await,
        }
    }
    async fn prepare(&self, job: &Job) -> Result<Prepared, TargetError> {
        match &job.work {
            Work::Tofu(work) => self.tofu.prepare(job, work).await,
            Work::Kubernetes(work) => self.kubernetes.prepare(job, work).await,
            Work::Citus(work) => self.citus.prepare(job, work).await,
        }
    }
    async fn apply(&self, job: &Job, prepared: Prepared, fence: Fence, progress: Progress) -> Result<(), TargetError> {
        match &job.work {
            Work::Tofu(work) => self.tofu.apply(job, work, prepared, fence, progress).await,
            Work::Kubernetes(work) => self.kubernetes.apply(job, work, prepared, fence, progress).await,
            Work::Citus(work) => self.citus.apply(job, work, prepared, fence, progress).await,
        }
    }
    async fn health(&self, job: &Job) -> Result<Health, TargetError> {
        match &job.work {
            Work::Tofu(_) | Work::Citus(_) => Ok(Health::Current),
            Work::Kubernetes(work) => self.kubernetes.health(job, work).await,
        }
    }
    async fn changed(&self) -> InstanceId {
        tokio::select! {
            id = self.kubernetes.changed() => id,
            id = self.citus.changed() => id,
        }
    }
    fn is_suspect(&self, id: &InstanceId) -> bool {
        self.kubernetes.is_suspect(id)
    }
    async fn declares(&self, job: &Job) -> Result<Vec<String>, TargetError> {
        match &job.work {
            Work::Tofu(_) | Work::Citus(_) => Ok(vec![]),
            Work::Kubernetes(work) => self.kubernetes.declares(job, work).await,
        }
    }
    async fn attach(&self, job: &Job, fence: Fence, progress: Progress) -> Result<Attached, TargetError> {
        match &job.work {
            Work::Citus(_) => self.citus.attach(job, progress).await,
            Work::Tofu(_) | Work::Kubernetes(_) => self.tofu.attach(&job.instance, fence, progress).await,
        }
    }
    async fn interrupt(&self, id: &InstanceId) -> Result<bool, TargetError> {
        Ok(self.citus.interrupt(id) || self.tofu.interrupt(id).await?)
    }
    async fn take_over(&self) {
        self.tofu.take_over();
    }
    async fn unlock(&self, job: &Job) -> Result<Option<String>, TargetError> {
        match &job.work {
            Work::Tofu(work) => self.tofu.unlock(job, work).await,
            // Nothing is locked there: each object says itself whether it is the one that was looked at.
            Work::Kubernetes(_) => Ok(None),
            // Its locks end with the sessions that hold them.
            Work::Citus(_) => Ok(None),
        }
    }
    async fn outputs(&self, job: &Job) -> Result<BTreeMap<String, Output>, TargetError> {
        match &job.work {
            Work::Tofu(work) => self.tofu.outputs(job, work).await,
            Work::Kubernetes(_) | Work::Citus(_) => Ok(BTreeMap::new()),
        }
    }
    async fn restore_point(&self, job: &Job, name: &str) -> Result<String, TargetError> {
        match &job.work {
            Work::Citus(_) => self.citus.restore_point(job, name).await,
            _ => {
                Err(TargetError::new(TargetErrorKind::Unsupported, format!("`{}` has no restore points", job.instance)))
            }
        }
    }
    async fn forget_pull(&self, pull: PullNumber) {
        self.tofu.forget_pull(pull).await;
    }
    async fn rename(&self, from: &InstanceId, to: &InstanceId) -> Result<(), TargetError> {
        self.tofu.rename(from, to)?;
        if self.citus.rename(from, to).await? {
            return Ok(());
        }
        self.kubernetes.rename(from, to).await
    }
    async fn let_go(&self, id: &InstanceId) {
        self.tofu.let_go(id);
        self.citus.let_go(id);
        self.kubernetes.let_go(id).await;
    }
    async fn probe(&self, http: Option<&str>, tcp: Option<&str>, timeout: Duration) -> Result<(), String> {
        probe::probe(http, tcp, timeout).await
    }
}
