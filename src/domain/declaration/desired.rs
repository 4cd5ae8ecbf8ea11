//! Defines the result of loading a revision: its declarations, resolved to instances.

use super::{
    instance::Instance,
    schema::{Environment, Remediation, Schedule, StateRepo},
};
use crate::model::{ComponentName, EnvironmentName, InstanceId, Problem};
use std::{collections::BTreeMap, sync::Arc};

/// The declarations of a revision.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// Permissions and defaults; `None` if they can't be read, and then every command is refused.
    pub state_repo: Option<Arc<StateRepo>>,
    /// The readable environments.
    pub environments: BTreeMap<EnvironmentName, Arc<Environment>>,
    /// The instances, including stalled ones.
    pub instances: BTreeMap<InstanceId, Arc<Instance>>,
    /// The remediations by name, with the path of their file in the repository.
    pub remediations: BTreeMap<ComponentName, (Arc<Remediation>, String)>,
    /// The schedules by name.
    pub schedules: BTreeMap<ComponentName, Arc<Schedule>>,
    /// All problems, sorted by file and line.
    pub problems: Vec<Problem>,
    /// Warnings.
    pub notes: Vec<String>,
    /// The number of files.
    pub files: usize,
    /// The number of declared components.
    pub components: usize,
    /// Whether every file was parsed. Only then is an instance that is not declared here a removed one.
    pub complete: bool,
}
