//! Provides the settings, ports, clock, HMAC key, redactor, metrics and work queue of all controllers.
//!
//! *Invariant:* no controller is reachable from the context, and the context contains no copy of stored state.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::work_queue::WorkQueue;
use crate::{
    adapters::store::{self, Store},
    domain::message::Refusal,
    model::{Redactor, Retry, Seal},
    ports::{
        Clock, Forge, ForgeError, Probe, Repository, RepositoryError, TargetAdapter, TargetError, TargetErrorKind,
    },
};

/// The settings of the daemon.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The branch that is applied.
    pub branch: String,
    /// The root of the declarations in the repository.
    pub root: String,
    /// The interval at which the repository and the pull requests are polled.
    pub poll: Duration,
    /// The folder of a local repository, which is watched for changes.
    pub watch: Option<PathBuf>,
    /// The name of this process as the holder of the lease, unique per process.
    pub holder: String,
    /// The length of a lease without a renewal.
    pub lease: Duration,
}

/// The error of a controller.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The state repo failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The forge failed.
    #[error(transparent)]
    Forge(#[from] ForgeError),
    /// A target failed.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A request is refused, with the reason and a hint.
    #[error("{0}")]
    Refused(Refusal),
}

impl Error {
    /// A stable name for metrics, logs and JSON, in kebab-case.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Store(error) => error.kind(),
            Self::Repository(error) => error.kind,
            Self::Forge(_) => "forge",
            Self::Target(error) => error.kind.name(),
            Self::Refused(_) => "refused",
        }
    }

    /// When the same attempt may succeed.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Store(error) => error.retry(),
            Self::Repository(error) => error.retry,
            Self::Forge(error) => error.retry,
            Self::Target(error) => error.retry,
            Self::Refused(_) => Retry::WhenInputChanges,
        }
    }

    /// Converts into an error of a target: the contained error, or a new error of a kind.
    pub(crate) fn into_target(self, kind: TargetErrorKind) -> TargetError {
        match self {
            Self::Target(error) => error,
            other => TargetError::new(kind, crate::error_chain(&other)),
        }
    }
}

/// Counters for `/metrics`.
#[derive(Default)]
pub struct Metrics {
    /// Drift checks.
    pub drift_checks: AtomicU64,
    /// Drift checks that could not observe their instance completely.
    pub drift_checks_failed: AtomicU64,
    /// Runs that were created.
    pub runs_started: AtomicU64,
    /// Runs that ended.
    pub runs_ended: AtomicU64,
    /// Instances whose actions were applied.
    pub actions_applied: AtomicU64,
    /// Instances whose actions failed.
    pub actions_failed: AtomicU64,
    /// Webhooks that were accepted.
    pub webhooks: AtomicU64,
    /// Webhooks that were refused.
    pub webhooks_refused: AtomicU64,
}

/// The adapters of the daemon.
pub struct Ports {
    /// The store.
    pub store: Store,
    /// The state repo.
    pub repository: Arc<dyn Repository>,
    /// The targets.
    pub target: Arc<dyn TargetAdapter>,
    /// The health checks of components.
    pub probe: Arc<dyn Probe>,
    /// The forge, where one is configured.
    pub forge: Option<Arc<dyn Forge>>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The HMAC key of masked values (R2.3).
    pub seal: Arc<Seal>,
    /// The sink of secrets.
    pub redactor: Redactor,
}

/// The context that all controllers share.
pub struct Context {
    /// The settings of the daemon.
    pub settings: Settings,
    /// The store.
    pub store: Store,
    /// The state repo.
    pub repository: Arc<dyn Repository>,
    /// The targets.
    pub target: Arc<dyn TargetAdapter>,
    /// The health checks of components.
    pub probe: Arc<dyn Probe>,
    /// The forge, where one is configured.
    pub forge: Option<Arc<dyn Forge>>,
    /// The HMAC key of masked values (R2.3).
    pub seal: Arc<Seal>,
    /// The sink of secrets.
    pub redactor: Redactor,
    /// The requests to reconcile.
    pub queue: WorkQueue,
    /// Counters for `/metrics`.
    pub metrics: Metrics,
    /// Notifies the timers that the next due time may have changed.
    pub(crate) due_changed: Notify,
    /// The tasks that a shutdown waits for.
    pub(crate) tasks: TaskTracker,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
}

impl Context {
    /// Returns a context with an empty queue.
    pub(crate) fn new(settings: Settings, ports: Ports) -> Arc<Self> {
        let Ports { store, repository, target, probe, forge, clock, seal, redactor } = ports;
        Arc::new(Self {
            settings,
            store,
            repository,
            target,
            probe,
            forge,
            seal,
            redactor,
            queue: WorkQueue::default(),
            metrics: Metrics::default(),
            due_changed: Notify::new(),
            tasks: TaskTracker::new(),
            clock,
            stop: CancellationToken::new(),
        })
    }

    /// Returns the current time.
    pub fn now(&self) -> chrono::DateTime<chrono::Utc> {
        self.clock.now()
    }

    /// Asks the daemon to start no new work and to end the work in progress.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until the daemon is asked to stop.
    ///
    /// *Cancel safety:* safe.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Whether the daemon was asked to stop.
    pub fn stopping(&self) -> bool {
        self.stop.is_cancelled()
    }
}

/// The clock of this machine.
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> chrono::DateTime<chrono::Utc> {
        chrono::Utc::now()
    }
}
