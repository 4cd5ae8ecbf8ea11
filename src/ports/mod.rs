//! Defines the traits that adapters and targets implement, and their argument and result types.
//!
//! Decides nothing. The traits use model types alone, so that tests can replace every external system by a simulation.
//! *Invariant:* no type of a third-party crate for an external system appears in a signature of this module.

mod forge;
mod inventory;
mod overlay;
mod repository;
mod work;

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use forge::{Comment, Forge, ForgeError, Pull, Review};
pub use inventory::{InventoryStore, InventoryStoreError};
pub use overlay::Overlay;
pub use repository::{Commit, Merged, Repository, RepositoryError};
pub use work::{Job, Owners, Relocation, Use};

use crate::model::{
    Backoff, ChangedBy, ComponentName, Drift, InstanceId, PullNumber, ResourceChange, Retry, RunId, Seal,
    layout::LayoutPlan,
};

/// The content of one revision or of a working tree. The content is immutable while it is read.
pub trait Files: Send + Sync {
    /// Returns the entries of a folder, sorted by name; an empty list if the folder does not exist.
    ///
    /// # Errors
    /// When the content store can't be read.
    fn list(&self, folder: &str) -> Result<Vec<Entry>, FilesError>;
    /// Returns the entry at a path; `None` if the path does not exist.
    ///
    /// # Errors
    /// When the content store can't be read.
    fn entry(&self, path: &str) -> Result<Option<Entry>, FilesError>;
    /// Returns the bytes of a file, or the target of a symbolic link.
    ///
    /// # Errors
    /// When the file does not exist or can't be read.
    fn read(&self, path: &str) -> Result<Arc<[u8]>, FilesError>;
}

/// An entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name in its folder.
    pub name: String,
    /// The kind of the entry.
    pub sort: EntryKind,
    /// The git object id of the content: equal ids mean equal content. Empty for folders of a working tree.
    pub id: String,
}

/// The kind of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A file.
    File,
    /// An executable file.
    Program,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A submodule or a device; never followed.
    Other,
}

/// Content that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("could not read `{path}`: {why}")]
pub struct FilesError {
    /// The path, relative to the root of the repository.
    pub path: String,
    /// The error of the content store.
    pub why: String,
}

/// Joins a relative path to a folder; returns `None` if the result is outside of the root.
pub fn join(folder: &str, relative: &str) -> Option<String> {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    for part in relative.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The observation of one instance.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// The changes that an apply would make; sensitive values are masked.
    pub changes: Vec<ResourceChange>,
    /// Differences from the last apply that an apply would not change: they can only be adopted.
    pub adopt_only: Vec<Drift>,
    /// The outputs after an apply.
    pub outputs: BTreeMap<String, Output>,
    /// Whether the target contains any resource.
    pub holds_anything: bool,
    /// The identity of the target, such as the lineage of a state or the uid of a cluster (R1.8). `None` if the target
    /// does not exist yet or reports no identity.
    pub identity: Option<String>,
    /// For a target of a whole environment: the other environments that may use the target. `None` if the target
    /// belongs to one instance.
    pub shared_with: Option<Vec<String>>,
    /// The author and time of the last change of each resource, if they are known.
    pub changed_by: BTreeMap<String, ChangedBy>,
    /// Details that only the target's own kind reads.
    pub own: Option<Arc<dyn Any + Send + Sync>>,
    /// Whether the observation depends on the resources that other instances declare, and these are not known.
    pub contested: bool,
    /// The reason for which the target would refuse an apply, as a sentence.
    pub refused: Option<String>,
    /// The resources that are no longer declared and stay, each with the reason. `warnings` contains them too.
    pub left: Vec<String>,
    /// Warnings of the target's tool.
    pub warnings: Vec<String>,
    /// The figures of the shard moves.
    pub layout: Option<LayoutPlan>,
    /// Requests for more capacity of the cluster's hosts.
    pub capacity: Vec<MoreCapacity>,
}

