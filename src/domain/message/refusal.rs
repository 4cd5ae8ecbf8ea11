//! Defines the reasons for which a request is refused, and their text.
//!
//! The texts appear in comments, the API, the command line and the audit log. Each text names the refused effect, the
//! reason, and an action for the user (R6.10). A refusal changes nothing. Code matches on the variant and never on the
//! text.

use std::{collections::BTreeSet, fmt};

use super::{adoption::NotAdoptable, list::names, run::RunReason, suspension::SuspensionReason};
use crate::{
    domain::{
        authorization::{MissingApprovals, Principal, Rights, allowed},
        declaration::schema::Verb,
        plan::validation::Violation,
    },
    model::{Digest, EnvironmentName, InstanceId, PullNumber, RunId},
};

/// The reason for which a selector selects no instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EmptySelection {
    /// The branch declares no environment.
    NoEnvironment,
    /// `drifted`, and no instance has drifted.
    NoDrift,
    /// `pending`, and no instance is pending.
    NothingPending,
    /// `changed` outside of a pull request.
    NoPullRequest,
    /// A pattern that matches no instance.
    NoMatch {
        /// The selector, shortened.
        selector: String,
        /// The environments of the branch.
        environments: Vec<EnvironmentName>,
    },
    /// No selector was given, and the environments have no instance.
    NoInstance,
}

impl fmt::Display for EmptySelection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoEnvironment => f.write_str("Nothing is declared yet: there is no environment on the branch."),
            Self::NoDrift => f.write_str("Nothing has drifted."),
            Self::NothingPending => f.write_str("Nothing is pending."),
            Self::NoPullRequest => {
                f.write_str("`changed` selects what a pull request changes; use it in a comment on a pull request.")
            }
            Self::NoMatch { selector, environments } => {
                let names: Vec<String> = environments.iter().map(|name| format!("`{name}`")).collect();
                write!(f, "`{selector}` matches no instance; the environments are {}.", names.join(", "))
            }
            Self::NoInstance => f.write_str("The environments on the branch have no instance."),
        }
    }
}

