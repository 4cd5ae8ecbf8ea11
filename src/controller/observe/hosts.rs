//! Finds the nodes of clusters that run on an instance, and the drains that precede its actions.
//!
//! *Invariant:* an action that may remove a host is refused while the nodes on that host are unknown.

use std::{collections::BTreeSet, sync::Arc};

use serde_json::Value;

use crate::{
    controller::{context::Error, observe::Observer, source::Head},
    domain::{
        declaration::{Reference, resolve, schema::Component},
        kind::DeclaredNode,
        message::observation::NotObservable,
        plan::{HostedNode, hosts},
    },
    model::{Action, Change, InstanceId},
    ports::{Observation, TargetError, TargetErrorKind},
    targets,
};

/// Returns the reference of a list of nodes to an output of an instance, and whether the list names hosts.
fn mentions(nodes: &Value, id: &InstanceId) -> (Option<Reference>, bool) {
    let mut found = BTreeSet::new();
    resolve::references(nodes, &mut found);
    let reference = found.into_iter().find(|reference| reference.component == id.component);
    (reference, nodes.to_string().contains("runsOn"))
}

/// Returns the list of nodes of a declaration.
fn nodes(spec: &Component) -> Option<&Value> {
    targets::kinds().of(&spec.target)?.nodes(&spec.target.declared)
}

impl Observer {
    /// Returns the actions of an instance after the drains that they need, and the nodes that may run on the instance.
    ///
    /// # Errors
    /// When the nodes that the actions would remove are unknown, as an error of the target.
    pub(crate) async fn with_drain_actions(
        self: &Arc<Self>,
        head: &Head,
        id: &InstanceId,
        actions: Vec<Action>,
        observation: &Observation,
    ) -> Result<(Vec<Action>, Vec<HostedNode>), Error> {
        let may_remove = |change: Change| matches!(change, Change::Destroy | Change::Replace | Change::Update);
        if !actions.iter().flat_map(|action| &action.resources).any(|resource| may_remove(resource.change)) {
            return Ok((actions, vec![]));
        }
        let refused = |reason| TargetError {
            retry: crate::model::Retry::WhenInputChanges,
            ..TargetError::new(TargetErrorKind::CarrierUnknown, reason)
        };
        if hosts::may_remove_hosts(&actions)
            && let Some(cluster) = self.unapplied_cluster(head, id, observation).await?
        {
            let reason = NotObservable::HostsUnknown { cluster, id: id.clone() };
            return Err(refused(reason.to_string()).into());
        }
        let hosted_nodes = self.hosted_nodes(head, id, observation).await?;
        if hosted_nodes.is_empty() {
            return Ok((actions, hosted_nodes));
        }
        let drains = hosts::drain_actions(
            id,
            &hosts::removed_hosts(&hosted_nodes, &actions).map_err(|violation| refused(violation.to_string()))?,
        );
        Ok((drains.into_iter().chain(actions).collect(), hosted_nodes))
    }

    /// Returns a declared cluster whose nodes may run on an instance, where no applied cluster lists its nodes.
    async fn unapplied_cluster(
        &self,
        head: &Head,
        id: &InstanceId,
        observation: &Observation,
    ) -> Result<Option<InstanceId>, Error> {
        // No node runs on an instance that is being created, and it may have to be replaced.
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
            let applied_nodes = record.as_ref().and_then(|record| nodes(&record.spec));
            let is_unapplied = match applied_nodes {
                _ if record.is_none() => is_related(declared) || cluster.upstreams.contains(id),
                applied_nodes => is_related(declared) && !applied_nodes.is_some_and(is_related),
            };
            if is_unapplied {
                return Ok(Some(cluster.id.clone()));
            }
        }
        Ok(None)
    }

    /// Returns the nodes of applied clusters that may run on an instance.
    async fn hosted_nodes(
        self: &Arc<Self>,
        head: &Head,
        id: &InstanceId,
        observation: &Observation,
    ) -> Result<Vec<HostedNode>, Error> {
        let mut hosted_nodes = vec![];
        // Includes orphaned clusters, because their nodes still run.
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
                let listed = kind.read_nodes(listed).map_err(|reason| TargetError {
                    retry: crate::model::Retry::WhenInputChanges,
                    ..TargetError::new(
                        TargetErrorKind::InputWrong,
                        NotObservable::Nodes(cluster.clone(), reason).to_string(),
                    )
                })?;
                // The list after the plan, if it is known.
                let planned = reference.and_then(|reference| {
                    let name = reference.key.split('.').next().unwrap_or_default();
                    kind.read_nodes(observation.outputs.get(name)?.value.as_ref()?).ok()
                });
                for node in listed.iter().filter(|node| direct || node.runs_on.is_some()) {
                    let stays = |nodes: &Vec<DeclaredNode>| nodes.iter().any(|planned| planned.address == node.address);
                    hosted_nodes.push(HostedNode {
                        node: node.address.clone(),
                        cluster: cluster.clone(),
                        by: node.runs_on.clone(),
                        vanishes: planned.as_ref().is_some_and(|nodes| !stays(nodes)),
                    });
                }
            }
        }
        Ok(hosted_nodes)
    }
}
