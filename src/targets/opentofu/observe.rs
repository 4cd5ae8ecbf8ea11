//! Observes a root module: lays out its content, runs `init` if its inputs changed, and plans.
//!
//! Runs `show -json` only if the plan contains changes. A drift check of an unchanged instance runs one process, and a
//! second one (`output -json`) if another instance consumes its outputs. Never takes the state lock.
//! *Invariant:* variables are in a file outside the module that only the owner can read, and the file is removed
//! afterwards. They are last on the command line and override all values in the repository.

use crate::targets::opentofu::work::TofuWork;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use tokio::sync::OwnedMutexGuard;

use super::{
    super::{concurrency::Slot, worktree},
    Tofu, WorkTree, drift, plan,
    program::{ProcessResult, Read, failure},
};
use crate::targets::opentofu::plan_json::PlanJson;
use crate::{
    model::{Digester, InstanceId, Retry},
    ports::{Job, Observation, TargetError, TargetErrorKind},
};

/// The file that declares a backend for a root module without one.
const OWN_BACKEND: &str = "evenkeel_backend.tf";

/// The file that records the backend location of the last apply.
const STATE_PLACE: &str = "state-place";

/// The variable file, outside the module.
const VARIABLES: &str = "variables.tfvars.json";
/// The backend settings; the file exists only while `init` runs.
const BACKEND: &str = "backend.hcl";
/// The plan file of an observation.
const PLAN: &str = "plan";
/// The plan file of an apply.
pub(super) const PREPARED: &str = "prepared";
/// All files that contain plaintext values.
pub(super) const FILES_WITH_VALUES: [&str; 4] = [VARIABLES, BACKEND, PLAN, PREPARED];

/// A work tree that is laid out, initialised and locked.
pub(super) struct Ready {
    pub(super) root: PathBuf,
    pub(super) plan: PathBuf,
    _tree_lock: OwnedMutexGuard<WorkTree>,
    /// One slot covers all processes of an observation, so that it completes before others start.
    _slot: Slot,
}

impl Drop for Ready {
    fn drop(&mut self) {
        // A plan file contains all values in plaintext.
        drop(std::fs::remove_file(&self.plan));
    }
}

/// A file with plaintext values that is removed when this value is dropped.
pub(super) struct Private(pub(super) PathBuf);

impl Drop for Private {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

impl Tofu {
    /// Observes an instance with the credentials for plan, without the state lock.
    pub(super) async fn observe_work(&self, job: &Job, work: &TofuWork) -> Result<Observation, TargetError> {
        let ready = self.ready(job, work, false).await?;
        self.plan(job, work, &ready, false).await
    }

    /// Lays out the content, and initialises it if necessary.
    pub(super) async fn ready(&self, job: &Job, work: &TofuWork, apply: bool) -> Result<Ready, TargetError> {
        let tree_lock = self.work_tree(job).lock_owned().await;
        let tree = tree_lock.path.clone();
        let disk = |error: std::io::Error| {
            TargetError::new(
                TargetErrorKind::WorkTree,
                format!("could not write below `{}`: {error}", self.settings.data.display()),
            )
        };
        if !matches!(job.r#use, crate::ports::Use::Pull(_)) {
            // The files stay unchanged until an apply of an earlier daemon ends.
            self.spool(&job.instance).ended().await.map_err(disk)?;
        }
        let slot = self.concurrency.take(&job.instance).await;
        let slot = slot.ok_or_else(|| TargetError::new(TargetErrorKind::Stopping, "the daemon is stopping"))?;
        let (laid_out, for_task, tree_for_task) = (self.data_path(job), job.clone(), tree.clone());
        tokio::task::spawn_blocking(move || {
            worktree::lay_out(&tree_for_task, &for_task)?;
            let private = worktree::private_folder(&laid_out);
            private.map_err(|error| {
                TargetError::new(TargetErrorKind::WorkTree, format!("could not make `{}`: {error}", laid_out.display()))
            })
        })
        .await
        .map_err(|_| TargetError::new(TargetErrorKind::Stopping, "the daemon is stopping"))??;
        let root = tree.join(&work.root);
        let data = self.data_path(job);
        let ready = Ready { plan: data.join(PLAN), root, _tree_lock: tree_lock, _slot: slot };
        if work.declares_backend {
            drop(std::fs::remove_file(ready.root.join(OWN_BACKEND)));
        } else {
            self.own_backend(job, &ready.root).map_err(disk)?;
        }
        self.init(job, work, &ready, apply, false).await?;
        self.claim(job, work)?;
        Ok(ready)
    }

