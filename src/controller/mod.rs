//! The daemon: wakes in, looks, decisions, effects.
//!
//! Decides nothing itself: each conductor lets the hands observe, hands everything to the minds, and lets the hands act
//! on what they answer. The system converges with every event source dead, at the pace of its timers.
//!
//! *Why is each look a task of its own?* One slow or hanging instance must not delay another. Looks of the same thing
//! take turns by the queue; processes are bounded where they run (`tofu.parallel`), so a waiting look costs nothing.
//!
//! *Race:* head moves while a run is under way: the run keeps its revision; the newer head makes a newer run, which
//! takes the place of what still waits (R5.3). *Race:* a drift pass during a run: what the run still has to touch is
//! left alone until it ended (R5.2).

mod adopt;
mod advance;
mod approvals;
mod cancel;
mod capacity;
mod carriers;
mod commands;
mod conclude;
mod conversation;
mod decide;
mod git;
mod guards;
mod history;
mod identity;
mod inputs;
mod lease;
mod looking;
mod orphans;
mod outbox;
mod owners;
mod pass;
mod planning;
mod prepare;
mod progress;
mod propose;
mod propose_apply;
mod publish;
mod pulls;
mod rebalance;
mod recovery;
mod remediation;
mod rename;
mod repair;
mod rollout;
mod run;
mod schedule;
pub mod snooze;
mod status;
mod suspension;
mod timers;
pub mod wake;
mod why;
mod withdraw;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock, atomic::AtomicU64},
    time::Duration,
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use planning::Scope;
pub use status::{InstanceStatus, Status};
pub use wake::{Queue, Wake};
pub use words::Said;

use crate::{
    adapters::store::{self, Store},
    domain::declaration::{Desired, Instance, Loader},
    model::{EnvironmentName, InstanceId, Redactor, Revision, Seal},
    ports::{Clock, Files, Forge, ForgeError, Repository, Target, TargetError},
};

/// How the daemon works.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The branch that is applied.
    pub branch: String,
    /// The root of the declarations in the repository.
    pub root: String,
    /// How often the repository and the pull requests are looked at without a hint.
    pub poll: Duration,
    /// The folder of the repository, where it is local, to be watched.
    pub watch: Option<PathBuf>,
    /// As whom the lease is held: another name for each process that ever was.
    pub holder: String,
    /// How long a lease lasts that is not renewed.
    pub lease: Duration,
}

