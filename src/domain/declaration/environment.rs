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
    /// The handling of a part of a plan that was unknown at the time of its approval.
    #[serde(default)]
    pub deferred: Deferred,
    /// The limits of one run.
    #[serde(default)]
    pub limits: Limits,
    /// Defaults for Kubernetes components.
    #[serde(default)]
    pub kubernetes: KubernetesDefaults,
    /// Observed and never acted on.
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

/// The handling of a part of a plan that was unknown at the time of its approval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Deferred {
    /// It waits for `/apply` once it is known.
    #[default]
    Wait,
    /// It goes on.
    Apply,
}

/// The limits of one run; a run that exceeds them is stopped before its first effect.
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
