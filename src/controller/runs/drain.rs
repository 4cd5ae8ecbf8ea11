//! Drains nodes of a cluster before the action that removes their host.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    controller::{
        context::Error,
        runs::{Runs, driven::Driven, prepare::Stop},
        source::Head,
        work_queue::{Reason, ReconcileRequest},
    },
    domain::{
        journal::Run,
        plan::{HostedNode, hosts},
    },
    model::{Action, InstanceId, ResourceChange},
    ports::{Fence, Job, ProgressEvent, Relocation, TargetError, TargetErrorKind},
    targets,
};

fn stopped(stop: Stop) -> TargetError {
    match stop {
        Stop::Fails(reason) | Stop::Waits(_, reason) => TargetError::new(TargetErrorKind::Drain, reason.to_string()),
        Stop::Error(error) => TargetError::new(TargetErrorKind::Drain, crate::error_chain(&error)),
        _ => TargetError::new(TargetErrorKind::Drain, "the daemon stops"),
    }
}

impl Runs {
    /// Does the drains that stand among the actions of an instance.
    pub(super) async fn vacate(
        self: &Arc<Self>,
        driven: &Driven,
        run: &Run,
        of_run: &InstanceId,
        (actions, carried): (&[Action], &[HostedNode]),
        fence: Fence,
        progress: &crate::ports::Progress,
    ) -> Result<(), TargetError> {
        let asked: BTreeSet<&str> = (actions.iter())
            .filter(|action| action.r#do == hosts::VACATE)
            .flat_map(|action| action.resources.iter().map(|resource| resource.resource.as_str()))
            .collect();
        let clusters: BTreeSet<&InstanceId> =
            carried.iter().filter(|one| asked.contains(one.resource().as_str())).map(|one| &one.cluster).collect();
        for cluster in clusters {
            let of = |one: &&HostedNode| one.cluster == *cluster && asked.contains(one.resource().as_str());
            let nodes: BTreeSet<String> = carried.iter().filter(of).map(|one| one.node.clone()).collect();
            let failed = |error: Error| error.into_target(TargetErrorKind::Drain);
            let Some(record) = self.context.store.applied(cluster).await.map_err(Error::from).map_err(failed)? else {
                continue;
            };
            // Two hosts of one run may be removed at the same time; their nodes leave a cluster one after the other.
            let drain = self.observer.begin_drain(cluster, of_run).await;
            if self.context.store.lock_instance(cluster, run.id).await.map_err(Error::from).map_err(failed)? != run.id {
                return Err(TargetError::new(
                    TargetErrorKind::Drain,
                    format!("another run works on `{cluster}`; comment `/apply` once it is over"),
                ));
            }
            let mut job = self.observer.applied_job(cluster, &record, &driven.head).await.map_err(failed)?;
            let vacate = nodes.iter().cloned().collect();
            job.relocation = Relocation { only: true, vacate, ..Relocation::default() };
            let suspended = self.source.suspensions(Some(&driven.head)).await.map_err(failed)?;
            if let Some(message) = suspended.instance(cluster) {
                return Err(TargetError::new(
                    TargetErrorKind::Drain,
                    format!("`{cluster}` has to let go of a node first: {message}"),
                ));
            }
            let emptied = self.empty(&driven.head, &job, &nodes, fence, progress).await;
            drop(drain);
            if !run.instances.contains_key(cluster) {
                // No other instance of this run needs it.
                self.context.store.unlock_instance(cluster, run.id).await.map_err(Error::from).map_err(failed)?;
            }
            // Changes since then were not observed.
            self.context.queue.enqueue(ReconcileRequest::Instance(cluster.clone()), Reason::NodeDrained);
            emptied.map_err(|error| TargetError {
                message: format!(
                    "`{cluster}` has to let go of {} first: {}",
                    nodes.iter().cloned().collect::<Vec<_>>().join(", "),
                    error.message
                ),
                ..error
            })?;
        }
        Ok(())
    }

    /// Drains nodes of a cluster and removes them.
    async fn empty(
        self: &Arc<Self>,
        head: &Head,
        job: &Job,
        nodes: &BTreeSet<String>,
        fence: Fence,
        progress: &crate::ports::Progress,
    ) -> Result<(), TargetError> {
        // However what was begun before ended: what is there now counts.
        self.context.target.attach(job, fence, Arc::clone(progress)).await?;
        let (job, mut prepared) = self.prepare_job(head, job).await.map_err(stopped)?;
        // Another cluster than the one that is applied may not have the node, and would call it empty (R1.8).
        let identified = self.observer.identify(&job.instance, &prepared.observation, true).await;
        identified.map_err(|error| error.into_target(TargetErrorKind::Drain))?;
        let kind = targets::kind(&job.target)?;
        let (gone, others): (Vec<&str>, Vec<&str>) = (prepared.observation.changes.iter())
            .filter_map(|change| kind.removed_node(change))
            .partition(|node| nodes.contains(*node));
        if let (Some(node), Some(other)) = (nodes.iter().find(|node| !gone.contains(&&***node)), others.first()) {
            let message = format!(
                "`{node}` is not in the cluster, and `{other}`, which nobody declares, is: look whether they are the same node, and declare it"
            );
            return Err(TargetError {
                retry: crate::model::Retry::WhenInputChanges,
                ..TargetError::new(TargetErrorKind::Drain, message)
            });
        }
        // Other differences there are not part of this run.
        let is_own = |change: &ResourceChange| nodes.iter().any(|node| kind.concerns_node(change, node));
        prepared.observation.changes.retain(is_own);
        if !prepared.observation.changes.is_empty() {
            progress(ProgressEvent::Step(format!("drains {}", nodes.iter().cloned().collect::<Vec<_>>().join(", "))));
            self.context.target.apply(&job, prepared, fence, Arc::clone(progress)).await?;
        }
        // Whatever was done: it counts that nothing is left to do.
        let (_, again) = self.prepare_job(head, &job).await.map_err(stopped)?;
        match again.observation.changes.iter().find(|change| is_own(change)) {
            None => Ok(()),
            Some(left) => Err(TargetError::new(TargetErrorKind::Drain, format!("`{}` is still there", left.resource))),
        }
    }
}
