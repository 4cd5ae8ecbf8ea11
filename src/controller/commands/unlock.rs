//! `/unlock`: releases the lock of a target that no run works on (R5.5).

use crate::domain::message::Refusal;
use crate::domain::message::answer::Answer;
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
    },
    model::InstanceId,
    ports::Use,
};

impl Commands {
    /// `/unlock`: releases the lock of a target that nobody works on any more.
    pub(super) async fn unlock(
        self: &Arc<Self>,
        head: &Arc<Head>,
        meant: &BTreeSet<InstanceId>,
        who: &Principal,
    ) -> Result<String, Error> {
        let live = |run: &Run, id: &InstanceId| {
            run.holds(id) && !matches!(run.instances[id].status, Status::New | Status::Waiting)
        };
        for run in self.context.store.open_runs().await? {
            if let Some(id) = meant.iter().find(|id| live(&run, id)) {
                return Err(Error::Refused(Refusal::RunInProgress {
                    verb: Verb::Unlock,
                    run: run.id,
                    id: Some(id.clone()),
                }));
            }
        }
        let (mut released, mut free) = (vec![], vec![]);
        for id in meant {
            let Some(instance) = head.instance(id).filter(|instance| instance.problems.is_empty()) else {
                return Err(Error::Refused(Refusal::NotDeclared { verb: Verb::Unlock, id: id.clone() }));
            };
            let inputs =
                self.observer.inputs(head, id, &instance.references, &std::collections::BTreeMap::new()).await?;
            let job = declared_job(instance, Use::Head, Arc::clone(&head.content), &inputs, head.consumed(id))?;
            match self.context.target.unlock(&job).await? {
                Some(whose) => {
                    self.context
                        .store
                        .audit(self.context.now(), &who.name(), "unlock", &id.to_string(), &whose)
                        .await?;
                    self.context
                        .queue
                        .enqueue(ReconcileRequest::Merges(id.environment.clone()), Reason::Command(Verb::Unlock));
                    released.push(Answer::Unlocked(id.clone(), whose).to_string());
                }
                None => free.push(id.clone()),
            }
        }
        if released.is_empty() {
            return Err(Error::Refused(Refusal::NotLocked(free)));
        }
        Ok(released.join(" "))
    }
}
