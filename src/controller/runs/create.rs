//! Creates runs, and ends the waiting instances of runs that a newer run supersedes (R5.3).
//!
//! *Invariant:* a command creates at most one run of each kind in an environment.
//! *Race:* the daemon dies after it created a run: the same command finds the run by its command ID.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    controller::{
        context::Error,
        runs::Runs,
        source::Head,
        work_queue::{Reason, ReconcileRequest},
    },
    domain::{
        journal::{Approved, Event, Run, RunInstance, RunKind, RunState, Status as RunStatus},
        message::{
            Refusal,
            run::{RunCause, RunReason},
        },
        plan::{order, pending::dependents},
    },
    model::{EnvironmentName, InstanceId, PullNumber, RunId},
};

/// A run that is authorised and not created yet.
#[derive(Clone)]
pub(crate) struct Authorised {
    pub(crate) environment: EnvironmentName,
    pub(crate) kind: RunKind,
    pub(crate) instances: BTreeSet<InstanceId>,
    /// The approved actions of each instance.
    pub(crate) approved: BTreeMap<InstanceId, Approved>,
    /// The cause of the run.
    pub(crate) because: RunCause,
    /// The name of the principal in the audit log.
    pub(crate) principal: String,
    /// The command that creates the run, at most once; `None` where recorded facts authorise the run.
    pub(crate) command_id: Option<String>,
    /// The pull request on which the run is reported.
    pub(crate) pull: Option<PullNumber>,
}

impl Authorised {
    /// Returns the authorisation restricted to some of its instances.
    fn part(&self, kind: RunKind, instances: BTreeSet<InstanceId>) -> Self {
        let approved = self.approved.iter().filter(|(id, _)| instances.contains(*id));
        let approved = approved.map(|(id, approved)| (id.clone(), approved.clone())).collect();
        Self { kind, instances, approved, ..self.clone() }
    }
}

impl Runs {
    /// Creates a run that applies the declared instances, and another run that destroys the orphans. Returns the first run.
    ///
    /// # Errors
    /// [`Error::Refused`] where there are no instances; else when the store fails.
    pub(crate) async fn create_runs(
        self: &Arc<Self>,
        head: &Arc<Head>,
        authorised: Authorised,
    ) -> Result<RunId, Error> {
        let (declared, orphaned): (BTreeSet<InstanceId>, BTreeSet<InstanceId>) =
            authorised.instances.iter().cloned().partition(|id| head.instance(id).is_some());
        let by_merge = authorised.kind.by_merge();
        let mut first = None;
        if !declared.is_empty() {
            let part = authorised.part(RunKind::Apply { by_merge }, declared);
            first = Some(self.create_run(head, part).await?);
        }
        if orphaned.is_empty() {
            return first.ok_or_else(|| Error::Refused(Refusal::NothingToDo));
        }
        let second = self.create_run(head, authorised.part(RunKind::Destroy { by_merge }, orphaned)).await?;
        Ok(first.unwrap_or(second))
    }