    /// Declares a local backend, under the daemon's data, for a root module that declares none.
    fn own_backend(&self, job: &Job, root: &Path) -> std::io::Result<()> {
        let folder = self
            .settings
            .data
            .join("states")
            .join(stored_name(job).environment.as_str())
            .join(stored_name(job).component.as_str());
        worktree::private_folder(&folder)?;
        let quoted = |path: PathBuf| serde_json::Value::String(path.display().to_string()).to_string();
        let text = format!(
            "# Written by evenkeel: this root module declares no backend, so its state is kept with the daemon's data.\nterraform {{\n  backend \"local\" {{\n    path          = {}\n    workspace_dir = {}\n  }}\n}}\n",
            quoted(folder.join("terraform.tfstate")),
            quoted(folder.join("workspaces")),
        );
        let place = root.join(OWN_BACKEND);
        if std::fs::read_to_string(&place).is_ok_and(|there| there == text) {
            return Ok(());
        }
        worktree::write(&place, text.as_bytes(), 0o600)
    }

    /// Runs `init`, unless its inputs are unchanged since its last success.
    async fn init(
        &self,
        job: &Job,
        work: &TofuWork,
        ready: &Ready,
        apply: bool,
        again: bool,
    ) -> Result<(), TargetError> {
        let lock_file = ready.root.join(".terraform.lock.hcl");
        let mark = self.data_path(job).join("initialised");
        let key = self.init_key(job, work, &lock_file);
        if !again && std::fs::read_to_string(&mark).is_ok_and(|there| there == key) {
            return Ok(());
        }
        drop(std::fs::remove_file(&mark));
        let mut arguments: Vec<String> = ["init", "-json", "-input=false", "-reconfigure"].map(str::to_owned).into();
        arguments.push(format!("-lock-timeout={}s", self.settings.lock_timeout.as_secs()));
        let mut settings = None;
        if !work.backend_config.is_empty() {
            // In a file, because all users of the machine can read arguments.
            let line = |(name, value): (&String, &Value)| {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                format!("{name} = {}\n", Value::String(text).to_string().replace("${", "$${").replace("%{", "%%{"))
            };
            let place = self.data_path(job).join(BACKEND);
            settings = Some(Private(place.clone()));
            let text: String = work.backend_config.iter().map(line).collect();
            worktree::write(&place, text.as_bytes(), 0o600).map_err(|error| {
                TargetError::new(TargetErrorKind::WorkTree, format!("could not write `{}`: {error}", place.display()))
            })?;
            arguments.push(format!("-backend-config={}", place.display()));
        }
        let cache = &self.settings.provider_cache;
        worktree::private_folder(cache).map_err(|error| {
            TargetError::new(TargetErrorKind::ProviderCache, format!("could not make `{}`: {error}", cache.display()))
        })?;
        let result = self.run(job, &ready.root, &arguments, apply, Read::Lines).await?;
        drop(settings);
        if result.code != Some(0) {
            return Err(failure(&job.instance, "init", result));
        }
        let key = self.init_key(job, work, &lock_file);
        worktree::write(&mark, key.as_bytes(), 0o600).map_err(|error| {
            TargetError::new(TargetErrorKind::WorkTree, format!("could not write `{}`: {error}", mark.display()))
        })
    }

    /// Returns a hash of the inputs of `init`: module files, lock file, backend settings, program, CLI configuration.
    fn init_key(&self, job: &Job, work: &TofuWork, lock_file: &Path) -> String {
        let mut digester =
            Digester::new("init").field(self.settings.binary.as_bytes()).field(work.workspace.as_bytes());
        for (path, (id, _)) in job.files.iter().filter(|(path, _)| path.contains(".tf") || path.contains(".tofu")) {
            if !path.ends_with(".tfvars") && !path.ends_with(".tfvars.json") {
                digester = digester.field(path.as_bytes()).field(id.as_bytes());
            }
        }
        let settings = serde_json::to_value(&work.backend_config).unwrap_or_default();
        digester = digester.field(self.seal.seal(&settings).as_bytes());
        digester = digester.field(&std::fs::read(lock_file).unwrap_or_default());
        let cli_config = self.settings.cli_config.as_ref().and_then(|path| std::fs::read(path).ok());
        digester.field(&cli_config.unwrap_or_default()).finish().to_string()
    }

