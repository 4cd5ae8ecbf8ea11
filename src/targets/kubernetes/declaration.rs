//! A component of Kubernetes objects as a type.

use std::{collections::BTreeMap, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::{Duration, ids::Malformed};

/// How long what was applied may take to come up where nothing says so.
const WAIT: Duration = Duration::seconds(300);

/// Kubernetes objects: exactly one of `manifests`, `kustomize` and `helm`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Kubernetes {
    /// The connection to the cluster; the environment's where it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<Connection>,
    /// The namespace of objects that name none; the environment's where it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// A manifest, or a folder of them, relative to the root of the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifests: Option<String>,
    /// A folder with a `kustomization.yaml`, relative to the root of the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kustomize: Option<String>,
    /// A chart of the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub helm: Option<Helm>,
    /// What `${KEY}` in the rendered objects stands for; without it nothing is replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub substitute: Option<BTreeMap<String, Value>>,
    /// As whom objects are read and applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub impersonate: Option<Impersonate>,
    /// Objects that may be deleted and made again where a field can't be changed in place.
    #[serde(default)]
    pub force: Vec<Objects>,
    /// Fields that are somebody else's: they are not sent, and not compared.
    #[serde(default)]
    pub ignore: Vec<Ignore>,
    /// When objects of a kind are healthy, where the usual rules don't say it.
    #[serde(default)]
    pub health: Vec<Health>,
    /// How long what was applied may take to come up, or `none`; 5 min where it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<Wait>,
}

/// How long what was applied may take to come up: a duration, or `none`.
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

/// `cluster`, or `{name: cluster, server: …}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Connection {
    /// The name alone.
    Name(String),
    /// With an address that an output gives.
    With(ConnectionWith),
}

/// A connection with an address that an output gives; the credentials never come from there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConnectionWith {
    /// The connection.
    pub name: String,
    /// The address of the API server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Its certificate authority: PEM, or base64 of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_authority: Option<String>,
}

impl Connection {
    /// The name of the connection.
    pub fn name(&self) -> &str {
        match self {
            Self::Name(name) => name,
            Self::With(with) => &with.name,
        }
    }
}

/// A chart of the repository, with all that it depends on in its `charts` folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Helm {
    /// The folder of the chart, relative to the root of the repository.
    pub chart: String,
    /// The name of the release; the component's where it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// Files of values, relative to the root of the repository; a later one wins.
    #[serde(default)]
    pub value_files: Vec<String>,
    /// Values; they win over those of files.
    #[serde(default)]
    pub values: BTreeMap<String, Value>,
}

/// As whom objects are read and applied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Impersonate {
    /// A service account: `name` in the component's namespace, or `namespace/name`.
    pub service_account: String,
}

/// Objects by what they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Objects {
    /// The kind.
    pub kind: String,
    /// The name; all of the kind where it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Fields that are somebody else's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ignore {
    /// The kind.
    pub kind: String,
    /// The name; all of the kind where it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// JSON pointers into the object.
    #[schemars(length(min = 1))]
    pub pointers: Vec<String>,
    /// Why, for the reader.
    pub because: String,
}

/// When objects of a kind are healthy, by expressions of CEL over the object `self`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Health {
    /// The kind.
    pub kind: String,
    /// True once it is as it should be.
    pub current: String,
    /// True where it won't ever be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

impl Kubernetes {
    /// How long what was applied may take to come up; nothing where nobody waits.
    pub fn waits(&self) -> std::time::Duration {
        self.wait.map_or(Some(WAIT), |wait| wait.0).map_or(std::time::Duration::ZERO, Duration::std)
    }
}
