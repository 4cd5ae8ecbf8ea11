//! Defines the reasons of verdicts, and their text.

use std::fmt;

use super::ago;
use crate::model::{EnvironmentName, InstanceId, RunId};

/// The reason of a verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VerdictReason {
    /// Stalled: the declaration has a problem.
    DeclarationProblem(String),
    /// Stalled: the records could not be moved to the new name (R1.10).
    RenameFailed(String),
    /// Stalled: the last run failed (R5.1).
    RunFailed {
        /// The run.
        run: RunId,
        /// The failure.
        message: String,
    },
    /// Stalled: the last run was cancelled (R5.5).
    RunCancelled {
        /// The run.
        run: RunId,
        /// The principal, as a sentence.
        message: String,
    },
    /// Stalled: a check of the declaration fails (R3.5).
    CheckFailed(String),
    /// Stalled: a file that may declare the instance can't be read (R1.9).
    MayBeRemoved,
    /// Stalled: a run started to change the instance and failed, and the instance is no longer declared.
    StartedAndUndeclared {
        /// The run.
        run: RunId,
    },
    /// Unknown: the target has another identity than the one that was applied, or one of another instance (R1.8).
    OtherIdentity(String),
    /// Unknown: the target could not be observed completely.
    NotObservable(String),
    /// Unknown: no observation was made yet.
    NotObservedYet,
    /// Unknown: the state repo was not read yet.
    SourceNotRead,
    /// Suspended, by declaration or by command.
    Suspended(String),
    /// Pending: a run of the instance is in progress or waits.
    Run {
        /// The run.
        run: RunId,
        /// The work of the run, or the condition that it waits for; empty if the run has just started.
        message: String,
    },
    /// Pending: head can't be planned.
    HeadNotPlanned(String),
    /// Orphaned: `onDelete: destroy` waits for `/apply`.
    DestroyWaits {
        /// The environment to apply.
        environment: EnvironmentName,
    },
    /// Orphaned: the resources stay until a command.
    Orphan {
        /// The instance.
        id: InstanceId,
    },
    /// Orphaned: the run that destroyed it failed.
    DestroyFailed {
        /// The run.
        run: RunId,
        /// The failure.
        message: String,
    },
    /// In sync, and observed more than an hour ago.
    ObservedLongAgo {
        /// The age of the observation, in seconds.
        seconds: i64,
    },
}

impl fmt::Display for VerdictReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeclarationProblem(problem) => f.write_str(problem),
            Self::RenameFailed(error) => write!(f, "it could not be renamed: {error}"),
            Self::RunFailed { run, message } => write!(f, "run {run} failed: {message}"),
            Self::RunCancelled { run, message } => write!(f, "run {run} was {message}"),
            Self::CheckFailed(check) | Self::OtherIdentity(check) | Self::NotObservable(check) => f.write_str(check),
            Self::MayBeRemoved => f.write_str("may have been removed: a file of the state repo can't be read"),
            Self::StartedAndUndeclared { run } => write!(
                f,
                "run {run} began to change it and failed, and it is no longer declared; what the run created still exists: declare the instance again, or remove its resources by hand"
            ),
            Self::NotObservedYet => f.write_str("not observed yet"),
            Self::SourceNotRead => f.write_str("the state repo was not read yet"),
            Self::Suspended(reason) => f.write_str(reason),
            Self::Run { run, message } if message.is_empty() => write!(f, "run {run} is in progress"),
            Self::Run { run, message } => write!(f, "run {run}: {message}"),
            Self::HeadNotPlanned(problem) => write!(f, "head can't be planned: {problem}"),
            Self::DestroyWaits { environment } => {
                write!(f, "applied and no longer declared; `onDelete: destroy` waits for `/apply {environment}`")
            }
            Self::Orphan { id } => {
                write!(f, "applied and no longer declared; it stays until `/destroy {id}` or `/forget {id}`")
            }
            Self::DestroyFailed { run, message } => {
                write!(f, "applied and no longer declared; destroying it failed in run {run}: {message}")
            }
            Self::ObservedLongAgo { seconds } => write!(f, "observed {} ago", ago(*seconds)),
        }
    }
}