    /// Claims the backend location of an instance.
    ///
    /// # Errors
    /// When another instance owns the location, when the location is inside the work tree, which is replaced, or when
    /// it differs from the location of the last apply (R1.10).
    fn claim(&self, job: &Job, work: &TofuWork) -> Result<(), TargetError> {
        let place = self.state_place(job, work)?;
        if job.r#use != crate::ports::Use::Applied
            && let Ok(before) = std::fs::read_to_string(self.instance_path(stored_name(job)).join(STATE_PLACE))
            && before != place
        {
            let message = format!(
                "the state of `{}` would be kept elsewhere than where the last apply left it, and a plan there would create everything again; change backend and workspace back, or stop the daemon, move the state by `tofu state pull` and `tofu state push`, and remove `work/{}/{STATE_PLACE}` from its data",
                job.instance, job.instance
            );
            return Err(TargetError {
                retry: Retry::WhenInputChanges,
                ..TargetError::new(TargetErrorKind::StateMoved, message)
            });
        }
        if work.declares_backend { self.claim_backend(&place, stored_name(job)) } else { Ok(()) }
    }

    /// Records the backend location of an apply.
    pub(super) fn record_state_location(&self, job: &Job, work: &TofuWork) -> Result<(), TargetError> {
        let (place, path) = (self.state_place(job, work)?, self.instance_path(&job.instance).join(STATE_PLACE));
        worktree::write(&path, place.as_bytes(), 0o600).map_err(|error| {
            TargetError::new(TargetErrorKind::WorkTree, format!("could not write `{}`: {error}", path.display()))
        })
    }

    fn state_place(&self, job: &Job, work: &TofuWork) -> Result<String, TargetError> {
        if !work.declares_backend {
            return Ok(format!("own workspace={}", work.workspace));
        }
        let text = std::fs::read(self.data_path(job).join("terraform.tfstate")).unwrap_or_default();
        let record: Value = serde_json::from_slice(&text).unwrap_or_default();
        let Some(backend) = record.get("backend") else { return Ok(format!("unknown workspace={}", work.workspace)) };
        let mut config = backend["config"].clone();
        if backend["type"] == "local" && !config["path"].as_str().is_some_and(|path| path.starts_with('/')) {
            let message = format!(
                "`{}` keeps its state at a path relative to its root module, which is replaced with each revision; name an absolute path, another backend, or leave the backend out: the state is then kept with the daemon's data",
                job.instance
            );
            return Err(TargetError {
                retry: Retry::WhenInputChanges,
                ..TargetError::new(TargetErrorKind::StateRelative, message)
            });
        }
        if let Some(map) = config.as_object_mut() {
            map.retain(|_, value| !value.is_null());
        }
        // Settings may contain credentials. The location is therefore identified by its hash and by settings that are
        // never secret.
        let name = |key: &str| config.get(key).and_then(Value::as_str).map(|text| format!(" {key}={text}"));
        let shown: String =
            ["path", "bucket", "prefix", "key", "schema_name"].iter().filter_map(|key| name(key)).collect();
        let digest = self.seal.seal(&config);
        let sort = backend["type"].as_str().unwrap_or("unknown");
        Ok(format!("{sort}{shown} workspace={} {digest}", work.workspace))
    }

    /// Plans, and reads the plan if it contains changes.
    pub(super) async fn plan(
        &self,
        job: &Job,
        work: &TofuWork,
        ready: &Ready,
        apply: bool,
    ) -> Result<Observation, TargetError> {
        let variables = self.variables(job, work)?;
        let mut result = self.plan_once(job, work, ready, apply).await?;
        if result.code != Some(0) && result.code != Some(2) && result.errors.iter().any(needs_init) {
            self.init(job, work, ready, apply, true).await?;
            result = self.plan_once(job, work, ready, apply).await?;
        }
        drop(variables);
        let found = match result.code {
            // At head even an empty plan is read, to determine whether the target manages any resource yet (R1.6).
            Some(0) => result.drift || job.r#use != crate::ports::Use::Applied,
            Some(2) => true,
            _ => return Err(failure(&job.instance, "plan", result)),
        };
        let mut observation = if found {
            self.show(job, ready, apply).await?
        } else {
            Observation { holds_anything: true, ..Observation::default() }
        };
        if work.refresh {
            observation.changes = drift::refreshes(&std::mem::take(&mut observation.adopt_only));
        }
        observation.warnings = result.warnings;
        observation.identity = lineage(&ready.plan).map_err(|why| {
            TargetError::new(
                TargetErrorKind::PlanUnreadable,
                format!("the plan of `{}` could not be read: {why}", job.instance),
            )
        })?;
        if !found && job.consumed {
            observation.outputs = self.outputs_of_state(job, ready, apply).await?;
        }
        Ok(observation)
    }

