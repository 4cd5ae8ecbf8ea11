//! Observes and applies OpenTofu root modules by running the `tofu` program.
//!
//! Owns the work trees, plans, applies and verification of the instances.
//! *Invariant:* runs tofu without a shell, passes on only the allowed environment variables, removes a plan file after
//! its use, and reads plans only in their JSON form.
//! *Race:* two jobs use one work tree. A lock for each path serializes them.
//! *Race:* an `init` without a lock file replaces providers in the shared cache while other processes use them (a bug
//! in tofu). Such an `init` stores its providers beside its own data and writes the lock file. With a lock file the
//! shared cache is safe.
//! *Race:* the state changes between plan and apply. Tofu refuses the saved plan, and the run plans again.
//! *Race:* another process holds the state lock. The wait is limited, and the error names the owner of the lock.

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

/// The duration after which a job stops counting towards the concurrency limit, so that it does not delay others. A
/// plan of a few hundred resources takes about as long.
const SLOW_AFTER: Duration = Duration::from_secs(60);

/// Resolves the environment variables of a connection, by (instance, connection, whether for apply).
pub type Credentials =
    Arc<dyn Fn(&InstanceId, &str, bool) -> Result<BTreeMap<String, SecretString>, String> + Send + Sync>;

/// The settings for running the program.
#[derive(Clone)]
pub struct Settings {
    /// The program: a name on `PATH`, or a path.
    pub binary: String,
    /// The maximum number of concurrent processes.
    pub parallel: usize,
    /// The folder of the daemon's data.
    pub data: PathBuf,
    /// The provider cache, shared by all instances.
    pub provider_cache: PathBuf,
    /// The path of this program, which supervises processes that have an effect.
    pub supervisor: PathBuf,
    /// The time limit of one process.
    pub timeout: Duration,
    /// The time that a process waits for the state lock.
    pub lock_timeout: Duration,
    /// The CLI configuration file, if any.
    pub cli_config: Option<PathBuf>,
    /// The resolver of credentials.
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
    concurrency: ConcurrencyLimit,
    /// The work trees by path. A task locks a tree before it writes files or runs tofu in the tree.
    trees: Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<WorkTree>>>>,
    /// The instance that owns each backend location.
    backends: Mutex<HashMap<String, InstanceId>>,
}

impl Tofu {
    /// Creates the target from its settings.
    pub fn new(settings: Settings, seal: Arc<Seal>, redactor: Redactor) -> Self {
        Self {
            concurrency: ConcurrencyLimit::new(settings.parallel, SLOW_AFTER),
            settings,
            seal,
            redactor,
            trees: Mutex::default(),
            backends: Mutex::default(),
        }
    }

    /// Removes the files with plaintext values that an earlier daemon left behind.
    fn remove_leftovers(&self) {
        remove_left_values(&self.settings.data.join("work"));
    }

    /// Returns the folder for an instance's content. Merged revisions share one folder; each pull request has its own.
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

    /// Returns tofu's data folder for a use of an instance.
    fn data_path(&self, job: &Job) -> PathBuf {
        self.instance_path(&job.instance).join(format!("data-{}", job.r#use))
    }

    /// Returns the work tree of a job. The caller locks it while its files are written or used.
    fn work_tree(&self, job: &Job) -> Arc<tokio::sync::Mutex<WorkTree>> {
        let path = self.tree_path(job);
        let tree = || Arc::new(tokio::sync::Mutex::new(WorkTree { path: path.clone() }));
        Arc::clone(self.trees.lock().entry(path.clone()).or_insert_with(tree))
    }

    /// Records the backend location of an instance, unless another instance owns it.
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

    /// Removes the work trees of a closed pull request.
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
                            tracing::warn!(kind = "work-tree-not-removed", %error, path = %path.display(), "a work tree could not be removed");
                        }
                    }
                }
            }
        });
        drop(removed.await);
    }
}

/// Removes the files with plaintext values that a killed daemon left behind.
fn remove_left_values(work: &std::path::Path) {
    let below = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    for data in below(work.to_owned()).flat_map(below).flat_map(below) {
        if data.ends_with(supervised::SPOOL) {
            // Observing the spool removes it if no process uses it.
            drop(crate::adapters::supervisor::Spool::new(data).look());
            continue;
        }
        for name in observe::FILES_WITH_VALUES {
            // Other folders do not contain these files.
            drop(std::fs::remove_file(data.join(name)));
        }
    }
}