impl Observation {
    /// Returns the details that the target's kind added, if they have the type `T`.
    pub fn own<T: 'static>(&self) -> Option<&T> {
        self.own.as_ref()?.downcast_ref()
    }
}

/// A request for more capacity of a cluster's hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoreCapacity {
    /// The component of the same environment whose variable sets the capacity.
    pub component: ComponentName,
    /// The variable that sets the capacity.
    pub variable: String,
    /// The amount by which the variable is raised.
    pub by: u64,
    /// The highest allowed value of the variable.
    pub max: u64,
    /// The figures, as sentences.
    #[serde(rename = "says")]
    pub message: String,
}

/// The health of applied resources, or the progress of a deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// The resources are ready, or deleted.
    Current,
    /// The rollout is in progress; the text is one sentence.
    InProgress(String),
    /// The rollout can't succeed; the text is one sentence with the reason.
    Failed(String),
}

/// An output of an instance.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// The value; `None` while it is not known.
    pub value: Option<Value>,
    /// Whether the value is secret and must not be shown.
    pub sensitive: bool,
}

/// A recorded output. A sensitive value is recorded as an HMAC (R1.3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedOutput {
    /// The value of an output that is not sensitive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    /// The HMAC of a sensitive value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<String>,
}

impl Output {
    /// Returns the recorded form of the output; `None` while its value is not known.
    pub fn record(&self, seal: &Seal) -> Option<RecordedOutput> {
        let value = self.value.as_ref()?;
        Some(if self.sensitive {
            RecordedOutput { value: None, sealed: Some(seal.seal(value)) }
        } else {
            RecordedOutput { value: Some(value.clone()), sealed: None }
        })
    }
}

/// A diagnostic of a tool, with its source location if the tool reports one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnostic {
    /// The summary, one line.
    pub summary: String,
    /// The details.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// The address of the affected resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The source location `file:line`, relative to the root module.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        if let Some(address) = &self.address {
            write!(f, "{address}: ")?;
        }
        f.write_str(&self.summary)?;
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail.split_whitespace().collect::<Vec<_>>().join(" "))?;
        }
        Ok(())
    }
}

macro_rules! error_kinds {
    ($($kind:ident = $name:literal,)*) => {
        /// The kind of a target's error: a stable name for code, metrics, status and JSON.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[expect(missing_docs, reason = "the name of each is its meaning")]
        pub enum TargetErrorKind {
            $($kind,)*
        }

        impl TargetErrorKind {
            /// Returns the name, in kebab-case.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }
        }
    };
}

error_kinds! {
    ApplyFailed = "apply-failed",
    ApplyStale = "apply-stale",
    Busy = "busy",
    CarrierUnknown = "carrier-unknown",
    Conflict = "conflict",
    Connection = "connection",
    Content = "content",
    Credentials = "credentials",
    Drain = "drain",
    EffectLost = "effect-lost",
    Fenced = "fenced",
    Files = "files",
    Forbidden = "forbidden",
    Health = "health",
    Identity = "identity",
    IdentityShared = "identity-shared",
    Immutable = "immutable",
    InUse = "in-use",
    InputChanged = "input-changed",
    InputMissing = "input-missing",
    InputWrong = "input-wrong",
    Interrupted = "interrupted",
    JournalIllegal = "journal-illegal",
    Lanes = "lanes",
    Manifest = "manifest",
    Migrations = "migrations",
    Move = "move",
    Node = "node",
    NotFound = "not-found",
    NotThereYet = "not-there-yet",
    OutputsUnreadable = "outputs-unreadable",
    PlanMissing = "plan-missing",
    PlanStale = "plan-stale",
    PlanUnreadable = "plan-unreadable",
    ProviderCache = "provider-cache",
    Record = "record",
    Refused = "refused",
    Rename = "rename",
    Render = "render",
    Stalled = "stalled",
    StateCopy = "state-copy",
    StateLocked = "state-locked",
    StateMoved = "state-moved",
    StateOutOfReach = "state-out-of-reach",
    StateRelative = "state-relative",
    StateShared = "state-shared",
    StateUnreadable = "state-unreadable",
    Stopping = "stopping",
    Store = "store",
    StoreDocument = "store-document",
    StoreFenced = "store-fenced",
    StoreMigrate = "store-migrate",
    StoreOpen = "store-open",
    StoreStatement = "store-statement",
    Supervisor = "supervisor",
    TofuFailed = "tofu-failed",
    TofuInterrupted = "tofu-interrupted",
    TofuMissing = "tofu-missing",
    TofuTimeout = "tofu-timeout",
    Unauthorized = "unauthorized",
    Unreachable = "unreachable",
    Unsupported = "unsupported",
    WindowOver = "window-over",
    WorkTree = "work-tree",
}

