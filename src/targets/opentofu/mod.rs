//! The OpenTofu target: root modules looked at and applied by the `tofu` program.
//!
//! Decides how one instance is observed, what of it drifted, what an apply is, and whether it did what was planned.
//! Never uses a shell, never passes on an environment that was not allowed, never keeps a plan file longer than it is
//! used, never reads a plan other than by the JSON interface.
//! *Race:* two uses of one instance on one path: they take turns by a lock for each path.
//! *Race:* an `init` without a lock file replaces what stands in the shared provider cache under whoever uses it (a race
//! in tofu): such an init gets its providers beside its own data and writes the lock file; with one the cache is safe.
//! *Race:* the state changes between plan and apply: tofu refuses the saved plan, and the run plans again.
//! *Race:* somebody holds the state lock: the wait is bounded, and the owner is named.

mod adapter;
mod adopt;
mod apply;
mod closure;
pub mod declaration;
pub mod drift;
mod fields;
pub mod hcl;
mod kind;
mod observe;
mod origin;
pub mod plan;
pub mod plan_json;
mod program;
mod rename;
mod supervised;
mod verify;
pub mod work;

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use secrecy::SecretString;

pub use kind::OpenTofu;
pub use program::version;

use super::concurrency::ConcurrencyLimit;
use crate::{
    model::{InstanceId, PullNumber, Redactor, Seal},
    ports::{Job, TargetError, TargetErrorKind, Use},
};

/// What takes longer goes where it keeps nobody waiting: a plan of a few hundred resources takes about as long.
const LONG: Duration = Duration::from_secs(60);

/// The environment that a connection gives to a process, by (environment, connection, whether for apply).
pub type Credentials =
    Arc<dyn Fn(&InstanceId, &str, bool) -> Result<BTreeMap<String, SecretString>, String> + Send + Sync>;

/// How the program is run.
#[derive(Clone)]
pub struct Settings {
    /// The program: a name to be found, or a path.
    pub binary: String,
    /// How many processes run at once.
    pub parallel: usize,
    /// The folder of the daemon's data.
    pub data: PathBuf,
    /// The folder of providers, shared by all instances.
    pub provider_cache: PathBuf,
    /// This program, which supervises what has an effect.
    pub supervisor: PathBuf,
    /// How long one process may take.
    pub timeout: Duration,
    /// How long a process waits for the state lock.
    pub lock_timeout: Duration,
    /// The CLI configuration, where there is one.
    pub cli_config: Option<PathBuf>,
    /// The daemon's own log of each process, for the bench and `doctor`.
    pub credentials: Credentials,
}

/// A folder with the files of one instance at one revision.
pub(super) struct WorkTree {
    pub(super) path: PathBuf,
}

/// The OpenTofu target.
pub struct Tofu {
    settings: Settings,
    seal: Arc<Seal>,
    redactor: Redactor,
    lanes: ConcurrencyLimit,
    /// The work trees, by their path. Whoever holds a tree may write its files and run tofu in it.
    trees: Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<WorkTree>>>>,
    /// Which instance keeps its state where.
    backends: Mutex<HashMap<String, InstanceId>>,
}

impl Tofu {
    /// The target with its settings.
    pub fn new(settings: Settings, seal: Arc<Seal>, redactor: Redactor) -> Self {
        Self {
            lanes: ConcurrencyLimit::new(settings.parallel, LONG),
            settings,
            seal,
            redactor,
            trees: Mutex::default(),
            backends: Mutex::default(),
        }
    }

    /// Removes the files of values that a daemon before left lying about.
    fn remove_leftovers(&self) {
        remove_left_values(&self.settings.data.join("work"));
    }

    /// The folder of an instance's content: merged revisions replace each other there, a pull request has its own.
    fn tree_path(&self, job: &Job) -> PathBuf {
        let name = match job.r#use {
            Use::Applied | Use::Head => "merged".to_owned(),
            r#use @ Use::Pull(_) => r#use.to_string(),
        };
        self.instance_path(&job.instance).join(name)
    }

    fn instance_path(&self, id: &InstanceId) -> PathBuf {
        self.settings.data.join("work").join(id.environment.as_str()).join(id.component.as_str())
    }

    /// The folder that tofu keeps its data in, for each use.
    fn data_path(&self, job: &Job) -> PathBuf {
        self.instance_path(&job.instance).join(format!("data-{}", job.r#use))
    }

    /// The work tree of a job, to be locked while its files are written or used.
    fn work_tree(&self, job: &Job) -> Arc<tokio::sync::Mutex<WorkTree>> {
        let path = self.tree_path(job);
        let tree = || Arc::new(tokio::sync::Mutex::new(WorkTree { path: path.clone() }));
        Arc::clone(self.trees.lock().entry(path.clone()).or_insert_with(tree))
    }

    /// Says that an instance keeps its state somewhere, unless another does.
    fn claim_backend(&self, place: &str, id: &InstanceId) -> Result<(), TargetError> {
        let mut backends = self.backends.lock();
        match backends.get(place) {
            Some(other) if other != id => {
                let message = format!(
                    "`{id}` and `{other}` keep their state in the same place ({}); give each its own key, prefix or workspace",
                    place.rsplit_once(' ').map_or(place, |(shown, _)| shown)
                );
                Err(TargetError {
                    retry: crate::model::Retry::WhenInputChanges,
                    ..TargetError::new(TargetErrorKind::StateShared, message)
                })
            }
            Some(_) => Ok(()),
            None => {
                backends.retain(|_, other| other != id);
                backends.insert(place.to_owned(), id.clone());
                Ok(())
            }
        }
    }

    /// Removes the work trees of a pull request that is over.
    async fn remove_pull(&self, pull: PullNumber) {
        let work = self.settings.data.join("work");
        let names = [Use::Pull(pull).to_string(), format!("data-{}", Use::Pull(pull))];
        let removed = tokio::task::spawn_blocking(move || {
            for environment in std::fs::read_dir(work).into_iter().flatten().flatten() {
                for component in std::fs::read_dir(environment.path()).into_iter().flatten().flatten() {
                    for name in &names {
                        let path = component.path().join(name);
                        if path.exists()
                            && let Err(error) = std::fs::remove_dir_all(&path)
                        {
                            tracing::warn!(%error, path = %path.display(), "could not remove a work tree");
                        }
                    }
                }
            }
        });
        drop(removed.await);
    }
}

/// Removes the files of values in plain text that a killed daemon left behind.
fn remove_left_values(work: &std::path::Path) {
    let below = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    for data in below(work.to_owned()).flat_map(below).flat_map(below) {
        if data.ends_with(supervised::SPOOL) {
            // What nobody works on any more goes with the look.
            drop(crate::adapters::supervisor::Spool::new(data).look());
            continue;
        }
        for name in observe::FILES_WITH_VALUES {
            // A folder of another sort does not have them.
            drop(std::fs::remove_file(data.join(name)));
        }
    }
}
