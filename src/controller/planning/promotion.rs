//! Decides promotion between environments (R3.5) and first contact (R1.6, R1.7).
//!
//! *Invariant:* a later merge does not revoke a promotion: the digests that an environment had are recorded.

use std::{collections::BTreeMap, sync::Arc};

use chrono::{DateTime, Utc};

use crate::{
    controller::{context::Error, planning::Planner, records::Stalled, source::Head},
    domain::declaration::schema::After,
    model::{InstanceId, WaitingOn},
};

impl Planner {
    /// Whether another writer created the objects of a target (R1.6), or a daemon whose store is lost may have created them
    /// (R1.7).
    ///
    /// # Errors
    /// When the store can't be read.
    pub(crate) async fn is_first_contact(&self, id: &InstanceId, holds_anything: bool) -> Result<bool, Error> {
        Ok((holds_anything || self.source.history_lost().await?) && !self.context.store.begun(id).await?)
    }

    /// Returns the instance of an earlier environment that has to be applied and stay healthy first (R3.5): the same
    /// component or one of its upstreams, with its digest at this revision. A recorded digest satisfies the condition, also
    /// after later merges.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(crate) async fn promotion(self: &Arc<Self>, head: &Head, id: &InstanceId) -> Result<Option<WaitingOn>, Error> {
        self.promotion_with(head, id, &self.stalled().await?).await
    }

    /// Like [`Planner::promotion`], for callers with many instances.
    ///
    /// # Errors
    /// When the store can't be read.
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
            let promotion = Some(WaitingOn::Promotion { instance: after.clone() });
            let Some(digest) = head.instance(after).and_then(|instance| instance.digest) else { return Ok(promotion) };
            let spans = self.context.store.had_applied(after, digest).await?;
            let duration =
                |(since, until): &(DateTime<Utc>, Option<DateTime<Utc>>)| until.unwrap_or(self.context.now()) - since;
            let is_unhealthy = stalled.contains_key(after) && spans.iter().any(|(_, until)| until.is_none());
            if !is_unhealthy && spans.iter().any(|span| duration(span) >= soak) {
                continue;
            }
            return Ok(match spans.iter().find(|(_, until)| until.is_none()).filter(|_| !is_unhealthy) {
                Some((since, _)) => Some(WaitingOn::Soak { instance: after.clone(), until: *since + soak }),
                None => promotion,
            });
        }
        Ok(None)
    }
}
