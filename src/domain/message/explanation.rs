//! Defines the reasons for which an instance does not change, as `evenkeel explain` prints them.

use std::fmt;

use chrono::{DateTime, Utc};

use super::{Refusal, approvals::needed, comment, verdict::VerdictReason};
use crate::{
    domain::declaration::schema::Approvals,
    model::{EnvironmentName, InstanceId, PullNumber, WaitingOn},
};

/// The reason for which no run changes an instance.
#[derive(Clone, Debug, PartialEq)]
pub enum Explanation {
    /// The state repo was never loaded.
    NoHead(Refusal),
    /// The instance is in sync.
    InSync,
    /// The instance is suspended; the text of the verdict.
    Suspended(String),
    /// The target has another identity; the text of the verdict.
    OtherIdentity(String),
    /// The last observation was not complete; the text of the verdict.
    Unknown(InstanceId, String),
    /// The declaration has a problem; the text of the verdict.
    DeclarationProblem(String),
    /// The checks of the instance fail; the text of the verdict.
    ChecksFail(String),
    /// The instance may have been removed; the text of the verdict.
    MayBeRemoved(String),
    /// The last run failed; the text of the verdict.
    Stalled(EnvironmentName, String),
    /// The instance is an orphan; the text of the verdict.
    Orphaned(String),
    /// The instance drifted.
    Drifted(DriftExplanation),
    /// A run is in progress or begins soon; the text of the verdict.
    RunBegins(String),
    /// Head can't be planned; the problem.
    HeadNotPlanned(String),
    /// The pending change waits for `/apply`; the approvals that it needs.
    WaitsForApply(EnvironmentName, Option<Approvals>),
    /// The pending change waits for a condition; the text of the verdict.
    Waits(WaitingOn, String),
    /// The store has no history of the repository.
    NoHistory,
}

/// The reason for which drift is not reverted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DriftExplanation {
    /// The drift is snoozed.
    Snoozed {
        /// The principal.
        by: String,
        /// The reason.
        because: String,
        /// The end.
        until: DateTime<Utc>,
    },
    /// The remediation is merged and waits, with the reason if one is recorded.
    RemediationWaits(Option<String>),
    /// Head declares the observed values.
    DeclaredAtHead(EnvironmentName),
    /// A pull request proposes to revert or to adopt.
    Proposed {
        /// The pull request.
        pull: PullNumber,
        /// Whether the pull request adopts.
        adopts: bool,
    },
    /// No apply would change the drift.
    NotRevertible,
    /// `drift.mode: report`.
    ReportOnly,
    /// No forge is configured.
    NoForge(InstanceId),
    /// `drift.mode: revert`.
    AutomaticRevert,
    /// A proposal is about to be opened.
    ProposalComes,
}

