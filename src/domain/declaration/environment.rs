//! Defines the declaration of an environment: its predecessor, its merge policy and its limits.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::{Duration, EnvironmentName, Size};

/// A deployment stage, such as `staging`.
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
    /// The environment in which each component must be applied first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<After>,
    /// The effect of a merge.
    #[serde(default)]
    pub on_merge: OnMerge,
    /// The handling of a part of a plan that was unknown at the time of its approval.
    #[serde(default)]
    pub deferred: Deferred,
    /// The limits of one run.
    #[serde(default)]
    pub limits: Limits,
    /// Defaults for Kubernetes components.
    #[serde(default)]
    pub kubernetes: KubernetesDefaults,
    /// Whether the environment is suspended: observed and never changed.
    #[serde(default)]
    pub suspend: bool,
}

/// Defaults for Kubernetes components.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KubernetesDefaults {
    /// The connection to the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<String>,
    /// The namespace of objects that set none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// The earlier environment: `staging`, or `{environment: staging}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum After {
    /// The name of the earlier environment.
    Name(EnvironmentName),
    /// The earlier environment with conditions.
    With(AfterWith),
}

/// The earlier environment, with conditions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AfterWith {
    /// The name of the earlier environment.
    pub environment: EnvironmentName,
    /// The time for which an instance must stay healthy there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soak: Option<Duration>,
}

impl After {
    /// Returns the earlier environment.
    pub fn environment(&self) -> &EnvironmentName {
        match self {
            Self::Name(name) => name,
            Self::With(with) => &with.environment,
        }
    }

    /// Returns the time for which an instance must stay healthy there.
    pub fn soak(&self) -> std::time::Duration {
        match self {
            Self::Name(_) => std::time::Duration::ZERO,
            Self::With(with) => with.soak.map_or(std::time::Duration::ZERO, Duration::std),
        }
    }
}

/// The effect of a merge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnMerge {
    /// The merge authorizes the apply.
    Apply,
    /// The apply needs a comment `/apply`.
    #[default]
    Wait,
}

/// The handling of a part of a plan that was unknown at the time of its approval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Deferred {
    /// The part waits for `/apply` once its plan is known.
    #[default]
    Wait,
    /// The part is applied.
    Apply,
}

/// The limits of one run. A run that exceeds a limit is stopped before its first effect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[derive(Default)]
pub struct Limits {
    /// The number of destroyed resources.
    pub destroys: u64,
    /// The number of replaced resources.
    pub replaces: u64,
    /// The number of changed resources, by any kind of change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changes: Option<u64>,
    /// The number of shard groups that a rebalance moves. Further moves wait for the next run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moves: Option<u64>,
    /// The number of bytes that a rebalance moves. Further moves wait for the next run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub move_bytes: Option<Size>,
}
