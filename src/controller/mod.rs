//! Composes the controllers into the daemon.
//!
//! A controller observes through ports, passes its observations to the domain, and executes the decisions of the domain. Each
//! controller is a struct that owns its state. Calls go down this order only: `source` → `authorization` → `observe` → `planning` → `runs` → `remediation` →
//! `pull_requests` → `merges` → `status` → `commands` → `triggers`. Upward, a controller enqueues a [`ReconcileRequest`].
//! Without any event, the system converges at the interval of its timers.
//!
//! Each request is a task of its own, so that a slow or hanging instance does not delay another. Processes are bounded
//! where they run (`tofu.parallel`), so that a waiting task occupies no process.

mod authorization;
mod commands;
mod context;
mod leader;
mod merges;
mod notifier;
mod observe;
mod planning;
mod pull_requests;
mod records;
mod remediation;
mod runs;
mod source;
mod status;
#[cfg(test)]
mod test_stage;
mod triggers;
pub mod work_queue;

use std::sync::Arc;

pub use commands::{CommandOutcome, Commands};
pub use context::{Context, Error, Metrics, Ports, Settings, SystemClock};
pub use leader::Leader;
pub use records::Snooze;
pub use source::{Error as SourceError, Head, Source};
pub use status::{InstanceStatus, Status, StatusReader};
pub use work_queue::{Reason, ReconcileRequest, WorkQueue};

use authorization::Authorization;
use merges::Merges;
use notifier::Notifier;
use observe::Observer;
use planning::Planner;
use pull_requests::PullRequests;
use remediation::Remediations;
use runs::Runs;
use triggers::Triggers;
use work_queue::RunningRequest;

/// The daemon: the controllers, dispatch and shutdown.
pub struct Daemon {
    /// The context that all controllers share.
    pub context: Arc<Context>,
    /// The lease.
    pub leader: Arc<Leader>,
    /// The branch of the state repo.
    pub source: Arc<Source>,
    /// Verdicts and explanations.
    pub status: Arc<StatusReader>,
    /// The commands of comments, the command line and the API.
    pub commands: Arc<Commands>,
    notifier: Arc<Notifier>,
    observer: Arc<Observer>,
    runs: Arc<Runs>,
    remediations: Arc<Remediations>,
    pull_requests: Arc<PullRequests>,
    merges: Arc<Merges>,
    triggers: Arc<Triggers>,
}

impl Daemon {
    /// Composes the controllers. Nothing is started.
    pub fn new(settings: Settings, ports: Ports) -> Arc<Self> {
        let context = Context::new(settings, ports);
        let c = || Arc::clone(&context);
        let leader = Leader::new(c());
        let notifier = Notifier::new(c());
        let source = Source::new(c());
        let authorization = Authorization::new(c(), source.clone());
        let observer = Observer::new(c(), source.clone());
        let planner = Planner::new(c(), source.clone(), observer.clone());
        let runs = Runs::new(c(), leader.clone(), notifier.clone(), source.clone(), observer.clone(), planner.clone());
        let remediations = Remediations::new(
            c(),
            notifier.clone(),
            source.clone(),
            authorization.clone(),
            observer.clone(),
            planner.clone(),
            runs.clone(),
        );
        let pull_requests = PullRequests::new(
            c(),
            notifier.clone(),
            source.clone(),
            authorization.clone(),
            planner.clone(),
            remediations.clone(),
        );
        let merges = Arc::new(Merges {
            context: c(),
            source: source.clone(),
            planner: planner.clone(),
            runs: runs.clone(),
            remediations: remediations.clone(),
            pull_requests: pull_requests.clone(),
        });
        let status = Arc::new(StatusReader {
            context: c(),
            source: source.clone(),
            authorization: authorization.clone(),
            observer: observer.clone(),
            planner: planner.clone(),
            remediations: remediations.clone(),
        });
        let commands = Arc::new(Commands {
            context: c(),
            notifier: notifier.clone(),
            source: source.clone(),
            authorization,
            observer: observer.clone(),
            planner: planner.clone(),
            runs: runs.clone(),
            remediations: remediations.clone(),
            pull_requests: pull_requests.clone(),
            status: status.clone(),
        });
        let triggers = Arc::new(Triggers {
            context: c(),
            source: source.clone(),
            observer: observer.clone(),
            planner,
            runs: runs.clone(),
        });
        Arc::new(Self {
            context,
            leader,
            source,
            status,
            commands,
            notifier,
            observer,
            runs,
            remediations,
            pull_requests,
            merges,
            triggers,
        })
    }