/// What a conductor could not do.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each is the error of the hand of that name")]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Repository(#[from] crate::ports::RepositoryError),
    #[error(transparent)]
    Forge(#[from] ForgeError),
    #[error(transparent)]
    Target(#[from] TargetError),
    /// What was asked is refused, in a sentence that says why and what to do.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// As what a target says: its own error, or another one under a word.
    fn into_target(self, kind: &'static str) -> TargetError {
        match self {
            Self::Target(error) => error,
            other => TargetError::new(kind, crate::error_chain(&other)),
        }
    }
}

/// The head of the branch, loaded.
pub struct Head {
    /// The revision.
    pub revision: Revision,
    /// What it says.
    pub desired: Arc<Desired>,
    /// Its content.
    pub content: Arc<dyn Files>,
}

impl Head {
    /// An instance as head declares it.
    pub fn instance(&self, id: &InstanceId) -> Option<&Arc<Instance>> {
        self.desired.instances.get(id)
    }
    /// The instances of an environment.
    pub fn environment(&self, name: &EnvironmentName) -> impl Iterator<Item = &Arc<Instance>> {
        self.desired.instances.values().filter(move |instance| instance.id.environment == *name)
    }
    /// Whether another instance uses the outputs of this one.
    pub fn consumed(&self, id: &InstanceId) -> bool {
        self.environment(&id.environment).any(|other| {
            other.id != *id && other.references.iter().any(|reference| reference.component == id.component)
        })
    }
}

/// Counters for `/metrics`.
#[derive(Default)]
#[expect(missing_docs, reason = "each counts what its name says")]
pub struct Counters {
    pub passes: AtomicU64,
    pub passes_failed: AtomicU64,
    pub runs_started: AtomicU64,
    pub runs_ended: AtomicU64,
    pub actions_applied: AtomicU64,
    pub actions_failed: AtomicU64,
    pub webhooks: AtomicU64,
    pub webhooks_refused: AtomicU64,
}

/// The hands that the daemon works with.
pub struct Hands {
    /// What it remembers.
    pub store: Store,
    /// The state repo.
    pub repository: Arc<dyn Repository>,
    /// The world.
    pub target: Arc<dyn Target>,
    /// Where people are.
    pub forge: Option<Arc<dyn Forge>>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// The key of masked values.
    pub seal: Arc<Seal>,
    /// The sink of secrets.
    pub redactor: Redactor,
}

/// The daemon.
pub struct Daemon {
    /// How it works.
    pub settings: Settings,
    /// What it works with.
    pub hands: Hands,
    /// What is to be looked at.
    pub queue: Queue,
    /// For `/metrics`.
    pub counters: Counters,
    head: RwLock<Option<Arc<Head>>>,
    head_problem: Mutex<Option<String>>,
    loader: Mutex<Loader>,
    driving: Mutex<BTreeSet<crate::model::RunId>>,
    /// The runs whose rollouts are about to be looked at again.
    rolling: Mutex<std::collections::BTreeSet<crate::model::RunId>>,
    /// Who decides whose a cluster is.
    identifying: tokio::sync::Mutex<()>,
    run_changed: tokio::sync::Notify,
    /// Something new may be due.
    due_changed: tokio::sync::Notify,
    deciding: tokio::sync::Mutex<()>,
    /// Held while a run's document is taken up or superseded, so that only one of the two happens.
    taking_up: tokio::sync::Mutex<()>,
    /// For which head and applied records an environment's head was planned without a problem.
    planned_for: Mutex<BTreeMap<EnvironmentName, String>>,
    /// The applied clusters that a head does not declare.
    undeclared_clusters: Mutex<Option<(Revision, BTreeSet<InstanceId>)>>,
    /// The cluster that lets go of a node for an instance.
    vacating: Mutex<BTreeMap<InstanceId, InstanceId>>,
    /// Whose turn it is to take nodes out of a cluster.
    vacate_turns: Mutex<BTreeMap<InstanceId, Arc<tokio::sync::Mutex<()>>>>,
    /// The guards in force, as they were judged last.
    in_force: Mutex<Option<crate::domain::authorization::guards::InForce>>,
    /// The head since which the pull requests were listed.
    pulls_known_for: Mutex<Option<Revision>>,
    proposing: tokio::sync::Mutex<()>,
    /// What is known of pull requests is read and written in turns.
    remembering: tokio::sync::Mutex<()>,
    looking: looking::Looking,
    stop: CancellationToken,
    /// Another daemon has taken over.
    fenced: std::sync::atomic::AtomicBool,
    tasks: TaskTracker,
}

impl Daemon {
    /// A daemon that has not looked at anything yet.
    pub fn new(settings: Settings, hands: Hands) -> Arc<Self> {
        Arc::new(Self {
            vacating: Mutex::default(),
            vacate_turns: Mutex::default(),
            undeclared_clusters: Mutex::default(),
            settings,
            hands,
            queue: Queue::default(),
            counters: Counters::default(),
            head: RwLock::new(None),
            head_problem: Mutex::new(None),
            loader: Mutex::default(),
            driving: Mutex::default(),
            rolling: Mutex::default(),
            identifying: tokio::sync::Mutex::default(),
            run_changed: tokio::sync::Notify::new(),
            due_changed: tokio::sync::Notify::new(),
            deciding: tokio::sync::Mutex::default(),
            taking_up: tokio::sync::Mutex::default(),
            planned_for: Mutex::default(),
            in_force: Mutex::default(),
            pulls_known_for: Mutex::default(),
            proposing: tokio::sync::Mutex::default(),
            remembering: tokio::sync::Mutex::default(),
            looking: looking::Looking::default(),
            stop: CancellationToken::new(),
            fenced: std::sync::atomic::AtomicBool::default(),
            tasks: TaskTracker::new(),
        })
    }

    /// The head that was loaded last.
    pub fn head(&self) -> Option<Arc<Head>> {
        self.head.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why head could not be read, if it could not.
    pub fn head_problem(&self) -> Option<String> {
        self.head_problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What time it is.
    pub fn now(&self) -> chrono::DateTime<chrono::Utc> {
        self.hands.clock.now()
    }

    fn store(&self) -> &Store {
        &self.hands.store
    }

    /// Asks the daemon to start nothing new and to end what is under way.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until it is asked to stop.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Whether it was asked to stop.
    pub fn stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Works until it is asked to stop, and then ends what is under way.
    pub async fn serve(self: &Arc<Self>) {
        self.begin().await;
        let timers = tokio::spawn(timers::timers(Arc::clone(self)));
        let keeper = tokio::spawn(Arc::clone(self).keep_lease());
        let watcher = git::watch(self);
        let heeding = tokio::spawn(Arc::clone(self).heed_the_world());
        self.work().await;
        drop(watcher);
        timers.abort();
        heeding.abort();
        self.tasks.close();
        if !self.is_fenced() {
            self.tasks.wait().await;
        }
        keeper.abort();
    }

    /// Looks at what the world says has changed.
    async fn heed_the_world(self: Arc<Self>) {
        loop {
            let id = self.hands.target.changed().await;
            self.queue.wake(Wake::Instance(id), "it changed in the world");
        }
    }

    /// Looks at what changed while a run was busy with it, and no pass could be made.
    fn heed_what_was_missed(&self, id: &InstanceId) {
        if self.hands.target.is_suspect(id) {
            self.queue.wake(Wake::Instance(id.clone()), "it changed in the world");
        }
    }

    /// Works until nothing is left to do, and stops.
    pub async fn once(self: &Arc<Self>) {
        self.begin().await;
        let keeper = tokio::spawn(Arc::clone(self).keep_lease());
        let worker = Arc::clone(self);
        let working = tokio::spawn(async move { worker.work().await });
        self.queue.wake(Wake::Outbox, "start");
        tokio::select! {
            () = self.queue.quiet() => {}
            () = self.stop.cancelled() => {}
        }
        self.stop.cancel();
        drop(working.await);
        self.tasks.close();
        if !self.is_fenced() {
            self.tasks.wait().await;
        }
        keeper.abort();
    }

    /// Looks at everything that is hinted at, one thing after the other, until nothing is left: for a world whose time
    /// stands still meanwhile.
    pub async fn come_to_rest(self: &Arc<Self>) {
        while let Some((wake, because)) = self.queue.next_now() {
            self.look_once(wake, because).await;
        }
    }

    /// The same in an order that numbers say, where some hints come twice.
    pub async fn come_to_rest_in_disorder(self: &Arc<Self>, numbers: &mut (dyn FnMut() -> usize + Send)) {
        while let Some((wake, because)) = self.queue.any_now(numbers()) {
            let again = numbers().is_multiple_of(4);
            self.look_once(wake.clone(), because).await;
            if again {
                self.look_once(wake, "the same hint again".into()).await;
            }
        }
    }

    async fn look_once(self: &Arc<Self>, wake: Wake, because: String) {
        if let Err(error) = self.look(&wake, &because).await {
            tracing::warn!(?wake, because, error = crate::error_chain(&error), "a look failed");
        }
        self.queue.done(&wake);
    }

    /// Hints at everything that a timer would at this moment.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn poll(self: &Arc<Self>) -> Result<(), Error> {
        self.queue.wake(Wake::Git, "poll");
        if self.hands.forge.is_some() {
            self.queue.wake(Wake::Pulls, "poll");
        }
        self.queue.wake(Wake::Outbox, "poll");
        self.wake_everything().await?;
        self.heed_schedules(self.now()).await?;
        self.wake_due(self.now()).await.map(drop)
    }

    /// Takes up what was under way, and hints at what there is to look at.
    pub async fn begin(self: &Arc<Self>) {
        if let Err(error) = self.recover().await {
            tracing::error!(error = crate::error_chain(&error), "could not take up the runs that were under way");
        }
        if let Err(error) = self.birth().await {
            tracing::error!(error = crate::error_chain(&error), "could not note when the store was made");
        }
        self.queue.wake(Wake::Git, "start");
        if self.hands.forge.is_some() {
            self.queue.wake(Wake::Pulls, "start");
        }
    }

    async fn work(self: &Arc<Self>) {
        loop {
            let (wake, because) = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                next = self.queue.next() => next,
            };
            let daemon = Arc::clone(self);
            self.tasks.spawn(async move {
                // Even a look that panics is over, and its thing may be looked at again.
                let look = Look { daemon: &daemon, wake };
                if let Err(error) = daemon.look(&look.wake, &because).await {
                    daemon.heed(&error);
                    tracing::warn!(wake = ?look.wake, because, error = daemon.hands.redactor.redact(&crate::error_chain(&error)), "a look failed; the timers bring it back");
                }
            });
        }
    }

    async fn look(self: &Arc<Self>, wake: &Wake, because: &str) -> Result<(), Error> {
        tracing::debug!(?wake, because, "look");
        match wake {
            Wake::Git => self.look_at_git().await,
            Wake::Pulls => self.look_at_pulls().await,
            Wake::Pull(number) => self.look_at_pull(*number).await,
            Wake::Instance(id) => self.pass(id).await.map(drop),
            Wake::Decide(environment) => self.decide(environment).await,
            Wake::Plan(environment) => self.plan_head(environment).await.map(drop),
            Wake::Propose(environment) => self.propose(environment).await,
            Wake::Run(id) => self.drive(*id).await,
            Wake::Outbox => self.send().await,
        }
    }

    /// Brings the proposals of instances' environments in line now, for the API.
    ///
    /// # Errors
    /// When the forge or the store does not answer.
    pub async fn proposals_settled(self: &Arc<Self>, instances: &BTreeSet<InstanceId>) -> Result<(), Error> {
        let environments: BTreeSet<&EnvironmentName> = instances.iter().map(|id| &id.environment).collect();
        for environment in environments {
            let until = tokio::time::Instant::now() + PROPOSE_WAIT;
            // A look at what may be the cause ends soon, or hangs.
            loop {
                let ended = self.looking.1.notified();
                tokio::pin!(ended);
                ended.as_mut().enable();
                if self.propose_now(environment).await? || tokio::time::timeout_at(until, ended).await.is_err() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Looks at the state repo now, for commands that need no daemon.
    ///
    /// # Errors
    /// When it can't be read.
    pub async fn read_head(self: &Arc<Self>) -> Result<(), Error> {
        self.look_at_git().await
    }

    /// Takes a head that does not come from the branch, such as a checkout.
    pub fn set_head(&self, head: Head) {
        *self.head.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(head));
    }
}

/// A look that is under way.
struct Look<'d> {
    daemon: &'d Daemon,
    wake: Wake,
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        self.daemon.queue.done(&self.wake);
    }
}

/// How long somebody who asks for proposals waits for looks at their causes.
const PROPOSE_WAIT: Duration = Duration::from_secs(60);

/// A plan that is newer than this was not read by whoever answers it (R6.3).
const SETTLED: chrono::Duration = chrono::Duration::seconds(30);

/// The clock of this machine.
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> chrono::DateTime<chrono::Utc> {
        chrono::Utc::now()
    }
}
