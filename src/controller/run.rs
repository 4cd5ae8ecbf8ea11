//! A run, instance by instance (R5).
//!
//! *Flow:* wait for upstreams; take the run lock; plan under the target's lock; compare with what was approved; journal
//! `started`; apply; journal `finished`; look again; record.
//! *Guarantees:* nothing runs that is not covered by its authority; every effect stands between two journal records; a
//! failure stops its dependents and nothing else; an instance that waits holds no task.
//! *Assumptions:* looks of one run take turns (the queue sees to it).
//! *Errors:* a store that can't be written stops the instance before its effect, because the journal comes first.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::Pin,
    sync::{Arc, PoisonError, atomic::Ordering},
};

use chrono::{DateTime, Utc};
use futures::future::{FutureExt, Shared, join_all};
use tokio::sync::Mutex;

use super::{
    Daemon, Error, Head, Wake,
    prepare::{Left, Ready, Stop},
};
use crate::{
    domain::{
        journal::{Event, Outcome, Run, RunState, Status, next_status},
        plan::{InstancePlan, Summary, order},
    },
    model::{Action, InstanceId, WaitingOn},
    ports::{Fence, Job, LOST, RecordedOutput, TargetError},
    targets::{self, citus},
};

/// How often a plan is tried again when the state moved under it.
const STALE_PLANS_MAX: u32 = 3;
/// How often what waits for somebody's word is looked at without one.
const WORD_AGAIN: chrono::Duration = chrono::Duration::minutes(15);
/// The comment of a run is edited at most this often while it runs.
const PROGRESS_EVERY: chrono::Duration = chrono::Duration::seconds(5);

type Step = Shared<Pin<Box<dyn Future<Output = Status> + Send>>>;

/// A run that is being driven.
pub(super) struct Driven {
    pub(super) run: Mutex<Run>,
    pub(super) head: Arc<Head>,
    pub(super) said_at: std::sync::Mutex<DateTime<Utc>>,
    /// What each instance took of the limits.
    pub(super) spent: Mutex<BTreeMap<InstanceId, Summary>>,
}

/// Says that a run is being driven, for as long as it lives.
struct Driving<'d>(&'d Daemon, crate::model::RunId);

impl<'d> Driving<'d> {
    fn new(daemon: &'d Daemon, id: crate::model::RunId) -> Self {
        daemon.driving.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        Self(daemon, id)
    }
}

