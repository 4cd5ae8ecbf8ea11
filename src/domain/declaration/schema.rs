//! The declarations as types: what a state repo may say.
//!
//! The JSON Schemas of `docs/schemas/` are generated from these types, and documents are checked against the same
//! schemas before they are deserialised, so that editor, `validate` and daemon agree.
//! *Invariant:* a field that stands here is enforced; one that a later version will enforce is listed under
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

/// The version that each document names.
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
    /// Groups of people by name.
    #[serde(default)]
    pub teams: BTreeMap<String, Team>,
    /// Permissions for commands; the first match wins, and nothing is allowed by default.
    #[serde(default)]
    pub permissions: Vec<Permission>,
    /// Defaults for components.
    #[serde(default)]
    pub defaults: Defaults,
    /// Paths whose change needs approvals, whatever it does.
    #[serde(default)]
    pub protected_paths: Vec<ProtectedPaths>,
    /// Whether pull requests from forks are planned.
    #[serde(default)]
    pub forks: Forks,
}

/// Paths whose change needs approvals, whatever it does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProtectedPaths {
    /// Relative to the root of the repository; `*` stands for any text without a slash, `**` for any text.
    #[schemars(length(min = 1))]
    pub paths: Vec<String>,
    /// How many approvals.
    #[schemars(range(min = 1))]
    pub approvals: u32,
    /// Of whom, any of; of anybody where it is not set.
    #[serde(default)]
    pub from: Vec<String>,
}

/// A group of people.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Team {
    /// A GitHub team, `organisation/team`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub github: Option<String>,
    /// Logins.
    #[serde(default)]
    pub users: Vec<String>,
}

/// A command that somebody may give.
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
    /// The words of all commands.
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

    /// The word after the slash.
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|v| v.as_str().map(str::to_owned)).expect("a unit variant is a string")
    }
}

/// One line of the permissions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Permission {
    /// Which commands.
    pub allow: Vec<Verb>,
    /// To whom, any of: `team:NAME`, `user:LOGIN`, `permission:read|triage|write|maintain|admin`, `token:NAME`.
    pub to: Vec<String>,
    /// In which environments; in all where it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environments: Option<Vec<EnvironmentName>>,
    /// The reviews that have to stand on the pull request first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approvals: Option<Approvals>,
}

/// Reviews of a pull request that a command needs (R3.6).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Approvals {
    /// How many, never the author's.
    #[schemars(range(min = 1))]
    pub count: u32,
    /// Of whom, any of; of anybody where it is not set.
    #[serde(default)]
    pub from: Vec<String>,
}

/// Defaults for components.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Defaults {
    /// How drift is looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<DriftPolicy>,
}

/// Whether pull requests from forks are planned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Forks {
    /// They are not: planning runs code of whoever wrote it.
    #[default]
    Ignore,
    /// They are.
    Plan,
}

/// How drift is looked for, and what is done about it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DriftPolicy {
    /// How often each instance is observed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<Duration>,
    /// The reaction to drift.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<DriftMode>,
    /// Whether drift that no apply would change counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

/// The reaction to drift.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum DriftMode {
    /// It is shown.
    Report,
    /// A pull request proposes to revert it.
    #[default]
    Propose,
    /// It is reverted by itself where nothing has to be destroyed or replaced, and proposed else; what drifts for the
    /// third time within an hour is proposed as well.
    Revert,
}

/// A part of the world, written once and instantiated in each of its environments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields, extend("x-not-supported-yet" = {
    "secret": "this kind of component comes later", "hooks": "hooks come later"
}))]
pub struct Component {
    /// Where it is instantiated.
    #[schemars(length(min = 1))]
    pub environments: Vec<EnvironmentName>,
    /// Components that have to be applied before it, in the same environment.
    #[serde(default)]
    pub depends_on: Vec<ComponentName>,
    /// The target, under the name of its kind.
    #[serde(flatten)]
    #[schemars(skip)]
    pub target: TargetSpec,
    /// Addresses that no run may destroy or replace; `*` stands for any text.
    #[serde(default)]
    pub protect: Vec<String>,
    /// Health checks, after an apply and on every drift check.
    #[serde(default)]
    pub checks: Vec<Check>,
    /// How drift is looked for.
    #[serde(default)]
    pub drift: DriftPolicy,
    /// The handling of applied resources once the component is no longer declared.
    #[serde(default)]
    pub on_delete: OnDelete,
    /// Merge patches (RFC 7396) on this spec, by environment; lists whose items have a `name` merge by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub overrides: BTreeMap<EnvironmentName, Value>,
}

/// The handling of applied resources once the component is no longer declared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnDelete {
    /// It stays, until somebody destroys or forgets it.
    #[default]
    Orphan,
    /// It is destroyed, dependents first.
    Destroy,
}

/// Something that must answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-not-supported-yet" = {"sql": "checks by SQL come with Citus"}))]
pub struct Check {
    /// Its name.
    pub name: String,
    /// An address that must answer with a status of 200 to 399.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// `host:port` that must accept a connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<String>,
    /// How long it may take, 30 s where it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
}

/// Something that is done by the clock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Schedule {
    /// Five fields: minute, hour, day of month, month, day of week.
    pub cron: String,
    /// An IANA time zone; UTC where it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// The action.
    pub run: ScheduledRun,
    /// On which instances; on all where it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub select: Option<String>,
    /// Work that has not started by then waits for the next time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<Duration>,
    /// A random delay of at most this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<Duration>,
    /// The handling of times that passed while the daemon was not running.
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

/// The handling of times that passed while the daemon was not running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Missed {
    /// They are made up for once.
    #[default]
    RunOnce,
    /// They are left out.
    Skip,
}

/// The fields of every document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// The name, unique among its kind.
    #[schemars(with = "String", extend("format" = "evenkeel-name"))]
    pub name: ComponentName,
    /// For selectors.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The name that a component had before: its records move to the new one when this is merged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "evenkeel-name"))]
    pub renamed_from: Option<ComponentName>,
}

/// A document of one kind; only its schema is used.
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