/// The reason for which a request is refused.
///
/// A field named `reason` contains the text of an error or of a check that was made elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    // The state repo and the process.
    /// The state repo is not loaded.
    NoHead {
        /// The error of the last fetch; `None` before the first one ended.
        reason: Option<String>,
    },
    /// A file of a revision can't be read.
    Unreadable {
        /// The error.
        reason: String,
    },
    /// A remediation can't be written as a file, which is a bug.
    Unwritable {
        /// The error of the YAML writer.
        reason: String,
    },
    /// The daemon is stopping.
    Stopping,
    /// The forge is not configured, and the request needs it.
    NoForge,
    /// The head of a pull request changed while it was read.
    PullRequestMoved(PullNumber),

    // Selection and permission.
    /// The selector selects nothing.
    Empty(EmptySelection),
    /// The command needs a selector.
    NoSelector(Verb),
    /// The command has no implementation.
    NotImplemented(Verb),
    /// The StateRepo is not readable, so every command is refused (R3.3).
    NoPermissions(Verb),
    /// The principal has no permission for the command (R3.3).
    NotPermitted {
        /// The principal, as it is shown.
        principal: String,
        /// The command.
        verb: Verb,
        /// The environment.
        environment: EnvironmentName,
        /// The subjects that have the permission, such as `team:platform`.
        allowed: BTreeSet<String>,
    },

    // All commands that change a target. `verb` is the command.
    /// A selected environment or instance is suspended.
    Suspended {
        /// The command.
        verb: Verb,
        /// The suspension.
        suspension: SuspensionReason,
    },
    /// Approvals are missing (R3.6).
    NotApproved {
        /// The command.
        verb: Verb,
        /// The missing approvals.
        missing: MissingApprovals,
    },
    /// An instance could not be planned.
    NotPlanned {
        /// The command.
        verb: Verb,
        /// The instance.
        id: InstanceId,
        /// The error of its plan.
        reason: String,
    },
    /// The plan did not pass its validation.
    InvalidPlan {
        /// The command.
        verb: Verb,
        /// The violated rule.
        violation: Violation,
    },
    /// The plan exceeds a limit (R3.8).
    OverLimit {
        /// The command.
        verb: Verb,
        /// The environment, where it is declared.
        declared: Option<EnvironmentName>,
        /// The environment.
        environment: EnvironmentName,
        /// The limit and the count.
        violation: Violation,
    },
    /// The request names another digest than the one of the plan.
    OtherDigest {
        /// The command.
        verb: Verb,
        /// The environment.
        environment: EnvironmentName,
        /// The digest of the plan.
        digest: Digest,
        /// The digest that the request names; `None` where the API names the digests of several plans.
        requested: Option<String>,
    },
    /// A run is in progress on an instance.
    RunInProgress {
        /// The command.
        verb: Verb,
        /// The run.
        run: RunId,
        /// The instance, where it is known.
        id: Option<InstanceId>,
    },
    /// An instance is not declared, or its declaration has a problem.
    NotDeclared {
        /// The command.
        verb: Verb,
        /// The instance.
        id: InstanceId,
    },

    // Apply.
    /// The pull request was closed without a merge.
    Closed,
    /// The pull request is open; only a merge brings it to the branch.
    NotMerged,
    /// The pull request is open and changes no instance of the selection.
    UnchangedHere(
        /// The selector.
        String,
    ),
    /// The comment was written before the merge and read after it.
    WrittenBeforeMerge,
    /// The plan of all pending changes is on another pull request (R6.6).
    Superseded {
        /// The newer pull request.
        by: PullNumber,
        /// The environment.
        environment: EnvironmentName,
    },
    /// The plan changed after the comment was written.
    PlanChanged {
        /// The environment.
        environment: EnvironmentName,
        /// The digest of the plan.
        digest: Digest,
    },
    /// Nothing is pending in these environments.
    NothingPending(Vec<EnvironmentName>),
    /// The last observation of an instance failed (R2.9).
    Unknown {
        /// The instance.
        id: InstanceId,
        /// The error of the observation.
        reason: String,
    },
    /// The plan of an environment is on another pull request.
    PlanElsewhere {
        /// The environment.
        environment: EnvironmentName,
        /// The pull request.
        on: PullNumber,
    },
    /// No plan of an environment was on the pull request before the comment.
    NoPlanHere(EnvironmentName),
    /// No plan of an environment exists yet.
    NoPlan(EnvironmentName),
    /// The selection leaves out a pending upstream (R6.1).
    UpstreamNotSelected {
        /// The selected instance.
        id: InstanceId,
        /// Its upstream.
        upstream: InstanceId,
    },
    /// The run would have no action.
    NothingToDo,

    // Destroy, forget, unlock, cancel.
    /// A file of the state repo can't be read, so orphans are not known (R1.9).
    OrphansUnknown,
    /// An instance is still declared, so it is not an orphan.
    StillDeclared(InstanceId),
    /// An instance can't be destroyed, because another uses it.
    InUse {
        /// The uses.
        reason: RunReason,
    },
    /// An instance is not applied.
    NotApplied(InstanceId),
    /// No selected instance is locked.
    NotLocked(Vec<InstanceId>),
    /// No run is in progress on the selection.
    NoRun,

    // Plan, confirm, snooze, rebalance, resume.
    /// The pull request is closed.
    PullRequestClosed,
    /// No selected target has a new identity.
    NothingToConfirm,
    /// No selected instance has drifted.
    NothingToSnooze,
    /// No selected instance is an applied layout of a Citus cluster.
    NoCluster,
    /// An environment is suspended by its declaration, which no command ends.
    SuspendedByDeclaration(EnvironmentName),
    /// The environment of the selection is suspended as a whole.
    ResumeEnvironment(SuspensionReason),
    /// No selected instance is suspended.
    NotSuspended,

    // Proposals and remediations.
    /// The pending plan is on a pull request already.
    ProposedAlready {
        /// The pull request.
        on: PullNumber,
        /// The environment.
        environment: EnvironmentName,
    },
    /// An instance could not be planned for a proposal.
    NotProposed {
        /// The instance.
        id: InstanceId,
        /// The error of its plan.
        reason: String,
    },
    /// Nothing is pending.
    NothingToPropose,
    /// A branch of the daemon's name exists that the daemon did not make.
    BranchTaken(String),
    /// An address of the drift contains a secret (R2.3).
    SecretInAddress {
        /// The key of the proposal.
        key: String,
    },
    /// There is no open proposal for the selection.
    NoProposal(BTreeSet<InstanceId>),
    /// The drift can't be written into the declarations.
    NotAdoptable {
        /// The reason.
        reason: NotAdoptable,
    },
    /// The remediation is applied by merging its pull request.
    MergeApplies,
    /// The remediation of this pull request was used, or its run is in progress.
    NothingLeftHere,
    /// The branch has no remediation of this name.
    NoRemediation(String),
    /// The remediation reached the branch without a pull request, and approvals are needed.
    RemediationNotReviewed {
        /// Its name.
        name: String,
        /// Its environment.
        environment: EnvironmentName,
    },
    /// The remediation was used, or its run is in progress.
    RemediationSpent(String),

    // Runs and observations.
    /// An instance stopped being applied while its run was prepared.
    NoLongerApplied(InstanceId),
    /// An instance is not declared at the revision of its run.
    NotDeclaredAt {
        /// The instance.
        id: InstanceId,
        /// The revision, shortened.
        revision: String,
    },
    /// Two environments name the same cluster (R1.8).
    ClusterOfAnother {
        /// The instance.
        id: InstanceId,
        /// The instance that owns the cluster.
        owner: InstanceId,
    },
    /// The objects that another instance declares are not known.
    OwnersUnknown {
        /// The problem of its declaration or inputs.
        reason: String,
    },
}