    /// Writes the variable file for the time of its use; `None` without variables.
    fn variables(&self, job: &Job, work: &TofuWork) -> Result<Option<Private>, TargetError> {
        if work.variables.is_empty() {
            return Ok(None);
        }
        let file = Private(self.data_path(job).join(VARIABLES));
        let text = serde_json::to_vec(&work.variables).expect("a map of JSON values is JSON");
        worktree::write(&file.0, &text, 0o600).map_err(|error| {
            TargetError::new(TargetErrorKind::WorkTree, format!("could not write `{}`: {error}", file.0.display()))
        })?;
        Ok(Some(file))
    }

    async fn plan_once(
        &self,
        job: &Job,
        work: &TofuWork,
        ready: &Ready,
        apply: bool,
    ) -> Result<ProcessResult, TargetError> {
        let mut arguments: Vec<String> =
            ["plan", "-json", "-input=false", "-detailed-exitcode", "-concise"].map(str::to_owned).into();
        arguments.push(format!("-out={}", ready.plan.display()));
        arguments.push(if apply {
            format!("-lock-timeout={}s", self.settings.lock_timeout.as_secs())
        } else {
            "-lock=false".into()
        });
        if work.destroy {
            arguments.push("-destroy".into());
        }
        if work.refresh {
            arguments.push("-refresh-only".into());
        }
        for path in &work.var_files {
            arguments.push(format!("-var-file={}", self.tree_path(job).join(path).display()));
        }
        if !work.variables.is_empty() {
            arguments.push(format!("-var-file={}", self.data_path(job).join(VARIABLES).display()));
        }
        if !apply {
            return self.run(job, &ready.root, &arguments, false, Read::Lines).await;
        }
        // The process takes the state lock and must release it even if the daemon stops.
        let mut result = self.supervised(job, &ready.root, &arguments, None, None, None).await?;
        if self.release_dead_lock(job, &ready.root, &result).await? {
            result = self.supervised(job, &ready.root, &arguments, None, None, None).await?;
        }
        Ok(result)
    }

    async fn show(&self, job: &Job, ready: &Ready, apply: bool) -> Result<Observation, TargetError> {
        let arguments = ["show".to_owned(), "-json".into(), ready.plan.display().to_string()];
        let result = self.run(job, &ready.root, &arguments, apply, Read::Answer).await?;
        if result.code != Some(0) {
            return Err(failure(&job.instance, "show", result));
        }
        let unreadable = |why: String| TargetError {
            retry: Retry::Never,
            ..TargetError::new(
                TargetErrorKind::PlanUnreadable,
                format!("the plan of `{}` could not be read: {why}", job.instance),
            )
        };
        let json: PlanJson = serde_json::from_slice(&result.stdout).map_err(|error| unreadable(error.to_string()))?;
        plan::observation(&json, &self.seal, &self.redactor).map_err(unreadable)
    }
}

/// Returns the name under which the daemon stores data of an instance.
fn stored_name(job: &Job) -> &InstanceId {
    job.formerly.as_ref().unwrap_or(&job.instance)
}

#[derive(Deserialize)]
struct Lineage {
    lineage: String,
}

/// Returns the lineage of the state that a saved plan was made from; each new state has another lineage. `None` if
/// there is no state yet, or if it is encrypted.
fn lineage(plan: &Path) -> Result<Option<String>, String> {
    let file = std::fs::File::open(plan).map_err(|error| error.to_string())?;
    let mut archive = zip::ZipArchive::new(file).map_err(|error| error.to_string())?;
    let Ok(state) = archive.by_name("tfstate") else { return Ok(None) };
    let found: Option<Lineage> = serde_json::from_reader(state).ok();
    Ok(found.map(|found| found.lineage).filter(|lineage| !lineage.is_empty()))
}

fn needs_init(diagnostic: &crate::ports::Diagnostic) -> bool {
    let text = format!("{} {}", diagnostic.summary, diagnostic.detail);
    ["tofu init", "initialization required", "not installed", "Module not installed"]
        .iter()
        .any(|sign| text.contains(sign))
}
