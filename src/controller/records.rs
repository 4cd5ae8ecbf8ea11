//! Defines the documents that controllers store, one type for each kind of record.
//!
//! *Invariant:* the kinds, keys and serialised names never change, because every version since the first stores them.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Duration, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    adapters::store::Record,
    domain::{authorization::guards::InForce, declaration::schema::Remediation, plan::Observed},
    model::{Action, Digest, EnvironmentName, InstanceId, PullNumber, Revision, RunId},
    ports::Pull,
};

/// The minimal age of a plan that a command may refer to without its digest (R6.3).
pub(crate) const PLAN_SETTLED: Duration = Duration::seconds(30);

/// The default duration of a snooze (R4.5).
pub(crate) const SNOOZE: Duration = Duration::days(30);

/// The prefix of branches that the daemon opens pull requests from.
pub(crate) const OWN_BRANCHES: &str = "evenkeel/";

macro_rules! record {
    ($type:ty, $kind:literal, $key:ty) => {
        impl Record for $type {
            const KIND: &'static str = $kind;
            type Key = $key;
        }
    };
}

record!(Stalled, "stalled", InstanceId);
record!(TrackedPullRequest, "pull", PullNumber);
record!(Proposal, "proposal", String);
record!(ProposalDirection, "direction", String);
record!(PendingPush, "pushing", String);
record!(MergedRemediation, "remediation", String);
// A remediation as it was proposed, by name.
record!(Remediation, "written", String);
// An action as it was proposed.
record!(Action, "action", Digest);
record!(Identity, "identity", InstanceId);
record!(IdentityOwner, "identity-of", String);
record!(Snooze, "snooze", InstanceId);
record!(Suspension, "suspended", String);
record!(ScheduleState, "schedule", String);
record!(CapacityRequest, "capacity", String);
record!(RevertHistory, "reverted", InstanceId);
record!(StoreHistory, "store", String);
record!(InForce, "guards", String);
record!(Cancellation, "cancel", String);
record!(FailedRename, "unmoved", InstanceId);
record!(CapacityExceeded, "capacity-exceeded", InstanceId);

/// An instance whose last run failed or was cancelled (R5.1).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Stalled {
    /// The run.
    pub(crate) run: RunId,
    /// The reason of the failure or cancellation.
    #[serde(rename = "says")]
    pub(crate) message: String,
    /// The component digest that the run could not apply.
    pub(crate) digest: Option<Digest>,
    /// Whether the run was cancelled (R5.5).
    #[serde(default)]
    pub(crate) cancelled: bool,
}

/// A pull request, as the forge described it last.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TrackedPullRequest {
    /// The description of the forge.
    pub(crate) pull: Pull,
    /// The head and base that were planned last.
    #[serde(default)]
    pub(crate) planned: Option<(Revision, Revision)>,
    /// The environments that it changes, as planned last.
    #[serde(default)]
    pub(crate) environments: BTreeSet<EnvironmentName>,
    /// Whether `/plan` asked for a new plan.
    #[serde(default, rename = "again")]
    pub(crate) replan: bool,
    /// Whether approvals of protected paths are missing: they may be given without another commit.
    #[serde(default, rename = "lacks")]
    pub(crate) lacks_approvals: bool,
    /// The `updated_at` of the forge at the last sync that ended without an error.
    #[serde(default, rename = "looked")]
    pub(crate) synced: Option<DateTime<Utc>>,
}

impl TrackedPullRequest {
    pub(crate) fn new(pull: Pull) -> Self {
        Self { pull, planned: None, environments: BTreeSet::new(), replan: false, lacks_approvals: false, synced: None }
    }
}

/// A pull request that proposes to revert or adopt drift, by environment and root cause.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Proposal {
    /// The pull request.
    pub(crate) pull: PullNumber,
    /// The digest of the drift.
    pub(crate) digest: Digest,
    /// The name of the remediation.
    pub(crate) name: String,
    /// The head that the daemon pushed.
    pub(crate) pushed: Revision,
    /// The instances with the drift.
    pub(crate) instances: BTreeSet<InstanceId>,
    /// The actions that it proposes.
    #[serde(default)]
    pub(crate) actions: BTreeMap<InstanceId, BTreeSet<Digest>>,
    /// The actions that reviewers removed. A removal is valid for one observation.
    #[serde(default)]
    pub(crate) cuts: BTreeSet<Digest>,
    /// Whether the branch has commits of other authors: updates are based on these commits.
    #[serde(default)]
    pub(crate) shared: bool,
    /// Whether the daemon closes the pull request, which is not a rejection by a reviewer.
    #[serde(default)]
    pub(crate) withdrawn: bool,
    /// Whether the proposal edits the declarations (R4.3).
    #[serde(default)]
    pub(crate) adopts: bool,
}

