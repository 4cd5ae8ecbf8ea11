//! Defines the declaration of a component of Kubernetes objects.

use std::{collections::BTreeMap, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::{Duration, ids::Malformed};

/// The default time limit for applied objects to become ready.
const WAIT: Duration = Duration::seconds(300);

/// Kubernetes objects: exactly one of `manifests`, `kustomize` and `helm`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Kubernetes {
    /// The connection to the cluster; defaults to the connection of the environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<Connection>,
    /// The namespace of objects that name none; defaults to the namespace of the environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// A manifest or a folder of manifests, relative to the root of the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifests: Option<String>,
    /// A folder with a `kustomization.yaml`, relative to the root of the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kustomize: Option<String>,
    /// A chart in the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub helm: Option<Helm>,
    /// The values of `${KEY}` in the rendered objects; without it no text is replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub substitute: Option<BTreeMap<String, Value>>,
    /// The account that reads and applies the objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub impersonate: Option<Impersonate>,
    /// Objects that may be deleted and created again if a field can't be changed in place.
    #[serde(default)]
    pub force: Vec<Objects>,
    /// Fields that another manager owns: they are neither sent nor compared.
    #[serde(default)]
    pub ignore: Vec<Ignore>,
    /// Health rules for kinds that the default rules do not cover.
    #[serde(default)]
    pub health: Vec<Health>,
    /// The time limit for applied objects to become ready, or `none`; defaults to 5 min.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<Wait>,
}

/// The time limit for applied objects to become ready: a duration, or `none`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Wait(Option<Duration>);

impl FromStr for Wait {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        if text == "none" { Ok(Self(None)) } else { text.parse().map(|wait| Self(Some(wait))) }
    }
}
impl TryFrom<String> for Wait {
    type Error = Malformed;
    fn try_from(text: String) -> Result<Self, Malformed> {
        text.parse()
    }
}
impl From<Wait> for String {
    fn from(wait: Wait) -> String {
        wait.0.map_or_else(|| "none".into(), |wait| wait.to_string())
    }
}
impl JsonSchema for Wait {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Wait".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "format": "evenkeel-wait"})
    }
}

/// A connection: `cluster`, or `{name: cluster, server: …}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Connection {
    /// The name alone.
    Name(String),
    /// The name with an address from an output.
    With(ConnectionWith),
}

/// A connection with an address from an output; the credentials never come from an output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConnectionWith {
    /// The name of the connection.
    pub name: String,
    /// The address of the API server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// The certificate authority of the server: PEM, or base64 of PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_authority: Option<String>,
}

impl Connection {
    /// Returns the name of the connection.
    pub fn name(&self) -> &str {
        match self {
            Self::Name(name) => name,
            Self::With(with) => &with.name,
        }
    }
}

/// A chart in the repository, with all its dependencies in its `charts` folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Helm {
    /// The folder of the chart, relative to the root of the repository.
    pub chart: String,
    /// The name of the release; defaults to the name of the component.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// Value files, relative to the root of the repository; a later file overrides an earlier one.
    #[serde(default)]
    pub value_files: Vec<String>,
    /// Values; they override those of files.
    #[serde(default)]
    pub values: BTreeMap<String, Value>,
}

/// The account that reads and applies the objects.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Impersonate {
    /// A service account: `name` in the component's namespace, or `namespace/name`.
    pub service_account: String,
}

/// A selector of objects.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Objects {
    /// The kind of the objects.
    pub kind: String,
    /// The name of the object; all objects of the kind if it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Fields that another manager owns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ignore {
    /// The kind of the objects.
    pub kind: String,
    /// The name of the object; all objects of the kind if it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// JSON pointers into the object.
    #[schemars(length(min = 1))]
    pub pointers: Vec<String>,
    /// The reason, for the reader.
    pub because: String,
}

/// A health rule for objects of a kind: CEL expressions over the object `self`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Health {
    /// The kind of the objects.
    pub kind: String,
    /// True if the object is ready.
    pub current: String,
    /// True if the object failed and will not become ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

impl Kubernetes {
    /// Returns the time limit for applied objects to become ready; zero for `wait: none`.
    pub fn waits(&self) -> std::time::Duration {
        self.wait.map_or(Some(WAIT), |wait| wait.0).map_or(std::time::Duration::ZERO, Duration::std)
    }
}
