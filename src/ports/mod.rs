//! What conductors and minds ask of hands.
//!
//! Decides nothing. The traits speak in the words of the house, so that a simulated world can stand behind them.
//! *Invariant:* no third party's type appears in a signature here.

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
    citus::LayoutPlan,
};

/// The content of one revision or of a working tree; it never changes under its reader.
pub trait Files: Send + Sync {
    /// Returns the entries of a folder, sorted by name; none if there is no such folder.
    ///
    /// # Errors
    /// When the store of the content can't be read.
    fn list(&self, folder: &str) -> Result<Vec<Entry>, FilesError>;
    /// Returns the entry at a path, if there is one.
    ///
    /// # Errors
    /// When the store of the content can't be read.
    fn entry(&self, path: &str) -> Result<Option<Entry>, FilesError>;
    /// The bytes of a file, or the target of a link.
    ///
    /// # Errors
    /// When the file is not there or can't be read.
    fn read(&self, path: &str) -> Result<Arc<[u8]>, FilesError>;
}

/// Something in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name in its folder.
    pub name: String,
    /// The kind of the entry.
    pub sort: EntryKind,
    /// git's id of its content: equal ids, equal content. Empty for folders of a working tree.
    pub id: String,
}

/// The kind of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A file.
    File,
    /// A file that may be run.
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
    /// The error.
    pub why: String,
}

/// Joins a relative path to a folder, and answers nothing where the result leaves the root.
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
    /// The outputs as they would be after an apply.
    pub outputs: BTreeMap<String, Output>,
    /// Whether the target holds anything already.
    pub holds_anything: bool,
    /// Which target it is, as far as it says: the lineage of a state, the uid of a cluster (R1.8). Nothing where there
    /// is none yet.
    pub identity: Option<String>,
    /// Where the target is that of a whole environment: the other environments that may use it too. Nothing where it
    /// belongs to one instance.
    pub shared_with: Option<Vec<String>>,
    /// The author and time of the change of each resource, if they are known.
    pub changed_by: BTreeMap<String, ChangedBy>,
    /// Details that only the kind of the target reads.
    pub own: Option<Arc<dyn Any + Send + Sync>>,
    /// Whether it has to be known which other instances declare the same resources, and is not.
    pub contested: bool,
    /// Why an apply would be refused as it stands, in a sentence.
    pub refused: Option<String>,
    /// The resources that are no longer declared and stay, each with the reason; they are warnings as well.
    pub left: Vec<String>,
    /// Warnings of the tool.
    pub warnings: Vec<String>,
    /// The figures of the shard moves.
    pub layout: Option<LayoutPlan>,
    /// More of what carries a cluster, where it wants that.
    pub capacity: Vec<MoreCapacity>,
}

impl Observation {
    /// The details that the kind of the target added.
    pub fn own<T: 'static>(&self) -> Option<&T> {
        self.own.as_ref()?.downcast_ref()
    }
}

/// More of what carries a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoreCapacity {
    /// The component of the same environment that says how much there is.
    pub component: ComponentName,
    /// The variable that says it.
    pub variable: String,
    /// By how much it is to be raised.
    pub by: u64,
    /// Never over this.
    pub max: u64,
    /// The figures, in sentences.
    #[serde(rename = "says")]
    pub message: String,
}

/// Whether what was applied came up, or what was destroyed is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It is as it should be.
    Current,
    /// It is on its way, in a sentence.
    InProgress(String),
    /// It won't be, in a sentence with the reason.
    Failed(String),
}

/// An output of an instance.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Its value; absent while it is not known.
    pub value: Option<Value>,
    /// Whether it may be shown.
    pub sensitive: bool,
}

/// An output as it is recorded: a sensitive one as an HMAC (R1.3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedOutput {
    /// The value of an output that may be shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    /// The HMAC of a sensitive one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<String>,
}

impl Output {
    /// As it is recorded; nothing while it is not known.
    pub fn record(&self, seal: &Seal) -> Option<RecordedOutput> {
        let value = self.value.as_ref()?;
        Some(if self.sensitive {
            RecordedOutput { value: None, sealed: Some(seal.seal(value)) }
        } else {
            RecordedOutput { value: Some(value.clone()), sealed: None }
        })
    }
}

/// A diagnostic of a tool, with the place in the module if it has one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnostic {
    /// One line.
    pub summary: String,
    /// More.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// The resource that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// `file:line`, relative to the root module.
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
            /// The name, in kebab-case.
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

/// A target that could not be looked at or changed. Everything in it is already redacted.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct TargetError {
    /// A stable word for metrics, status and JSON.
    pub kind: TargetErrorKind,
    /// The attempt and its object, in one line.
    pub message: String,
    /// The message of the tool.
    pub diagnostics: Vec<Diagnostic>,
    /// When the same attempt may succeed.
    pub retry: Retry,
    /// Whether the target refused or failed, so that a person has to look before anything else is tried.
    pub effect_may_have_begun: bool,
}

impl TargetError {
    /// An error before any effect.
    pub fn new(kind: TargetErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            diagnostics: vec![],
            retry: Retry::After(Backoff::REMOTE),
            effect_may_have_begun: false,
        }
    }
    /// The message and all diagnostics, a line each.
    pub fn whole(&self) -> String {
        let lines = self.diagnostics.iter().map(|diagnostic| format!("\n{diagnostic}"));
        std::iter::once(self.message.clone()).chain(lines).collect()
    }
    /// The message and the first diagnostics, in one line.
    pub fn line(&self) -> String {
        match self.diagnostics.first() {
            Some(first) => format!("{}: {first}", self.message),
            None => self.message.clone(),
        }
    }
}

