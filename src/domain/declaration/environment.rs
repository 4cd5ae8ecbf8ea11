//! An environment as a type: what comes before it, what a merge means there, what one run may do.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::{Duration, EnvironmentName, Size};

/// A stage of the world, such as `staging`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-not-supported-yet" = {
    "applyBeforeMerge": "claims come with policies",
    "autoMerge": "claims come with policies",
    "windows": "windows come with schedules",
    "freeze": "freezes come with schedules",
    "budget": "budgets come with policies"
}))]
pub struct Environment {
    /// The environment whose instances have to be applied first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<After>,
    /// Whether a merge is applied by itself.
    #[serde(default)]
    pub on_merge: OnMerge,
    /// What happens to a part of a plan that was wholly unknown when it was approved.
    #[serde(default)]
    pub deferred: Deferred,
    /// What one run may do at most.
    #[serde(default)]
    pub limits: Limits,
    /// What holds for Kubernetes components that say nothing.
    #[serde(default)]
    pub kubernetes: KubernetesDefaults,
    /// Observed and never acted on.
    #[serde(default)]
    pub suspend: bool,
}

/// What holds for Kubernetes components that say nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KubernetesDefaults {
    /// The connection to the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<String>,
    /// The namespace of objects that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// `staging`, or `{environment: staging}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum After {
    /// The name alone.
    Name(EnvironmentName),
    /// With conditions.
    With(AfterWith),
}

/// The environment that comes first, with conditions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AfterWith {
    /// The environment that comes first.
    pub environment: EnvironmentName,
    /// How long an instance has to stay healthy there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soak: Option<Duration>,
}

impl After {
    /// The environment that comes first.
    pub fn environment(&self) -> &EnvironmentName {
        match self {
            Self::Name(name) => name,
            Self::With(with) => &with.environment,
        }
    }

    /// How long an instance has to stay healthy there.
    pub fn soak(&self) -> std::time::Duration {
        match self {
            Self::Name(_) => std::time::Duration::ZERO,
            Self::With(with) => with.soak.map_or(std::time::Duration::ZERO, Duration::std),
        }
    }
}

/// Whether a merge is applied by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnMerge {
    /// The merge is the authority.
    Apply,
    /// A principal comments `/apply`.
    #[default]
    Wait,
}

/// What happens to a part of a plan that was wholly unknown when it was approved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Deferred {
    /// It waits for `/apply` once it is known.
    #[default]
    Wait,
    /// It goes on.
    Apply,
}

/// What one run may do at most; it is stopped before its first effect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[derive(Default)]
pub struct Limits {
    /// Resources destroyed.
    pub destroys: u64,
    /// Resources replaced.
    pub replaces: u64,
    /// Resources changed in any way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changes: Option<u64>,
    /// Shard groups moved for the balance; what is more waits for the next run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moves: Option<u64>,
    /// Bytes moved for the balance; what is more waits for the next run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub move_bytes: Option<Size>,
}
