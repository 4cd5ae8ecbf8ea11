//! Defines the work order of a target: one instance at one revision, with all references resolved.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use chrono::{DateTime, Utc};

use super::Files;
use crate::model::{Action, InstanceId, PullNumber, TargetSpec};

/// The purpose of a work tree. Each purpose has its own tool data, and merged content has one path (R2.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Use {
    /// The applied revision.
    Applied,
    /// The head of the branch.
    Head,
    /// The merged content of a pull request; never used to apply.
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

/// One instance at one revision, with all data that an observation or an apply needs.
#[derive(Clone)]
pub struct Job {
    /// The instance.
    pub instance: InstanceId,
    /// The purpose of the work tree.
    pub r#use: Use,
    /// The content of the revision.
    pub content: Arc<dyn Files>,
    /// The files of the closure: path, git object id, and whether the file is executable.
    pub files: BTreeMap<String, (String, bool)>,
    /// The name of the connection, if the declaration names one.
    pub connection: Option<String>,
    /// Whether another instance consumes its outputs.
    pub consumed: bool,
    /// The former name of the instance until its rename is merged; the daemon stores data under this name (R1.10).
    pub formerly: Option<InstanceId>,
    /// The declared target, with all references resolved.
    pub target: TargetSpec,
    /// Whether the closure configures the location of the target's state.
    pub declares_backend: bool,
    /// Whether the job destroys all resources of the instance (R1.9).
    pub destroy: bool,
    /// Whether the job writes observed values into the target's own records and changes no resource.
    pub refresh: bool,
    /// The instances of the environment that declare the same resources, if the target asked for them.
    pub owners: Option<Arc<Owners>>,
    /// The rules for moves of data.
    pub relocation: Relocation,
}

/// How a run moves the data of a target.
#[derive(Clone, Debug, Default)]
pub struct Relocation {
    /// Whether the run moves data and changes nothing else.
    pub only: bool,
    /// Whether a command requested the moves.
    pub by_command: bool,
    /// Nodes that must be drained and removed, regardless of the declaration.
    pub vacate: Vec<String>,
    /// Approved actions. The target executes those that are still possible, and plans no others.
    pub approved: Vec<Action>,
    /// A move starts only if it is estimated to end by this time.
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
    /// The declaring instances, by resource.
    pub declared: BTreeMap<String, BTreeSet<InstanceId>>,
    /// An instance whose declared resources are not known.
    pub unknown: Option<InstanceId>,
}
