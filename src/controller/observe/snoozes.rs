//! Snoozed drift (R4.5): recorded, extended, and ended when the observation changes.

use crate::domain::message::run::RunReason;
use std::collections::BTreeMap;

use crate::{
    controller::{context::Error, observe::Observer, records::Snooze},
    domain::plan::Observed,
    model::{Action, InstanceId},
};

impl Observer {
    /// Every no that was said, over or not.
    pub(crate) async fn snoozes(&self) -> Result<BTreeMap<InstanceId, Snooze>, Error> {
        Ok(self.context.store.collection::<Snooze>().all().await?.into_iter().collect())
    }

    /// Remembers a no, beside one that was said before.
    pub(crate) async fn snooze(&self, id: &InstanceId, mut snooze: Snooze) -> Result<(), Error> {
        let now = self.context.now();
        let before: Option<Snooze> = self.context.store.collection::<Snooze>().get(id).await?;
        snooze.actions.extend(before.into_iter().filter(|before| before.until > now).flat_map(|before| before.actions));
        let snooze = &snooze;
        self.context.store.collection::<Snooze>().put(id, now, snooze).await?;
        self.context.store.audit(now, &snooze.by, "snooze", &id.to_string(), &snooze.because).await?;
        tracing::info!(kind = "drift-snoozed", instance = %id, until = %snooze.until, because = snooze.because, "drift snoozed");
        Ok(())
    }

    /// Forgets a no to drift that is not what is observed any more, healed or another one.
    pub(crate) async fn end_snooze(&self, id: &InstanceId, observed: &Observed) -> Result<(), Error> {
        let known: Option<Snooze> = self.context.store.collection::<Snooze>().get(id).await?;
        let Some(mut snooze) = known else { return Ok(()) };
        let (now, before) = (observed.revert_actions(), snooze.actions.len());
        snooze.actions.retain(|digest| now.iter().any(|action| action.digest == *digest));
        if snooze.actions.is_empty() {
            self.context.store.collection::<Snooze>().remove(id).await?;
        } else if snooze.actions.len() < before {
            self.context.store.collection::<Snooze>().put(id, self.context.now(), &snooze).await?;
        }
        Ok(())
    }

    /// Whether actions undo drift that somebody said no to: a merge alone is no authority for that (R3.7).
    pub(crate) async fn reverts_snoozed(
        &self,
        id: &InstanceId,
        actions: &[Action],
    ) -> Result<Option<RunReason>, Error> {
        let (Some(snooze), Some(observed)) = (self.snoozes().await?.remove(id), self.context.store.observed(id).await?)
        else {
            return Ok(None);
        };
        let snoozed = observed.revert.iter().filter(|action| snooze.covers(action, self.context.now()));
        let snoozed: Vec<&str> = snoozed.flat_map(|action| &action.resources).map(|r| r.resource.as_str()).collect();
        let undone =
            actions.iter().flat_map(|action| &action.resources).find(|change| snoozed.contains(&&*change.resource));
        Ok(undone.map(|change| RunReason::RevertsSnoozed {
            resource: change.resource.clone(),
            because: snooze.because.clone(),
        }))
    }
}
