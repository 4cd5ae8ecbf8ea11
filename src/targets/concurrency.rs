//! Limits how many jobs of a target run concurrently, so that slow jobs do not delay the others.
//!
//! Owns the admission of jobs and nothing of their content. There are two semaphores of one width: one for jobs of
//! normal duration, and one for jobs that took longer than usual the last time. A job that exceeds the usual duration
//! gives its permit back, so that a hanging job delays the others once at most.
//! *Invariant:* the number of running jobs is bounded. When too many jobs have given their permit back and still run,
//! further jobs keep theirs.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
    time::Instant,
};

use crate::model::InstanceId;

/// The number of jobs, as a multiple of the width, that may run after giving their permit back.
const OVERFLOW_FACTOR: usize = 4;

/// A concurrency limit. Clones share its state.
#[derive(Clone)]
pub struct ConcurrencyLimit {
    fast: Arc<Semaphore>,
    slow: Arc<Semaphore>,
    overflow: Arc<Semaphore>,
    /// The jobs that took long the last time.
    known: Arc<Mutex<BTreeSet<InstanceId>>>,
    long: Duration,
}

/// The admission of one job; it ends when it is dropped.
pub struct Slot {
    limiter: ConcurrencyLimit,
    id: InstanceId,
    since: Instant,
    watch: JoinHandle<()>,
}

impl ConcurrencyLimit {
    /// Creates a limit of a width. A job that takes longer than `long` is slow.
    pub fn new(width: usize, long: Duration) -> Self {
        let semaphore = |width: usize| Arc::new(Semaphore::new(width));
        let width = width.max(1);
        Self {
            fast: semaphore(width),
            slow: semaphore(width),
            overflow: semaphore(width * OVERFLOW_FACTOR),
            known: Arc::default(),
            long,
        }
    }

    fn known(&self) -> parking_lot::MutexGuard<'_, BTreeSet<InstanceId>> {
        self.known.lock()
    }

    /// Waits for admission; `None` if the limit is closed, which never happens.
    pub async fn take(&self, id: &InstanceId) -> Option<Slot> {
        let is_slow = self.known().contains(id);
        let semaphore = if is_slow { &self.slow } else { &self.fast };
        let permit = Arc::clone(semaphore).acquire_owned().await.ok()?;
        let watch = tokio::spawn(self.clone().watch(id.clone(), permit, is_slow));
        Some(Slot { limiter: self.clone(), id: id.clone(), since: Instant::now(), watch })
    }

    /// Holds a permit until the job ends or takes too long; a slow job then takes a permit that delays no other job.
    async fn watch(self, id: InstanceId, permit: OwnedSemaphorePermit, is_slow: bool) {
        tokio::time::sleep(self.long).await;
        self.known().insert(id);
        let overflow = if is_slow { None } else { Arc::clone(&self.overflow).try_acquire_owned().ok() };
        let _permit = overflow.unwrap_or(permit);
        std::future::pending::<()>().await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.watch.abort();
        if self.since.elapsed() < self.limiter.long {
            self.limiter.known().remove(&self.id);
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
        let limiter = ConcurrencyLimit::new(2, Duration::from_millis(20));
        let hangs = [limiter.take(&id("a")).await.unwrap(), limiter.take(&id("b")).await.unwrap()];
        assert!(limiter.take(&id("c")).now_or_never().is_none(), "a first hang is in the way");
        drop(limiter.take(&id("c")).await.unwrap());
        // From then on slow jobs never delay the others.
        drop(hangs);
        let again = [limiter.take(&id("a")).await.unwrap(), limiter.take(&id("b")).await.unwrap()];
        let limit = Duration::from_secs(20);
        let c = tokio::time::timeout(limit, limiter.take(&id("c"))).await.unwrap();
        let d = tokio::time::timeout(limit, limiter.take(&id("d"))).await.unwrap();
        drop((c, d));
        drop(again);
        let limiter = ConcurrencyLimit { long: Duration::from_secs(60), ..limiter };
        drop(limiter.take(&id("a")).await);
        assert!(!limiter.known().contains(&id("a")), "what was quick again is not slow any more");
    }

    #[tokio::test]
    async fn what_goes_on_is_bounded() {
        let limiter = ConcurrencyLimit::new(1, Duration::from_millis(5));
        let mut hangs = vec![];
        for n in 0..=OVERFLOW_FACTOR {
            hangs.push(limiter.take(&id(&format!("c{n}"))).await.unwrap());
        }
        while !limiter.known().contains(&id(&format!("c{OVERFLOW_FACTOR}"))) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(limiter.take(&id("last")).now_or_never().is_none(), "there is no room any more");
        hangs.pop();
        limiter.take(&id("last")).await.unwrap();
    }
}
