//! Plans under the state lock, backs up the state, and applies exactly that plan.
//!
//! *Flow:* `prepare` plans with the credentials for apply under tofu's lock and stores the plan file. The caller
//! checks that the plan is covered by the approved actions. `apply` backs up the state and applies the plan file. The
//! apply runs under a supervisor (`supervised`) and completes even if the daemon stops.
//! *Invariant:* only the stored plan is applied: tofu refuses a saved plan whose state has changed since.
//! *Assumption:* one run at a time prepares and applies an instance. The run lock guarantees this.

use crate::targets::opentofu::work::TofuWork;
use std::{path::Path, sync::Arc};

use serde::Deserialize;

use super::{
    super::worktree,
    Tofu,
    observe::{PREPARED, Private},
    plan::Details,
    program::{ProcessResult, Read, failure},
};
use crate::{
    model::{Digester, InstanceId, Retry},
    ports::{Fence, Job, Observation, Prepared, Progress, TargetError, TargetErrorKind},
};

/// The number of state backups of each instance.
const STATE_COPIES_MAX: usize = 50;

#[derive(Deserialize)]
struct StateHead {
    serial: u64,
    #[expect(dead_code, reason = "a state without a lineage is not a state")]
    lineage: String,
}

/// Returns the outcome of an apply that ended.
pub(super) fn applied(id: &InstanceId, result: ProcessResult) -> Result<(), TargetError> {
    if result.code == Some(0) {
        return Ok(());
    }
    let stale = result.errors.iter().any(|d| d.summary.contains("Saved plan is stale"));
    let mut error = failure(id, "apply", result);
    if stale {
        error.kind = TargetErrorKind::PlanStale;
        error.message = format!("the state of `{id}` changed between plan and apply; nothing was applied");
    } else if error.kind != TargetErrorKind::StateLocked {
        error.kind = TargetErrorKind::ApplyFailed;
        error.retry = Retry::WhenInputChanges;
        error.effect_may_have_begun = true;
    }
    Err(error)
}

impl Tofu {
    /// Plans with the credentials for apply, under the lock, and stores the plan file for `apply`.
    pub(super) async fn prepare_work(&self, job: &Job, work: &TofuWork) -> Result<Prepared, TargetError> {
        let ready = self.ready(job, work, true).await?;
        let mut observation = self.plan(job, work, &ready, true).await?;
        let ticket = Private(self.data_path(job).join(PREPARED));
        if observation.changes.is_empty() {
            return Ok(Prepared { observation, ticket: Box::new(()) });
        }
        let serial = self.back_up_state(job, &ready.root).await?;
        let origins = observation.own::<Details>().map(|details| details.origins.clone()).unwrap_or_default();
        observation.own = Some(Arc::new(Details { serial, origins }));
        let failed = |error: std::io::Error| {
            TargetError::new(
                TargetErrorKind::WorkTree,
                format!("could not keep the plan of `{}`: {error}", job.instance),
            )
        };
        std::fs::rename(&ready.plan, &ticket.0).map_err(failed)?;
        Ok(Prepared { observation, ticket: Box::new(ticket) })
    }

    /// Applies the prepared plan.
    pub(super) async fn apply_work(
        &self,
        job: &Job,
        work: &TofuWork,
        prepared: Prepared,
        fence: Fence,
        progress: Progress,
    ) -> Result<(), TargetError> {
        let Prepared { observation: Observation { changes, .. }, ticket } = prepared;
        if changes.is_empty() {
            return Ok(());
        }
        let Ok(plan) = ticket.downcast::<Private>() else {
            return Err(TargetError::new(
                TargetErrorKind::PlanMissing,
                format!("the plan of `{}` is of another kind", job.instance),
            ));
        };
        let ready = self.ready(job, work, true).await?;
        self.record_state_location(job, work)?;
        // The plan file belongs to the supervised program: the file outlives the daemon, and is removed when the
        // program ends.
        let input = self.spool(&job.instance).input();
        let arguments = [
            "apply".to_owned(),
            "-json".into(),
            "-input=false".into(),
            "-auto-approve".into(),
            format!("-lock-timeout={}s", self.settings.lock_timeout.as_secs()),
            input.display().to_string(),
        ];
        let result = self.supervised(job, &ready.root, &arguments, Some(fence), Some(&plan.0), Some(progress)).await?;
        applied(&job.instance, result)
    }

    /// Backs up the state by its content and returns its serial; `None` if no state exists yet.
    async fn back_up_state(&self, job: &Job, root: &Path) -> Result<Option<u64>, TargetError> {
        let result = self.run(job, root, &["state".to_owned(), "pull".into()], true, Read::Answer).await?;
        if result.code != Some(0) {
            return Err(failure(&job.instance, "state pull", result));
        }
        if result.stdout.trim_ascii().is_empty() {
            return Ok(None);
        }
        let head: StateHead = serde_json::from_slice(&result.stdout).map_err(|error| {
            TargetError::new(
                TargetErrorKind::StateUnreadable,
                format!("the state of `{}` could not be read before the apply: {error}", job.instance),
            )
        })?;
        let folder = self
            .settings
            .data
            .join("state-copies")
            .join(job.instance.environment.as_str())
            .join(job.instance.component.as_str());
        let digest = Digester::new("state").field(&result.stdout).finish();
        let place = folder.join(format!("{:08}-{}.tfstate", head.serial, digest.short()));
        let write_copy = || -> std::io::Result<()> {
            worktree::private_folder(&folder)?;
            if !place.exists() {
                worktree::write(&place, &result.stdout, 0o600)?;
            }
            let mut copies: Vec<_> = std::fs::read_dir(&folder)?.flatten().map(|entry| entry.path()).collect();
            copies.sort();
            for old in copies.iter().rev().skip(STATE_COPIES_MAX) {
                std::fs::remove_file(old)?;
            }
            Ok(())
        };
        write_copy().map_err(|error| {
            TargetError::new(
                TargetErrorKind::StateCopy,
                format!("could not keep a copy of the state of `{}`: {error}; nothing was applied", job.instance),
            )
        })?;
        Ok(Some(head.serial))
    }
}
