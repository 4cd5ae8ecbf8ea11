//! Orders drains before the removal of hosts that run database nodes.
//!
//! Decides which actions remove a host, and which drains must precede them: a node is drained and removed from its
//! cluster before its host is removed.
//! *Invariant:* a plan that may remove a host of unknown nodes is refused, because a wrong guess loses data.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{action::protects, action_digest};
use crate::model::{Action, Change, InstanceId, ResourceChange};

/// The operation of an action that drains a node and removes the node from its cluster.
pub const VACATE: &str = "citus.vacate";
/// The prefix of a StatefulSet's address in a declaration.
const SET: &str = "StatefulSet/";
/// The resource type of a drained node.
const NODE: &str = "citus_vacate";

/// A node of a cluster that an instance may host.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostedNode {
    /// The address of the node, as `host:port`.
    pub node: String,
    /// The instance that declares the cluster.
    pub cluster: InstanceId,
    /// The address of the node's host, if it is declared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Whether the plan removes the node from the cluster's node list.
    #[serde(default)]
    pub vanishes: bool,
}

impl HostedNode {
    /// Returns the resource name of the action that drains the node.
    pub fn resource(&self) -> String {
        format!("drain of node {} in {}", self.node, self.cluster)
    }
}

/// Returns the address of an object as a declaration writes it: without the API group.
fn address(resource: &str) -> String {
    resource.replacen("StatefulSet.apps/", SET, 1)
}

/// Returns the replicas of a StatefulSet after the change, if the change sets them.
fn replicas_after(resource: &ResourceChange) -> Option<u64> {
    let field = resource.fields.iter().find(|field| field.path == "/spec/replicas")?;
    field.after.as_ref().and_then(Value::as_u64)
}

/// Returns the ordinal of a pod in its StatefulSet, from its host name: `worker-3.workers.data.svc` is 3.
fn ordinal(node: &str, set: &str) -> Option<u64> {
    let host = node.split([':', '.']).next()?;
    host.strip_prefix(set.rsplit('/').next()?)?.strip_prefix('-')?.parse().ok()
}

/// Returns whether a change removes the host of a node.
fn removes_host(resource: &ResourceChange, by: &str, node: &str) -> bool {
    let (by, resource_address) = (&address(by)[..], address(&resource.resource));
    if !protects(by, &resource_address) {
        return false;
    }
    match resource.change {
        Change::Destroy | Change::Replace => true,
        Change::Update if resource_address.starts_with(SET) => {
            replicas_after(resource).is_some_and(|replicas| ordinal(node, by).is_none_or(|number| number >= replicas))
        }
        _ => false,
    }
}

fn destroys(resource: &ResourceChange) -> bool {
    resource.r#type != "output" && matches!(resource.change, Change::Destroy | Change::Replace)
}

/// Returns whether actions may remove the host of any node.
pub fn may_remove_hosts(actions: &[Action]) -> bool {
    let shrinks =
        |resource: &ResourceChange| address(&resource.resource).starts_with(SET) && replicas_after(resource).is_some();
    actions.iter().flat_map(|action| &action.resources).any(|resource| destroys(resource) || shrinks(resource))
}

/// A host that would be removed while its nodes have data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostViolation {
    /// A resource would be removed, and no declaration lists the nodes that run on it.
    HostsUndeclared {
        /// The resource.
        resource: String,
        /// Whether the resource is replaced; otherwise it is destroyed.
        is_replaced: bool,
        /// The cluster whose nodes have no declared host.
        cluster: InstanceId,
    },
    /// The host of a node would be removed before the node is drained and removed from its cluster.
    NotDrained {
        /// The node.
        node: String,
        /// Its cluster.
        cluster: InstanceId,
    },
}