impl fmt::Display for TargetErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The error of a target operation. All texts are redacted.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct TargetError {
    /// A stable name for metrics, status and JSON.
    pub kind: TargetErrorKind,
    /// The attempted operation and its object, in one line.
    pub message: String,
    /// The diagnostics of the target's tool.
    pub diagnostics: Vec<Diagnostic>,
    /// When the same attempt may succeed.
    pub retry: Retry,
    /// Whether the target refused the effect or failed during it. An operator must then check the target before a
    /// retry.
    pub effect_may_have_begun: bool,
}

impl TargetError {
    /// Creates an error that occurred before any effect.
    pub fn new(kind: TargetErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            diagnostics: vec![],
            retry: Retry::After(Backoff::REMOTE),
            effect_may_have_begun: false,
        }
    }
    /// Returns the message and all diagnostics, one per line.
    pub fn whole(&self) -> String {
        let lines = self.diagnostics.iter().map(|diagnostic| format!("\n{diagnostic}"));
        std::iter::once(self.message.clone()).chain(lines).collect()
    }
    /// Returns the message and the first diagnostics, in one line.
    pub fn line(&self) -> String {
        match self.diagnostics.first() {
            Some(first) => format!("{}: {first}", self.message),
            None => self.message.clone(),
        }
    }
}

/// Identifies the run and the lease of an effect. Recovery finds the effect by its fence; a newer lease invalidates the
/// fence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fence {
    /// The run.
    pub run: RunId,
    /// The fencing token of its environment.
    pub token: i64,
}

/// The outcome of an effect that began before the daemon died.
#[derive(Debug)]
pub enum Attached {
    /// The effect continued without the daemon and ended with this result.
    Ended(Result<(), TargetError>),
    /// No running process knows the outcome. The target must be observed.
    Gone,
}

/// A point at which a simulation can crash the daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CrashPoint {
    /// After a durable write to the store.
    AfterWrite,
    /// Before an effect on a target.
    BeforeEffect,
    /// During an effect, when the process that runs the effect crashes too.
    InEffect,
    /// After an effect on a target.
    AfterEffect,
}

/// Receives every crash point. A simulation stops the daemon at the chosen one.
#[async_trait]
pub trait Boundary: Send + Sync {
    /// Is called at each crash point. Does not return if the simulation crashes the daemon here.
    async fn pass(&self, point: CrashPoint, subject: &str);
}

/// A plan that is ready to apply on this machine. The plan was made under the target's lock with the credentials of
/// apply.
pub struct Prepared {
    /// The planned changes.
    pub observation: Observation,
    /// The target's own data for the apply. Dropping the ticket cleans up.
    pub ticket: Box<dyn Any + Send>,
}

/// The progress of an effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProgressEvent {
    /// The current progress, for display.
    Now(String),
    /// A step of the effect started or finished. The journal records the step.
    Step(String),
}

/// Receives the progress events of an effect.
pub type Progress = Arc<dyn Fn(ProgressEvent) + Send + Sync>;

