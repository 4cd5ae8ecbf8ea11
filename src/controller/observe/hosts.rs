//! Which nodes of applied clusters run on an instance, and the drains that have to precede its actions.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    controller::{
        context::Error,
        observe::{Observer, inputs::declared_nodes},
        source::Head,
    },
    domain::{
        declaration::{Reference, resolve, schema::Nodes},
        plan::{HostedNode, hosts},
    },
    model::{Action, Change, InstanceId},
    ports::{Observation, TargetError, TargetErrorKind, Work},
};

/// The output of an instance that a list of nodes is made from, and whether the list says what carries them.
fn said(nodes: &Nodes, id: &InstanceId) -> (Option<Reference>, bool) {
    let nodes = serde_json::to_value(nodes).unwrap_or_default();
    let mut found = BTreeSet::new();
    resolve::references(&nodes, &mut found);
    let reference = found.into_iter().find(|reference| reference.component == id.component);
    (reference, nodes.to_string().contains("runsOn"))
}

impl Observer {
    /// The actions of an instance with the drains that have to come before them, and the nodes that it may carry.
    ///
    /// # Errors
    /// When it is not known what would be taken away: a target's error.
    pub(crate) async fn with_drain_actions(
        self: &Arc<Self>,
        head: &Head,
        id: &InstanceId,
        actions: Vec<Action>,
        observation: &Observation,
    ) -> Result<(Vec<Action>, Vec<HostedNode>), Error> {
        let takes = |change: Change| matches!(change, Change::Destroy | Change::Replace | Change::Update);
        if !actions.iter().flat_map(|action| &action.resources).any(|resource| takes(resource.change)) {
            return Ok((actions, vec![]));
        }
        let refused = |why| TargetError {
            retry: crate::model::Retry::WhenInputChanges,
            ..TargetError::new(TargetErrorKind::CarrierUnknown, why)
        };
        if hosts::may_remove_hosts(&actions)
            && let Some(cluster) = self.unapplied_cluster(head, id, observation).await?
        {
            let why = format!(
                "`{cluster}` may run on what `{id}` would take away, and what its nodes run on was never applied, so that none would be drained first; apply `{cluster}` before, and take away in a pull request that comes after"
            );
            return Err(refused(why).into());
        }
        let carried = self.carried(head, id, observation).await?;
        if carried.is_empty() {
            return Ok((actions, carried));
        }
        let drains = hosts::drain_actions(id, &hosts::removed_hosts(&carried, &actions).map_err(refused)?);
        Ok((drains.into_iter().chain(actions).collect(), carried))
    }

    /// A declared cluster that an instance may carry, while nothing that was applied says which of its nodes.
    async fn unapplied_cluster(
        &self,
        head: &Head,
        id: &InstanceId,
        observation: &Observation,
    ) -> Result<Option<InstanceId>, Error> {
        // What is just being made carries nothing yet, and may have to be made again.
        let is_new = self.context.store.applied(id).await?.is_none();
        if is_new && (!observation.holds_anything || self.context.store.begun(id).await?) {
            return Ok(None);
        }
        for cluster in head.environment(&id.environment).filter(|one| one.kind == "citus") {
            let Some(nodes) = cluster.spec.as_ref().and_then(|spec| spec.citus.as_ref()?.nodes.as_ref()) else {
                continue;
            };
            let message = |nodes: &Nodes| {
                let (reference, says_what_carries) = said(nodes, id);
                says_what_carries || reference.is_some()
            };
            let record = self.context.store.applied(&cluster.id).await?;
            let agreed = record.as_ref().and_then(|record| record.spec.citus.as_ref()?.nodes.as_ref());
            let is_never = match agreed {
                _ if record.is_none() => message(nodes) || cluster.upstreams.contains(id),
                agreed => message(nodes) && !agreed.is_some_and(message),
            };
            if is_never {
                return Ok(Some(cluster.id.clone()));
            }
        }
        Ok(None)
    }

    /// The nodes of applied clusters that an instance may carry.
    async fn carried(
        self: &Arc<Self>,
        head: &Head,
        id: &InstanceId,
        observation: &Observation,
    ) -> Result<Vec<HostedNode>, Error> {
        let mut carried = vec![];
        // Clusters that are no longer declared included: what runs on them still does.
        for (cluster, record) in self.context.store.applied_of_kind(&id.environment, "citus").await? {
            let Some(nodes) = record.spec.citus.as_ref().and_then(|citus| citus.nodes.as_ref()) else { continue };
            let (reference, says_what_carries) = said(nodes, id);
            let (direct, is_output) = (reference.is_some(), matches!(nodes, Nodes::Output(_)));
            let reference = reference.filter(|_| is_output);
            if !direct && !says_what_carries && !is_output {
                continue;
            }
            let job = self.applied_job(&cluster, &record, head).await?;
            let Work::Citus(work) = &job.work else { continue };
            // The list after the plan, if it is known.
            let planned = reference.and_then(|reference| {
                let name = reference.key.split('.').next().unwrap_or_default();
                declared_nodes(observation.outputs.get(name)?.value.as_ref()?).ok()
            });
            for node in work.nodes.iter().flatten().filter(|node| direct || node.runs_on.is_some()) {
                let stays =
                    |nodes: &Vec<_>| nodes.iter().any(|one: &crate::ports::DeclaredNode| one.address == node.address);
                carried.push(HostedNode {
                    node: node.address.to_string(),
                    cluster: cluster.clone(),
                    by: node.runs_on.clone(),
                    vanishes: planned.as_ref().is_some_and(|nodes| !stays(nodes)),
                });
            }
        }
        Ok(carried)
    }
}
