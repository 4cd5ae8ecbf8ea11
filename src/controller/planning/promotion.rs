//! Promotion between environments (R3.5) and first contact (R1.6, R1.7).

use std::{collections::BTreeMap, sync::Arc};

use chrono::{DateTime, Utc};

use crate::{
    controller::{context::Error, planning::Planner, records::Stalled, source::Head},
    domain::declaration::schema::After,
    model::{InstanceId, WaitingOn},
};

impl Planner {
    /// Whether what a target holds was made by somebody else (R1.6), or may have been made by a daemon whose store is
    /// lost (R1.7).
    pub(crate) async fn is_first_contact(&self, id: &InstanceId, holds_anything: bool) -> Result<bool, Error> {
        Ok((holds_anything || self.source.history_lost().await?) && !self.context.store.begun(id).await?)
    }

    /// What has to be applied in an earlier environment first, and stay healthy there (R3.5): the same component, and
    /// those that it depends on, with the digests that they have at this revision. That they once had them is a recorded
    /// fact, which later merges don't undo.
    pub(crate) async fn promotion(self: &Arc<Self>, head: &Head, id: &InstanceId) -> Result<Option<WaitingOn>, Error> {
        self.promotion_with(head, id, &self.stalled().await?).await
    }

    /// The same, by who asks it of many instances.
    pub(crate) async fn promotion_with(
        self: &Arc<Self>,
        head: &Head,
        id: &InstanceId,
        stalled: &BTreeMap<InstanceId, Stalled>,
    ) -> Result<Option<WaitingOn>, Error> {
        let Some(instance) = head.instance(id) else { return Ok(None) };
        let environment = head.desired.environments.get(&id.environment);
        let soak = environment.and_then(|environment| environment.after.as_ref()).map(After::soak).unwrap_or_default();
        let soak = chrono::Duration::from_std(soak).unwrap_or(chrono::Duration::MAX);
        let upstreams = instance.upstreams.iter().filter_map(|upstream| head.instance(upstream));
        for after in upstreams.chain([instance]).filter_map(|instance| instance.after.as_ref()) {
            let waits = Some(WaitingOn::Promotion { instance: after.clone() });
            let Some(digest) = head.instance(after).and_then(|instance| instance.digest) else { return Ok(waits) };
            let spans = self.context.store.had_applied(after, digest).await?;
            let lasted =
                |(since, until): &(DateTime<Utc>, Option<DateTime<Utc>>)| until.unwrap_or(self.context.now()) - since;
            let is_ill = stalled.contains_key(after) && spans.iter().any(|(_, until)| until.is_none());
            if !is_ill && spans.iter().any(|span| lasted(span) >= soak) {
                continue;
            }
            return Ok(match spans.iter().find(|(_, until)| until.is_none()).filter(|_| !is_ill) {
                Some((since, _)) => Some(WaitingOn::Soak { instance: after.clone(), until: *since + soak }),
                None => waits,
            });
        }
        Ok(None)
    }
}