/// The direction of a proposal, where it is not the default, which is to revert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum ProposalDirection {
    /// The declaration adopts the observed drift.
    Adopt,
}

/// A push to a branch of the daemon, recorded before it is made.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PendingPush {
    /// The parent of the commit.
    pub(crate) onto: Revision,
    /// The subject of the commit.
    pub(crate) title: String,
    /// The key and content of the proposal, once it is pushed. Its pull request has no number yet.
    #[serde(default, rename = "made")]
    pub(crate) pushed: Option<(String, Proposal)>,
}

/// A merged remediation and its outcome, by environment and name.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MergedRemediation {
    /// The commit that added the file.
    pub(crate) commit: Option<Revision>,
    /// The run of the remediation.
    pub(crate) run: Option<RunId>,
    /// The reason why the remediation waits.
    pub(crate) waits: Option<String>,
    /// Whether the remediation is spent (R4.1).
    pub(crate) spent: bool,
    /// The pull request that added the file.
    pub(crate) pull: Option<PullNumber>,
}

/// The target that an instance is pinned to (R1.8).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Identity {
    /// The pinned identity.
    pub(crate) pinned: Option<String>,
    /// Another identity that was observed in its place.
    #[serde(default)]
    pub(crate) seen: Option<OtherIdentity>,
}

/// An identity that was observed in place of the pinned one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OtherIdentity {
    /// Absent where the target has none.
    pub(crate) identity: Option<String>,
}

/// The instance that an identity is pinned by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct IdentityOwner(pub(crate) InstanceId);

/// The rejection of drift of one instance (R4.5).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snooze {
    /// The actions that would revert the drift. Another observation has other actions.
    pub actions: BTreeSet<Digest>,
    /// The end of the snooze.
    pub until: DateTime<Utc>,
    /// The principal, if it is known.
    pub by: String,
    /// The cause, such as "closed #12".
    pub because: String,
}

impl Snooze {
    /// Whether the snooze covers all observed drift, and has not ended.
    pub(crate) fn holds(&self, observed: &Observed, now: DateTime<Utc>) -> bool {
        let actions = observed.revert_actions();
        !actions.is_empty() && actions.iter().all(|action| self.covers(action, now))
    }

    /// Whether the snooze covers an action, and has not ended.
    pub(crate) fn covers(&self, action: &Action, now: DateTime<Utc>) -> bool {
        self.until > now && self.actions.contains(&action.digest)
    }
}

/// A suspension by `/suspend`, by the name of an environment or instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Suspension {
    /// The principal.
    pub(crate) by: String,
    /// The time of the command.
    pub(crate) at: DateTime<Utc>,
}

/// The time of a `Schedule` that was started last, and its calendar.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ScheduleState {
    /// The time.
    pub(crate) at: DateTime<Utc>,
    /// The expression.
    pub(crate) cron: String,
    /// The time zone.
    pub(crate) zone: Option<String>,
}

/// A pull request that raises the number of nodes, by instance and variable.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CapacityRequest {
    /// The proposed value.
    pub(crate) value: u64,
    /// The pull request, once it is opened.
    pub(crate) pull: Option<PullNumber>,
}

/// The capacity rules that a cluster exceeds, as observed last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct CapacityExceeded(pub(crate) Vec<crate::ports::MoreCapacity>);

/// The times of automatic reverts of the fields of an instance, by resource and path.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct RevertHistory(pub(crate) BTreeMap<String, Vec<DateTime<Utc>>>);

/// Whether the store has the history of its repository (R1.7).
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct StoreHistory {
    /// Whether the repository has a history that this store does not have.
    pub(crate) lost: bool,
}

/// The reason of the cancellation of an instance of a run, by run and instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Cancellation(pub(crate) String);

/// The error of a rename of an instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct FailedRename(pub(crate) String);

/// Returns the subject of the plans of an environment on a pull request.
pub(crate) fn pull_request_subject(number: PullNumber, environment: &EnvironmentName) -> String {
    format!("pull/{}/{environment}", number.0)
}

/// Returns the subject of the plans of an environment at head.
pub(crate) fn head_subject(environment: &EnvironmentName) -> String {
    format!("head/{environment}")
}
