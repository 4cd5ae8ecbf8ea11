//! What differs, and what would be done about it: the shapes of drift and of actions.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Digest;

/// The word that stands where a secret would.
pub const MASKED: &str = "(masked)";
/// The word that stands where a value is not known yet.
pub const KNOWN_AFTER_APPLY: &str = "(known after apply)";

/// The kind of change of a resource.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Change {
    /// It is made.
    Create,
    /// It is changed in place.
    Update,
    /// It is destroyed and made again.
    Replace,
    /// It is destroyed.
    Destroy,
    /// It is no longer ours; the thing itself stays.
    Forget,
    /// It gets another address.
    Move,
    /// Something is run.
    Run,
}

impl Change {
    /// The word in a sentence: "1 to update".
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

/// One field of a resource, before and after. Sensitive values are already masked, and sealed in `sealed`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Field {
    /// A JSON pointer inside the resource.
    pub path: String,
    /// The present value; absent if there is none.
    pub before: Option<Value>,
    /// The value after the change; absent if there is none.
    pub after: Option<Value>,
    /// Whether the values are masked.
    pub sensitive: bool,
    /// Whether `after` is known only after the apply.
    pub unknown: bool,
    /// HMACs of before and after where they are masked (R2.3), so that digests tell secrets apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<(String, String)>,
}

/// The change of one resource.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceChange {
    /// The address, as its own tool names it.
    pub resource: String,
    /// The type, such as `google_compute_network`; `output` for an output of a root module.
    pub r#type: String,
    /// The kind of change.
    pub change: Change,
    /// Whether this line undoes drift (R3.7).
    pub reverts_drift: bool,
    /// Whether `protect` covers it.
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

/// One operation on a target, done at once (R2.2).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", from = "StoredAction")]
pub struct Action {
    /// Over target, canonical arguments and what it overwrites; without times, ids, revisions and sizes.
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

/// An action as the store holds it: actions of older versions have no `effect`.
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
        // The operations that existed before actions carried their effect; no operation is added here.
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

/// How the world differs from what was applied.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DriftKind {
    /// It is gone.
    Missing,
    /// It differs.
    Changed,
    /// It is there and should not be.
    Extra,
}

/// One field that drifted. Sensitive values are already masked.
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
    /// The address, as its own tool names it.
    pub resource: String,
    /// How it differs.
    pub drift: DriftKind,
    /// Whether an apply would change it back; otherwise it can only be adopted.
    pub revertible: bool,
    /// The fields that differ.
    pub fields: Vec<DriftField>,
    /// The author of the change, if it is known.
    pub changed_by: Option<String>,
    /// When, where that is known.
    pub changed_at: Option<DateTime<Utc>>,
}

impl Drift {
    /// The author of the change, if it is known.
    pub fn by(&self) -> Option<ChangedBy> {
        Some(ChangedBy { manager: self.changed_by.clone()?, at: self.changed_at })
    }
}

/// The author of a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChangedBy {
    /// By the name under which it writes.
    pub manager: String,
    /// When.
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
