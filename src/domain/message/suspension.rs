//! Defines the reasons for which an environment or an instance is suspended, and their text.

use std::fmt;

use chrono::{DateTime, Utc};

use crate::model::EnvironmentName;

/// The reason for which an environment or an instance is suspended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SuspensionReason {
    /// The environment has `suspend: true`.
    Declared(EnvironmentName),
    /// `/suspend` on an environment or instance.
    Command {
        /// The name that the command gave: an environment or an instance.
        name: String,
        /// The principal, such as `user:lin`.
        by: String,
        /// When the command was accepted.
        at: DateTime<Utc>,
    },
}

impl fmt::Display for SuspensionReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Declared(name) => write!(f, "`{name}` is suspended by its declaration (`suspend: true`)"),
            Self::Command { name, by, at } => write!(
                f,
                "`{name}` is suspended by {} since {}; `/resume {name}` ends that",
                by.replace("user:", "@"),
                at.format("%Y-%m-%d %H:%M UTC")
            ),
        }
    }
}
