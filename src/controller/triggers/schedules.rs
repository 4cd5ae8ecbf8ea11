//! What is done by the clock: the Schedules of the branch.
//!
//! Decides when each is due, by its calendar and by when it was begun last, and begins it once.
//! *Guarantees:* a time is begun, and makes one run, whoever is the daemon then: it is written down once everything of it has
//! begun, and what it begins is known by its name and time. A Schedule that is new begins with its next time, and not with
//! those that passed before it was declared.
//! *Race:* the daemon dies in between: the next one begins that time again, finds the runs that were made, and makes a restore
//! point a second time under the same name. *Race:* times pass while nobody is there: the last of them is made up for, if its
//! window is still open, unless the declaration says `missed: skip`.

use crate::domain::message::run::RunCause;
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
    },
    model::{ComponentName, Digester, InstanceId},
};

/// How late a time may be begun and still is no missed one.
const LATE: chrono::Duration = chrono::Duration::minutes(2);

/// How many missed times are passed over at once; what is older is older than anybody cares.
const MISSED_MAX: usize = 10_000;

/// The delay of one time: by its name and time, so that it is the same whoever asks.
fn jitter(name: &ComponentName, schedule: &Schedule, at: DateTime<Utc>) -> chrono::Duration {
    let Some(most) = schedule.jitter else { return chrono::Duration::zero() };
    let digest = Digester::new("jitter").field(name.as_str().as_bytes()).field(at.to_rfc3339().as_bytes()).finish();
    let number = digest.to_string().bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    chrono::Duration::seconds(i64::try_from(number % (most.as_seconds() + 1)).unwrap_or(0))
}

impl Triggers {
    /// Begins what is due; answers when the next is.
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
                // It is begun again with the next timer, and keeps the others from nothing.
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
        let fresh = ScheduleState { at: now, cron: schedule.cron.clone(), zone: schedule.time_zone.clone() };
        let known: Option<ScheduleState> =
            self.context.store.collection::<ScheduleState>().get(&name.to_string()).await?;
        let Some(known) = known.filter(|known| known.cron == fresh.cron && known.zone == fresh.zone) else {
            self.context.store.collection::<ScheduleState>().put(&name.to_string(), now, &fresh).await?;
            return Ok(calendar.next(now));
        };
        let begins = |at: DateTime<Utc>| at + jitter(name, schedule, at);
        let (mut due, mut next) = (None, now);
        // A clock that was set back begins anew.
        let mut after = known.at.min(now);
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
                .put(&name.to_string(), now, &ScheduleState { at, ..fresh })
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
        let is_missed = now - begins > LATE;
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
        let acts = schedule.run != ScheduledRun::Drift;
        let may = |id: &&InstanceId| applied.contains(*id) && !(acts && suspended.instance(id).is_some());
        let selected: BTreeSet<InstanceId> = selected.iter().filter(may).cloned().collect();
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
                    let word = RebalanceAuthorization {
                        because: cause.clone(),
                        principal: format!("schedule:{name}"),
                        command_id: Some(format!("schedule {name} {}", at.to_rfc3339())),
                        pull: None,
                        until,
                        by_schedule: true,
                    };
                    self.runs.start_rebalance(head, &environment, &clusters, word).await?;
                }
            }
            ScheduledRun::Backup => {
                self.back_up(head, &self.runs.clusters(&selected).await?, at, &cause.to_string()).await?
            }
            // These are refused where they are declared.
            ScheduledRun::Rotate | ScheduledRun::Report => {}
        }
        Ok(())
    }

    /// Makes restore points; one that can't be made is told, and keeps the others from nothing.
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
            let said = match self.context.target.restore_point(&job, &name).await {
                Ok(place) => {
                    tracing::info!(kind = "restore-point", instance = %id, name, place, "a restore point was created");
                    format!("`{name}` at {place}, {because}")
                }
                Err(error) => {
                    tracing::error!(kind = "restore-point-failed", instance = %id, error = error.line(), "a restore point could not be created");
                    format!("none could be made, {because}: {}", error.line())
                }
            };
            self.context.store.audit(self.context.now(), "schedule", "restore-point", &id.to_string(), &said).await?;
        }
        Ok(())
    }
}
