//! Drains nodes of a cluster before the action that removes their host.
//!
//! *Invariant:* only the requested nodes are drained; other differences of the cluster remain.
//! *Race:* two hosts of one run are removed at the same time: the drains of one cluster run one after the other. *Race:*
//! another run has the lock of the cluster: the drain is refused.

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

fn drain_error_of(stop: Stop) -> TargetError {
    match stop {
        Stop::Fails(reason) | Stop::Waits(_, reason) => TargetError::new(TargetErrorKind::Drain, reason.to_string()),
        Stop::Error(error) => TargetError::new(TargetErrorKind::Drain, crate::error_chain(&error)),
        _ => TargetError::new(TargetErrorKind::Drain, "the daemon stops"),
    }
}

impl Runs {
    /// Executes the drain actions of an instance.
    ///
    /// # Errors
    /// When a cluster is locked or suspended, or a node can't be drained.
    pub(super) async fn drain_hosted_nodes(
        self: &Arc<Self>,
        driven: &Driven,
        run: &Run,
        host: &InstanceId,
        (actions, hosted_nodes): (&[Action], &[HostedNode]),
        fence: Fence,
        progress: &crate::ports::Progress,
    ) -> Result<(), TargetError> {
        let requested: BTreeSet<&str> = (actions.iter())
            .filter(|action| action.r#do == hosts::VACATE)
            .flat_map(|action| action.resources.iter().map(|resource| resource.resource.as_str()))
            .collect();
        let clusters: BTreeSet<&InstanceId> = hosted_nodes
            .iter()
            .filter(|node| requested.contains(node.resource().as_str()))
            .map(|node| &node.cluster)
            .collect();
        for cluster in clusters {
            let is_requested =
                |node: &&HostedNode| node.cluster == *cluster && requested.contains(node.resource().as_str());
            let nodes: BTreeSet<String> =
                hosted_nodes.iter().filter(is_requested).map(|node| node.node.clone()).collect();
            let drain_error = |error: Error| error.into_target(TargetErrorKind::Drain);
            let Some(record) = self.context.store.applied(cluster).await.map_err(Error::from).map_err(drain_error)?
            else {
                continue;
            };
            // A run may remove two hosts at the same time; a cluster drains one host after the other.
            let drain = self.observer.begin_drain(cluster, host).await;
            if self.context.store.lock_instance(cluster, run.id).await.map_err(Error::from).map_err(drain_error)?
                != run.id
            {
                return Err(TargetError::new(
                    TargetErrorKind::Drain,
                    format!("another run works on `{cluster}`; comment `/apply` once it is over"),
                ));
            }
            let mut job = self.observer.applied_job(cluster, &record, &driven.head).await.map_err(drain_error)?;
            let vacate = nodes.iter().cloned().collect();
            job.relocation = Relocation { only: true, vacate, ..Relocation::default() };
            let suspended =
                self.source.suspensions(Some(&driven.head)).await.map_err(Error::from).map_err(drain_error)?;
            if let Some(message) = suspended.instance(cluster) {
                return Err(TargetError::new(
                    TargetErrorKind::Drain,
                    format!("`{cluster}` has to release a node first: {message}"),
                ));
            }
            let drained = self.drain_nodes(&driven.head, &job, &nodes, fence, progress).await;
            drop(drain);
            if !run.instances.contains_key(cluster) {
                // No instance of this run needs the run lock of the cluster any more.
                self.context.store.unlock_instance(cluster, run.id).await.map_err(Error::from).map_err(drain_error)?;
            }
            // Drift checks of the cluster were postponed during the drain.
            self.context.queue.enqueue(ReconcileRequest::Instance(cluster.clone()), Reason::NodeDrained);
            drained.map_err(|error| TargetError {
                message: format!(
                    "`{cluster}` has to release {} first: {}",
                    nodes.iter().cloned().collect::<Vec<_>>().join(", "),
                    error.message
                ),
                ..error
            })?;
        }
        Ok(())
    }

    /// Drains nodes of a cluster and removes them.
    async fn drain_nodes(
        self: &Arc<Self>,
        head: &Head,
        job: &Job,
        nodes: &BTreeSet<String>,
        fence: Fence,
        progress: &crate::ports::Progress,
    ) -> Result<(), TargetError> {
        // The outcome of an earlier drain does not matter: the observation below decides.
        self.context.target.attach(job, fence, Arc::clone(progress)).await?;
        let (job, mut prepared) = self.prepare_job(head, job).await.map_err(drain_error_of)?;
        // A cluster with another identity may not have the node, and would report an empty node (R1.8).
        let identified = self.observer.identify(&job.instance, &prepared.observation, true).await;
        identified.map_err(|error| error.into_target(TargetErrorKind::Drain))?;
        let kind = targets::kind(&job.target)?;
        let (removed, unrelated): (Vec<&str>, Vec<&str>) = (prepared.observation.changes.iter())
            .filter_map(|change| kind.removed_node(change))
            .partition(|node| nodes.contains(*node));
        if let (Some(node), Some(unrelated_node)) =
            (nodes.iter().find(|node| !removed.contains(&&***node)), unrelated.first())
        {
            let message = format!(
                "`{node}` is not in the cluster, and `{unrelated_node}`, which is not declared, is: check whether both are the same node, and declare it"
            );
            return Err(TargetError {
                retry: crate::model::Retry::WhenInputChanges,
                ..TargetError::new(TargetErrorKind::Drain, message)
            });
        }
        // Other differences there are not part of this run.
        let is_requested = |change: &ResourceChange| nodes.iter().any(|node| kind.concerns_node(change, node));
        prepared.observation.changes.retain(is_requested);
        if !prepared.observation.changes.is_empty() {
            progress(ProgressEvent::Step(format!("drains {}", nodes.iter().cloned().collect::<Vec<_>>().join(", "))));
            self.context.target.apply(&job, prepared, fence, Arc::clone(progress)).await?;
        }
        // The drain is complete only when a new plan shows no change of the nodes.
        let (_, verified) = self.prepare_job(head, &job).await.map_err(drain_error_of)?;
        match verified.observation.changes.iter().find(|change| is_requested(change)) {
            None => Ok(()),
            Some(remaining) => {
                Err(TargetError::new(TargetErrorKind::Drain, format!("`{}` is still there", remaining.resource)))
            }
        }
    }
}
