//! Defines the replies to executed commands.

use std::{collections::BTreeSet, fmt};

use chrono::{DateTime, Utc};

use super::list::names;
use crate::model::{Digest, EnvironmentName, InstanceId, PullNumber, RunId};

/// The result of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The comment is older than the store, so the command was not executed.
    OlderThanStore,
    /// The comment was edited before the daemon read it, so the command was not executed.
    Edited,
    /// The command, without the slash, was executed before a restart. The list names the subjects of its records.
    Executed(String, Vec<String>),
    /// `/plan`: the plan is made again.
    PlanningAgain,
    /// `/apply`: the runs by environment.
    Applies(Vec<(EnvironmentName, RunId)>),
    /// `/apply` on a merged remediation.
    AppliesRemediation(RunId),
    /// `/rebalance`: the runs, and the instances.
    Rebalances(Vec<RunId>, BTreeSet<InstanceId>),
    /// `/destroy`: the run of these instances.
    Destroys(RunId, BTreeSet<InstanceId>),
    /// `/destroy` without a digest: the plan is shown first.
    DestroyShown {
        /// The environment.
        environment: EnvironmentName,
        /// The selector of the command.
        selector: String,
        /// The digest of the plan.
        digest: Digest,
    },
    /// `/forget`.
    Forgotten(BTreeSet<InstanceId>),
    /// `/confirm`.
    Confirmed(Vec<InstanceId>),
    /// `/suspend`: environments or instances.
    Suspended(BTreeSet<String>),
    /// `/snooze`.
    Snoozed(DateTime<Utc>, Vec<String>),
    /// `/unlock`: an instance, and the former owner of its lock.
    Unlocked(InstanceId, String),
    /// `/cancel`: the run, and the instances whose running effect was requested to stop.
    Cancels(RunId, Vec<InstanceId>),
    /// `/adopt`: the pull requests that adopt from now on.
    Adopts(Vec<PullNumber>),
    /// `/revert`: the pull requests that revert from now on.
    Reverts(Vec<PullNumber>),
}

/// Formats names in backticks.
fn quoted(names: &BTreeSet<String>) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn instances<'i>(ids: impl IntoIterator<Item = &'i InstanceId>) -> String {
    names(ids.into_iter().map(ToString::to_string))
}

fn pulls(numbers: &[PullNumber]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OlderThanStore => f.write_str(
                "This comment is older than the store of this daemon, so its command was not executed; comment again if it still holds.",
            ),
            Self::Edited => f.write_str(
                "This comment was edited before it was read, so its command was not executed; write it in a new comment.",
            ),
            Self::Executed(verb, subjects) => {
                write!(f, "`/{verb}` was executed: {}.", names(subjects.iter().cloned()))
            }
            Self::PlanningAgain => f.write_str(
                "Planning again; a plan with another digest is a new comment, and the same plan keeps its comment.",
            ),
            Self::Applies(runs) => {
                let each = runs.iter().map(|(environment, run)| format!("Run {run} applies `{environment}`."));
                f.write_str(&each.collect::<Vec<_>>().join(" "))
            }
            Self::AppliesRemediation(run) => write!(f, "Run {run} executes the remediation that was merged here."),
            Self::Rebalances(runs, clusters) => {
                let runs: Vec<String> = runs.iter().map(ToString::to_string).collect();
                write!(f, "Run {} rebalances {}.", runs.join(" and "), instances(clusters))
            }
            Self::Destroys(run, ids) => write!(f, "Run {run} destroys the resources of {}.", instances(ids)),
            Self::DestroyShown { environment, selector, digest } => write!(
                f,
                "Nothing was destroyed yet: read the plan of `{environment}`, and comment `/destroy {selector} {}` to execute exactly that plan.",
                digest.short()
            ),
            Self::Forgotten(ids) => write!(
                f,
                "Forgotten: {}. The resources still exist, and Evenkeel does not observe them any more.",
                instances(ids)
            ),
            Self::Confirmed(ids) => write!(f, "Confirmed: {}.", instances(ids)),
            Self::Suspended(subjects) => {
                let verb = if subjects.len() == 1 { "it is" } else { "they are" };
                write!(f, "Suspended {}: {verb} observed and not acted on until `/resume`.", quoted(subjects))
            }
            Self::Snoozed(until, subjects) => write!(
                f,
                "Snoozed until {}, or until another difference is observed: {}.",
                until.format("%Y-%m-%d %H:%M UTC"),
                names(subjects.iter().cloned())
            ),
            Self::Unlocked(id, holder) => write!(f, "`{id}` was locked by {holder}; the lock is released."),
            Self::Cancels(run, interrupted) if interrupted.is_empty() => {
                write!(f, "Run {run} ends at its next safe point.")
            }
            Self::Cancels(run, interrupted) => write!(
                f,
                "Run {run} ends at its next safe point; {} was asked to stop and records its progress.",
                instances(interrupted)
            ),
            Self::Adopts(numbers) => {
                write!(f, "From now on merging {} would declare the observed state.", pulls(numbers))
            }
            Self::Reverts(numbers) => {
                write!(f, "From now on merging {} would restore the applied state.", pulls(numbers))
            }
        }
    }
}
