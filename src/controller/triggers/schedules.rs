//! Starts the work of `Schedule`s at their times.
//!
//! A `Schedule` is due by its calendar and the time that was started last.
//! *Invariant:* a time creates one run, also across daemons: the time is recorded after its work was started, and its runs are
//! identified by the name and the time. A new `Schedule` starts at its next time, and not at times before its declaration.
//! *Race:* the daemon dies before the time is recorded: the next daemon starts that time again, finds its runs, and creates a
//! second restore point with the same name. *Race:* times pass while no daemon runs: the last time is started if its window
//! is still open, unless the declaration has `missed: skip`.

use std::{collections::BTreeSet, sync::Arc};

use chrono::{DateTime, Utc};

use crate::{
    controller::{
        context::Error,
        planning::environments,
        records::ScheduleState,
        runs::RebalanceAuthorization,
        source::Head,
        triggers::Triggers,
        work_queue::{Reason, ReconcileRequest},
    },
    domain::{
        calendar::Calendar,
        declaration::schema::{Missed, Schedule, ScheduledRun},
        message::run::RunCause,
    },
    model::{ComponentName, Digester, InstanceId},
};

/// The delay after which a time counts as missed.
const MISSED_AFTER: chrono::Duration = chrono::Duration::minutes(2);

/// The number of missed times that are skipped in one step, which bounds the work after a long stop.
const MISSED_MAX: usize = 10_000;

/// Returns the delay of a time, computed from the name and the time, so that every daemon has the same delay.
pub(super) fn jitter(name: &ComponentName, schedule: &Schedule, at: DateTime<Utc>) -> chrono::Duration {
    let Some(limit) = schedule.jitter else { return chrono::Duration::zero() };
    let digest = Digester::new("jitter").field(name.as_str().as_bytes()).field(at.to_rfc3339().as_bytes()).finish();
    let number = digest.to_string().bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    chrono::Duration::seconds(i64::try_from(number % (limit.as_seconds() + 1)).unwrap_or(0))
}

impl Triggers {
    /// Starts the due schedules. Returns the next due time. A schedule that can't start
    /// is logged, and starts with the next timer.
    pub(crate) async fn begin_due_schedules(
        self: &Arc<Self>,
        now: DateTime<Utc>,
    ) -> Result<Option<DateTime<Utc>>, Error> {
        let Some(head) = self.source.head() else { return Ok(None) };
        let mut next: Option<DateTime<Utc>> = None;
        for (name, schedule) in &head.desired.schedules {
            let Ok(calendar) = Calendar::new(&schedule.cron, schedule.time_zone.as_deref()) else { continue };
            match self.begin_if_due(&head, name, schedule, &calendar, now).await {
                Ok(Some(at)) => next = Some(next.map_or(at, |next| next.min(at))),
                Ok(None) => {}
                // The next timer starts the schedule again; the other schedules continue.
                Err(error) => {
                    tracing::warn!(kind = "schedule-failed", schedule = %name, error = crate::error_chain(&error), "a schedule could not begin")
                }
            }
        }
        Ok(next)
    }

    async fn begin_if_due(
        self: &Arc<Self>,
        head: &Arc<Head>,
        name: &ComponentName,
        schedule: &Schedule,
        calendar: &Calendar,
        now: DateTime<Utc>,
    ) -> Result<Option<DateTime<Utc>>, Error> {
        let initial = ScheduleState { at: now, cron: schedule.cron.clone(), zone: schedule.time_zone.clone() };
        let stored: Option<ScheduleState> =
            self.context.store.collection::<ScheduleState>().get(&name.to_string()).await?;
        let Some(stored) = stored.filter(|stored| stored.cron == initial.cron && stored.zone == initial.zone) else {
            self.context.store.collection::<ScheduleState>().put(&name.to_string(), now, &initial).await?;
            return Ok(calendar.next(now));
        };
        let begins = |at: DateTime<Utc>| at + jitter(name, schedule, at);
        let (mut due, mut next) = (None, now);
        // After a clock was set back, the calendar starts at the current time.
        let mut after = stored.at.min(now);
        for _ in 0..MISSED_MAX {
            match calendar.next(after) {
                Some(at) if begins(at) <= now => (due, after) = (Some(at), at),
                Some(at) => {
                    next = begins(at);
                    break;
                }
                None => break,
            }
        }
        if let Some(at) = due {
            self.begin_schedule(head, name, schedule, at, now).await?;
            self.context
                .store
                .collection::<ScheduleState>()
                .put(&name.to_string(), now, &ScheduleState { at, ..initial })
                .await?;
        }
        Ok(Some(next))
    }

