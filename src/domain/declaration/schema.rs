//! Defines the documents of a state repo as types.
//!
//! The JSON Schemas of `docs/schemas/` are generated from these types. Documents are validated against the same schemas
//! before they are deserialized, so that editor, `validate` and daemon agree.
//! *Invariant:* every field is enforced. A field that a later version will enforce is listed under
//! `x-not-supported-yet` and refused until then.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use super::{
    environment::{After, AfterWith, Deferred, Environment, KubernetesDefaults, Limits, OnMerge},
    remediation::{Direction, Remediation, RemediationAction, RemediationField, RemediationResource},
};
use crate::model::{ComponentName, Duration, EnvironmentName, TargetSpec};

/// The `apiVersion` of each document.
pub const API_VERSION: &str = "evenkeel.dev/v1alpha1";

/// The kinds of document, in the order of their schemas.
pub const DOCUMENTS: [&str; 5] = ["StateRepo", "Environment", "Component", "Schedule", "Remediation"];

/// Teams, permissions and defaults. A state repo has exactly one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-not-supported-yet" = {
    "rules": "rules for events come with Pub/Sub",
    "notifications": "notifications come later"
}))]
pub struct StateRepo {
    /// Groups of users, by name.
    #[serde(default)]
    pub teams: BTreeMap<String, Team>,
    /// Permissions for commands. The first match counts, and the default is to refuse.
    #[serde(default)]
    pub permissions: Vec<Permission>,
    /// Defaults for components.
    #[serde(default)]
    pub defaults: Defaults,
    /// Paths whose changes need approvals, regardless of their effect.
    #[serde(default)]
    pub protected_paths: Vec<ProtectedPaths>,
    /// Whether pull requests from forks are planned.
    #[serde(default)]
    pub forks: Forks,
}

/// Paths whose changes need approvals, regardless of their effect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProtectedPaths {
    /// Patterns relative to the root of the repository; `*` matches any text without a slash, `**` matches any text.
    #[schemars(length(min = 1))]
    pub paths: Vec<String>,
    /// The number of required approvals.
    #[schemars(range(min = 1))]
    pub approvals: u32,
    /// The subjects whose approvals count, such as `team:platform`. Default: every user.
    #[serde(default)]
    pub from: Vec<String>,
}

/// A group of users.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Team {
    /// A GitHub team, `organisation/team`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub github: Option<String>,
    /// GitHub logins.
    #[serde(default)]
    pub users: Vec<String>,
}

/// A command of a principal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "each is the comment command of the same name")]
pub enum Verb {
    Plan,
    Apply,
    Drift,
    Help,
    Rebalance,
    Rotate,
    ApprovePolicy,
    Revert,
    Adopt,
    Snooze,
    Suspend,
    Resume,
    Cancel,
    Unlock,
    Release,
    Confirm,
    Destroy,
    Forget,
    Now,
    Emergency,
}

impl Verb {
    /// Returns the names of all commands.
    pub fn names() -> impl Iterator<Item = &'static str> {
        [
            "plan",
            "apply",
            "drift",
            "help",
            "rebalance",
            "rotate",
            "approve-policy",
            "revert",
            "adopt",
            "snooze",
            "suspend",
            "resume",
            "cancel",
            "unlock",
            "release",
            "confirm",
            "destroy",
            "forget",
        ]
        .into_iter()
    }

    /// Returns the name after the slash.
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|v| v.as_str().map(str::to_owned)).expect("a unit variant is a string")
    }
}

/// One permission.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Permission {
    /// The allowed commands.
    pub allow: Vec<Verb>,
    /// The subjects, any of: `team:NAME`, `user:LOGIN`, `permission:read|triage|write|maintain|admin`, `token:NAME`.
    pub to: Vec<String>,
    /// The environments of the permission. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environments: Option<Vec<EnvironmentName>>,
    /// The approving reviews that the pull request must have first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approvals: Option<Approvals>,
}

/// Approving reviews of a pull request that a command needs (R3.6).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Approvals {
    /// The number of approvals. The author's review never counts.
    #[schemars(range(min = 1))]
    pub count: u32,
    /// The subjects whose approvals count, such as `team:platform`. Default: every user.
    #[serde(default)]
    pub from: Vec<String>,
}

