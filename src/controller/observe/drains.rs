//! Which clusters are being drained for another instance: one cluster for one instance at a time.
//!
//! The nodes of a cluster leave one after the other. A cluster that is being drained is changed by the run of the other
//! instance, so that its drift is not checked meanwhile.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::model::InstanceId;

/// The drains in progress.
#[derive(Default)]
pub(super) struct Drains {
    /// By the cluster: the instance whose host is about to be removed. A cluster is drained for one instance at a time.
    by_cluster: Mutex<BTreeMap<InstanceId, InstanceId>>,
    ended: Notify,
}

/// A drain in progress; dropping it ends the drain.
pub(crate) struct DrainInProgress {
    drains: Arc<Drains>,
    cluster: InstanceId,
}

impl Drains {
    /// Waits until no other instance drains a cluster, and begins to drain it.
    pub(super) async fn begin(self: &Arc<Self>, cluster: &InstanceId, of: &InstanceId) -> DrainInProgress {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            {
                let mut by_cluster = self.by_cluster.lock();
                if !by_cluster.contains_key(cluster) {
                    by_cluster.insert(cluster.clone(), of.clone());
                    return DrainInProgress { drains: Arc::clone(self), cluster: cluster.clone() };
                }
            }
            ended.await;
        }
    }

    pub(super) fn is_drained(&self, cluster: &InstanceId) -> bool {
        self.by_cluster.lock().contains_key(cluster)
    }

    /// The clusters that are being drained for an instance.
    pub(super) fn of(&self, id: &InstanceId) -> Vec<InstanceId> {
        let by_cluster = self.by_cluster.lock();
        by_cluster.iter().filter(|(_, of)| *of == id).map(|(cluster, _)| cluster.clone()).collect()
    }
}

impl Drop for DrainInProgress {
    fn drop(&mut self) {
        self.drains.by_cluster.lock().remove(&self.cluster);
        self.drains.ended.notify_waiters();
    }
}
