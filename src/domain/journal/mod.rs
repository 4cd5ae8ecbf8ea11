//! Validates the order of journal records with one table, live and in replay (R7.1).
//!
//! Decides whether a record may follow the records before it, and how a `started` record without a `finished` record is
//! recovered.
//! *Invariant:* never writes a record, and never assumes the outcome of an effect. A started effect that did not finish
//! must be observed.

mod run;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use run::{Approved, JournalRecord, Rebalance, Run, RunInstance, RunKind, RunState};

use crate::model::{Digest, InstanceId, WaitingOn};

/// The content of a journal record, about one instance of a run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "camelCase")]
pub enum Event {
    /// The instance was planned with the credentials of apply.
    Planned {
        /// The digest of the instance's plan; `None` if there is nothing to do.
        digest: Option<Digest>,
    },
    /// The instance waits for a condition.
    Waits {
        /// The reason.
        on: WaitingOn,
        /// The reason, as a sentence.
        #[serde(rename = "says")]
        message: String,
    },
    /// The effect starts.
    Started {
        /// The action.
        digest: Digest,
    },
    /// A step of the effect started or finished.
    Step {
        /// The step, as a sentence.
        #[serde(rename = "says")]
        message: String,
    },
    /// The effect ended.
    Finished {
        /// The outcome of the effect.
        outcome: Outcome,
    },
    /// The instance is applied, and a new plan shows no changes.
    Applied {
        /// Whether the run changed anything.
        changed: bool,
    },
    /// The instance failed.
    Failed {
        /// The failure, as a sentence.
        #[serde(rename = "says")]
        message: String,
    },
    /// An upstream failed or waits, so the instance was not tried.
    Skipped {
        /// The reason, as a sentence.
        #[serde(rename = "says")]
        message: String,
    },
    /// A newer run supersedes this one for the instance (R5.3).
    Superseded {
        /// The reason, as a sentence.
        #[serde(rename = "says")]
        message: String,
    },
    /// A principal cancelled the instance (R5.5).
    Cancelled {
        /// The reason, as a sentence.
        #[serde(rename = "says")]
        message: String,
    },
}

/// The outcome of an effect.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "camelCase")]
pub enum Outcome {
    /// The effect was executed as planned.
    Done,
    /// The effect failed. A part of it may be executed.
    Failed {
        /// The failure, as a sentence.
        #[serde(rename = "says")]
        message: String,
    },
    /// The daemon stopped during the effect. The rest is covered by the approval and continues.
    Interrupted {
        /// The reason, as a sentence.
        #[serde(rename = "says")]
        message: String,
    },
    /// The effect was refused before any change, because its precondition was no longer true.
    Refused {
        /// The reason, as a sentence.
        #[serde(rename = "says")]
        message: String,
    },
}

/// The status of an instance in a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub enum Status {
    /// No record exists yet.
    #[default]
    New,
    /// The instance was planned.
    Planned,
    /// The instance waits for a condition.
    Waiting,
    /// An effect is running.
    Running,
    /// The effect ended and must be verified.
    Effected,
    /// The instance is applied.
    Applied,
    /// The instance failed.
    Failed,
    /// The instance was not tried.
    Skipped,
    /// A newer run superseded this one for the instance.
    Superseded,
    /// A principal cancelled the instance.
    Cancelled,
}

impl Status {
    /// Returns whether the status is final.
    pub fn ended(self) -> bool {
        matches!(self, Self::Applied | Self::Failed | Self::Skipped | Self::Superseded | Self::Cancelled)
    }
}

/// The error of a record that can't follow the records before it.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
#[error("`{event}` can't follow where `{instance}` is {status:?}")]
pub struct Illegal {
    /// The instance.
    pub instance: InstanceId,
    /// The status before the record.
    pub status: Status,
    /// The name of the event.
    pub event: String,
}

impl Event {
    /// Returns the name of the event in JSON.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Planned { .. } => "planned",
            Self::Waits { .. } => "waits",
            Self::Started { .. } => "started",
            Self::Step { .. } => "step",
            Self::Finished { .. } => "finished",
            Self::Applied { .. } => "applied",
            Self::Failed { .. } => "failed",
            Self::Skipped { .. } => "skipped",
            Self::Superseded { .. } => "superseded",
            Self::Cancelled { .. } => "cancelled",
        }
    }
}