    async fn begin_schedule(
        self: &Arc<Self>,
        head: &Arc<Head>,
        name: &ComponentName,
        schedule: &Schedule,
        at: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<(), Error> {
        let begins = at + jitter(name, schedule, at);
        let until = schedule
            .duration
            .and_then(|duration| chrono::Duration::from_std(duration.std()).ok())
            .map(|duration| at + duration);
        let is_missed = now - begins > MISSED_AFTER;
        if until.is_some_and(|until| now >= until) || is_missed && schedule.missed == Missed::Skip {
            tracing::warn!(kind = "schedule-missed", schedule = %name, %at, "a time of a schedule passed while no daemon ran, and is skipped");
            return Ok(());
        }
        let selector = match schedule.select.as_deref().map(str::parse) {
            Some(Ok(selector)) => Some(selector),
            Some(Err(_)) => return Ok(()),
            None => None,
        };
        let selected = self.planner.select(head, selector.as_ref(), &BTreeSet::new()).await?;
        let applied = self.context.store.applied_instances().await?;
        let suspended = self.source.suspensions(Some(head)).await?;
        let changes_targets = schedule.run != ScheduledRun::Drift;
        let is_allowed =
            |id: &&InstanceId| applied.contains(*id) && !(changes_targets && suspended.instance(id).is_some());
        let selected: BTreeSet<InstanceId> = selected.iter().filter(is_allowed).cloned().collect();
        tracing::info!(kind = "schedule-due", schedule = %name, %at, run = ?schedule.run, instances = selected.len(), "a schedule is due");
        let cause = RunCause::Schedule(name.clone(), at);
        self.context.store.audit(now, "schedule", "begin", name.as_str(), &cause.to_string()).await?;
        match schedule.run {
            ScheduledRun::Drift => {
                for id in selected {
                    self.context.queue.enqueue(ReconcileRequest::Instance(id), Reason::Schedule);
                }
            }
            ScheduledRun::Rebalance => {
                let clusters = self.runs.clusters(&selected).await?;
                for environment in environments(&clusters) {
                    let authorization = RebalanceAuthorization {
                        because: cause.clone(),
                        principal: format!("schedule:{name}"),
                        command_id: Some(format!("schedule {name} {}", at.to_rfc3339())),
                        pull: None,
                        until,
                        by_schedule: true,
                    };
                    self.runs.start_rebalance(head, &environment, &clusters, authorization).await?;
                }
            }
            ScheduledRun::Backup => {
                self.back_up(head, &self.runs.clusters(&selected).await?, at, &cause.to_string()).await?
            }
            // Validation refuses these declarations.
            ScheduledRun::Rotate | ScheduledRun::Report => {}
        }
        Ok(())
    }

    /// Creates restore points. A failure is logged and recorded, and does not stop the others.
    async fn back_up(
        self: &Arc<Self>,
        head: &Head,
        clusters: &BTreeSet<InstanceId>,
        at: DateTime<Utc>,
        because: &str,
    ) -> Result<(), Error> {
        let name = format!("evenkeel_{}", at.format("%Y%m%dT%H%M%SZ"));
        for id in clusters {
            let Some(record) = self.context.store.applied(id).await? else { continue };
            let job = match self.observer.applied_job(id, &record, head).await {
                Ok(job) => job,
                Err(error) => {
                    tracing::error!(kind = "restore-point-failed", instance = %id, error = crate::error_chain(&error), "a restore point could not be created");
                    continue;
                }
            };
            let message = match self.context.target.restore_point(&job, &name).await {
                Ok(place) => {
                    tracing::info!(kind = "restore-point", instance = %id, name, place, "a restore point was created");
                    format!("`{name}` at {place}, {because}")
                }
                Err(error) => {
                    tracing::error!(kind = "restore-point-failed", instance = %id, error = error.line(), "a restore point could not be created");
                    format!("none could be made, {because}: {}", error.line())
                }
            };
            self.context
                .store
                .audit(self.context.now(), "schedule", "restore-point", &id.to_string(), &message)
                .await?;
        }
        Ok(())
    }
}