/// Returns the nodes that must be drained before the actions are executed.
///
/// # Errors
/// When it is not known which hosts would be removed.
pub fn removed_hosts<'c>(nodes: &'c [HostedNode], actions: &[Action]) -> Result<Vec<&'c HostedNode>, HostViolation> {
    let resources: Vec<&ResourceChange> = actions.iter().flat_map(|action| &action.resources).collect();
    let mut removed: Vec<&HostedNode> = vec![];
    for hosted in nodes {
        let is_removed = match &hosted.by {
            Some(by) => resources.iter().any(|resource| removes_host(resource, by, &hosted.node)),
            None => hosted.vanishes,
        };
        if is_removed {
            removed.push(hosted);
        }
    }
    // If hosts are not declared, a destroyed resource is accepted only if a node leaves the node list for it, one for
    // one.
    let without_host: Vec<&HostedNode> = nodes.iter().filter(|hosted| hosted.by.is_none()).collect();
    let has_nodes = |resource: &ResourceChange| {
        let resource = address(&resource.resource);
        nodes.iter().any(|hosted| hosted.by.as_ref().is_some_and(|by| protects(&address(by), &resource)))
    };
    let unmatched: Vec<&&ResourceChange> =
        resources.iter().filter(|resource| destroys(resource) && !has_nodes(resource)).collect();
    let vanish = without_host.iter().filter(|hosted| hosted.vanishes).count();
    let replaced = unmatched.iter().find(|resource| resource.change == Change::Replace);
    let unexplained = replaced.or_else(|| unmatched.first().filter(|_| unmatched.len() > vanish));
    if let (Some(first), Some(resource)) = (without_host.first(), unexplained) {
        return Err(HostViolation::HostsUndeclared {
            resource: resource.resource.clone(),
            is_replaced: resource.change == Change::Replace,
            cluster: first.cluster.clone(),
        });
    }
    removed.sort();
    removed.dedup();
    Ok(removed)
}

/// Returns the actions that drain nodes. They run before the other actions of an instance.
pub fn drain_actions(id: &InstanceId, removed: &[&HostedNode]) -> Vec<Action> {
    let action = |hosted: &&HostedNode| {
        let resources = vec![ResourceChange {
            resource: hosted.resource(),
            r#type: NODE.into(),
            change: Change::Run,
            reverts_drift: false,
            protected: false,
            fields: vec![],
        }];
        Action {
            digest: action_digest(id, VACATE, &resources),
            r#do: VACATE.into(),
            precondition: Default::default(),
            effect: crate::model::Effect::NONE,
            resources,
        }
    };
    removed.iter().map(action).collect()
}