    /// Numbers a run, supersedes runs that wait for the same instances (R5.3), and enqueues it.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn create_run(self: &Arc<Self>, head: &Arc<Head>, authorised: Authorised) -> Result<RunId, Error> {
        let Authorised { environment, kind, instances, approved, because, principal, command_id, pull } = authorised;
        let existing = match &command_id {
            Some(command_id) => self.context.store.runs_by_command(command_id).await?,
            None => vec![],
        };
        let is_same = |run: &Run| run.environment == environment && run.kind.destroys() == kind.destroys();
        if let Some(run) = existing.into_iter().find(is_same) {
            // The daemon died after it created this run, and before it recorded that the command was executed.
            self.supersede(&run).await?;
            self.context.queue.enqueue(ReconcileRequest::Run(run.id), Reason::RunAuthorised);
            return Ok(run.id);
        }
        let applied = self.context.store.applied_in(&environment).await?;
        let predecessors = |id: &InstanceId| match head.instance(id) {
            Some(instance) => instance.upstreams.clone(),
            None => dependents(id, &applied),
        };
        let edges: BTreeMap<InstanceId, BTreeSet<InstanceId>> = instances
            .iter()
            .map(|id| (id.clone(), predecessors(id).intersection(&instances).cloned().collect()))
            .collect();
        let run_instances = order(&edges).into_iter().map(|(id, order)| {
            let digest = head.instance(&id).and_then(|instance| instance.digest);
            let after = edges[&id].clone();
            (id, RunInstance { order, digest, after, ..RunInstance::default() })
        });
        let mut run = Run {
            id: RunId(0),
            environment: environment.clone(),
            revision: head.revision.clone(),
            state: RunState::Open,
            because: because.to_string(),
            principal,
            command_id,
            kind,
            pull,
            instances: run_instances.collect(),
            created_at: self.context.now(),
            ended_at: None,
        };
        self.context.store.create_run(&mut run, &approved).await?;
        self.context
            .store
            .audit(
                self.context.now(),
                &run.principal,
                "run",
                &format!("run/{}", run.id),
                &format!("{} instances of {environment} at {}", run.instances.len(), run.revision.short()),
            )
            .await?;
        tracing::info!(kind = "run-authorised", run = run.id.0, %environment, because = run.because, instances = run.instances.len(), "run authorised");
        self.supersede(&run).await?;
        self.context.metrics.runs_started.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.context.queue.enqueue(ReconcileRequest::Run(run.id), Reason::RunAuthorised);
        Ok(run.id)
    }

    /// Ends the waiting instances of older runs of the same kind that are instances of a newer run as well. A driven run
    /// finds the newer run itself, before it locks an instance.
    async fn supersede(self: &Arc<Self>, newer: &Run) -> Result<(), Error> {
        for older in self.context.store.open_runs().await? {
            if older.id < newer.id && older.reverts() == newer.reverts() {
                let ids = older.instances.keys().filter(|id| newer.instances.contains_key(*id)).cloned().collect();
                self.end_waiting(older, ids, &RunReason::SupersededByRun(newer.id)).await?;
            }
        }
        Ok(())
    }

    /// Ends the waiting instances of runs by merge whose declaration differs from head: a later merge replaced the
    /// declaration.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn end_outdated(
        self: &Arc<Self>,
        head: &Head,
        environment: &EnvironmentName,
    ) -> Result<(), Error> {
        for run in self.context.store.open_runs().await? {
            if run.environment == *environment && run.kind.by_merge() && run.revision != head.revision {
                let is_outdated = |id: &InstanceId| {
                    head.instance(id).and_then(|instance| instance.digest) != run.instances[id].digest
                };
                let ids: Vec<InstanceId> = run.instances.keys().filter(|id| is_outdated(id)).cloned().collect();
                self.end_waiting(run, ids, &RunReason::SupersededByBranch).await?;
            }
        }
        Ok(())
    }

    /// Ends instances of a run that have not started, as superseded. Does nothing while the run is driven.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) async fn end_waiting(
        self: &Arc<Self>,
        run: Run,
        ids: Vec<InstanceId>,
        reason: &RunReason,
    ) -> Result<(), Error> {
        let message = reason.to_string();
        // A driven run finds the newer run itself, before it locks an instance.
        let Some(claim) = self.claims.claim(run.id) else { return Ok(()) };
        // Read again: the run may have been driven since it was listed.
        let Some(mut run) = self.context.store.run(run.id).await?.filter(|run| run.state == RunState::Open) else {
            return Ok(());
        };
        let mut ended = false;
        for id in ids {
            let Some(instance) =
                run.instances.get_mut(&id).filter(|i| matches!(i.status, RunStatus::New | RunStatus::Waiting))
            else {
                continue;
            };
            instance.status = RunStatus::Superseded;
            instance.message.clone_from(&message);
            instance.waiting_on = None;
            self.context
                .store
                .append(&run, &id, &Event::Superseded { message: message.clone() }, self.context.now())
                .await?;
            ended = true;
        }
        if ended {
            self.conclude(&mut run).await?;
        }
        drop(claim);
        if run.state == RunState::Open {
            // A request to drive the run may have found it claimed.
            self.context.queue.enqueue(ReconcileRequest::Run(run.id), Reason::EnvironmentChanged);
        }
        Ok(())
    }
}