/// Writes a sentence and an optional remark after it.
fn with(f: &mut fmt::Formatter<'_>, sentence: &str, remark: &str) -> fmt::Result {
    if remark.is_empty() { f.write_str(sentence) } else { write!(f, "{sentence} {remark}") }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHead(refusal) => write!(f, "{refusal}"),
            Self::InSync => f.write_str(
                "The observation was complete and shows no difference from what is applied, so there is nothing to do (R1.4).",
            ),
            Self::Suspended(reason) => write!(f, "It is observed and never acted on: {reason}."),
            Self::OtherIdentity(reason) => write!(f, "No run works on it: {reason}."),
            Self::Unknown(id, reason) => write!(
                f,
                "It could not be observed completely, and what is unknown is never acted on (R2.9): {reason}. It is observed again every `drift.every`, or now with `evenkeel drift {id}`."
            ),
            Self::DeclarationProblem(reason) => write!(
                f,
                "Its declaration has a problem, so no run works on it, and other instances go on: {reason}. `evenkeel validate` shows all problems."
            ),
            Self::ChecksFail(reason) => write!(
                f,
                "It is applied, and its checks fail (R3.5): {reason}. Nothing is promoted from it; each drift check runs the checks again."
            ),
            Self::MayBeRemoved(reason) => {
                write!(f, "It {reason}; nothing counts as removed before every file can be read (R1.9).")
            }
            Self::Stalled(environment, reason) => write!(
                f,
                "{reason}. It needs a person (R5.1): fix it in a pull request, go back with `git revert`, or try the same again by `/apply {environment}`."
            ),
            Self::Orphaned(reason) => write!(f, "It is {reason} (R1.9)."),
            Self::Drifted(drift) => write!(f, "The live state differs from what is applied (R1.4){drift}"),
            Self::RunBegins(reason) => with(f, "A run is in progress or begins soon.", reason),
            Self::HeadNotPlanned(problem) => write!(
                f,
                "The declaration at head can't be planned, so nothing can be approved or applied (R2.9): {problem}. Fix it in a pull request; it is planned again when the branch moves."
            ),
            Self::WaitsForApply(environment, needs) => {
                write!(
                    f,
                    "The declaration differs from what is applied, and `onMerge: wait` leaves the apply to a principal (R3.1): `/apply {environment}` on its pull request, or `evenkeel apply {environment}`."
                )?;
                if let Some(needs) = needs {
                    write!(f, " It needs {}, on the pull request that changed it (R3.6).", needed(needs))?;
                }
                write!(f, " `evenkeel who-can apply {environment}` lists the principals.")
            }
            Self::NoHistory => f.write_str(
                "This store has no history of a repository that was applied before, so nothing is applied by itself: restore the store, or read the plan and comment `/apply` (R1.7).",
            ),
            Self::Waits(on, reason) => {
                let waits = comment::waiting(on);
                match on {
                    WaitingOn::Approval { .. } => {
                        write!(f, "{reason}. Only what was shown runs, and this was not shown (R2.4, R2.7).")
                    }
                    WaitingOn::FirstContact => f.write_str(
                        "The target already holds something that was never applied from here, so a merge alone does not authorise the apply: read the plan and comment `/apply` (R1.6).",
                    ),
                    WaitingOn::KnownAfter { .. } => write!(f, "Its plan is {waits} (R2.5)."),
                    WaitingOn::Upstream { .. } => with(f, &format!("It waits: {waits} (R5.4, R6.1)."), reason),
                    WaitingOn::Promotion { .. } | WaitingOn::Soak { .. } => write!(f, "It waits: {waits} (R3.5)."),
                    WaitingOn::Rollout { .. } => with(f, &format!("It waits for {waits} (R5.2)."), reason),
                    WaitingOn::Apply | WaitingOn::Suspended => with(f, &format!("It waits for {waits}."), reason),
                    WaitingOn::Confirm => with(f, &format!("It waits for {waits} (R1.8)."), reason),
                }
            }
        }
    }
}

impl fmt::Display for DriftExplanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snoozed { by, because, until } => write!(
                f,
                ", and {by} snoozed it ({because}): nothing is proposed until {}, or until another difference is observed (R4.5).",
                until.format("%Y-%m-%d %H:%M UTC")
            ),
            Self::RemediationWaits(reason) => write!(
                f,
                ". Its remediation is merged and waits (R4.2): {}",
                reason.as_deref().unwrap_or("its run begins soon")
            ),
            Self::DeclaredAtHead(environment) => write!(
                f,
                ", and head declares what was observed: there is nothing to revert, and `/apply {environment}` records it as applied (R4.3)."
            ),
            Self::Proposed { pull, adopts } => write!(
                f,
                ". {pull} proposes to {} it: merge it, close it, or change what it does by `/revert`, `/adopt`, `/snooze` (R4.4).",
                if *adopts { "declare" } else { "revert" }
            ),
            Self::NotRevertible => f.write_str(
                " in fields that no apply would change, so there is nothing to revert. The next apply takes them over, or `drift.strict: false` leaves them out.",
            ),
            Self::ReportOnly => f.write_str(
                ", and `drift.mode: report` only shows it (R3.1). `drift.mode: propose` opens pull requests.",
            ),
            Self::NoForge(id) => write!(
                f,
                ", and there is no forge to propose on: configure `github`, or apply the declaration by `evenkeel apply {id}`."
            ),
            Self::AutomaticRevert => {
                f.write_str("; it is reverted by itself where nothing has to be destroyed or replaced (R3.1).")
            }
            Self::ProposalComes => f.write_str("; a pull request that proposes to revert it is opened soon (R4.4)."),
        }
    }
}

impl Explanation {
    /// The explanation of a stalled instance.
    pub fn stalled(id: &InstanceId, has_problems: bool, cause: Option<&VerdictReason>) -> Self {
        let reason = cause.map(ToString::to_string).unwrap_or_default();
        match cause {
            _ if has_problems => Self::DeclarationProblem(reason),
            Some(VerdictReason::CheckFailed(_)) => Self::ChecksFail(reason),
            Some(VerdictReason::MayBeRemoved) => Self::MayBeRemoved(reason),
            _ => Self::Stalled(id.environment.clone(), reason),
        }
    }
}