/// Returns the first host that a complete plan would remove under a node that is not drained before.
pub fn violation(nodes: &[HostedNode], actions: &[Action]) -> Option<HostViolation> {
    let own: Vec<Action> = actions.iter().filter(|action| action.r#do != VACATE).cloned().collect();
    let removed = match removed_hosts(nodes, &own) {
        Ok(removed) => removed,
        Err(violation) => return Some(violation),
    };
    let mut vacated = BTreeSet::new();
    let mut others = false;
    for action in actions {
        if action.r#do == VACATE && !others {
            vacated.extend(action.resources.iter().map(|resource| resource.resource.clone()));
        }
        others |= action.r#do != VACATE;
    }
    let missing = removed.into_iter().find(|hosted| !vacated.contains(&hosted.resource()))?;
    Some(HostViolation::NotDrained { node: missing.node.clone(), cluster: missing.cluster.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Field;

    fn change(resource: &str, change: Change, replicas: Option<(u64, u64)>) -> Action {
        let field = replicas.map(|(before, after)| Field {
            path: "/spec/replicas".into(),
            before: Some(before.into()),
            after: Some(after.into()),
            sensitive: false,
            unknown: false,
            sealed: None,
        });
        let resources = vec![ResourceChange {
            resource: resource.into(),
            r#type: "x".into(),
            change,
            reverts_drift: false,
            protected: false,
            fields: field.into_iter().collect(),
        }];
        let id = "dev/vm".parse().unwrap();
        Action {
            digest: action_digest(&id, "x", &resources),
            r#do: "x".into(),
            precondition: Default::default(),
            effect: crate::model::Effect::NONE,
            resources,
        }
    }

    fn hosted_node(node: &str, by: Option<&str>, vanishes: bool) -> HostedNode {
        HostedNode { node: node.into(), cluster: "dev/shards".parse().unwrap(), by: by.map(Into::into), vanishes }
    }

    #[test]
    fn a_host_is_removed_after_its_node() {
        let vm = |at: usize| {
            hosted_node(&format!("10.0.0.{at}:5432"), Some(&format!("google_compute_instance.worker[{at}]")), false)
        };
        let nodes = [vm(1), vm(2)];
        let id: InstanceId = "dev/vm".parse().unwrap();
        let check = |actions: &[Action]| {
            let removed = removed_hosts(&nodes, actions).unwrap();
            removed.iter().map(|hosted| hosted.node.clone()).collect::<Vec<_>>()
        };
        assert_eq!(check(&[change("google_compute_instance.worker[2]", Change::Destroy, None)]), ["10.0.0.2:5432"]);
        assert_eq!(check(&[change("google_compute_instance.worker[1]", Change::Replace, None)]), ["10.0.0.1:5432"]);
        assert!(check(&[change("google_compute_instance.worker[1]", Change::Update, None)]).is_empty());
        assert!(check(&[change("google_compute_disk.worker[1]", Change::Destroy, None)]).is_empty());
        // The validation repeats the check: a plan without the drain, or with the drain after the effect, is refused.
        let apply = change("google_compute_instance.worker[2]", Change::Destroy, None);
        let drain = drain_actions(&id, &removed_hosts(&nodes, std::slice::from_ref(&apply)).unwrap()).remove(0);
        assert_eq!(violation(&nodes, &[drain.clone(), apply.clone()]), None);
        assert!(
            violation(&nodes, std::slice::from_ref(&apply)).unwrap().to_string().contains("before the node is drained")
        );
        assert!(violation(&nodes, &[apply, drain]).is_some());
    }

    #[test]
    fn a_smaller_stateful_set_removes_its_last_pods() {
        let pod = |at: usize| {
            hosted_node(&format!("worker-{at}.workers.data.svc:5432"), Some("StatefulSet/data/worker"), false)
        };
        let nodes = [pod(0), pod(1), pod(2)];
        let shrinks = change("StatefulSet.apps/data/worker", Change::Update, Some((3, 1)));
        let removed: Vec<&str> =
            removed_hosts(&nodes, &[shrinks]).unwrap().iter().map(|hosted| hosted.node.as_str()).collect();
        assert_eq!(removed, ["worker-1.workers.data.svc:5432", "worker-2.workers.data.svc:5432"]);
        let grows = change("StatefulSet.apps/data/worker", Change::Update, Some((3, 5)));
        assert!(removed_hosts(&nodes, &[grows]).unwrap().is_empty());
        assert_eq!(
            removed_hosts(&nodes, &[change("StatefulSet.apps/data/worker", Change::Destroy, None)]).unwrap().len(),
            3
        );
    }

    #[test]
    fn unknown_hosts_are_refused_or_matched_with_removed_nodes() {
        let nodes = [hosted_node("10.0.0.1:5432", None, false), hosted_node("10.0.0.2:5432", None, true)];
        let destroy = change("vm[1]", Change::Destroy, None);
        let removed = removed_hosts(&nodes, std::slice::from_ref(&destroy)).unwrap();
        assert_eq!(removed.iter().map(|hosted| hosted.node.as_str()).collect::<Vec<_>>(), ["10.0.0.2:5432"]);
        assert!(
            removed_hosts(&nodes, &[change("vm[0]", Change::Replace, None)])
                .unwrap_err()
                .to_string()
                .contains("declare `runsOn`")
        );
        assert!(removed_hosts(&nodes[..1], &[destroy]).is_err());
        assert!(removed_hosts(&nodes[..1], &[change("vm[0]", Change::Update, None)]).unwrap().is_empty());
    }
}