/// Defaults for components.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Defaults {
    /// The detection of drift, and the reaction to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<DriftPolicy>,
}

/// Whether pull requests from forks are planned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Forks {
    /// They are not planned, because a plan runs code of the pull request.
    #[default]
    Ignore,
    /// They are planned.
    Plan,
}

/// The detection of drift, and the reaction to it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DriftPolicy {
    /// The interval between two observations of an instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<Duration>,
    /// The reaction to drift.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<DriftMode>,
    /// Whether differences that no apply would change are drift too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

/// The reaction to drift.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum DriftMode {
    /// Only shows the drift.
    Report,
    /// Opens a pull request that proposes to revert the drift.
    #[default]
    Propose,
    /// Reverts the drift without a review. Drift whose revert destroys or replaces a resource is proposed instead, and
    /// so is drift that occurs for the third time within an hour.
    Revert,
}

/// A part of the infrastructure that is declared once and instantiated in each of its environments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields, extend("x-not-supported-yet" = {
    "secret": "this kind of component comes later", "hooks": "hooks come later"
}))]
pub struct Component {
    /// The environments in which the component is instantiated.
    #[schemars(length(min = 1))]
    pub environments: Vec<EnvironmentName>,
    /// Components that must be applied first, in the same environment.
    #[serde(default)]
    pub depends_on: Vec<ComponentName>,
    /// The target, under the name of its kind.
    #[serde(flatten)]
    #[schemars(skip)]
    pub target: TargetSpec,
    /// Addresses that no run may destroy or replace; `*` matches any text.
    #[serde(default)]
    pub protect: Vec<String>,
    /// Health checks, after an apply and at every drift check.
    #[serde(default)]
    pub checks: Vec<Check>,
    /// The detection of drift, and the reaction to it.
    #[serde(default)]
    pub drift: DriftPolicy,
    /// The handling of applied resources after the component is removed from the declarations.
    #[serde(default)]
    pub on_delete: OnDelete,
    /// Merge patches (RFC 7396) on this spec, by environment; lists whose items have a `name` merge by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub overrides: BTreeMap<EnvironmentName, Value>,
}

/// The handling of applied resources after the component is removed from the declarations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnDelete {
    /// Keeps the resources until a `/destroy` or `/forget` command.
    #[default]
    Orphan,
    /// Destroys the resources, dependents first.
    Destroy,
}

/// A health check of an address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-not-supported-yet" = {"sql": "checks by SQL come with Citus"}))]
pub struct Check {
    /// The name of the check.
    pub name: String,
    /// An HTTP URL that must respond with a status of 200 to 399.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// `host:port` that must accept a TCP connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<String>,
    /// The timeout. Default: 30 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
}

/// An action that runs at scheduled times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Schedule {
    /// A cron expression of five fields: minute, hour, day of month, month, day of week.
    pub cron: String,
    /// An IANA time zone. Default: UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// The action.
    pub run: ScheduledRun,
    /// A selector of the instances. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub select: Option<String>,
    /// The length of the time window. Work that has not started by its end waits for the next scheduled time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<Duration>,
    /// The maximum random delay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<Duration>,
    /// The handling of scheduled times that passed while the daemon was not running.
    #[serde(default)]
    pub missed: Missed,
}

/// The work of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "each is the word of the declaration")]
pub enum ScheduledRun {
    Drift,
    Rebalance,
    Rotate,
    Backup,
    Report,
}

/// The handling of scheduled times that passed while the daemon was not running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Missed {
    /// Runs once for all missed times.
    #[default]
    RunOnce,
    /// Skips missed times.
    Skip,
}

/// The metadata of every document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// The name, unique among documents of its kind.
    #[schemars(with = "String", extend("format" = "evenkeel-name"))]
    pub name: ComponentName,
    /// Labels, for selectors.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The former name of a component. Its records move to the new name when this is merged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "evenkeel-name"))]
    pub renamed_from: Option<ComponentName>,
}

/// A document of one kind, used for its schema alone.
#[derive(JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "the type stands for its schema")]
pub(super) struct Document<S> {
    api_version: ApiVersion,
    kind: String,
    metadata: Metadata,
    spec: S,
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "the type stands for its schema")]
enum ApiVersion {
    #[serde(rename = "evenkeel.dev/v1alpha1")]
    V1Alpha1,
}
