//! Runs processes that have an effect or take the state lock under a supervisor.
//!
//! *Flow:* the daemon writes an order into the instance's spool. The supervisor checks the fencing token and starts
//! tofu. This daemon, or the next one, reads the output from the spool as it is written.
//! *Invariant:* an apply that began completes even if the daemon stops. A state lock of a dead process is released
//! only with proof that a supervised process took the lock and that none of its processes is alive.
//! *Race:* the daemon stops after the order and before the start. No process locks the spool, and nothing was done.

use crate::targets::opentofu::work::TofuWork;
use std::{fs::File, path::Path};

use chrono::{DateTime, Utc};

use super::{
    Tofu,
    apply::applied,
    program::{Lock, OutputReader, ProcessResult, Read, failure, located, tail},
};
use crate::{
    adapters::supervisor::{self, Begun, End, Order, Spool, Standing},
    model::{InstanceId, Retry},
    ports::{Attached, Fence, Job, Progress, TargetError, TargetErrorKind},
};

/// The folder of an instance's spool.
pub(super) const SPOOL: &str = "supervised";
/// The interval at which progress is read.
const PROGRESS_EVERY: std::time::Duration = std::time::Duration::from_millis(200);
/// The tolerance between timestamps of one machine: tofu prints whole seconds in places.
const CLOCK_SLACK: chrono::Duration = chrono::Duration::seconds(1);

impl Tofu {
    pub(super) fn spool(&self, id: &InstanceId) -> Spool {
        Spool::new(self.instance_path(id).join(SPOOL))
    }

    /// Runs the program under a supervisor, and follows it to its end.
    pub(super) async fn supervised(
        &self,
        job: &Job,
        folder: &Path,
        arguments: &[String],
        fence: Option<Fence>,
        input: Option<&Path>,
        progress: Option<Progress>,
    ) -> Result<ProcessResult, TargetError> {
        let environment = self.environment(job, folder, true)?;
        let what = arguments.first().cloned().unwrap_or_default();
        let order = Order {
            what: what.clone(),
            fence: fence.map(|fence| supervisor::Fence {
                store: self.settings.data.join("evenkeel.db"),
                environment: job.instance.environment.to_string(),
                run: fence.run.0,
                token: fence.token,
            }),
            program: located(&self.settings.binary),
            arguments: arguments.to_vec(),
            folder: folder.to_owned(),
            seconds: self.settings.timeout.as_secs(),
        };
        let spool = self.spool(&job.instance);
        tracing::debug!(kind = "tofu-started", instance = %job.instance, what, "tofu starts under a supervisor");
        let started = std::time::Instant::now();
        let mut child = spool.begin(&order, input, &self.settings.supervisor, &environment).await.map_err(|error| {
            TargetError::new(
                TargetErrorKind::Supervisor,
                format!("could not start a supervisor for `{}`: {error}", job.instance),
            )
        })?;
        let result = self.follow(&job.instance, &what, &spool, progress, async { drop(child.wait().await) }).await?;
        tracing::debug!(kind = "tofu-ended", instance = %job.instance, what, code = result.code, ms = started.elapsed().as_millis(), "tofu ended");
        Ok(result)
    }

