//! How many looks and effects go on at once, so that what hangs or takes long does not keep the others waiting.
//!
//! Decides who goes next, and nothing about what is done. There are two lanes of one width: what took longer than usual
//! the last time goes in the slow one. Whoever takes too long in the fast lane leaves it, so that a first hang costs the
//! others that long at most. *Invariant:* everything is bounded: when too many have left the fast lane and go on, the
//! next ones stay in it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
    time::Instant,
};

use crate::model::InstanceId;

/// How many times the width of a lane may go on beside it.
const BESIDE: usize = 4;

/// The lanes. Clones are the same ones.
#[derive(Clone)]
pub struct ConcurrencyLimit {
    fast: Arc<Semaphore>,
    slow: Arc<Semaphore>,
    beside: Arc<Semaphore>,
    /// The jobs that took long the last time.
    known: Arc<Mutex<BTreeSet<InstanceId>>>,
    long: Duration,
}

/// A place in a lane, for as long as it lives.
pub struct Slot {
    lanes: ConcurrencyLimit,
    id: InstanceId,
    since: Instant,
    watch: JoinHandle<()>,
}

impl ConcurrencyLimit {
    /// Lanes of a width; what takes longer than `long` is slow.
    pub fn new(width: usize, long: Duration) -> Self {
        let lane = |width: usize| Arc::new(Semaphore::new(width));
        let width = width.max(1);
        Self { fast: lane(width), slow: lane(width), beside: lane(width * BESIDE), known: Arc::default(), long }
    }

    fn known(&self) -> parking_lot::MutexGuard<'_, BTreeSet<InstanceId>> {
        self.known.lock()
    }

    /// Waits for a place; nothing where the lanes are closed, which they never are.
    pub async fn take(&self, id: &InstanceId) -> Option<Slot> {
        let is_slow = self.known().contains(id);
        let lane = if is_slow { &self.slow } else { &self.fast };
        let permit = Arc::clone(lane).acquire_owned().await.ok()?;
        let watch = tokio::spawn(self.clone().watch(id.clone(), permit, is_slow));
        Some(Slot { lanes: self.clone(), id: id.clone(), since: Instant::now(), watch })
    }

    /// Holds a place until its owner takes too long, and from then on another one, which is nobody's way.
    async fn watch(self, id: InstanceId, permit: OwnedSemaphorePermit, is_slow: bool) {
        tokio::time::sleep(self.long).await;
        self.known().insert(id);
        let beside = if is_slow { None } else { Arc::clone(&self.beside).try_acquire_owned().ok() };
        let _held = beside.unwrap_or(permit);
        std::future::pending::<()>().await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.watch.abort();
        if self.since.elapsed() < self.lanes.long {
            self.lanes.known().remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::future::FutureExt;

    use super::*;

    fn id(name: &str) -> InstanceId {
        format!("dev/{name}").parse().unwrap()
    }

    #[tokio::test]
    async fn what_hangs_leaves_the_others_their_way() {
        let lanes = ConcurrencyLimit::new(2, Duration::from_millis(20));
        let hangs = [lanes.take(&id("a")).await.unwrap(), lanes.take(&id("b")).await.unwrap()];
        assert!(lanes.take(&id("c")).now_or_never().is_none(), "a first hang is in the way");
        drop(lanes.take(&id("c")).await.unwrap());
        // From then on they go where they are in nobody's way, for ever.
        drop(hangs);
        let again = [lanes.take(&id("a")).await.unwrap(), lanes.take(&id("b")).await.unwrap()];
        let limit = Duration::from_secs(20);
        let c = tokio::time::timeout(limit, lanes.take(&id("c"))).await.unwrap();
        let d = tokio::time::timeout(limit, lanes.take(&id("d"))).await.unwrap();
        drop((c, d));
        drop(again);
        let lanes = ConcurrencyLimit { long: Duration::from_secs(60), ..lanes };
        drop(lanes.take(&id("a")).await);
        assert!(!lanes.known().contains(&id("a")), "what was quick again is not slow any more");
    }

    #[tokio::test]
    async fn what_goes_on_is_bounded() {
        let lanes = ConcurrencyLimit::new(1, Duration::from_millis(5));
        let mut hangs = vec![];
        for n in 0..=BESIDE {
            hangs.push(lanes.take(&id(&format!("c{n}"))).await.unwrap());
        }
        while !lanes.known().contains(&id(&format!("c{BESIDE}"))) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(lanes.take(&id("last")).now_or_never().is_none(), "there is no room any more");
        hangs.pop();
        lanes.take(&id("last")).await.unwrap();
    }
}
