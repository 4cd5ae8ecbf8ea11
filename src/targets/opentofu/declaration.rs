//! Defines the declaration of an OpenTofu component.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An OpenTofu root module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tofu {
    /// The connection that supplies the environment of the process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<String>,
    /// The root module, relative to the root of the repository.
    pub root: String,
    /// The workspace.
    #[serde(default = "default_workspace")]
    pub workspace: String,
    /// Variables; they are passed last and override all values in the repository.
    #[serde(default)]
    pub variables: BTreeMap<String, Value>,
    /// Variable files, relative to the root of the repository.
    #[serde(default)]
    pub var_files: Vec<String>,
    /// Settings of the backend.
    #[serde(default)]
    pub backend_config: BTreeMap<String, Value>,
}

fn default_workspace() -> String {
    "default".into()
}