/// Returns the status after an event. This function is the only legality table of the journal.
///
/// # Errors
/// When the event can't follow the status.
pub fn next_status(instance: &InstanceId, status: Status, event: &Event) -> Result<Status, Illegal> {
    use Status::{Applied, Cancelled, Effected, Failed, New, Planned, Running, Skipped, Superseded, Waiting};
    let next = match (status, event) {
        (New | Waiting | Planned | Effected, Event::Planned { .. }) => Planned,
        (New | Planned | Waiting, Event::Waits { .. }) => Waiting,
        (Planned, Event::Started { .. }) => Running,
        (Running, Event::Step { .. }) => Running,
        (Running, Event::Finished { outcome: Outcome::Done }) => Effected,
        (Running, Event::Finished { outcome: Outcome::Failed { .. } | Outcome::Interrupted { .. } }) => Effected,
        // A refused effect changed nothing, so the instance may be planned again.
        (Running, Event::Finished { outcome: Outcome::Refused { .. } }) => Planned,
        (Planned, Event::Applied { changed: false }) | (Effected, Event::Applied { .. }) => Applied,
        (New | Planned | Waiting | Effected, Event::Failed { .. }) => Failed,
        // After an interruption, the remaining changes may need an approval.
        (Effected, Event::Waits { .. }) => Waiting,
        (New | Waiting | Planned, Event::Skipped { .. }) => Skipped,
        // After an interruption, a newer run may supersede the remaining changes.
        (New | Waiting | Planned | Effected, Event::Superseded { .. }) => Superseded,
        (New | Waiting | Planned | Effected, Event::Cancelled { .. }) => Cancelled,
        _ => return Err(Illegal { instance: instance.clone(), status, event: event.name().to_owned() }),
    };
    Ok(next)
}

/// Returns the status of an instance after a sequence of events.
///
/// # Errors
/// When an event can't follow the events before it. The journal is then corrupt, or the daemon has a bug.
pub fn replay<'e>(instance: &InstanceId, events: impl IntoIterator<Item = &'e Event>) -> Result<Status, Illegal> {
    events.into_iter().try_fold(Status::New, |status, event| next_status(instance, status, event))
}

/// The recovery of a started effect without a `finished` record, after a new observation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Recovery {
    /// A new plan shows no changes: the effect was executed.
    Done,
    /// The approval covers the new plan: the run continues.
    Redo,
    /// The approval does not cover the new plan: an operator must decide.
    Stalled {
        /// The reason, as a sentence.
        message: String,
    },
}

/// Decides the recovery of a started effect from the digest and the coverage of a new plan.
pub fn recovery(fresh: Option<&Digest>, covered: Result<(), String>) -> Recovery {
    match (fresh, covered) {
        (None, _) => Recovery::Done,
        (Some(_), Ok(())) => Recovery::Redo,
        (Some(_), Err(gap)) => Recovery::Stalled {
            message: format!(
                "it was killed in the middle, and what is left is not what was approved: {gap}; read the plan and comment `/apply`"
            ),
        },
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Planned { digest: Some(digest) } => write!(f, "planned, action {}", digest.short()),
            Self::Planned { digest: None } => f.write_str("planned, nothing to do"),
            Self::Waits { message, .. } => write!(f, "waits: {message}"),
            Self::Started { digest } => write!(f, "started action {}", digest.short()),
            Self::Step { message } => f.write_str(message),
            Self::Finished { outcome: Outcome::Done } => f.write_str("finished"),
            Self::Finished { outcome: Outcome::Failed { message } } => write!(f, "finished with an error: {message}"),
            Self::Finished { outcome: Outcome::Interrupted { message } } => write!(f, "was interrupted: {message}"),
            Self::Finished { outcome: Outcome::Refused { message } } => {
                write!(f, "was refused before any change: {message}")
            }
            Self::Applied { changed: true } => f.write_str("applied, and a fresh plan is empty"),
            Self::Applied { changed: false } => f.write_str("nothing to do"),
            Self::Failed { message } => write!(f, "failed: {message}"),
            Self::Skipped { message } => write!(f, "was not tried: {message}"),
            // The message names the newer run or the principal.
            Self::Superseded { message } | Self::Cancelled { message } => f.write_str(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest() -> Digest {
        Digest::of_json(&serde_json::json!(1))
    }

    #[test]
    fn r7_1_an_effect_is_started_before_it_is_finished() {
        let id = "dev/a".parse().unwrap();
        let planned = Event::Planned { digest: Some(digest()) };
        let started = Event::Started { digest: digest() };
        let finished = Event::Finished { outcome: Outcome::Done };
        let applied = Event::Applied { changed: true };
        assert_eq!(replay(&id, [&planned, &started, &finished, &applied]), Ok(Status::Applied));
        assert_eq!(replay(&id, [&planned, &started]), Ok(Status::Running));
        assert!(replay(&id, [&started]).is_err());
        assert!(replay(&id, [&planned, &finished]).is_err());
        assert!(replay(&id, [&planned, &started, &applied]).is_err());
        assert!(replay(&id, [&planned, &started, &started]).is_err());
        assert!(replay(&id, [&planned, &started, &finished, &applied, &planned]).is_err());
    }

    #[test]
    fn r7_1_recovery_never_assumes() {
        assert_eq!(recovery(None, Err("more".into())), Recovery::Done);
        assert_eq!(recovery(Some(&digest()), Ok(())), Recovery::Redo);
        assert!(matches!(recovery(Some(&digest()), Err("more".into())), Recovery::Stalled { .. }));
    }
}
