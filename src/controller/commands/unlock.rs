//! Executes `/unlock`: releases the lock of a target that no run uses (R5.5).
//!
//! *Invariant:* a lock is not released while a run executes an effect on the instance.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    controller::{
        commands::Commands,
        context::Error,
        observe::declared_job,
        source::Head,
        work_queue::{Reason, ReconcileRequest},
    },
    domain::{
        authorization::Principal,
        declaration::schema::Verb,
        journal::{Run, Status},
        message::{Refusal, answer::Answer},
    },
    model::InstanceId,
    ports::Use,
};

impl Commands {
    /// `/unlock`: releases the locks of the targets of the selected instances.
    ///
    /// # Errors
    /// [`Error::Refused`] where a run is in progress, an instance is not declared, or no target is locked; else when the
    /// store or a target fails.
    pub(super) async fn unlock(
        self: &Arc<Self>,
        head: &Arc<Head>,
        selected: &BTreeSet<InstanceId>,
        principal: &Principal,
    ) -> Result<String, Error> {
        let is_in_progress = |run: &Run, id: &InstanceId| {
            run.holds(id) && !matches!(run.instances[id].status, Status::New | Status::Waiting)
        };
        for run in self.context.store.open_runs().await? {
            if let Some(id) = selected.iter().find(|id| is_in_progress(&run, id)) {
                return Err(Error::Refused(Refusal::RunInProgress {
                    verb: Verb::Unlock,
                    run: run.id,
                    id: Some(id.clone()),
                }));
            }
        }
        let (mut released, mut unlocked) = (vec![], vec![]);
        for id in selected {
            let Some(instance) = head.instance(id).filter(|instance| instance.problems.is_empty()) else {
                return Err(Error::Refused(Refusal::NotDeclared { verb: Verb::Unlock, id: id.clone() }));
            };
            let inputs =
                self.observer.inputs(head, id, &instance.references, &std::collections::BTreeMap::new()).await?;
            let job = declared_job(instance, Use::Head, Arc::clone(&head.content), &inputs, head.consumed(id))?;
            match self.context.target.unlock(&job).await? {
                Some(holder) => {
                    self.context
                        .store
                        .audit(self.context.now(), &principal.name(), "unlock", &id.to_string(), &holder)
                        .await?;
                    self.context
                        .queue
                        .enqueue(ReconcileRequest::Merges(id.environment.clone()), Reason::Command(Verb::Unlock));
                    released.push(Answer::Unlocked(id.clone(), holder).to_string());
                }
                None => unlocked.push(id.clone()),
            }
        }
        if released.is_empty() {
            return Err(Error::Refused(Refusal::NotLocked(unlocked)));
        }
        Ok(released.join(" "))
    }
}
