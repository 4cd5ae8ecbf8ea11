//! Timers: what guarantees a look when every event is lost (R7.5). Sleeps until the next thing is due.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};

use super::{Daemon, Wake};

/// How often drift is looked for where nothing says.
const DRIFT_EVERY: Duration = Duration::from_secs(15 * 60);
/// How soon what could not be seen is looked for again, where that may have passed.
const UNKNOWN_AGAIN: chrono::Duration = chrono::Duration::minutes(2);
/// How often what is old is forgotten.
const PRUNE_EVERY: chrono::Duration = chrono::Duration::days(1);
/// The longest sleep, so that a clock that jumps is noticed.
const SLEEP_MAX: Duration = Duration::from_secs(60);
/// The shortest, so that a wrong time can't spin.
const SLEEP_MIN: Duration = Duration::from_millis(200);

/// Wakes what is due, for ever.
pub(super) async fn timers(daemon: Arc<Daemon>) {
    let mut polled_at = daemon.now();
    let mut pruned_at = DateTime::UNIX_EPOCH;
    loop {
        let now = daemon.now();
        if now - pruned_at >= PRUNE_EVERY || now < pruned_at {
            pruned_at = now;
            if let Err(error) = daemon.store().prune(now).await {
                tracing::warn!(error = crate::error_chain(&error), "could not forget what is old");
            }
        }
        let poll = chrono::Duration::from_std(daemon.settings.poll).unwrap_or(chrono::Duration::minutes(1));
        // A clock that was set back is due at once, rather than never.
        if now - polled_at >= poll || now < polled_at {
            polled_at = now;
            daemon.queue.wake(Wake::Git, "poll");
            if daemon.hands.forge.is_some() {
                daemon.queue.wake(Wake::Pulls, "poll");
            }
            if let Err(error) = daemon.wake_everything().await {
                tracing::warn!(error = crate::error_chain(&error), "could not read what is open");
            }
        }
        let mut next = polled_at + poll;
        match daemon.wake_due(now).await {
            Ok(due) => next = next.min(due.unwrap_or(next)),
            Err(error) => tracing::warn!(error = crate::error_chain(&error), "could not read what is due"),
        }
        match daemon.heed_schedules(now).await {
            Ok(due) => next = next.min(due.unwrap_or(next)),
            Err(error) => tracing::warn!(error = crate::error_chain(&error), "could not heed the schedules"),
        }
        match daemon.store().next_unsaid().await {
            Ok(Some(at)) if at <= now => daemon.queue.wake(Wake::Outbox, "due"),
            Ok(Some(at)) => next = next.min(at),
            Ok(None) => {}
            Err(error) => tracing::warn!(error = crate::error_chain(&error), "could not read the outbox"),
        }
        let sleep = (next - daemon.now()).to_std().unwrap_or_default().clamp(SLEEP_MIN, SLEEP_MAX);
        tokio::select! {
            () = tokio::time::sleep(sleep) => {}
            () = daemon.due_changed.notified() => {}
        }
    }
}

impl Daemon {
    /// Wakes every decision and every open run: what an error stopped goes on, without anybody's event.
    pub(super) async fn wake_everything(self: &Arc<Self>) -> Result<(), super::Error> {
        let Some(head) = self.head() else { return Ok(()) };
        for environment in head.desired.environments.keys() {
            self.queue.wake(Wake::Decide(environment.clone()), "poll");
            self.queue.wake(Wake::Propose(environment.clone()), "poll");
        }
        for run in self.store().open_runs().await? {
            self.queue.wake(Wake::Run(run.id), "poll");
        }
        Ok(())
    }

    /// Wakes the instances whose drift is due to be looked for; answers when the next one is.
    pub(super) async fn wake_due(self: &Arc<Self>, now: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, super::Error> {
        let Some(head) = self.head() else { return Ok(None) };
        let applied = self.store().all_applied().await?;
        let observed = self.store().all_observed().await?;
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
            let may_pass = observed.is_some_and(|one| one.error.as_ref().is_some_and(|error| error.passes));
            let every = if may_pass { every.min(UNKNOWN_AGAIN) } else { every };
            let at = observed.map_or(now, |observed| observed.at + every);
            if at <= now {
                self.queue.wake(Wake::Instance(id.clone()), "drift.every");
                next = Some(next.map_or(now + every, |next| next.min(now + every)));
            } else {
                next = Some(next.map_or(at, |next| next.min(at)));
            }
        }
        Ok(next)
    }
}
