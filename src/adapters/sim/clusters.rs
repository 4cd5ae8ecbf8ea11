//! Observes and changes simulated clusters, step by step, with the crash points in between.
//!
//! A step is atomic, and each step needs a running daemon. *Race:* a daemon that lost the environment to another
//! daemon while it was suspended begins no further step.

use super::{World, cluster::Cluster, world::Fault};
use crate::{
    model::Retry,
    ports::{Clock as _, CrashPoint, Fence, Job, Observation, Prepared, TargetError, TargetErrorKind},
    targets::citus::{
        capacity, drift, migrations,
        steps::Moving,
        steps::{Compared, Found, Step, Task},
        work::CitusWork,
    },
};

/// Returns the name of the connection, which identifies the cluster.
fn connection(job: &Job) -> &str {
    job.connection.as_deref().unwrap_or_default()
}

fn absent(job: &Job) -> TargetError {
    TargetError::new(TargetErrorKind::Unreachable, format!("there is no cluster `{}` in this world", connection(job)))
}

impl World {
    /// Applies a line of a script to a cluster, and creates the cluster if it does not exist.
    ///
    /// # Errors
    /// When the line is not valid, in a sentence.
    pub fn tell(&self, name: &str, what: &str) -> Result<(), String> {
        self.state.lock().clusters.entry(name.into()).or_default().tell(what)
    }

    pub(super) fn look_at_cluster(&self, job: &Job, work: &CitusWork) -> Result<(Observation, Found), TargetError> {
        let migrations = migrations::of(job, work.migrations.as_deref())?;
        let mut state = self.state.lock();
        if let Some(Fault::OutOfReach(why)) = state.faults.get(&job.instance) {
            return Err(TargetError::new(
                TargetErrorKind::Unreachable,
                format!("`{}` does not answer: {why}", connection(job)),
            ));
        }
        let silent = state.silent.clone();
        let cluster = state.clusters.get_mut(connection(job)).ok_or_else(|| absent(job))?;
        let seen = cluster.seen(work, &silent)?;
        let now = self.clock.now().timestamp();
        cluster.memory.take_in(&seen, now);
        let memory = &cluster.memory;
        let mut found = drift::compare(&Compared { work, seen: &seen, migrations: &migrations, memory, now });
        let rules = &mut cluster.memory;
        let capacity = capacity::wanted(&work.capacity, &work.moves, &seen, rules, now, &mut found.notes);
        Ok((Observation { capacity, ..found.observation(&seen) }, found))
    }

    pub(super) fn prepare_cluster(&self, job: &Job, work: &CitusWork) -> Result<Prepared, TargetError> {
        let (observation, found) = self.look_at_cluster(job, work)?;
        found.allowed()?;
        Ok(Prepared { observation, ticket: Box::new(found) })
    }

    pub(super) async fn change_cluster(
        &self,
        job: &Job,
        work: &CitusWork,
        prepared: Prepared,
        fence: Fence,
    ) -> Result<(), TargetError> {
        let found = prepared.ticket.downcast::<Found>().map_or_else(|_| Found::default(), |found| *found);
        let (steps, is_whole) = drift::meant(found, &prepared.observation.changes)?;
        let mut balanced = false;
        for (at, step) in steps.iter().enumerate() {
            let what = format!("{} {} {}", step.change.change.verb(), connection(job), step.change.resource);
            self.pass(CrashPoint::BeforeEffect, &what).await;
            self.in_force(&job.instance, fence).await?;
            if let Task::Move(moving) = &step.task {
                if !self.fits(work, moving) {
                    // The remaining moves wait for the next window.
                    return Ok(());
                }
                self.cluster(job, |cluster| cluster.begin_move())?;
                self.pass(CrashPoint::InEffect, &what).await;
                self.clock.forward(seconds(moving));
                balanced |= moving.for_balance;
            }
            self.step(job, work, step, &what, at > 0)?;
            self.pass(CrashPoint::AfterEffect, &what).await;
        }
        if balanced && is_whole {
            let now = self.clock.now().timestamp();
            self.cluster(job, |cluster| cluster.memory.rebalanced_at = Some(now))?;
        }
        Ok(())
    }

    fn step(&self, job: &Job, work: &CitusWork, step: &Step, what: &str, begun: bool) -> Result<(), TargetError> {
        let mut state = self.state.lock();
        let message = match state.faults.get(&job.instance) {
            Some(Fault::Refuses { resource, message }) if *resource == step.change.resource => Some(message.clone()),
            _ => None,
        };
        let silent = state.silent.clone();
        let cluster = state.clusters.get_mut(connection(job)).ok_or_else(|| absent(job))?;
        let done = message.map_or_else(|| cluster.make(&step.task, work, &silent), Err);
        done.map_err(|why| TargetError {
            retry: Retry::WhenInputChanges,
            effect_may_have_begun: begun || matches!(step.task, Task::Move(_)),
            ..TargetError::new(TargetErrorKind::ApplyFailed, format!("{}: {why}", step.change.resource))
        })?;
        if matches!(step.task, Task::Rewrite { .. }) {
            state.effects.push(format!("restore point of {}", connection(job)));
        }
        let more = match &step.task {
            Task::Move(moving) => format!(" to {}", moving.to),
            _ => String::new(),
        };
        if !matches!(step.task, Task::Along(_)) {
            state.effects.push(format!("{what}{more}"));
        }
        Ok(())
    }

    fn fits(&self, work: &CitusWork, moving: &Moving) -> bool {
        work.until.is_none_or(|until| self.clock.now() + seconds(moving) <= until)
    }

    fn cluster<T>(&self, job: &Job, does: impl FnOnce(&mut Cluster) -> T) -> Result<T, TargetError> {
        self.state.lock().clusters.get_mut(connection(job)).map(does).ok_or_else(|| absent(job))
    }
}

/// Returns the simulated duration of a move.
fn seconds(moving: &Moving) -> chrono::Duration {
    chrono::Duration::seconds(i64::try_from(moving.seconds(None)).unwrap_or(0))
}
