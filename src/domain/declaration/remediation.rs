//! Defines the document of a remediation.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::{Change, ChangedBy, Digest, EnvironmentName};

/// A plan that reviewers can read and shorten. The file filters a new plan of the daemon (R4.1).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Remediation {
    /// The environment.
    pub environment: EnvironmentName,
    /// The effect of its merge.
    pub direction: Direction,
    /// The drift or the pending change that the remediation is for.
    pub because: String,
    /// The time of the observation.
    pub observed_at: DateTime<Utc>,
    /// The time after which a merge authorizes nothing.
    pub expires_at: DateTime<Utc>,
    /// The actions that a merge runs. No other action runs.
    pub actions: Vec<RemediationAction>,
}

/// The effect of merging a remediation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Direction {
    /// Reverts the live objects to the applied revision.
    Revert,
    /// Applies the pending changes.
    Apply,
}

/// One action of a remediation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RemediationAction {
    /// The digest of the action.
    #[serde(serialize_with = "prefixed")]
    pub digest: Digest,
    /// The digests of the actions that run first.
    #[serde(default, skip_serializing_if = "Vec::is_empty", serialize_with = "all_prefixed")]
    pub after: Vec<Digest>,
    /// The instance.
    #[schemars(with = "String", extend("format" = "evenkeel-instance"))]
    pub instance: crate::model::InstanceId,
    /// The operation, such as `tofu.apply`.
    pub r#do: String,
    /// The changed resources, for the reviewer.
    #[serde(default)]
    pub resources: Vec<RemediationResource>,
}

fn prefixed<S: serde::Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("sha256:{digest}"))
}

fn all_prefixed<S: serde::Serializer>(digests: &[Digest], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(digests.iter().map(|digest| format!("sha256:{digest}")))
}

/// One resource of an action, for the reviewer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RemediationResource {
    /// The address of the resource.
    pub resource: String,
    /// The kind of change.
    pub change: Change,
    /// The fields that differ.
    #[serde(default)]
    pub fields: Vec<RemediationField>,
    /// The author of the change, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_by: Option<ChangedBy>,
}

/// One field of a resource, for the reviewer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RemediationField {
    /// A JSON pointer inside the resource.
    pub path: String,
    /// The observed value.
    #[serde(default)]
    pub observed: Option<Value>,
    /// The applied value.
    #[serde(default)]
    pub desired: Option<Value>,
}
