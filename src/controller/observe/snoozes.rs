//! Records, extends and ends snoozes of drift (R4.5).
//!
//! *Invariant:* a snooze covers only actions that are observed. A snooze of other actions is removed.
//! *Race:* a snooze is recorded while a check is in progress: the next check removes the actions that are not observed.

use std::collections::BTreeMap;

use crate::{
    controller::{context::Error, observe::Observer, records::Snooze},
    domain::{message::run::RunReason, plan::Observed},
    model::{Action, InstanceId},
};

impl Observer {
    /// Returns all recorded snoozes, including those that have ended.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(crate) async fn snoozes(&self) -> Result<BTreeMap<InstanceId, Snooze>, Error> {
        Ok(self.context.store.collection::<Snooze>().all().await?.into_iter().collect())
    }

    /// Records a snooze, and adds the actions of a snooze that has not ended.
    ///
    /// # Errors
    /// When the store fails.
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

    /// Removes the actions of a snooze that are no longer observed, because the drift ended or changed.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn end_snooze(&self, id: &InstanceId, observed: &Observed) -> Result<(), Error> {
        let stored: Option<Snooze> = self.context.store.collection::<Snooze>().get(id).await?;
        let Some(mut snooze) = stored else { return Ok(()) };
        let (current, before) = (observed.revert_actions(), snooze.actions.len());
        snooze.actions.retain(|digest| current.iter().any(|action| action.digest == *digest));
        if snooze.actions.is_empty() {
            self.context.store.collection::<Snooze>().remove(id).await?;
        } else if snooze.actions.len() < before {
            self.context.store.collection::<Snooze>().put(id, self.context.now(), &snooze).await?;
        }
        Ok(())
    }

    /// Returns the reason to wait where actions revert snoozed drift: a merge alone does not authorise the revert (R3.7).
    ///
    /// # Errors
    /// When the store can't be read.
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
        let reverted =
            actions.iter().flat_map(|action| &action.resources).find(|change| snoozed.contains(&&*change.resource));
        Ok(reverted.map(|change| RunReason::RevertsSnoozed {
            resource: change.resource.clone(),
            because: snooze.because.clone(),
        }))
    }
}