    /// Follows the output in a spool until the process ends.
    async fn follow(
        &self,
        id: &InstanceId,
        what: &str,
        spool: &Spool,
        progress: Option<Progress>,
        ended: impl Future<Output = ()>,
    ) -> Result<ProcessResult, TargetError> {
        let failed = |why: String| TargetError {
            effect_may_have_begun: what == "apply",
            ..TargetError::new(TargetErrorKind::TofuInterrupted, format!("`tofu {what}` of `{id}` {why}"))
        };
        let unreadable = |error: std::io::Error| failed(format!("could not be read: {error}"));
        let mut reader = OutputReader::new(self.redactor.clone(), progress);
        let output = File::open(spool.output()).map_err(unreadable)?;
        tokio::pin!(ended);
        let mut over = false;
        // The supervisor alone may be killed while the program continues: the spool shows when all processes ended.
        let standing = loop {
            tokio::select! {
                () = &mut ended, if !over => over = true,
                () = tokio::time::sleep(PROGRESS_EVERY) => {}
            }
            let standing = spool.look().map_err(unreadable)?;
            reader.take(&output).map_err(unreadable)?;
            if !matches!(standing, Standing::Alive(_)) {
                break standing;
            }
        };
        let mut result = reader.result;
        result.stderr =
            self.redactor.redact(&tail(File::open(spool.complaints()).map_err(unreadable)?).map_err(unreadable)?);
        match standing {
            Standing::Ended(_, End::Exited { code }) => {
                result.code = Some(code);
                Ok(result)
            }
            Standing::Ended(_, End::Killed { message }) => Err(failed(message)),
            Standing::Ended(_, End::Stopped { message }) => {
                Err(TargetError { kind: TargetErrorKind::TofuTimeout, ..failed(message) })
            }
            Standing::Ended(_, End::NotStarted { message }) => Err(self.not_started(&message)),
            Standing::Ended(_, End::Refused { message }) => {
                let refused = TargetError::new(
                    TargetErrorKind::Fenced,
                    format!("`tofu {what}` of `{id}` was refused: {message}"),
                );
                Err(TargetError { retry: Retry::Never, ..refused })
            }
            _ => Err(TargetError {
                kind: TargetErrorKind::EffectLost,
                ..failed("was killed with its supervisor".into())
            }),
        }
    }

    /// Waits for an apply that began under a fence before the daemon stopped.
    pub(super) async fn attach_process(
        &self,
        id: &InstanceId,
        fence: Fence,
        progress: Progress,
    ) -> Result<Attached, TargetError> {
        let spool = self.spool(id);
        let unreadable = |error: std::io::Error| {
            TargetError::new(TargetErrorKind::Supervisor, format!("could not read what became of `{id}`: {error}"))
        };
        let is_ours = |order: &Order| {
            order.what == "apply"
                && order.fence.as_ref().is_some_and(|ours| ours.run == fence.run.0 && ours.token == fence.token)
        };
        let ended = match spool.look().map_err(unreadable)? {
            Standing::Alive(order) | Standing::Ended(order, _) if is_ours(&order) => {
                tracing::info!(kind = "tofu-attached", instance = %id, run = fence.run.0, "attached to a process that outlived the daemon");
                self.follow(id, "apply", &spool, Some(progress), async { drop(spool.ended().await) }).await
            }
            Standing::Alive(_) => {
                // A plan that took the state lock; it ends by itself.
                spool.ended().await.map_err(unreadable)?;
                return Ok(Attached::Gone);
            }
            _ => return Ok(Attached::Gone),
        };
        Ok(match ended {
            Ok(result) => Attached::Ended(applied(id, result)),
            // A process over its time limit failed, whichever daemon waits for it (R3.1).
            Err(error) if error.kind == TargetErrorKind::TofuTimeout => Attached::Ended(Err(error)),
            // The process was killed or never started: an observation tells more than the incomplete output.
            Err(_) => Attached::Gone,
        })
    }

    /// Interrupts an apply in flight, so that it ends as soon as it safely can.
    pub(super) async fn interrupt_process(&self, id: &InstanceId) -> Result<bool, TargetError> {
        let asked = self.spool(id).interrupt().await;
        asked.map_err(|error| {
            TargetError::new(TargetErrorKind::Supervisor, format!("could not interrupt `{id}`: {error}"))
        })
    }

    /// Releases the state lock that blocked a process, with proof that a supervised process took it and is dead.
    pub(super) async fn release_dead_lock(
        &self,
        job: &Job,
        root: &Path,
        result: &ProcessResult,
    ) -> Result<bool, TargetError> {
        let spool = self.spool(&job.instance);
        let unreadable = |error: std::io::Error| {
            TargetError::new(
                TargetErrorKind::Supervisor,
                format!("could not read what became of `{}`: {error}", job.instance),
            )
        };
        let Some(lock) = Lock::reported_in(result) else {
            if result.locked_at.is_some() {
                // This process had the lock itself, so no dead process left it behind.
                spool.forget_died().map_err(unreadable)?;
            }
            return Ok(false);
        };
        let Some((order, begun, output)) = spool.died().map_err(unreadable)? else { return Ok(false) };
        let mut reader = OutputReader::new(self.redactor.clone(), None);
        reader.take(output).map_err(unreadable)?;
        if !is_lock_of_dead_process(&begun, reader.result.locked_at, &lock) {
            return Ok(false);
        }
        let token = order.fence.map_or(0, |fence| fence.token);
        tracing::warn!(kind = "state-lock-released", instance = %job.instance, lock = lock.id, created = lock.created, process = %begun.program, token, "the state lock is that of a process of ours that was killed; releasing it");
        self.force_unlock(job, root, &lock).await?;
        spool.forget_died().map_err(unreadable)?;
        Ok(true)
    }

