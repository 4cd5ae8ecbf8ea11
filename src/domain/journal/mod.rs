//! Which step of a run may follow which: one table, live and in replay (R7.1).
//!
//! Decides whether a journal record is legal after the ones before it, and what a `started` without its `finished`
//! means. Never records anything, and never assumes: what was started and not finished is to be observed.

mod run;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use run::{Approved, JournalRecord, Rebalance, Run, RunInstance, RunKind, RunState};

use crate::model::{Digest, InstanceId, WaitingOn};

/// One record of the journal, about one instance of a run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "camelCase")]
pub enum Event {
    /// The instance was planned with the credentials of apply.
    Planned {
        /// The action's digest; absent where nothing is to do.
        digest: Option<Digest>,
    },
    /// It does not go on by itself.
    Waits {
        /// The reason.
        on: WaitingOn,
        /// In a sentence.
        #[serde(rename = "says")]
        message: String,
    },
    /// The effect begins.
    Started {
        /// The action.
        digest: Digest,
    },
    /// A step of the effect begins, or is over.
    Step {
        /// In a sentence.
        #[serde(rename = "says")]
        message: String,
    },
    /// The effect is over.
    Finished {
        /// How.
        outcome: Outcome,
    },
    /// The instance is done: what it was to do is done, and a fresh plan shows it.
    Applied {
        /// Whether there was anything to do.
        changed: bool,
    },
    /// The instance can't go on.
    Failed {
        /// In a sentence.
        #[serde(rename = "says")]
        message: String,
    },
    /// An upstream failed or waits, so nothing was tried.
    Skipped {
        /// In a sentence.
        #[serde(rename = "says")]
        message: String,
    },
    /// A newer run takes its place (R5.3).
    Superseded {
        /// In a sentence.
        #[serde(rename = "says")]
        message: String,
    },
    /// A principal commanded it (R5.5).
    Cancelled {
        /// In a sentence.
        #[serde(rename = "says")]
        message: String,
    },
}

/// How an effect ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "camelCase")]
pub enum Outcome {
    /// As planned.
    Done,
    /// With an error; a part may be done.
    Failed {
        /// In a sentence.
        #[serde(rename = "says")]
        message: String,
    },
    /// The daemon stopped in the middle, and what is left goes on.
    Interrupted {
        /// In a sentence.
        #[serde(rename = "says")]
        message: String,
    },
    /// Nothing was done: its precondition no longer held.
    Refused {
        /// In a sentence.
        #[serde(rename = "says")]
        message: String,
    },
}

/// Where an instance of a run stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub enum Status {
    /// Nothing happened yet.
    #[default]
    New,
    /// It was planned.
    Planned,
    /// It waits.
    Waiting,
    /// An effect is in flight.
    Running,
    /// The effect is over and has to be verified.
    Effected,
    /// It is done.
    Applied,
    /// It failed.
    Failed,
    /// It was not tried.
    Skipped,
    /// A newer run took its place.
    Superseded,
    /// A principal cancelled it.
    Cancelled,
}

impl Status {
    /// Whether nothing follows.
    pub fn ended(self) -> bool {
        matches!(self, Self::Applied | Self::Failed | Self::Skipped | Self::Superseded | Self::Cancelled)
    }
}

/// A record that can't follow what stands before it.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
#[error("`{event}` can't follow where `{instance}` is {status:?}")]
pub struct Illegal {
    /// The instance.
    pub instance: InstanceId,
    /// Where it stood.
    pub status: Status,
    /// The event's name.
    pub event: String,
}

impl Event {
    /// As it stands in JSON.
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

/// The legality table.
///
/// # Errors
/// When the event can't follow.
pub fn next_status(instance: &InstanceId, status: Status, event: &Event) -> Result<Status, Illegal> {
    use Status::{Applied, Cancelled, Effected, Failed, New, Planned, Running, Skipped, Superseded, Waiting};
    let next = match (status, event) {
        (New | Waiting | Planned | Effected, Event::Planned { .. }) => Planned,
        (New | Planned | Waiting, Event::Waits { .. }) => Waiting,
        (Planned, Event::Started { .. }) => Running,
        (Running, Event::Step { .. }) => Running,
        (Running, Event::Finished { outcome: Outcome::Done }) => Effected,
        (Running, Event::Finished { outcome: Outcome::Failed { .. } | Outcome::Interrupted { .. } }) => Effected,
        // Nothing was done, so the instance may be planned again.
        (Running, Event::Finished { outcome: Outcome::Refused { .. } }) => Planned,
        (Planned, Event::Applied { changed: false }) | (Effected, Event::Applied { .. }) => Applied,
        (New | Planned | Waiting | Effected, Event::Failed { .. }) => Failed,
        // After an interruption what is left may turn out to wait for a word.
        (Effected, Event::Waits { .. }) => Waiting,
        (New | Waiting | Planned, Event::Skipped { .. }) => Skipped,
        // What is left after an interruption may be a newer run's.
        (New | Waiting | Planned | Effected, Event::Superseded { .. }) => Superseded,
        (New | Waiting | Planned | Effected, Event::Cancelled { .. }) => Cancelled,
        _ => return Err(Illegal { instance: instance.clone(), status, event: event.name().to_owned() }),
    };
    Ok(next)
}

/// Where an instance stands after a sequence of records.
///
/// # Errors
/// When one of them can't follow: the journal is corrupt, or this is a bug.
pub fn replay<'e>(instance: &InstanceId, events: impl IntoIterator<Item = &'e Event>) -> Result<Status, Illegal> {
    events.into_iter().try_fold(Status::New, |status, event| next_status(instance, status, event))
}

/// The recovery of an effect that was started and not finished, after a new observation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Recovery {
    /// A fresh plan is empty: it was done.
    Done,
    /// A fresh plan is covered by what was approved: it goes on.
    Redo,
    /// Neither: a person has to look.
    Stalled {
        /// In a sentence.
        message: String,
    },
}

/// Decides a `started` without its `finished` from a fresh plan.
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
            // It says itself by what, or by whom.
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
