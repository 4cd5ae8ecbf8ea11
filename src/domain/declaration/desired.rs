//! The declarations of a revision, resolved to instances.

use super::{
    instance::Instance,
    schema::{Environment, Remediation, Schedule, StateRepo},
};
use crate::model::{ComponentName, EnvironmentName, InstanceId, Problem};
use std::{collections::BTreeMap, sync::Arc};

/// The declarations of a revision.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// Permissions and defaults; absent where they can't be read, and then nobody may do anything.
    pub state_repo: Option<Arc<StateRepo>>,
    /// The environments that could be read.
    pub environments: BTreeMap<EnvironmentName, Arc<Environment>>,
    /// The instances, stalled ones too.
    pub instances: BTreeMap<InstanceId, Arc<Instance>>,
    /// The remediations by name, with the path of their file in the repository.
    pub remediations: BTreeMap<ComponentName, (Arc<Remediation>, String)>,
    /// The schedules by name.
    pub schedules: BTreeMap<ComponentName, Arc<Schedule>>,
    /// Everything that is wrong, in the order of files and lines.
    pub problems: Vec<Problem>,
    /// Warnings.
    pub notes: Vec<String>,
    /// How many files were read.
    pub files: usize,
    /// How many components are declared.
    pub components: usize,
    /// Whether every file parsed, so that what is not here was removed.
    pub complete: bool,
}
