//! Defines the reasons for which an instance of a run waits, fails or ends, and their text.
//!
//! The text follows the name of the instance in comments, so it starts in lower case.

use std::{fmt, time::Duration};

use chrono::{DateTime, Utc};

use super::{comment, suspension::SuspensionReason};
use crate::{
    domain::{
        declaration::schema::Verb,
        journal::{Run, Status},
        plan::{Gap, validation::Violation},
        remediation::Unusable,
    },
    model::{Change, ComponentName, InstanceId, PullNumber, Revision, RunId, WaitingOn},
};

/// The reason for the state of an instance in a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunReason {
    /// The text of a target, a check or a store; already redacted.
    Reported(String),
    /// The instance waits for a condition that needs no further text.
    Waits(WaitingOn),
    /// The instance or its environment is suspended.
    Suspended(SuspensionReason),
    /// The target contains resources that no run of this store applied.
    FirstContact,
    /// The store has no history of a repository that was applied before.
    NoHistory,
    /// The plan reverts drift that is snoozed (R3.7).
    RevertsSnoozed {
        /// The resource.
        resource: String,
        /// The reason of the snooze.
        because: String,
    },
    /// A revert or remediation of an instance that is not applied.
    NotApplied(InstanceId),
    /// The revision does not declare the instance.
    NotDeclared(InstanceId, Revision),
    /// The declaration has a problem.
    DeclarationProblem(String),
    /// An upstream is not applied as the branch declares it.
    UpstreamPending(InstanceId),
    /// An upstream of the same run must be applied first.
    UpstreamFirst(InstanceId),
    /// An upstream of the same run was not applied.
    UpstreamNotApplied(InstanceId),
    /// The instance is declared, or a file that may declare it can't be read.
    NotOrphaned,
    /// Another instance uses the instance.
    InUse {
        /// The instance.
        id: InstanceId,
        /// The instance that uses it.
        user: InstanceId,
        /// Whether head declares the user.
        is_declared: bool,
    },
    /// The drift is not the one that was approved.
    DriftChanged(Gap),
    /// The approval does not cover the plan (R2.4).
    NotCovered(Gap),
    /// The plan was not known when the run was approved.
    WasUnknown,
    /// The remediation of the run does not exist.
    RemediationMissing(String),
    /// The remediation can't run as it is.
    RemediationUnusable(Unusable),
    /// The plan violates an invariant or a guard.
    Invalid(Violation),
    /// A newer run applies the instance.
    SupersededByRun(RunId),
    /// The branch now declares another content.
    SupersededByBranch,
    /// The component now has another name.
    Renamed(ComponentName),
    /// A principal cancelled the run.
    Cancelled(String),
    /// The state changed between every plan and its apply.
    StateKeepsChanging,
    /// The instance was applied, and the following observation failed.
    NotObservedAfter(String),
    /// The instance was applied, and its identity or a health check is wrong.
    AppliedBut(String),
    /// No change was necessary, and the health checks fail.
    UnchangedBut(String),
    /// The instance was applied, and a new plan still shows a change.
    NotEmptyAfter {
        /// The change that remains.
        change: Change,
        /// The resource that it changes.
        resource: String,
    },
    /// The applied resources can't become ready, or destroyed ones remain.
    Unhealthy(Rollout, String),
    /// The deadline of the rollout passed.
    TimedOut(Rollout, Duration, String),
    /// The rollout is in progress.
    InProgress(Rollout, String),
    /// The rollout can't be observed.
    NotObserved(Rollout, String),
    /// The effect was interrupted, and the approval covers the remaining changes.
    Killed,
}

/// The direction of a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rollout {
    /// Resources become ready.
    Apply,
    /// Resources are deleted.
    Destroy,
}

/// Formats a duration in minutes, or in seconds if it is not a whole number of minutes.
fn wait(wait: Duration) -> String {
    let seconds = wait.as_secs();
    if seconds.is_multiple_of(60) { format!("{} min", seconds / 60) } else { format!("{seconds} s") }
}