impl Drop for Driving<'_> {
    fn drop(&mut self) {
        self.0.driving.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

impl Daemon {
    /// Takes a run as far as it goes by itself.
    pub(super) async fn drive(self: &Arc<Self>, id: crate::model::RunId) -> Result<(), Error> {
        // Between these two lines and `Driving`'s end nobody else changes the run's document.
        let turn = self.taking_up.lock().await;
        let _driving = Driving::new(self, id);
        let Some(run) = self.store().run(id).await? else { return Ok(()) };
        drop(turn);
        if matches!(run.state, RunState::Ended { .. }) || self.stopping() {
            return Ok(());
        }
        let head = self.head_of(&run).await?;
        // What it took of the limits before it waited, or before the daemon died, it took.
        let spent = run.instances.iter().filter_map(|(id, instance)| Some((id.clone(), instance.spent?))).collect();
        let driven = Arc::new(Driven {
            run: Mutex::new(run),
            head,
            said_at: std::sync::Mutex::new(DateTime::UNIX_EPOCH),
            spent: Mutex::new(spent),
        });
        if let Some(says) = self.blocked(&driven).await? {
            let waiting: Vec<InstanceId> = driven.run.lock().await.instances.keys().cloned().collect();
            for id in waiting {
                self.fail(&driven, &id, says.clone()).await?;
            }
        } else {
            self.drive_instances(&driven).await?;
        }
        let mut run = driven.run.lock().await;
        self.conclude(&mut run).await
    }

    /// The content that a run applies: its own revision, whatever head is now.
    pub(super) async fn head_of(self: &Arc<Self>, run: &Run) -> Result<Arc<Head>, Error> {
        if let Some(head) = self.head()
            && head.revision == run.revision
        {
            return Ok(head);
        }
        let (desired, content) = self.load(&run.revision).await?;
        Ok(Arc::new(Head { revision: run.revision.clone(), desired, content }))
    }

    async fn drive_instances(self: &Arc<Self>, driven: &Arc<Driven>) -> Result<(), Error> {
        let instances = driven.run.lock().await.instances.clone();
        let edges: BTreeMap<InstanceId, BTreeSet<InstanceId>> =
            instances.iter().map(|(id, instance)| (id.clone(), instance.after.clone())).collect();
        let mut steps: BTreeMap<InstanceId, Step> = BTreeMap::new();
        for (id, _) in order(&edges) {
            let upstreams: Vec<(InstanceId, Step)> =
                edges[&id].iter().filter_map(|up| Some((up.clone(), steps.get(up)?.clone()))).collect();
            let (daemon, driven, id_for_task, status) =
                (Arc::clone(self), Arc::clone(driven), id.clone(), instances[&id].status);
            let step = async move {
                if status.ended() {
                    return status;
                }
                let mut in_the_way = None;
                for (upstream, step) in upstreams {
                    let status = step.await;
                    if status != Status::Applied {
                        in_the_way = Some((upstream, status));
                    }
                }
                let task = tokio::spawn(async move { daemon.step(&driven, &id_for_task, status, in_the_way).await });
                task.await.unwrap_or(Status::Waiting)
            };
            let step: Pin<Box<dyn Future<Output = Status> + Send>> = Box::pin(step);
            steps.insert(id, step.shared());
        }
        join_all(steps.into_values()).await;
        Ok(())
    }

    /// One instance, with everything that goes wrong turned into where it stands.
    async fn step(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        status: Status,
        in_the_way: Option<(InstanceId, Status)>,
    ) -> Status {
        let done = match in_the_way {
            Some((upstream, status)) if status.ended() => {
                self.record(
                    driven,
                    id,
                    Event::Skipped { says: format!("`{upstream}`, which it depends on, was not applied") },
                    None,
                )
                .await
            }
            Some((upstream, _)) => {
                self.wait(
                    driven,
                    id,
                    WaitingOn::Upstream { instance: upstream.clone() },
                    format!("`{upstream}` comes first"),
                )
                .await
            }
            None => self.attempt(driven, id, status).await,
        };
        match done {
            Ok(status) => status,
            Err(error) => {
                self.heed(&error);
                tracing::error!(instance = %id, error = crate::error_chain(&error), "a run could not go on; it is taken up again");
                driven.run.lock().await.instances.get(id).map_or(Status::Waiting, |instance| instance.status)
            }
        }
    }

    async fn attempt(self: &Arc<Self>, driven: &Driven, id: &InstanceId, status: Status) -> Result<Status, Error> {
        if matches!(status, Status::Running | Status::Effected)
            && let Effect::Ended(status) = self.take_up(driven, id, status).await?
        {
            return Ok(status);
        }
        let run = driven.run.lock().await.clone();
        if let Some(status) = self.already_gone(driven, &run, id, status).await? {
            return Ok(status);
        }
        if let Some(status) = self.still_rolling(driven, &run, id).await? {
            return Ok(status);
        }
        if self.waits_for_a_word(driven, id).await {
            if let Some(says) = self.cancelled(run.id, id).await? {
                return self.end_cancelled(driven, id, says).await;
            }
            if let Some(says) = self.newer_than(&run, id).await? {
                return self.record(driven, id, Event::Superseded { says }, None).await;
            }
            if !self.planned_for.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&id.environment) {
                // The daemon died before it showed what the word would be about.
                self.queue.wake(Wake::Plan(id.environment.clone()), "a run waits for a word");
            }
            return Ok(Status::Waiting);
        }
        let mut attempt = 0;
        loop {
            let ready = match self.prepare(driven, id).await {
                Ok(ready) => ready,
                Err(Stop::Waits(on, says)) => return self.wait(driven, id, on, says).await,
                Err(Stop::Fails(says)) => return self.fail(driven, id, says).await,
                Err(Stop::Nothing(job, inputs, left)) => {
                    return self.arrive(driven, id, &job, inputs, left, false).await;
                }
                Err(Stop::Gone) => return Ok(self.already_gone(driven, &run, id, status).await?.unwrap_or(status)),
                Err(Stop::Error(error)) => return Err(error),
                Err(Stop::Leaves) => return Ok(Status::Waiting),
                Err(Stop::Cancelled(says)) => return self.end_cancelled(driven, id, says).await,
                Err(Stop::Superseded(says)) => return self.record(driven, id, Event::Superseded { says }, None).await,
            };
            match self.effect(driven, id, ready).await? {
                Effect::Ended(status) => return Ok(status),
                Effect::Stale if attempt < STALE_PLANS_MAX => attempt += 1,
                Effect::Stale => {
                    return self
                        .fail(
                            driven,
                            id,
                            "the state kept changing between plan and apply; see who else applies it, and say `/apply`"
                                .into(),
                        )
                        .await;
                }
            }
        }
    }

    /// Whether an instance waits for somebody's word and was looked at a short while ago: only a word, which makes another
    /// run, or the world can change that.
    async fn waits_for_a_word(&self, driven: &Driven, id: &InstanceId) -> bool {
        driven.run.lock().await.instances.get(id).is_some_and(|instance| {
            let on_word = matches!(instance.waiting_on, Some(WaitingOn::Approval { .. } | WaitingOn::FirstContact));
            instance.status == Status::Waiting
                && on_word
                && instance.waits_since.is_some_and(|since| self.now() - since < WORD_AGAIN)
        })
    }

    /// The effect, between its two journal records.
    async fn effect(self: &Arc<Self>, driven: &Driven, id: &InstanceId, ready: Ready) -> Result<Effect, Error> {
        let Ready { job, prepared, inputs, actions, carried } = ready;
        if self.stopping() {
            return Ok(Effect::Ended(Status::Waiting));
        }
        let run = driven.run.lock().await.clone();
        if let Some(says) = self.cancelled(run.id, id).await? {
            return self.end_cancelled(driven, id, says).await.map(Effect::Ended);
        }
        let fence = Fence { run: run.id, token: self.store().token(&run.environment).await? };
        let digest = InstancePlan::digest_of(&actions);
        self.record(driven, id, Event::Started { digest }, None).await?;
        tracing::info!(instance = %id, actions = actions.len(), digest = digest.short(), "actions started");
        let (progress, told) = Self::progress();
        let doing = async {
            self.vacate(driven, &run, id, (&actions, &carried), fence, &progress).await?;
            if let Ok(Some(says)) = self.cancelled(run.id, id).await {
                return Err(TargetError::new("interrupted", says));
            }
            self.hands.target.apply(&job, prepared, fence, Arc::clone(&progress)).await
        };
        let done = self.hear(driven, id, doing, told).await;
        match done {
            // Everything that knew of it was killed, while this daemon lives: the world tells.
            Err(error) if error.kind == LOST => self.look_again(driven, &run, id, &job, inputs).await,
            done => self.finish(driven, id, done, &job, inputs).await,
        }
    }

    /// Records how an effect ended, and looks whether it did what it was to do.
    pub(super) async fn finish(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        done: Result<(), TargetError>,
        job: &Job,
        inputs: BTreeMap<String, RecordedOutput>,
    ) -> Result<Effect, Error> {
        match done {
            Ok(()) => {
                self.counters.actions_applied.fetch_add(1, Ordering::Relaxed);
                if let Some(instance) = driven.run.lock().await.instances.get_mut(id) {
                    instance.changed = true;
                }
                self.record(driven, id, Event::Finished { outcome: Outcome::Done }, None).await?;
                self.verify(driven, id, job, inputs).await.map(Effect::Ended)
            }
            Err(error) if error.kind == "plan-stale" => {
                self.record(driven, id, Event::Finished { outcome: Outcome::Refused { says: error.line() } }, None)
                    .await?;
                Ok(Effect::Stale)
            }
            Err(error) if error.kind == "apply-stale" => {
                if let Some(instance) = driven.run.lock().await.instances.get_mut(id) {
                    instance.changed = true;
                }
                self.record(driven, id, Event::Finished { outcome: Outcome::Interrupted { says: error.line() } }, None)
                    .await?;
                Ok(Effect::Stale)
            }
            Err(error) if error.kind == "fenced" => Err(Error::Target(error)),
            Err(error) => {
                self.counters.actions_failed.fetch_add(1, Ordering::Relaxed);
                let run = driven.run.lock().await.id;
                if let Some(instance) = driven.run.lock().await.instances.get_mut(id) {
                    instance.changed = error.effect_may_have_begun;
                }
                if let Some(says) = self.cancelled(run, id).await? {
                    let outcome = Outcome::Interrupted { says: format!("{says}; {}", error.line()) };
                    self.record(driven, id, Event::Finished { outcome }, None).await?;
                    return self.end_cancelled(driven, id, says).await.map(Effect::Ended);
                }
                self.record(driven, id, Event::Finished { outcome: Outcome::Failed { says: error.line() } }, None)
                    .await?;
                self.fail(driven, id, error.line()).await.map(Effect::Ended)
            }
        }
    }

    /// Planning again is empty over what the run was to do, and the checks answer (R2.8).
    pub(super) async fn verify(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        job: &Job,
        inputs: BTreeMap<String, RecordedOutput>,
    ) -> Result<Status, Error> {
        let again = match self.look_at_job(&driven.head, job).await {
            Ok(again) => again,
            Err(error) => {
                return self
                    .fail(driven, id, format!("it was applied and could not be looked at afterwards: {}", error.line()))
                    .await;
            }
        };
        if let Err(error) = self.identify(id, &again, true).await {
            return self.fail(driven, id, format!("it was applied, and {}", crate::error_chain(&error))).await;
        }
        let run = driven.run.lock().await.clone();
        let left = targets::actions(&job.work, id, &again);
        let (mine, others) = self.business(driven, &run, id, left).await?;
        // What the balance asks for changes with every row that is written; it is drift where it still is.
        // In a window it is left for the next one.
        let rebalances = run.rebalance.is_some();
        let is_for_balance = |action: &Action| {
            let is_later = |sort: &str| sort == citus::plan::REBALANCE || rebalances && sort == citus::plan::MOVE;
            action.resources.iter().all(|resource| is_later(&resource.r#type))
        };
        let (later, mine): (Vec<Action>, Vec<Action>) = mine.into_iter().partition(is_for_balance);
        let others = others.into_iter().chain(later).collect();
        if let Some(left) = mine.first().and_then(|action| action.resources.first()) {
            let says = format!(
                "it was applied, and a fresh plan would still {} `{}`; a value that differs on every plan (a time, a random one) has to be ignored or fixed in the module",
                left.change.verb(),
                left.resource
            );
            return self.fail(driven, id, says).await;
        }
        self.arrive(driven, id, job, inputs, Left { others, warnings: again.warnings }, true).await
    }

    /// Records what is applied now; a remediation leaves that record as it is, and what was none of its business.
    pub(super) async fn settle(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        job: &Job,
        inputs: BTreeMap<String, RecordedOutput>,
        left: Left,
    ) -> Result<(), TargetError> {
        let Left { others, warnings } = left;
        let run = driven.run.lock().await.clone();
        let refused = |error: Error| error.into_target("record");
        if run.destroys {
            return self.let_go(id).await.map_err(refused);
        }
        if !run.reverts() {
            let head = &driven.head;
            return self.record_applied(head, id, inputs, job, warnings, Some(run.id)).await.map_err(refused);
        }
        if let Some(mut record) = self.store().applied(id).await?.filter(|_| job.work.refreshes()) {
            // The state says something else now, and so may the outputs that are made from it.
            let live = self.hands.target.outputs(job).await?;
            let outputs =
                live.iter().filter_map(|(name, output)| Some((name.clone(), output.record(&self.hands.seal)?)));
            record.outputs = outputs.collect();
            self.store().set_applied(id, &record).await?;
        }
        if let Some(mut observed) = self.store().observed(id).await? {
            let left = |name: &str| others.iter().flat_map(|action| &action.resources).any(|r| r.resource == name);
            observed.drift.retain(|drift| left(&drift.resource));
            observed.revert = others;
            observed.warnings = warnings;
            observed.error = None;
            observed.at = self.now();
            self.store().set_observed(id, &observed).await?;
            self.end_snooze(id, &observed).await.map_err(refused)?;
        }
        Ok(())
    }

    pub(super) async fn wait(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        on: WaitingOn,
        says: String,
    ) -> Result<Status, Error> {
        let known =
            driven.run.lock().await.instances.get(id).is_some_and(|instance| {
                instance.status == Status::Waiting && instance.waiting_on.as_ref() == Some(&on)
            });
        if known {
            return Ok(Status::Waiting);
        }
        if matches!(on, WaitingOn::Approval { .. } | WaitingOn::FirstContact) {
            // Whoever is asked for a word has to be shown what it would be about.
            self.queue.wake(Wake::Plan(id.environment.clone()), "a run waits for a word");
        }
        if let Some(instance) = driven.run.lock().await.instances.get_mut(id) {
            instance.waits_since = Some(self.now());
        }
        self.record(driven, id, Event::Waits { on: on.clone(), says }, Some(on)).await
    }

    pub(super) async fn fail(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        says: String,
    ) -> Result<Status, Error> {
        let says = self.hands.redactor.redact(&says);
        self.stall(driven, id, &says, false).await?;
        self.record(driven, id, Event::Failed { says }, None).await
    }

    /// Journals an event, and brings the run's document and comment up to date.
    pub(super) async fn record(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        event: Event,
        on: Option<WaitingOn>,
    ) -> Result<Status, Error> {
        let mut run = driven.run.lock().await;
        let mut next = run.clone();
        if let Some(instance) = next.instances.get_mut(id) {
            instance.status = next_status(id, instance.status, &event).map_err(crate::adapters::store::Error::from)?;
            instance.waiting_on = on;
            instance.says = match &event {
                Event::Waits { says, .. }
                | Event::Failed { says }
                | Event::Skipped { says }
                | Event::Cancelled { says }
                | Event::Step { says }
                | Event::Superseded { says } => says.clone(),
                _ => String::new(),
            };
        }
        let status = self.store().append(&next, id, &event, self.now()).await?;
        *run = next;
        if status.ended() || status == Status::Waiting {
            self.run_changed.notify_waiters();
            self.heed_what_was_missed(id);
        }
        let due = {
            let mut said_at = driven.said_at.lock().unwrap_or_else(PoisonError::into_inner);
            let due = self.now() - *said_at >= PROGRESS_EVERY;
            if due {
                *said_at = self.now();
            }
            due
        };
        if due {
            self.say_run(&run).await?;
        }
        Ok(status)
    }
}

/// What became of an effect.
pub(super) enum Effect {
    /// The instance stands so now.
    Ended(Status),
    /// It has to be planned again.
    Stale,
}
