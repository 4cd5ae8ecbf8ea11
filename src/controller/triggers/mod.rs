//! Timers, schedules and watches: what enqueues requests without a person or an event (R7.5).
//!
//! The timers guarantee what events accelerate: with every event source dead, the system converges at their pace.

mod schedules;
mod watches;

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};

use super::{
    context::{Context, Error},
    observe::Observer,
    planning::Planner,
    runs::Runs,
    source::Source,
    work_queue::{Reason, ReconcileRequest},
};

/// How often drift is looked for where nothing says.
const DRIFT_EVERY: Duration = Duration::from_secs(15 * 60);

/// How soon what could not be tracked is looked for again, where that may have passed.
const UNKNOWN_AGAIN: chrono::Duration = chrono::Duration::minutes(2);

/// How often what is old is forgotten.
const PRUNE_EVERY: chrono::Duration = chrono::Duration::days(1);

/// The longest sleep, so that a clock that jumps is noticed.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// The shortest, so that a wrong time can't spin.
const SLEEP_MIN: Duration = Duration::from_millis(200);

/// The controller of timers, schedules and watches.
pub(super) struct Triggers {
    pub(super) context: Arc<Context>,
    pub(super) source: Arc<Source>,
    pub(super) observer: Arc<Observer>,
    pub(super) planner: Arc<Planner>,
    pub(super) runs: Arc<Runs>,
}

impl Triggers {
    /// Enqueues what is due, for ever; sleeps until the next thing is due.
    pub(crate) async fn run_timers(self: Arc<Self>) {
        let context = &self.context;
        let failed = |what: &'static str, error: &Error| {
            tracing::warn!(
                kind = "timer-failed",
                what,
                error = crate::error_chain(error),
                "a timer failed; it runs again"
            );
        };
        let mut polled_at = context.now();
        let mut pruned_at = DateTime::UNIX_EPOCH;
        loop {
            let now = context.now();
            if now - pruned_at >= PRUNE_EVERY || now < pruned_at {
                pruned_at = now;
                if let Err(error) = context.store.prune(now).await {
                    failed("prune the store", &error.into());
                }
            }
            let poll = chrono::Duration::from_std(context.settings.poll).unwrap_or(chrono::Duration::minutes(1));
            // A clock that was set back is due at once, rather than never.
            if now - polled_at >= poll || now < polled_at {
                polled_at = now;
                self.enqueue_polled();
                if let Err(error) = self.enqueue_open().await {
                    failed("enqueue open runs", &error);
                }
            }
            let mut next = polled_at + poll;
            match self.enqueue_due_checks(now).await {
                Ok(due) => next = next.min(due.unwrap_or(next)),
                Err(error) => failed("enqueue drift checks", &error),
            }
            match self.begin_due_schedules(now).await {
                Ok(due) => next = next.min(due.unwrap_or(next)),
                Err(error) => failed("begin Schedules", &error),
            }
            match context.store.next_delivery_at().await {
                Ok(Some(at)) if at <= now => context.queue.enqueue(ReconcileRequest::Outbox, Reason::MessageDue),
                Ok(Some(at)) => next = next.min(at),
                Ok(None) => {}
                Err(error) => failed("read the outbox", &error.into()),
            }
            let sleep = (next - context.now()).to_std().unwrap_or_default().clamp(SLEEP_MIN, SLEEP_MAX);
            tokio::select! {
                () = tokio::time::sleep(sleep) => {}
                () = context.due_changed.notified() => {}
            }
        }
    }

    /// Enqueues everything that the timers would at this moment.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(crate) async fn poll(self: &Arc<Self>) -> Result<(), Error> {
        self.enqueue_polled();
        self.context.queue.enqueue(ReconcileRequest::Outbox, Reason::Poll);
        self.enqueue_open().await?;
        self.begin_due_schedules(self.context.now()).await?;
        self.enqueue_due_checks(self.context.now()).await.map(drop)
    }

    fn enqueue_polled(&self) {
        self.context.queue.enqueue(ReconcileRequest::Source, Reason::Poll);
        if self.context.forge.is_some() {
            self.context.queue.enqueue(ReconcileRequest::PullRequests, Reason::Poll);
        }
    }

    /// Wakes every decision and every open run: what an error stopped goes on, without anybody's event.
    pub(crate) async fn enqueue_open(self: &Arc<Self>) -> Result<(), Error> {
        let Some(head) = self.source.head() else { return Ok(()) };
        for environment in head.desired.environments.keys() {
            self.context.queue.enqueue(ReconcileRequest::Merges(environment.clone()), Reason::Poll);
            self.context.queue.enqueue(ReconcileRequest::Proposals(environment.clone()), Reason::Poll);
        }
        self.runs.enqueue_open(Reason::Poll).await
    }

    /// Wakes the instances whose drift is due to be looked for; answers when the next one is.
    pub(crate) async fn enqueue_due_checks(
        self: &Arc<Self>,
        now: DateTime<Utc>,
    ) -> Result<Option<DateTime<Utc>>, Error> {
        let Some(head) = self.source.head() else { return Ok(None) };
        let applied = self.context.store.all_applied().await?;
        let observed = self.context.store.all_observed().await?;
        let default = head
            .desired
            .state_repo
            .as_ref()
            .and_then(|repo| repo.defaults.drift.as_ref())
            .and_then(|drift| drift.every);
        let mut next: Option<DateTime<Utc>> = None;
        for (id, record) in &applied {
            let own = head
                .instance(id)
                .and_then(|instance| instance.spec.as_ref())
                .unwrap_or(&Arc::new(record.spec.clone()))
                .drift
                .every;
            let every = own.or(default).map_or(DRIFT_EVERY, crate::model::Duration::std);
            let every = chrono::Duration::from_std(every).unwrap_or(chrono::Duration::minutes(15));
            let observed = observed.get(id);
            let may_pass = observed.is_some_and(|one| one.error.as_ref().is_some_and(|error| error.transient));
            let every = if may_pass { every.min(UNKNOWN_AGAIN) } else { every };
            let at = observed.map_or(now, |observed| observed.at + every);
            if at <= now {
                self.context.queue.enqueue(ReconcileRequest::Instance(id.clone()), Reason::DriftCheckDue);
                next = Some(next.map_or(now + every, |next| next.min(now + every)));
            } else {
                next = Some(next.map_or(at, |next| next.min(at)));
            }
        }
        Ok(next)
    }
}
