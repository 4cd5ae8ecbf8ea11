//! Defines the JSON form of a plan, as `tofu show -json` prints it.

use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// The fields of tofu's plan JSON that are read.
#[derive(Deserialize, Default, Debug)]
pub struct PlanJson {
    #[serde(default)]
    pub(super) format_version: String,
    #[serde(default)]
    pub(super) resource_changes: Vec<RawResource>,
    #[serde(default)]
    pub(super) resource_drift: Vec<RawResource>,
    #[serde(default)]
    pub(super) output_changes: BTreeMap<String, RawChange>,
    #[serde(default)]
    pub(super) prior_state: Option<PriorState>,
    /// Read for the origins of attributes, never for values.
    #[serde(default)]
    pub(super) configuration: Value,
    #[serde(default)]
    pub(super) errored: bool,
}

#[derive(Deserialize, Default, Debug)]
pub(super) struct PriorState {
    #[serde(default)]
    pub(super) values: Option<StateValues>,
}

#[derive(Deserialize, Default, Debug)]
pub(super) struct StateValues {
    #[serde(default)]
    pub(super) root_module: Option<Module>,
}

#[derive(Deserialize, Default, Debug)]
pub(super) struct Module {
    #[serde(default)]
    pub(super) resources: Vec<StateResource>,
    #[serde(default)]
    pub(super) child_modules: Vec<Module>,
}

#[derive(Deserialize, Default, Debug)]
pub(super) struct StateResource {
    #[serde(default)]
    pub(super) mode: String,
}

impl Module {
    /// Data sources are only read and do not count.
    pub(super) fn holds_anything(&self) -> bool {
        self.resources.iter().any(|resource| resource.mode == "managed")
            || self.child_modules.iter().any(Self::holds_anything)
    }
}

#[derive(Deserialize, Debug)]
pub(super) struct RawResource {
    pub(super) address: String,
    #[serde(default)]
    pub(super) previous_address: Option<String>,
    #[serde(default)]
    pub(super) mode: String,
    #[serde(rename = "type", default)]
    pub(super) sort: String,
    #[serde(default)]
    pub(super) deposed: Option<String>,
    pub(super) change: RawChange,
}

#[derive(Deserialize, Debug, Default)]
pub(super) struct RawChange {
    #[serde(default)]
    pub(super) actions: Vec<String>,
    #[serde(default)]
    pub(super) before: Value,
    #[serde(default)]
    pub(super) after: Value,
    #[serde(default)]
    pub(super) after_unknown: Value,
    #[serde(default)]
    pub(super) before_sensitive: Value,
    #[serde(default)]
    pub(super) after_sensitive: Value,
    #[serde(default)]
    pub(super) importing: Option<Value>,
}