/// A kind of target that can be observed and changed. A default method covers a feature that not every kind has.
#[async_trait]
pub trait TargetAdapter: Send + Sync {
    /// Observes an instance with the credentials of plan and without a lock. Changes nothing.
    ///
    /// # Errors
    /// When the observation is not complete. The verdict of the instance is then *unknown*, never *in sync*.
    async fn observe(&self, job: &Job) -> Result<Observation, TargetError>;
    /// Plans an instance with the credentials of apply, under the target's lock.
    ///
    /// # Errors
    /// When the plan is not complete.
    async fn prepare(&self, job: &Job) -> Result<Prepared, TargetError>;
    /// Executes a prepared plan if its precondition holds and its fence is valid.
    ///
    /// # Errors
    /// When the target reports an error. A part of the plan may be applied.
    async fn apply(&self, job: &Job, prepared: Prepared, fence: Fence, progress: Progress) -> Result<(), TargetError>;
    /// Returns the health of applied resources. A target that has no rollout is always current.
    ///
    /// # Errors
    /// When the health can't be observed.
    async fn health(&self, _job: &Job) -> Result<Health, TargetError> {
        Ok(Health::Current)
    }
    /// Waits for an event that an instance may have changed, and returns the instance.
    async fn changed(&self) -> InstanceId {
        std::future::pending().await
    }
    /// Returns whether an event reported a possible change and no observation followed.
    fn is_suspect(&self, _id: &InstanceId) -> bool {
        false
    }
    /// Returns the resources that an instance declares, as far as they are known without an observation.
    ///
    /// # Errors
    /// When the declared resources can't be rendered.
    async fn declares(&self, _job: &Job) -> Result<BTreeSet<String>, TargetError> {
        Ok(BTreeSet::new())
    }
    /// Waits for an effect that was started under a fence before the daemon stopped.
    ///
    /// # Errors
    /// When the outcome can't be determined.
    async fn attach(&self, _job: &Job, _fence: Fence, _progress: Progress) -> Result<Attached, TargetError> {
        Ok(Attached::Gone)
    }
    /// Requests a running effect to stop as soon as this is safe; returns whether an effect was running.
    ///
    /// # Errors
    /// When the request can't be delivered.
    async fn interrupt(&self, _id: &InstanceId) -> Result<bool, TargetError> {
        Ok(false)
    }
    /// Removes the remains of an earlier daemon process. The caller guarantees that no other process works on the
    /// target.
    async fn take_over(&self) {}
    /// Releases the target's own lock, regardless of its owner. Returns the former owner; `None` if there was no lock.
    ///
    /// # Errors
    /// When the lock can't be released.
    async fn unlock(&self, _job: &Job) -> Result<Option<String>, TargetError> {
        Ok(None)
    }
    /// Returns the live outputs.
    ///
    /// # Errors
    /// When the outputs can't be read.
    async fn outputs(&self, _job: &Job) -> Result<BTreeMap<String, Output>, TargetError> {
        Ok(BTreeMap::new())
    }
    /// Creates a named restore point for the whole target; returns its location.
    ///
    /// # Errors
    /// When the target does not support restore points, or the restore point can't be created.
    async fn restore_point(&self, job: &Job, _name: &str) -> Result<String, TargetError> {
        Err(TargetError::new(TargetErrorKind::Unsupported, format!("`{}` has no restore points", job.instance)))
    }
    /// Removes the work trees of a closed pull request.
    async fn forget_pull(&self, _pull: PullNumber) {}
    /// Moves the stored data of an instance to another name. Does nothing if the data was moved before.
    ///
    /// # Errors
    /// When the data can't be moved.
    async fn rename(&self, _from: &InstanceId, _to: &InstanceId) -> Result<(), TargetError> {
        Ok(())
    }
    /// Removes the record of where an instance keeps its state. The state itself does not change.
    async fn release(&self, _id: &InstanceId) {}
}

/// Sends health probes to addresses.
#[async_trait]
pub trait Probe: Send + Sync {
    /// Probes a URL by HTTP or `host:port` by TCP.
    ///
    /// # Errors
    /// When there is no valid response within the timeout; the text is the reason, in one line.
    async fn probe(&self, http: Option<&str>, tcp: Option<&str>, timeout: Duration) -> Result<(), String>;
}

/// The source of the current time.
pub trait Clock: Send + Sync {
    /// Returns the current time.
    fn now(&self) -> DateTime<Utc>;
}