    /// Runs until the daemon is asked to stop, and then waits for the tasks in progress.
    pub async fn serve(self: &Arc<Self>) {
        self.start().await;
        let timers = tokio::spawn(Arc::clone(&self.triggers).run_timers());
        let targets = tokio::spawn(Arc::clone(&self.triggers).watch_targets());
        let renewals = tokio::spawn(Arc::clone(&self.leader).renew());
        let repository = self.triggers.watch_repository();
        self.dispatch().await;
        drop(repository);
        timers.abort();
        targets.abort();
        self.shut_down().await;
        renewals.abort();
    }

    /// Runs until the queue is idle, and stops.
    pub async fn once(self: &Arc<Self>) {
        self.start().await;
        let renewals = tokio::spawn(Arc::clone(&self.leader).renew());
        let daemon = Arc::clone(self);
        let dispatch = tokio::spawn(async move { daemon.dispatch().await });
        self.context.queue.enqueue(ReconcileRequest::Outbox, Reason::Start);
        tokio::select! {
            () = self.context.queue.idle() => {}
            () = self.context.stopped() => {}
        }
        self.context.stop();
        drop(dispatch.await);
        self.shut_down().await;
        renewals.abort();
    }

    /// Resumes the runs in progress, and enqueues the requests of a start.
    pub async fn start(self: &Arc<Self>) {
        if let Err(error) = self.runs.enqueue_open(Reason::RunInProgress).await {
            tracing::error!(
                kind = "start",
                error = crate::error_chain(&error),
                "could not resume the runs in progress"
            );
        }
        if let Err(error) = self.commands.store_created_at().await {
            tracing::error!(
                kind = "start",
                error = crate::error_chain(&error),
                "could not record when the store was created"
            );
        }
        self.context.queue.enqueue(ReconcileRequest::Source, Reason::Start);
        if self.context.forge.is_some() {
            self.context.queue.enqueue(ReconcileRequest::PullRequests, Reason::Start);
        }
    }

    /// Enqueues all requests of the timers, for tests.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn poll(&self) -> Result<(), Error> {
        self.triggers.poll().await
    }

    /// Handles requests one after the other until none waits, in an order given by `index` of the waiting ones: for
    /// tests. With `repeats`, a request is handled once more where the next index is a multiple of four.
    pub async fn drain_queue(self: &Arc<Self>, mut index: impl FnMut() -> usize + Send, repeats: bool) {
        while let Some((request, reason)) = self.context.queue.any_now(index()) {
            let is_repeated = repeats && index().is_multiple_of(4);
            let running = RunningRequest { queue: &self.context.queue, request: request.clone() };
            self.handle_logged(&request, reason).await;
            drop(running);
            if is_repeated {
                self.handle_logged(&request, Reason::Duplicate).await;
            }
        }
    }

    /// Handles requests, each in a task of its own, until the daemon is asked to stop.
    async fn dispatch(self: &Arc<Self>) {
        loop {
            let (request, reason) = tokio::select! {
                biased;
                () = self.context.stopped() => return,
                next = self.context.queue.next() => next,
            };
            let daemon = Arc::clone(self);
            self.context.tasks.spawn(async move {
                let running = RunningRequest { queue: &daemon.context.queue, request };
                daemon.handle_logged(&running.request, reason).await;
            });
        }
    }

    async fn handle_logged(self: &Arc<Self>, request: &ReconcileRequest, reason: Reason) {
        tracing::debug!(kind = "reconcile", ?request, %reason, "reconciling");
        if let Err(error) = self.handle(request).await {
            if let Error::Store(error) = &error {
                self.leader.check(error);
            }
            let error = self.context.redactor.redact(&crate::error_chain(&error));
            tracing::warn!(kind = "reconcile-failed", ?request, %reason, error, "a request failed; the timers enqueue it again");
        }
    }

    async fn handle(self: &Arc<Self>, request: &ReconcileRequest) -> Result<(), Error> {
        match request {
            ReconcileRequest::Source => self.source.refresh().await.map_err(Error::from),
            ReconcileRequest::Run(id) => self.runs.drive(*id).await,
            ReconcileRequest::Merges(environment) => self.merges.reconcile(environment).await,
            ReconcileRequest::PullRequests => self.pull_requests.sync_all().await,
            ReconcileRequest::PullRequest(number) => self.commands.handle_pull_request(*number).await,
            ReconcileRequest::HeadPlan(environment) => self.pull_requests.plan_head(environment).await,
            ReconcileRequest::Instance(id) => self.observer.check_drift(id).await.map(drop),
            ReconcileRequest::Capacity(id) => self.remediations.propose_capacity(id).await,
            ReconcileRequest::Proposals(environment) => self.remediations.propose(environment).await.map(drop),
            ReconcileRequest::Outbox => self.notifier.deliver().await.map_err(Error::from),
        }
    }

    /// Waits for the tasks in progress, unless another daemon acquired the lease: then the store refuses their results.
    async fn shut_down(&self) {
        self.context.tasks.close();
        if !self.leader.is_fenced() {
            self.context.tasks.wait().await;
        }
    }
}