impl fmt::Display for RunReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reported(text) => f.write_str(text),
            Self::Waits(on) => f.write_str(&comment::waiting(on)),
            Self::Suspended(reason) => write!(f, "{reason}"),
            Self::FirstContact => f.write_str(
                "the target already holds something that was never applied from here; read the plan and comment `/apply`",
            ),
            Self::NoHistory => f.write_str(
                "this store has no history of a repository that was applied before: restore the store, or read the plan and comment `/apply`",
            ),
            Self::RevertsSnoozed { resource, because } => write!(
                f,
                "it would revert the drift of `{resource}`, which is snoozed ({because}); read the plan, and comment `/apply` to revert it"
            ),
            Self::NotApplied(id) => write!(f, "`{id}` is not applied, so there is nothing to return to"),
            Self::NotDeclared(id, revision) => write!(f, "`{id}` is not declared at `{}`", revision.short()),
            Self::DeclarationProblem(problem) => write!(f, "its declaration has a problem: {problem}"),
            Self::UpstreamPending(id) => {
                write!(f, "`{id}` comes first, and is not applied as the branch declares it yet")
            }
            Self::UpstreamFirst(id) => write!(f, "`{id}` comes first"),
            Self::UpstreamNotApplied(id) => write!(f, "`{id}`, which it depends on, was not applied"),
            Self::NotOrphaned => {
                f.write_str("it is declared, or a file that may declare it can't be read; nothing was destroyed")
            }
            Self::InUse { id, user, is_declared: true } => {
                write!(f, "`{user}` still uses `{id}` as it is applied, and has to be applied without it first")
            }
            Self::InUse { id, user, is_declared: false } => {
                write!(f, "`{user}`, which uses `{id}`, still exists; destroy both, or forget `{user}`")
            }
            Self::DriftChanged(gap) => write!(f, "the drift changed meanwhile: {gap}"),
            Self::NotCovered(gap) => write!(f, "{gap}; read the new plan and comment `/apply`"),
            Self::WasUnknown => f.write_str(
                "its plan was not known when the run was approved; now it is known, and waits for `/apply`",
            ),
            Self::RemediationMissing(name) => write!(f, "the remediation `{name}` does not exist any more"),
            Self::RemediationUnusable(reason) => write!(f, "{reason}"),
            Self::Invalid(violation @ Violation::OverLimit { .. }) => {
                write!(f, "{violation}; raise the limit in a pull request of its own, or change less")
            }
            Self::Invalid(violation) => write!(f, "{violation}"),
            Self::SupersededByRun(run) => write!(f, "superseded by run {run}"),
            Self::SupersededByBranch => f.write_str("superseded: the branch declares other content by now"),
            Self::Renamed(name) => write!(f, "superseded: it is `{name}` now"),
            Self::Cancelled(who) => write!(f, "cancelled by {who}"),
            Self::StateKeepsChanging => f.write_str(
                "the state changed between each plan and its apply; find the other writer of this state, then comment `/apply`",
            ),
            Self::NotObservedAfter(reason) => write!(f, "it was applied and could not be observed afterwards: {reason}"),
            Self::AppliedBut(reason) => write!(f, "it was applied, and {reason}"),
            Self::UnchangedBut(reason) => write!(f, "nothing had to be applied, and {reason}"),
            Self::NotEmptyAfter { change, resource } => write!(
                f,
                "it was applied, and a new plan would still {} `{resource}`; a value that differs on every plan (a time, a random one) has to be ignored or fixed in the module",
                change.verb()
            ),
            Self::Unhealthy(Rollout::Apply, reason) => write!(f, "it was applied, and does not become ready: {reason}"),
            Self::Unhealthy(Rollout::Destroy, reason) => write!(f, "not everything is deleted: {reason}"),
            Self::TimedOut(Rollout::Apply, limit, reason) => {
                write!(f, "it was applied, and did not become ready within {}: {reason}", wait(*limit))
            }
            Self::TimedOut(Rollout::Destroy, limit, reason) => {
                write!(f, "it was destroyed, and still exists after {}: {reason}", wait(*limit))
            }
            Self::InProgress(Rollout::Apply, reason) => write!(f, "it was applied and becomes ready: {reason}"),
            Self::InProgress(Rollout::Destroy, reason) => write!(f, "it is being deleted: {reason}"),
            Self::NotObserved(Rollout::Apply, reason) => {
                write!(f, "it was applied, and whether it became ready could not be observed: {reason}")
            }
            Self::NotObserved(Rollout::Destroy, reason) => {
                write!(f, "it was destroyed, and whether it still exists could not be observed: {reason}")
            }
            Self::Killed => f.write_str("it was interrupted; the rest of it is covered and goes on"),
        }
    }
}

