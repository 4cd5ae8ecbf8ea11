//! Defines the differences of resources: planned changes, actions and drift.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Digest;

/// The text that replaces a secret value.
pub const MASKED: &str = "(masked)";
/// The text that replaces a value that is not known before the apply.
pub const KNOWN_AFTER_APPLY: &str = "(known after apply)";

/// The kind of change of a resource.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Change {
    /// The resource is created.
    Create,
    /// The resource is changed in place.
    Update,
    /// The resource is destroyed and created again.
    Replace,
    /// The resource is destroyed.
    Destroy,
    /// The resource is no longer managed. The resource itself stays.
    Forget,
    /// The resource gets another address.
    Move,
    /// An operation runs, such as a query.
    Run,
}

impl Change {
    /// Returns the verb for messages, as in "1 to update".
    pub fn verb(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Replace => "replace",
            Self::Destroy => "destroy",
            Self::Forget => "forget",
            Self::Move => "move",
            Self::Run => "run",
        }
    }
}

/// One field of a resource, before and after the change. Sensitive values are masked, and `sealed` has their HMACs.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Field {
    /// A JSON pointer inside the resource.
    pub path: String,
    /// The present value; `None` if there is none.
    pub before: Option<Value>,
    /// The value after the change; `None` if there is none.
    pub after: Option<Value>,
    /// Whether the values are masked.
    pub sensitive: bool,
    /// Whether the value of `after` is not known before the apply.
    pub unknown: bool,
    /// The HMACs of masked values, before and after (R2.3), so that digests distinguish secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<(String, String)>,
}

/// The change of one resource.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceChange {
    /// The address of the resource, in the notation of its tool.
    pub resource: String,
    /// The type, such as `google_compute_network`; `output` for an output of a root module.
    pub r#type: String,
    /// The kind of change.
    pub change: Change,
    /// Whether the change reverts drift (R3.7).
    pub reverts_drift: bool,
    /// Whether an entry of `protect` covers the resource.
    pub protected: bool,
    /// The fields that differ.
    pub fields: Vec<Field>,
}

/// The observed state that an action overwrites: a precondition that is checked again before the effect (R2.7).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Overwrite {
    /// The serial of the tofu state that was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<u64>,
    /// The uid of the Kubernetes object that was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The version of the Kubernetes object that was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
}

/// Properties of an action that decide how it is approved, counted and postponed, whatever its kind of target.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Effect {
    /// The action changes all resources of its instance; no part of it can run alone (R2.2).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub atomic: bool,
    /// The action rewrites stored data, which takes time and space in proportion to the data.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rewrites_data: bool,
    /// The action moves data from one place to another and changes nothing else.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub relocates: bool,
    /// The action may be postponed to a later run: nothing that is declared depends on it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub deferrable: bool,
}

impl Effect {
    /// An action that changes a whole instance at once.
    pub const ATOMIC: Self = Self { atomic: true, rewrites_data: false, relocates: false, deferrable: false };
    /// An action that has none of the properties.
    pub const NONE: Self = Self { atomic: false, rewrites_data: false, relocates: false, deferrable: false };
}

/// One operation on a target, executed as a unit (R2.2).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", from = "StoredAction")]
pub struct Action {
    /// The hash of the target, the canonical arguments and the overwritten state. Times, ids, revisions and sizes are
    /// not part of it.
    pub digest: Digest,
    /// The operation, such as `tofu.apply`.
    pub r#do: String,
    /// The precondition of the effect.
    pub precondition: Overwrite,
    /// The properties of the operation; not part of the digest.
    pub effect: Effect,
    /// The change of each resource.
    pub resources: Vec<ResourceChange>,
}

/// The stored form of an action. Actions of older versions have no `effect`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredAction {
    digest: Digest,
    r#do: String,
    precondition: Overwrite,
    effect: Option<Effect>,
    resources: Vec<ResourceChange>,
}

impl From<StoredAction> for Action {
    fn from(stored: StoredAction) -> Self {
        let StoredAction { digest, r#do, precondition, effect, resources } = stored;
        // Actions of these operations may be stored without an effect. New operations always have one; add none here.
        let effect = effect.unwrap_or_else(|| match r#do.as_str() {
            "tofu.apply" | "tofu.refresh" => Effect::ATOMIC,
            "citus.move" => Effect { relocates: true, ..Effect::NONE },
            "citus.rebalance" => Effect { relocates: true, deferrable: true, ..Effect::NONE },
            "citus.table" => {
                let rewrites_data = resources.iter().any(|resource| resource.change == Change::Replace);
                Effect { rewrites_data, ..Effect::NONE }
            }
            _ => Effect::NONE,
        });
        Self { digest, r#do, precondition, effect, resources }
    }
}

/// The kind of difference between the live resource and the applied one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DriftKind {
    /// The resource does not exist.
    Missing,
    /// The resource differs.
    Changed,
    /// The resource exists and is not declared.
    Extra,
}

/// One field that drifted. Sensitive values are masked.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DriftField {
    /// A JSON pointer inside the resource.
    pub path: String,
    /// The applied value.
    pub desired: Option<Value>,
    /// The observed value.
    pub observed: Option<Value>,
}

/// One resource that drifted.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drift {
    /// The address of the resource, in the notation of its tool.
    pub resource: String,
    /// The kind of difference.
    pub drift: DriftKind,
    /// Whether an apply would revert the drift. If not, the drift can only be adopted.
    pub revertible: bool,
    /// The fields that differ.
    pub fields: Vec<DriftField>,
    /// The author of the change, if it is known.
    pub changed_by: Option<String>,
    /// The time of the change, if it is known.
    pub changed_at: Option<DateTime<Utc>>,
    /// Whether an output of the instance drifted, and no resource.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_output: bool,
}

impl Drift {
    /// Returns the author and time of the change, if the author is known.
    pub fn by(&self) -> Option<ChangedBy> {
        Some(ChangedBy { manager: self.changed_by.clone()?, at: self.changed_at })
    }
}

/// The author of a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChangedBy {
    /// The name under which the author writes, such as a field manager of Kubernetes.
    pub manager: String,
    /// The time of the change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<DateTime<Utc>>,
}

impl std::fmt::Display for ChangedBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "by `{}`", self.manager)?;
        match self.at {
            Some(at) => write!(f, " at {}", at.format("%Y-%m-%d %H:%M:%S UTC")),
            None => Ok(()),
        }
    }
}
