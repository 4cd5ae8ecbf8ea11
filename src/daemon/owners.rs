//! Looks at the world through the target, with what only the daemon knows: which instance declares what.
//!
//! An object belongs to one instance (R1.8). Where a target finds one that another instance seems to have, or that this
//! one is about to delete, it is told which instances of the environment declare it, and looks again: what moves to
//! another instance is not deleted on the way.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Daemon, Error, Head, inputs::declared_job};
use crate::port::{Job, Observation, Owners, Prepared, TargetError, Use, Work};

impl Daemon {
    /// Looks at an instance with the credentials of plan.
    pub(super) async fn look_at_job(self: &Arc<Self>, head: &Head, job: &Job) -> Result<Observation, TargetError> {
        let observation = self.hands.target.observe(job).await?;
        if !observation.contested {
            return Ok(observation);
        }
        let job = self.with_owners(head, job).await?;
        self.hands.target.observe(&job).await
    }

    /// Plans an instance with the credentials of apply; answers the job as it was looked at.
    pub(super) async fn prepare_with_owners(
        self: &Arc<Self>,
        head: &Head,
        job: &Job,
    ) -> Result<(Job, Prepared), TargetError> {
        let prepared = self.hands.target.prepare(job).await?;
        if !prepared.observation.contested {
            return Ok((job.clone(), prepared));
        }
        let job = self.with_owners(head, job).await?;
        let prepared = self.hands.target.prepare(&job).await?;
        Ok((job, prepared))
    }

    /// The job, with what every instance of its environment declares in the same cluster.
    async fn with_owners(self: &Arc<Self>, head: &Head, job: &Job) -> Result<Job, TargetError> {
        let mut owners = Owners::new();
        for instance in head.environment(&job.instance.environment).filter(|instance| instance.kind == job.work.kind())
        {
            let refused = |error: Error| match error {
                Error::Target(error) => error,
                other => TargetError::new("record", crate::error_chain(&other)),
            };
            let inputs =
                self.inputs(head, &instance.id, &instance.references, &BTreeMap::new()).await.map_err(refused)?;
            if !inputs.waiting_on.is_empty() || !instance.problems.is_empty() {
                continue;
            }
            let other = declared_job(instance, Use::Head, Arc::clone(&head.content), &inputs, false)?;
            if other.connection != job.connection {
                continue;
            }
            for resource in self.hands.target.declares(&other).await? {
                owners.entry(resource).or_insert_with(BTreeSet::new).insert(instance.id.clone());
            }
        }
        let mut job = job.clone();
        if let Work::Kubernetes(work) = &mut job.work {
            work.owners = Some(Arc::new(owners));
        }
        Ok(job)
    }
}
