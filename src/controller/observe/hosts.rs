//! Which nodes of applied clusters run on an instance, and the drains that have to precede its actions.

use crate::domain::message::observation::NotObservable;
use std::{collections::BTreeSet, sync::Arc};

use serde_json::Value;

use crate::{
    controller::{context::Error, observe::Observer, source::Head},
    domain::{
        declaration::{Reference, resolve, schema::Component},
        kind::DeclaredNode,
        plan::{HostedNode, hosts},
    },
    model::{Action, Change, InstanceId},
    ports::{Observation, TargetError, TargetErrorKind},
    targets,
};

/// The output of an instance that a list of nodes is made from, and whether the list names hosts.
fn mentions(nodes: &Value, id: &InstanceId) -> (Option<Reference>, bool) {
    let mut found = BTreeSet::new();
    resolve::references(nodes, &mut found);
    let reference = found.into_iter().find(|reference| reference.component == id.component);
    (reference, nodes.to_string().contains("runsOn"))
}

/// The list of nodes of a declaration.
fn nodes(spec: &Component) -> Option<&Value> {
    targets::kinds().of(&spec.target)?.nodes(&spec.target.declared)
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
            let reason = NotObservable::HostsUnknown { cluster, id: id.clone() };
            return Err(refused(reason.to_string()).into());
        }
        let carried = self.carried(head, id, observation).await?;
        if carried.is_empty() {
            return Ok((actions, carried));
        }
        let drains = hosts::drain_actions(
            id,
            &hosts::removed_hosts(&carried, &actions).map_err(|violation| refused(violation.to_string()))?,
        );
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
        for cluster in head.environment(&id.environment) {
            let Some(declared) = cluster.spec.as_deref().and_then(nodes) else { continue };
            let is_related = |nodes: &Value| {
                let (reference, names_hosts) = mentions(nodes, id);
                names_hosts || reference.is_some()
            };
            let record = self.context.store.applied(&cluster.id).await?;
            let agreed = record.as_ref().and_then(|record| nodes(&record.spec));
            let is_never = match agreed {
                _ if record.is_none() => is_related(declared) || cluster.upstreams.contains(id),
                agreed => is_related(declared) && !agreed.is_some_and(is_related),
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
        for kind in targets::kinds().iter().filter(|kind| kind.lists_nodes()) {
            for (cluster, record) in self.context.store.applied_of_kind(&id.environment, kind.name()).await? {
                let Some(nodes) = nodes(&record.spec) else { continue };
                let (reference, names_hosts) = mentions(nodes, id);
                let (direct, is_output) = (reference.is_some(), nodes.is_string());
                let reference = reference.filter(|_| is_output);
                if !direct && !names_hosts && !is_output {
                    continue;
                }
                let job = self.applied_job(&cluster, &record, head).await?;
                let Some(listed) = kind.nodes(&job.target.declared) else { continue };
                let listed = kind.read_nodes(listed).map_err(|why| TargetError {
                    retry: crate::model::Retry::WhenInputChanges,
                    ..TargetError::new(
                        TargetErrorKind::InputWrong,
                        NotObservable::Nodes(cluster.clone(), why).to_string(),
                    )
                })?;
                // The list after the plan, if it is known.
                let planned = reference.and_then(|reference| {
                    let name = reference.key.split('.').next().unwrap_or_default();
                    kind.read_nodes(observation.outputs.get(name)?.value.as_ref()?).ok()
                });
                for node in listed.iter().filter(|node| direct || node.runs_on.is_some()) {
                    let stays = |nodes: &Vec<DeclaredNode>| nodes.iter().any(|known| known.address == node.address);
                    carried.push(HostedNode {
                        node: node.address.clone(),
                        cluster: cluster.clone(),
                        by: node.runs_on.clone(),
                        vanishes: planned.as_ref().is_some_and(|nodes| !stays(nodes)),
                    });
                }
            }
        }
        Ok(carried)
    }
}