impl Refusal {
    /// Returns the refusal of a command that a principal may not give.
    pub fn not_permitted(rights: &[Rights], who: &Principal, verb: Verb, environment: &EnvironmentName) -> Self {
        match allowed(rights, verb) {
            None => Self::NoPermissions(verb),
            Some(allowed) => {
                Self::NotPermitted { principal: who.mention(), verb, environment: environment.clone(), allowed }
            }
        }
    }
}

/// Returns the start of a refusal: `Nothing was applied`.
fn nothing(verb: Verb) -> String {
    let done = match verb {
        Verb::Apply => "applied",
        Verb::Destroy => "destroyed",
        Verb::Rebalance => "rebalanced",
        Verb::Unlock => "unlocked",
        Verb::Forget => "forgotten",
        _ => "done",
    };
    format!("Nothing was {done}")
}

fn list<T: fmt::Display>(names: impl IntoIterator<Item = T>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHead { reason: Some(reason) } => write!(f, "the state repo can't be read: {reason}"),
            Self::NoHead { reason: None } => {
                f.write_str("the state repo has not been read yet; try again in a moment")
            }
            Self::Unreadable { reason } | Self::Unwritable { reason } | Self::OwnersUnknown { reason } => f.write_str(reason),
            Self::Stopping => f.write_str("the daemon is stopping; try again once it runs"),
            Self::NoForge => f.write_str("no forge is configured; configure `github`"),
            Self::PullRequestMoved(number) => write!(f, "{number} got another head while it was read; it is read again"),

            Self::Empty(reason) => reason.fmt(f),
            Self::NoSelector(verb) => {
                write!(f, "`/{0}` needs a selection, such as `/{0} staging/network`.", verb.name())
            }
            Self::NotImplemented(verb) => write!(f, "`/{}` is not available in this version.", verb.name()),
            Self::NoPermissions(verb) => write!(
                f,
                "`/{}` is refused: the StateRepo on the base branch can't be read, and without it no principal has a permission; `evenkeel validate` shows the problem",
                verb.name()
            ),
            Self::NotPermitted { principal, verb, environment, allowed } => {
                write!(f, "{principal} is not allowed to `/{}` in `{environment}`: ", verb.name())?;
                match allowed.len() {
                    0 => f.write_str("no principal is; add a line to `permissions` in the StateRepo."),
                    _ => write!(f, "{} may.", list(allowed)),
                }
            }

            Self::Suspended { verb, suspension } => write!(f, "{}: {suspension}.", nothing(*verb)),
            Self::NotApproved { verb, missing } => write!(f, "{}: {missing}.", nothing(*verb)),
            Self::InvalidPlan { verb, violation } => write!(f, "{}: {violation}.", nothing(*verb)),
            Self::NotPlanned { verb, id, reason } => {
                write!(f, "{}: `{id}` could not be planned: {reason}.", nothing(*verb))
            }
            Self::OverLimit { verb, declared: Some(environment), violation, .. } => {
                let less = if *verb == Verb::Destroy { "destroy" } else { "change" };
                write!(
                    f,
                    "{}: {violation}. Raise `limits` of `{environment}` in a pull request of its own, or {less} less.",
                    nothing(*verb)
                )
            }
            Self::OverLimit { verb, declared: None, environment, violation } => write!(
                f,
                "{}: {violation}. `{environment}` is no longer declared, and the limits that it had still apply: declare it again with higher limits first, or `/forget` the instances.",
                nothing(*verb)
            ),
            Self::OtherDigest { verb, environment, digest, requested: Some(requested) } => write!(
                f,
                "{}: the plan of `{environment}` is `{}`, not `{requested}`; read the plan and name its digest.",
                nothing(*verb),
                digest.short()
            ),
            Self::OtherDigest { verb, environment, digest, requested: None } => write!(
                f,
                "{}: the plan of `{environment}` is `{}` now; read the plan and name its digest.",
                nothing(*verb),
                digest.short()
            ),
            Self::RunInProgress { verb, run, id: Some(id) } => write!(
                f,
                "{}: run {run} works on `{id}`; wait until it ends, or comment `/cancel {id}`.",
                nothing(*verb)
            ),
            Self::RunInProgress { verb, run, id: None } => {
                write!(f, "{}: run {run} is in progress on it; wait until it ends.", nothing(*verb))
            }
            Self::NotDeclared { verb, id } => {
                write!(f, "{}: `{id}` is not declared without a problem; mend its declaration first.", nothing(*verb))
            }

            Self::Closed => f.write_str("Nothing was applied: this pull request was closed without being merged."),
            Self::NotMerged => f.write_str(
                "Nothing was applied: this pull request is not merged, and only what is on the branch is applied. Merge it, then comment `/apply` again.",
            ),
            Self::UnchangedHere(selector) => write!(
                f,
                "Nothing was applied: this pull request changes nothing in `{selector}`, and it is not merged."
            ),
            Self::WrittenBeforeMerge => f.write_str(
                "Nothing was applied: the comment was written before the merge and read after it; comment `/apply` again.",
            ),
            Self::Superseded { by, environment } => write!(
                f,
                "Nothing was applied: superseded by {by}, which has the plan of all that is pending in `{environment}`; comment `/apply {environment}` there."
            ),
            Self::PlanChanged { environment, digest } => write!(
                f,
                "Nothing was applied: the plan of `{environment}` just changed; read it and repeat, or comment `/apply {environment} {}` to apply only that plan.",
                digest.short()
            ),
            Self::NothingPending(environments) => write!(
                f,
                "There is nothing to apply in {}: what is on the branch is what is applied.",
                list(environments)
            ),
            Self::Unknown { id, reason } => write!(f, "Nothing was applied: `{id}` is unknown: {reason}."),
            Self::PlanElsewhere { environment, on } => write!(
                f,
                "Nothing was applied: the plan of `{environment}` is on {on}; comment `/apply {environment}` there."
            ),
            Self::NoPlanHere(environment) => write!(
                f,
                "Nothing was applied: no plan of `{environment}` was posted here before this comment. Comment `/plan {environment}`, and `/apply` once the plan is posted."
            ),
            Self::NoPlan(environment) => {
                write!(f, "no plan of `{environment}` was shown yet; `evenkeel plan {environment}` makes it")
            }
            Self::UpstreamNotSelected { id, upstream } => write!(
                f,
                "Nothing was applied: `{id}` depends on `{upstream}`, which is pending and not selected; select both."
            ),
            Self::NothingToDo => f.write_str("there is nothing to do"),

            Self::OrphansUnknown => f.write_str(
                "Nothing was done: a file of the state repo can't be read, and what it declares is not known; mend it first (R1.9).",
            ),
            Self::StillDeclared(id) => write!(
                f,
                "Nothing was done: `{id}` is declared; remove it from the branch first, and it becomes an orphan."
            ),
            Self::InUse { reason } => write!(f, "Nothing was destroyed: {reason}."),
            Self::NotApplied(id) => write!(f, "`{id}` is not applied, so there is nothing to destroy"),
            Self::NotLocked(ids) => write!(f, "Nothing was unlocked: {} is not locked.", names(ids.iter().map(ToString::to_string))),
            Self::NoRun => f.write_str("Nothing was cancelled: no run is in progress on the selection."),

            Self::PullRequestClosed => {
                f.write_str("This pull request is closed; comment on the pull request that has the pending plan.")
            }
            Self::NothingToConfirm => {
                f.write_str("There is nothing to confirm: every selected target is the one that was applied.")
            }
            Self::NothingToSnooze => f.write_str("Nothing was snoozed: no selected instance has drifted."),
            Self::NoCluster => f.write_str(
                "Nothing was rebalanced: no selected instance is the applied layout of a Citus cluster.",
            ),
            Self::SuspendedByDeclaration(name) => write!(
                f,
                "`{name}` is suspended by its declaration; remove `suspend: true` from it in a pull request."
            ),
            Self::ResumeEnvironment(suspension) => write!(f, "Nothing was resumed: {suspension}."),
            Self::NotSuspended => f.write_str("Nothing was resumed: no selected instance is suspended."),

            Self::ProposedAlready { on, environment } => write!(
                f,
                "nothing was proposed: {on} has the plan of what is pending in `{environment}`; comment `/apply {environment}` there"
            ),
            Self::NotProposed { id, reason } => {
                write!(f, "nothing was proposed: `{id}` could not be planned: {reason}")
            }
            Self::NothingToPropose => {
                f.write_str("there is nothing to propose: what is on the branch is what is applied")
            }
            Self::BranchTaken(branch) => {
                write!(f, "nothing was proposed: the branch `{branch}` exists and was not made by Evenkeel; remove it first")
            }
            Self::SecretInAddress { key } => {
                write!(f, "the drift in `{key}` can't be proposed: an address in it contains a secret")
            }
            Self::NoProposal(ids) => write!(
                f,
                "Nothing was changed: there is no open pull request about drift of {}; where it has drifted, `evenkeel propose` opens one.",
                names(ids.iter().map(ToString::to_string))
            ),
            Self::NotAdoptable { reason } => write!(f, "Not adopted: {reason}."),
            Self::MergeApplies => f.write_str("Nothing was applied: merge this pull request to apply it."),
            Self::NothingLeftHere => f.write_str(
                "There is nothing to apply here: the remediation is spent, or its run is in progress.",
            ),
            Self::NoRemediation(name) => write!(f, "there is no remediation `{name}` on the branch"),
            Self::RemediationNotReviewed { name, environment } => write!(
                f,
                "the remediation `{name}` came by no pull request, and `{environment}` needs approvals; add it by a pull request"
            ),
            Self::RemediationSpent(name) => {
                write!(f, "the remediation `{name}` is spent, or its run is in progress")
            }

            Self::NoLongerApplied(id) => write!(f, "`{id}` is not applied any more"),
            Self::NotDeclaredAt { id, revision } => write!(f, "`{id}` is not declared at `{revision}`"),
            Self::ClusterOfAnother { id, owner } => write!(
                f,
                "the cluster of `{id}` is that of `{}` (`{owner}`); nothing was applied (R1.8)",
                owner.environment
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r6_10_a_refusal_names_the_refused_effect_and_a_solution() {
        let id: InstanceId = "staging/app".parse().unwrap();
        let refusal = Refusal::RunInProgress { verb: Verb::Unlock, run: RunId(7), id: Some(id) };
        let text =
            "Nothing was unlocked: run 7 works on `staging/app`; wait until it ends, or comment `/cancel staging/app`.";
        assert_eq!(refusal.to_string(), text);
        let refusal = Refusal::NotPermitted {
            principal: "@lin".into(),
            verb: Verb::Apply,
            environment: "staging".parse().unwrap(),
            allowed: BTreeSet::new(),
        };
        assert!(refusal.to_string().ends_with("add a line to `permissions` in the StateRepo."));
    }
}
