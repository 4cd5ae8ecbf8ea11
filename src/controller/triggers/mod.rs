//! Enqueues requests by timers, schedules and watches (R7.5).
//!
//! *Owns:* the states of schedules.
//! *Invariant:* the timers alone are sufficient: without any event, the system converges at the interval of its timers.
//! Events accelerate the convergence.
//! *Race:* an event changes the next due time while the timers sleep: the event notifies the timers.

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

/// The default interval of drift checks.
const DRIFT_EVERY: Duration = Duration::from_secs(15 * 60);

/// The interval of drift checks after a transient error.
const RETRY_EVERY: chrono::Duration = chrono::Duration::minutes(2);

/// The interval at which old records are pruned.
const PRUNE_EVERY: chrono::Duration = chrono::Duration::days(1);

/// The longest sleep of the timers, which bounds the delay after a jump of the clock.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// The shortest sleep of the timers, which prevents a busy loop.
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
    /// Enqueues due requests in an endless loop, and sleeps until the next due time.
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
            // After a clock was set back, the timers are due at once.
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

    /// Enqueues all requests of the timers.
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

    /// Enqueues every environment and every open run, so that work after an error continues without an event.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(crate) async fn enqueue_open(self: &Arc<Self>) -> Result<(), Error> {
        let Some(head) = self.source.head() else { return Ok(()) };
        for environment in head.desired.environments.keys() {
            self.context.queue.enqueue(ReconcileRequest::Merges(environment.clone()), Reason::Poll);
            self.context.queue.enqueue(ReconcileRequest::Proposals(environment.clone()), Reason::Poll);
        }
        self.runs.enqueue_open(Reason::Poll).await
    }

    /// Enqueues the due drift checks. Returns the next due time.
    ///
    /// # Errors
    /// When the store can't be read.
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
            let is_transient =
                observed.is_some_and(|observed| observed.error.as_ref().is_some_and(|error| error.transient));
            let every = if is_transient { every.min(RETRY_EVERY) } else { every };
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

#[cfg(test)]
mod tests;
