//! Records which clusters are being drained for another instance.
//!
//! The run of the other instance changes the drained cluster, so that drift checks of the cluster are skipped meanwhile.
//! *Invariant:* a cluster is drained for one instance at a time.
//! *Race:* two instances drain one cluster: the second waits until the drain of the first is dropped.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::model::InstanceId;

/// The drains in progress.
#[derive(Default)]
pub(super) struct Drains {
    /// By cluster: the instance that removes a host of the cluster. A cluster is drained for one instance at a time.
    by_cluster: Mutex<BTreeMap<InstanceId, InstanceId>>,
    ended: Notify,
}

/// A drain in progress; dropping it ends the drain.
pub(crate) struct DrainInProgress {
    drains: Arc<Drains>,
    cluster: InstanceId,
}

impl Drains {
    /// Waits until no drain of a cluster is in progress, and begins a drain for an instance.
    pub(super) async fn begin(self: &Arc<Self>, cluster: &InstanceId, host: &InstanceId) -> DrainInProgress {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            {
                let mut by_cluster = self.by_cluster.lock();
                if !by_cluster.contains_key(cluster) {
                    by_cluster.insert(cluster.clone(), host.clone());
                    return DrainInProgress { drains: Arc::clone(self), cluster: cluster.clone() };
                }
            }
            ended.await;
        }
    }

    pub(super) fn is_drained(&self, cluster: &InstanceId) -> bool {
        self.by_cluster.lock().contains_key(cluster)
    }

    /// Returns the clusters that are being drained for an instance.
    pub(super) fn clusters_of(&self, id: &InstanceId) -> Vec<InstanceId> {
        let by_cluster = self.by_cluster.lock();
        by_cluster.iter().filter(|(_, host)| *host == id).map(|(cluster, _)| cluster.clone()).collect()
    }
}

impl Drop for DrainInProgress {
    fn drop(&mut self) {
        self.drains.by_cluster.lock().remove(&self.cluster);
        self.drains.ended.notify_waiters();
    }
}