/// The reason for which a run exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunCause {
    /// A merge, by `onMerge: apply`: of a pull request, or of a revision without one.
    Merge(Option<PullNumber>, Revision),
    /// A merged remediation, and the principal who merged it.
    MergedRemediation(Option<PullNumber>, String),
    /// A comment: the command, the id of the comment, and its author.
    Comment(Verb, u64, String),
    /// A command of a principal, in a comment or over the API.
    Command(Verb, String),
    /// The command `evenkeel apply` of a principal.
    CommandLine(String),
    /// A command of a principal that runs a remediation.
    Remediation(String),
    /// `drift.mode: revert`.
    AutomaticRevert,
    /// A Schedule, with the due time.
    Schedule(ComponentName, DateTime<Utc>),
}

impl fmt::Display for RunCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Merge(Some(pull), _) => write!(f, "the merge of {pull} (`onMerge: apply`)"),
            Self::Merge(None, revision) => write!(f, "the merge of `{}` (`onMerge: apply`)", revision.short()),
            Self::MergedRemediation(Some(pull), who) => write!(f, "the merge of {pull} by {who}"),
            Self::MergedRemediation(None, who) => write!(f, "the merge of a remediation by {who}"),
            Self::Comment(verb, id, author) => write!(f, "[`/{}`](#issuecomment-{id}) of @{author}", verb.name()),
            Self::Command(verb, who) => write!(f, "`/{}` of {who}", verb.name()),
            Self::CommandLine(who) => write!(f, "`evenkeel apply` of {who}"),
            Self::Remediation(who) => write!(f, "the command of {who}"),
            Self::AutomaticRevert => f.write_str("the declaration (`drift.mode: revert`)"),
            Self::Schedule(name, at) => write!(f, "the Schedule `{name}` of {}", at.format("%Y-%m-%d %H:%M UTC")),
        }
    }
}

/// Returns the result of an ended run.
pub fn ended(run: &Run) -> String {
    let with = |status: Status| {
        run.instances
            .iter()
            .filter(|(_, i)| i.status == status)
            .map(|(id, _)| format!("`{}`", id.component))
            .collect::<Vec<_>>()
    };
    let failed = with(Status::Failed);
    if !failed.is_empty() && run.reverts() {
        return format!(
            "{} failed. The drift remains; the next drift check proposes what would revert it now.",
            failed.join(", ")
        );
    }
    if !failed.is_empty() && run.kind.destroys() {
        return format!(
            "{} failed. The remaining resources are still an orphan; comment `/destroy` again.",
            failed.join(", ")
        );
    }
    if !failed.is_empty() {
        return format!(
            "{} failed. Fix it with another pull request, go back with `git revert`, or comment `/apply {}` to try again.",
            failed.join(", "),
            run.environment
        );
    }
    let cancelled = with(Status::Cancelled);
    if !cancelled.is_empty() {
        let by = run.instances.values().find(|i| i.status == Status::Cancelled).map_or("", |i| i.message.as_str());
        let done = with(Status::Applied);
        let done = if done.is_empty() {
            "No other instance was started".to_owned()
        } else {
            format!("{} stays applied", done.join(", "))
        };
        return format!("{} {by}. {done}; comment `/apply {}` to go on.", cancelled.join(", "), run.environment);
    }
    let superseded = with(Status::Superseded);
    if !superseded.is_empty() {
        return "A newer run superseded it.".into();
    }
    if run.kind.rebalance().is_some() {
        let moved = run.instances.values().any(|instance| instance.changed);
        let text = if moved {
            "All moves of this run completed; the rest of the balance waits for the next rebalance."
        } else {
            "No move was needed."
        };
        return text.into();
    }
    "All actions applied. A new plan shows no changes.".into()
}
