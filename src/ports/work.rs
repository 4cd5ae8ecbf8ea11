//! What is to be looked at or applied: one instance at one revision, with everything filled in.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use chrono::{DateTime, Utc};

use super::Files;
use crate::model::{Action, InstanceId, PullNumber, TargetSpec};

/// Which content a work tree holds: each has its own tool data, and merged content one path (R2.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Use {
    /// The applied revision.
    Applied,
    /// The head of the branch.
    Head,
    /// A pull request; never used to apply.
    Pull(PullNumber),
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Applied => f.write_str("applied"),
            Self::Head => f.write_str("head"),
            Self::Pull(number) => write!(f, "pr-{}", number.0),
        }
    }
}

/// One instance at one revision, with everything that looking at it or applying it needs.
#[derive(Clone)]
pub struct Job {
    /// The instance.
    pub instance: InstanceId,
    /// Which content.
    pub r#use: Use,
    /// The content of the revision.
    pub content: Arc<dyn Files>,
    /// The files of its closure: path, git's id, whether it may be run.
    pub files: BTreeMap<String, (String, bool)>,
    /// The connection, if one is named.
    pub connection: Option<String>,
    /// Whether another instance consumes its outputs.
    pub consumed: bool,
    /// The name that it had until this is merged, under which the daemon keeps what it keeps for it (R1.10).
    pub formerly: Option<InstanceId>,
    /// The declared target, with all references filled in.
    pub target: TargetSpec,
    /// Whether the closure says where the target keeps its state.
    pub declares_backend: bool,
    /// Whether everything is to be removed (R1.9).
    pub destroy: bool,
    /// Whether the target's own records take over observed values, and no resource changes.
    pub refresh: bool,
    /// Which instances of the environment declare a resource in the same place, where the target asked for that.
    pub owners: Option<Arc<Owners>>,
    /// How data is moved.
    pub relocation: Relocation,
}

/// How a run moves the data of a target.
#[derive(Clone, Debug, Default)]
pub struct Relocation {
    /// Whether data is moved and nothing else changes.
    pub only: bool,
    /// Whether a comment asked for the moves.
    pub by_command: bool,
    /// Nodes that have to be empty and removed, whatever else is declared.
    pub vacate: Vec<String>,
    /// Actions that were approved: they are done as far as they still can be, in place of others.
    pub approved: Vec<Action>,
    /// No move begins that would not end by then.
    pub until: Option<DateTime<Utc>>,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Job({} at {})", self.instance, self.r#use)
    }
}

/// The objects that the instances of an environment declare in one cluster.
#[derive(Clone, Debug, Default)]
pub struct Owners {
    /// Instances by the resource that they declare.
    pub declared: BTreeMap<String, BTreeSet<InstanceId>>,
    /// An instance of which that is not known.
    pub unknown: Option<InstanceId>,
}
