//! Checks whether the upstreams of an instance are applied, so that the instance may be prepared.
//!
//! An upstream is compared with head, and not with the revision of the run: a run that was authorised before its upstream
//! changed waits for the change.

use std::{collections::BTreeMap, sync::Arc};

use super::Runs;
use crate::{
    controller::{context::Error, source::Head},
    domain::{
        declaration::Instance,
        journal::Run,
        plan::pending::{is_pending, sources},
    },
    model::InstanceId,
};

impl Runs {
    /// Returns the first upstream of an instance that is pending, stalled, or rolling out; `None` where all are applied.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(super) async fn unfinished_upstream(
        &self,
        head: &Arc<Head>,
        instance: &Instance,
    ) -> Result<Option<InstanceId>, Error> {
        let branch = self.source.head().unwrap_or_else(|| Arc::clone(head));
        let stalled = self.planner.stalled().await?;
        let mut applied = BTreeMap::new();
        for upstream in &instance.upstreams {
            let Some(record) = self.context.store.applied(upstream).await? else { continue };
            for source in sources(upstream, &record.inputs) {
                applied.extend(self.context.store.applied(&source).await?.map(|record| (source, record)));
            }
            applied.insert(upstream.clone(), record);
        }
        let open = self.context.store.open_runs().await?;
        let is_rolling_out = |upstream: &InstanceId| {
            let waits = |run: &Run| {
                run.instances
                    .get(upstream)
                    .is_some_and(|instance| instance.rollout_until.is_some() && !instance.status.ended())
            };
            open.iter().any(waits)
        };
        let is_unfinished = |upstream: &&InstanceId| {
            let declared = branch.instance(upstream);
            is_rolling_out(upstream)
                || stalled.contains_key(*upstream)
                || declared.is_none_or(|declared| !declared.problems.is_empty() || is_pending(declared, &applied))
        };
        Ok(instance.upstreams.iter().find(is_unfinished).cloned())
    }
}