    /// Releases the state lock, whatever process owns it.
    pub(super) async fn unlock_state(&self, job: &Job, work: &TofuWork) -> Result<Option<String>, TargetError> {
        let ready = self.ready(job, work, true).await?;
        // A plan reports the owner of the lock and writes nothing.
        let arguments = ["plan", "-json", "-input=false", "-refresh=false", "-lock-timeout=0s"].map(str::to_owned);
        let result = self.supervised(job, &ready.root, &arguments, None, None, None).await?;
        let Some(lock) = Lock::reported_in(&result) else { return Ok(None) };
        self.force_unlock(job, &ready.root, &lock).await?;
        Ok(Some(format!("{} since {} ({}, lock {})", lock.who, lock.created, lock.operation, lock.id)))
    }

    async fn force_unlock(&self, job: &Job, root: &Path, lock: &Lock) -> Result<(), TargetError> {
        let arguments = ["force-unlock".to_owned(), "-force".into(), lock.id.clone()];
        let result = self.run(job, root, &arguments, true, Read::Lines).await?;
        if result.code == Some(0) { Ok(()) } else { Err(failure(&job.instance, "force-unlock", result)) }
    }
}

/// Whether a killed process of this daemon took a lock. The process ran on this machine and ended with its supervisor,
/// and at a time when it had the lock of this state, the given lock had already been taken.
fn is_lock_of_dead_process(begun: &Begun, had_it_at: Option<DateTime<Utc>>, lock: &Lock) -> bool {
    let (Some(had_it_at), Some(created)) = (had_it_at, lock.created_at()) else { return false };
    lock.who.rsplit_once('@').is_some_and(|(_, host)| host == begun.program.host)
        && begun.supervisor.is_dead()
        && begun.program.is_dead()
        && created + CLOCK_SLACK >= begun.at
        && created <= had_it_at + CLOCK_SLACK
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::supervisor::Who;

    #[test]
    fn r7_4_a_lock_is_released_only_where_its_owner_is_proved_dead() {
        let at = |seconds: i64| DateTime::from_timestamp(1_790_000_000 + seconds, 0).unwrap();
        let dead = Who { started: 1, ..Who::me() };
        let begun = Begun { supervisor: dead.clone(), program: dead.clone(), at: at(0) };
        let lock = |who: &str, seconds: i64| Lock {
            id: "1".into(),
            who: who.into(),
            created: format!("{} +0000 UTC", at(seconds).format("%Y-%m-%d %H:%M:%S%.9f")),
            operation: "OperationTypeApply".into(),
        };
        let host = &dead.host;
        let ours = lock(&format!("root@{host}"), 3);
        assert!(is_lock_of_dead_process(&begun, Some(at(5)), &ours));
        assert!(!is_lock_of_dead_process(&begun, None, &ours), "it never had the lock");
        assert!(
            !is_lock_of_dead_process(&begun, Some(at(5)), &lock(&format!("root@{host}"), 60)),
            "taken after it had one"
        );
        assert!(
            !is_lock_of_dead_process(&begun, Some(at(5)), &lock(&format!("root@{host}"), -60)),
            "taken before it began"
        );
        assert!(!is_lock_of_dead_process(&begun, Some(at(5)), &lock("root@elsewhere", 3)), "another machine's");
        let alive = Begun { program: Who::me(), ..begun.clone() };
        assert!(!is_lock_of_dead_process(&alive, Some(at(5)), &ours), "it lives");
        let away = Who { host: "elsewhere".into(), ..dead };
        assert!(
            !is_lock_of_dead_process(&Begun { program: away, ..begun }, Some(at(5)), &ours),
            "nothing is known of it"
        );
    }
}
