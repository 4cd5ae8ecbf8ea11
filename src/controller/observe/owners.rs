//! Observes targets, and passes the declared owners of contested objects to them.
//!
//! An object belongs to one instance (R1.8). Where a target reports that another instance seems to own an object, or that an
//! object would be deleted, the observation is repeated with the instances of the environment that declare each object.
//! *Invariant:* an object that moves to another instance is not deleted.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    controller::{
        context::Error,
        observe::{Observer, declared_job},
        source::Head,
    },
    domain::{declaration::Instance, message::Refusal},
    ports::{Job, Observation, Owners, Prepared, TargetError, Use},
    targets,
};

impl Observer {
    /// Observes an instance with the credentials of plan.
    ///
    /// # Errors
    /// When the target can't be observed.
    pub(crate) async fn observe_job(self: &Arc<Self>, head: &Head, job: &Job) -> Result<Observation, TargetError> {
        let observation = self.context.target.observe(job).await?;
        if !observation.contested {
            return Ok(observation);
        }
        let job = self.with_owners(head, job).await?;
        self.context.target.observe(&job).await
    }

    /// Plans an instance with the credentials of apply. Returns the planned job.
    ///
    /// # Errors
    /// When the target can't be planned.
    pub(crate) async fn prepare_job_with_owners(
        self: &Arc<Self>,
        head: &Head,
        job: &Job,
    ) -> Result<(Job, Prepared), TargetError> {
        let prepared = self.context.target.prepare(job).await?;
        if !prepared.observation.contested {
            return Ok((job.clone(), prepared));
        }
        let job = self.with_owners(head, job).await?;
        let prepared = self.context.target.prepare(&job).await?;
        Ok((job, prepared))
    }

    /// Returns the job with the objects that every instance of its environment declares in the same cluster.
    /// An instance whose objects are unknown is recorded in [`Owners`].
    pub(crate) async fn with_owners(self: &Arc<Self>, head: &Head, job: &Job) -> Result<Job, TargetError> {
        let mut owners = Owners::default();
        for instance in head.environment(&job.instance.environment).filter(|instance| instance.kind == job.target.kind)
        {
            match self.declared_objects(head, instance, job).await {
                Ok(resources) => {
                    for resource in resources {
                        owners.declared.entry(resource).or_default().insert(instance.id.clone());
                    }
                }
                Err(error) => {
                    tracing::debug!(kind = "owners-unknown", instance = %instance.id, error = crate::error_chain(&error), "the declared resources of an instance are not known");
                    owners.unknown = Some(instance.id.clone());
                }
            }
        }
        let mut job = job.clone();
        job.owners = Some(Arc::new(owners));
        Ok(job)
    }

    /// Returns the objects that an instance declares in the cluster of a job; none if it has another cluster.
    async fn declared_objects(
        self: &Arc<Self>,
        head: &Head,
        instance: &Instance,
        job: &Job,
    ) -> Result<BTreeSet<String>, Error> {
        let target = instance.spec.as_ref().map(|spec| &spec.target);
        let connection = target.and_then(|target| targets::kinds().of(target)?.connection(&target.declared));
        if instance.problems.is_empty() && connection != job.connection {
            return Ok(BTreeSet::new());
        }
        let inputs = self.inputs(head, &instance.id, &instance.references, &BTreeMap::new()).await?;
        if let (Some(reason), _) | (None, Some(reason)) = (
            inputs.waiting_on.first().map(|reason| format!("{reason:?}")),
            instance.problems.first().map(ToString::to_string),
        ) {
            return Err(Error::Refused(Refusal::OwnersUnknown { reason }));
        }
        let other = declared_job(instance, Use::Head, Arc::clone(&head.content), &inputs, false)?;
        Ok(self.context.target.declares(&other).await?)
    }
}
