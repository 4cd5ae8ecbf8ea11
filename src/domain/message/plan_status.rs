//! Defines the commit status `evenkeel/plan` of a pull request, and its text.

use std::fmt;

use crate::{
    domain::{
        authorization::MissingApprovals,
        plan::{Plan, validation::Violation},
        remediation::Unusable,
    },
    model::{ComponentName, InstanceId, Problem},
};

/// The state of the plan of a pull request.
#[derive(Clone, Debug, PartialEq)]
pub enum PlanStatus {
    /// The plan is being made.
    Planning,
    /// The description of a proposal is its plan.
    InDescription,
    /// A reviewer removed some actions of a proposal; the others run.
    RestOfDescription,
    /// The proposal was edited.
    Unusable(Unusable),
    /// Pull requests from forks are not planned.
    Fork,
    /// The author may not write, and a plan runs code (R3.8).
    AuthorMayNotWrite(String),
    /// The branch can't be merged: these paths have conflicting changes.
    Conflict(Vec<String>),
    /// The plan is complete and can't run as it is.
    Blocked(Blocked),
    /// The plan is complete.
    Planned(Vec<PlanLine>),
}

/// The reason for which a planned pull request can't run as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// The declarations have problems: their number, and the first one.
    Problems(usize, Problem),
    /// A guard is loosened together with a change that it protects against; the text of the guard.
    Guard(String),
    /// Approvals of protected paths are missing.
    Approvals(MissingApprovals),
    /// The plan violates an invariant or a guard.
    Violation(Violation),
    /// The plan of an instance failed.
    Instance(InstanceId, String),
}

/// A part of the text of a complete plan.
#[derive(Clone, Debug, PartialEq)]
pub enum PlanLine {
    /// The counts of an environment.
    Environment(Box<Plan>),
    /// A component gets another name.
    Renamed(InstanceId, ComponentName),
    /// A file that may declare the instance can't be read.
    MayBeRemoved(InstanceId),
    /// The instances are no longer declared and stay.
    Orphans(Vec<InstanceId>),
}

/// The longest list of paths in a status.
const PATHS_MAX: usize = 3;

impl PlanStatus {
    /// Returns the state of the commit status.
    pub fn state(&self) -> &'static str {
        match self {
            Self::Planning => "pending",
            Self::InDescription | Self::RestOfDescription | Self::Planned(_) => "success",
            Self::Unusable(_) | Self::Conflict(_) | Self::Blocked(_) => "failure",
            Self::Fork | Self::AuthorMayNotWrite(_) => "error",
        }
    }
}

/// Returns the counts of a plan: `1 to change, 2 to create`.
fn counts(plan: &Plan) -> String {
    let found = &plan.summary;
    let unknown =
        plan.instances.iter().filter(|instance| instance.digest.is_none() && instance.problem.is_none()).count();
    let counted = [
        (found.update, "to change"),
        (found.create, "to create"),
        (found.replace, "to replace"),
        (found.destroy, "to destroy"),
        (unknown as u64, "known later"),
    ];
    let parts: Vec<String> =
        counted.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    if parts.is_empty() { "nothing to change".into() } else { parts.join(", ") }
}

impl fmt::Display for PlanStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Planning => f.write_str("planning"),
            Self::InDescription => f.write_str("the plan is in the description"),
            Self::RestOfDescription => f.write_str("the actions that are left in the description run"),
            Self::Unusable(reason) => write!(f, "{reason}"),
            Self::Fork => f.write_str("pull requests from forks are not planned (`forks: ignore`)"),
            Self::AuthorMayNotWrite(author) => write!(
                f,
                "@{author} may not write here, and planning runs code; a principal with the permission can comment `/plan`"
            ),
            Self::Conflict(paths) => {
                let shown = paths.iter().take(PATHS_MAX).cloned().collect::<Vec<_>>().join(", ");
                write!(f, "it can't be merged: {shown} differ on both sides")
            }
            Self::Blocked(reason) => write!(f, "{reason}"),
            Self::Planned(lines) if lines.is_empty() => f.write_str("no instance is changed"),
            Self::Planned(lines) => f.write_str(&lines.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
        }
    }
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Problems(1, first) => write!(f, "a problem in the declarations: {first}"),
            Self::Problems(count, first) => write!(f, "{count} problems in the declarations; the first: {first}"),
            Self::Guard(text) => f.write_str(text),
            Self::Approvals(missing) => write!(f, "{missing}"),
            Self::Violation(violation) => write!(f, "{violation}"),
            Self::Instance(id, problem) => write!(f, "`{id}`: {problem}"),
        }
    }
}

impl fmt::Display for PlanLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment(plan) => write!(f, "{}: {}", plan.environment, counts(plan)),
            Self::Renamed(id, name) => write!(f, "{id} renamed to {name}"),
            Self::MayBeRemoved(id) => write!(f, "{id} may have been removed: a file can't be read"),
            Self::Orphans(ids) => {
                let names: Vec<String> = ids.iter().map(ToString::to_string).collect();
                write!(f, "{} no longer declared, kept as orphans", names.join(", "))
            }
        }
    }
}