/// Under whose order an effect is done: what recovery finds it by, and what a newer holder of the lease takes away.
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
    /// It went on without the daemon, and ended so.
    Ended(Result<(), TargetError>),
    /// No process is left that knows the outcome: the target has to be observed.
    Gone,
}

/// Where a simulated crash may come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CrashPoint {
    /// After something was made durable in the store.
    AfterWrite,
    /// Before something is changed in the world.
    BeforeEffect,
    /// In the middle, where what runs it is lost as well.
    InEffect,
    /// After it was.
    AfterEffect,
}

/// Hears of each place where a crash may come, and may let nothing come after it.
#[async_trait]
pub trait Boundary: Send + Sync {
    /// A place is reached; does not return where the crash is to come here.
    async fn pass(&self, cut: CrashPoint, what: &str);
}

/// A plan that stands ready on this machine, made under the lock with the credentials of apply.
pub struct Prepared {
    /// The planned changes.
    pub observation: Observation,
    /// The target's own data for the apply; it is cleaned up when it is dropped.
    pub ticket: Box<dyn Any + Send>,
}

/// The progress of an effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProgressEvent {
    /// How far it is.
    Now(String),
    /// A step of it begins, or is over: it stands in the journal.
    Step(String),
}

/// Hears what a target does while it does it.
pub type Progress = Arc<dyn Fn(ProgressEvent) + Send + Sync>;

/// A kind of target that can be observed and changed. Each method with a default describes what not every kind has.
#[async_trait]
pub trait TargetAdapter: Send + Sync {
    /// Looks at an instance with the credentials of plan, without a lock. Changes nothing.
    ///
    /// # Errors
    /// When it could not be observed completely: the answer is then *unknown*, never *nothing*.
    async fn observe(&self, job: &Job) -> Result<Observation, TargetError>;
    /// Plans an instance with the credentials of apply, under the target's lock.
    ///
    /// # Errors
    /// When it could not be planned completely.
    async fn prepare(&self, job: &Job) -> Result<Prepared, TargetError>;
    /// Does what was prepared, if its precondition and its fence still hold.
    ///
    /// # Errors
    /// The message of the target; a part may be done.
    async fn apply(&self, job: &Job, prepared: Prepared, fence: Fence, progress: Progress) -> Result<(), TargetError>;
    /// Whether what was applied came up; what nobody waits for is current.
    ///
    /// # Errors
    /// When it could not be looked at.
    async fn health(&self, _job: &Job) -> Result<Health, TargetError> {
        Ok(Health::Current)
    }
    /// Waits until the world says that an instance may have changed.
    async fn changed(&self) -> InstanceId {
        std::future::pending().await
    }
    /// Whether the world said that an instance may have changed, and nobody has looked since.
    fn is_suspect(&self, _id: &InstanceId) -> bool {
        false
    }
    /// The resources that an instance declares, as far as they are known without looking at the world.
    ///
    /// # Errors
    /// When they can't be made.
    async fn declares(&self, _job: &Job) -> Result<BTreeSet<String>, TargetError> {
        Ok(BTreeSet::new())
    }
    /// Waits for an effect that was begun under a fence before the daemon died.
    ///
    /// # Errors
    /// When it can't be told what became of it.
    async fn attach(&self, _job: &Job, _fence: Fence, _progress: Progress) -> Result<Attached, TargetError> {
        Ok(Attached::Gone)
    }
    /// Asks an effect that is in flight to end as soon as it safely can; answers whether there was one.
    ///
    /// # Errors
    /// When it can't be asked.
    async fn interrupt(&self, _id: &InstanceId) -> Result<bool, TargetError> {
        Ok(false)
    }
    /// Removes what a daemon before left lying about; called when nobody else may work here any more.
    async fn take_over(&self) {}
    /// Releases the target's own lock, whoever has it; answers whose it was, or nothing where there was none.
    ///
    /// # Errors
    /// When it can't be released.
    async fn unlock(&self, _job: &Job) -> Result<Option<String>, TargetError> {
        Ok(None)
    }
    /// The live outputs.
    ///
    /// # Errors
    /// When they could not be read.
    async fn outputs(&self, _job: &Job) -> Result<BTreeMap<String, Output>, TargetError> {
        Ok(BTreeMap::new())
    }
    /// Makes a point that everything of a target can be restored to, by a name; answers where it is.
    ///
    /// # Errors
    /// When the target has none, or it can't be made.
    async fn restore_point(&self, job: &Job, _name: &str) -> Result<String, TargetError> {
        Err(TargetError::new(TargetErrorKind::Unsupported, format!("`{}` has no restore points", job.instance)))
    }
    /// Forgets the work trees of a pull request that is over.
    async fn forget_pull(&self, _pull: PullNumber) {}
    /// Moves what the daemon keeps for an instance to another name; nothing happens where that was done before.
    ///
    /// # Errors
    /// When it can't be moved.
    async fn rename(&self, _from: &InstanceId, _to: &InstanceId) -> Result<(), TargetError> {
        Ok(())
    }
    /// Forgets where an instance kept its state; the state itself stays where it is.
    async fn release(&self, _id: &InstanceId) {}
}

/// Asks addresses whether they answer.
#[async_trait]
pub trait Probe: Send + Sync {
    /// Asks `host:port` or an address whether it answers.
    ///
    /// # Errors
    /// In one line, why it does not.
    async fn probe(&self, http: Option<&str>, tcp: Option<&str>, timeout: Duration) -> Result<(), String>;
}

/// Returns the present time.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> DateTime<Utc>;
}
