//! Acquires and renews the lease, so that one daemon at a time acts on a store (R7.3).
//!
//! Another daemon acquires the lease when the holder died or does not renew it.
//! *Invariant:* no decision depends on the clocks of two machines. A holder that is not proved dead loses the lease only
//! after this process observed no renewal for the length of a lease, so that neither a clock that jumps nor a machine that
//! slept creates two holders. If two holders exist, the store refuses the writes of the older one.
//! *Race:* a suspended holder resumes after another daemon acquired the lease: its next write is refused, and it stops.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::context::Context;
use crate::adapters::{store, supervisor::Who};

/// The number of renewals within the length of a lease.
const RENEWALS: u32 = 6;

/// The interval at which a waiting daemon checks the lease.
const POLL_EVERY: Duration = Duration::from_millis(200);

/// The controller of the lease.
pub struct Leader {
    context: Arc<Context>,
    /// Whether another daemon acquired the lease; never reset.
    fenced: AtomicBool,
}

impl Leader {
    pub(crate) fn new(context: Arc<Context>) -> Arc<Self> {
        Arc::new(Self { context, fenced: AtomicBool::new(false) })
    }

    /// Acquires the lease of a holder that is dead.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn take_lease(&self) -> Result<(), store::Error> {
        let until = self.lease_until();
        self.context.store.take(&self.context.settings.holder, self.context.now(), until, true).await?;
        // No other daemon uses the work folders from here on.
        self.context.target.take_over().await;
        Ok(())
    }

    /// Waits until this daemon has the lease or is asked to stop. Returns whether it has the lease.
    ///
    /// # Errors
    /// When the store can't be read or written.
    pub async fn wait_for_lease(&self, mut holder_is_dead: impl FnMut() -> bool) -> Result<bool, store::Error> {
        let mut watched = None;
        let mut is_reported = false;
        while !self.context.stopping() {
            let lease = self.context.store.lease().await?;
            // The lock of the folder excludes another owner of the lock, and not a holder without the lock.
            let mut is_free = |lease: &store::Lease| !Who::names_living(&lease.holder) && holder_is_dead();
            let Some(lease) = lease.filter(|lease| !is_free(lease)) else {
                self.take_lease().await?;
                return Ok(true);
            };
            let since = match watched.take() {
                Some((tracked, since)) if tracked == lease => since,
                _ => Instant::now(),
            };
            if since.elapsed() >= self.context.settings.lease {
                tracing::warn!(
                    kind = "lease-taken",
                    holder = lease.holder,
                    "took the lease of a daemon that does not renew it any more"
                );
                self.take_lease().await?;
                return Ok(true);
            }
            if !is_reported {
                tracing::info!(
                    kind = "lease-waits",
                    holder = lease.holder,
                    "another daemon has the lease; waiting until it ends"
                );
                is_reported = true;
            }
            watched = Some((lease, since));
            tokio::select! {
                () = tokio::time::sleep(POLL_EVERY) => {}
                () = self.context.stopped() => {}
            }
        }
        Ok(false)
    }

    /// Renews the lease in an endless loop.
    pub(crate) async fn renew(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(self.context.settings.lease / RENEWALS);
        loop {
            ticks.tick().await;
            match self.context.store.renew(self.lease_until()).await {
                Ok(()) => {}
                Err(error) => self.check(&error),
            }
        }
    }

    /// Stops the daemon where an error reports that another daemon acquired the lease.
    pub(crate) fn check(&self, error: &store::Error) {
        if let store::Error::Fenced { .. } = error
            && !self.fenced.swap(true, Ordering::Relaxed)
        {
            tracing::error!(
                kind = "lease-lost",
                "another daemon took the lease, so this one stops; the store refuses its writes"
            );
            self.context.stop();
        }
    }

    /// Whether another daemon acquired the lease.
    pub fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Relaxed)
    }

    fn lease_until(&self) -> chrono::DateTime<chrono::Utc> {
        self.context.now() + chrono::Duration::from_std(self.context.settings.lease).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
