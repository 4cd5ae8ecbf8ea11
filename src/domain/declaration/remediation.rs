//! A remediation as a type.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::{Change, ChangedBy, Digest, EnvironmentName};

/// A plan that a person can read and cut: it filters, and the daemon plans afresh (R4.1).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Remediation {
    /// The environment.
    pub environment: EnvironmentName,
    /// The effect of its merge.
    pub direction: Direction,
    /// The drift that it was written for.
    pub because: String,
    /// When the world was observed.
    pub observed_at: DateTime<Utc>,
    /// When it stops being an authority.
    pub expires_at: DateTime<Utc>,
    /// The only actions that its merge runs.
    pub actions: Vec<RemediationAction>,
}

/// The effect of merging a remediation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Direction {
    /// The world returns to what was applied.
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
    /// The actions that come first.
    #[serde(default, skip_serializing_if = "Vec::is_empty", serialize_with = "all_prefixed")]
    pub after: Vec<Digest>,
    /// The instance.
    #[schemars(with = "String", extend("format" = "evenkeel-instance"))]
    pub instance: crate::model::InstanceId,
    /// The action.
    pub r#do: String,
    /// For the reader.
    #[serde(default)]
    pub resources: Vec<RemediationResource>,
}

fn prefixed<S: serde::Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("sha256:{digest}"))
}

fn all_prefixed<S: serde::Serializer>(digests: &[Digest], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(digests.iter().map(|digest| format!("sha256:{digest}")))
}

/// One resource of an action, for the reader.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RemediationResource {
    /// The address.
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

/// One field of a resource, for the reader.
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
