//! Identifies objects: key, owner, and rank in the order of applying. Pure.

use std::{fmt, str::FromStr, sync::Arc};

use serde_json::Value;

use crate::model::InstanceId;

/// The field manager of applied objects.
pub(super) const MANAGER: &str = "evenkeel";
/// The label that names the environment of the owner instance.
pub(super) const ENVIRONMENT: &str = "evenkeel.dev/environment";
/// The label that names the component of the owner instance.
pub(super) const COMPONENT: &str = "evenkeel.dev/component";
/// The annotation that prevents the deletion of an object: `disabled`.
pub(super) const PRUNE: &str = "evenkeel.dev/prune";
/// The annotation that makes undeclared labels and annotations drift: `enabled`.
pub(super) const EXCLUSIVE: &str = "evenkeel.dev/exclusive";

/// The identity of an object in a cluster. It excludes the API version: one object is served in several versions.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key {
    /// The API group; empty for the core group.
    pub group: Arc<str>,
    /// The kind.
    pub kind: Arc<str>,
    /// The namespace; `None` for a cluster-scoped object.
    pub namespace: Option<Arc<str>>,
    /// The name.
    pub name: Arc<str>,
}

impl Key {
    /// Returns the key of an object, or `None` without kind and name.
    pub fn of(object: &Value) -> Option<Self> {
        let version = object["apiVersion"].as_str()?;
        let group = version.split_once('/').map_or("", |(group, _)| group);
        let metadata = &object["metadata"];
        let namespace = metadata["namespace"].as_str().filter(|text| !text.is_empty());
        Some(Self {
            group: group.into(),
            kind: object["kind"].as_str()?.into(),
            namespace: namespace.map(Into::into),
            name: metadata["name"].as_str()?.into(),
        })
    }
    /// Returns the key of an object of a known group and kind, from its metadata alone.
    pub(super) fn of_metadata(group: impl Into<Arc<str>>, kind: impl Into<Arc<str>>, object: &Value) -> Option<Self> {
        let metadata = |name: &str| object["metadata"][name].as_str().filter(|text| !text.is_empty()).map(Into::into);
        Some(Self { group: group.into(), kind: kind.into(), namespace: metadata("namespace"), name: metadata("name")? })
    }
    /// Returns the kind with its group: `Deployment.apps`, `Service`.
    pub fn sort(&self) -> String {
        if self.group.is_empty() { self.kind.to_string() } else { format!("{}.{}", self.kind, self.group) }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sort())?;
        if let Some(namespace) = &self.namespace {
            write!(f, "/{namespace}")?;
        }
        write!(f, "/{}", self.name)
    }
}

impl FromStr for Key {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let (sort, namespace, name) = match parts[..] {
            [sort, name] => (sort, None, name),
            [sort, namespace, name] => (sort, Some(namespace.into()), name),
            _ => return Err(format!("`{text}` names no object")),
        };
        let (kind, group) = sort.split_once('.').unwrap_or((sort, ""));
        Ok(Self { group: group.into(), kind: kind.into(), namespace, name: name.into() })
    }
}

pub(super) fn text<'o>(object: &'o Value, pointer: &str) -> Option<&'o str> {
    object.pointer(pointer).and_then(Value::as_str)
}

pub(super) fn label<'o>(object: &'o Value, name: &str) -> Option<&'o str> {
    object["metadata"]["labels"].get(name).and_then(Value::as_str)
}

pub(super) fn annotation<'o>(object: &'o Value, name: &str) -> Option<&'o str> {
    object["metadata"]["annotations"].get(name).and_then(Value::as_str)
}

/// Returns the instance that owns an object, by its labels.
pub(super) fn owner(object: &Value) -> Option<InstanceId> {
    format!("{}/{}", label(object, ENVIRONMENT)?, label(object, COMPONENT)?).parse().ok()
}

/// Whether an object is being deleted.
pub(super) fn is_terminating(object: &Value) -> bool {
    object["metadata"].get("deletionTimestamp").is_some_and(|at| !at.is_null())
}

/// The kinds that are applied first, in order; other kinds follow, and webhooks are last.
const FIRST: [&str; 20] = [
    "CustomResourceDefinition",
    "Namespace",
    "PriorityClass",
    "StorageClass",
    "IngressClass",
    "ClusterRole",
    "ClusterRoleBinding",
    "ResourceQuota",
    "LimitRange",
    "ServiceAccount",
    "Role",
    "RoleBinding",
    "ConfigMap",
    "Secret",
    "PersistentVolumeClaim",
    "Service",
    "NetworkPolicy",
    "Deployment",
    "StatefulSet",
    "CronJob",
];
/// The kinds that are applied last: they may refuse objects that are applied after them.
const LAST: [&str; 4] = [
    "MutatingWebhookConfiguration",
    "ValidatingWebhookConfiguration",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
];

/// Returns the position of a kind in the order of applying.
pub(super) fn rank(kind: &str) -> usize {
    let last = || LAST.iter().position(|last| *last == kind).map(|at| FIRST.len() + 1 + at);
    FIRST.iter().position(|first| *first == kind).or_else(last).unwrap_or(FIRST.len())
}

/// Whether objects of a kind must be ready before other objects can be applied.
pub(super) fn is_namespace_or_definition(kind: &str) -> bool {
    matches!(kind, "CustomResourceDefinition" | "Namespace")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_key_is_read_as_it_is_written() {
        for text in ["Deployment.apps/prod/web", "Namespace/prod", "Widget.a.b.example.com/x/y"] {
            assert_eq!(text.parse::<Key>().unwrap().to_string(), text);
        }
        let object =
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "prod"}});
        assert_eq!(Key::of(&object).unwrap().to_string(), "Deployment.apps/prod/web");
        assert_eq!(Key::of(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {}})), None);
        assert!("a/b/c/d".parse::<Key>().is_err());
    }

    #[test]
    fn what_others_need_comes_first_and_what_may_refuse_them_last() {
        let mut kinds =
            ["ValidatingWebhookConfiguration", "Widget", "Deployment", "Namespace", "CustomResourceDefinition"];
        kinds.sort_by_key(|kind| rank(kind));
        assert_eq!(
            kinds,
            ["CustomResourceDefinition", "Namespace", "Deployment", "Widget", "ValidatingWebhookConfiguration"]
        );
    }
}
