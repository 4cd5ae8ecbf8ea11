//! Which daemon acts: one at a time on a store, and the next takes over when it is dead or answers no more (R7.3).
//!
//! Decides when a lease is another's. Nothing depends on what clocks say: a holder that is not proved dead has to have
//! renewed nothing for the length of a lease *while this process watched*, so that neither a clock that jumps nor a
//! machine that slept makes two holders; and if there are two, the store refuses the older one's writes.
//! *Race:* a holder that was stopped goes on after another took over: its next write is refused, and it stops.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{Daemon, Error};
use crate::adapters::{store, supervisor::Who};

/// How often a lease is renewed while it lasts.
const RENEWALS: u32 = 6;
/// How often whoever waits looks whether the lease is free.
const LOOK_EVERY: Duration = Duration::from_millis(200);

impl Daemon {
    /// Takes the lease of whoever had it, who is dead.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn take_lease(&self) -> Result<(), Error> {
        let until = self.lease_until();
        self.store().take(&self.settings.holder, self.now(), until, true).await?;
        // Only now nobody else works with what lies there.
        self.hands.target.take_over().await;
        Ok(())
    }

    /// Waits until the lease is this daemon's, or it is asked to stop; answers whether it is.
    ///
    /// # Errors
    /// When the store can't be read or written.
    pub async fn wait_for_lease(&self, mut holder_is_dead: impl FnMut() -> bool) -> Result<bool, Error> {
        let mut watched = None;
        let mut said = false;
        while !self.stopping() {
            let lease = self.store().lease().await?;
            // Whoever has the folder's lock knows that nobody else has it, and not that the holder never took over without.
            let mut is_free = |lease: &store::Lease| !Who::names_living(&lease.holder) && holder_is_dead();
            let Some(lease) = lease.filter(|lease| !is_free(lease)) else {
                self.take_lease().await?;
                return Ok(true);
            };
            let since = match watched.take() {
                Some((seen, since)) if seen == lease => since,
                _ => Instant::now(),
            };
            if since.elapsed() >= self.settings.lease {
                tracing::warn!(holder = lease.holder, "took over from a daemon that renews its lease no more");
                self.take_lease().await?;
                return Ok(true);
            }
            if !said {
                tracing::info!(holder = lease.holder, "another daemon has the lease; waiting until it ends");
                said = true;
            }
            watched = Some((lease, since));
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.stop.cancelled() => {}
            }
        }
        Ok(false)
    }

    /// Renews the lease for as long as it is this daemon's.
    pub(super) async fn keep_lease(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(self.settings.lease / RENEWALS);
        loop {
            ticks.tick().await;
            match self.store().renew(self.lease_until()).await {
                Ok(()) => {}
                Err(error) => self.heed(&Error::Store(error)),
            }
        }
    }

    /// Stops where an error says that another daemon has taken over.
    pub(super) fn heed(&self, error: &Error) {
        if let Error::Store(store::Error::Fenced { .. }) = error
            && !self.fenced.swap(true, Ordering::Relaxed)
        {
            tracing::error!(
                "another daemon has taken over, so this one stops; nothing of what it does is recorded any more"
            );
            self.stop();
        }
    }

    /// Whether another daemon has taken over.
    pub fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Relaxed)
    }

    fn lease_until(&self) -> chrono::DateTime<chrono::Utc> {
        self.now() + chrono::Duration::from_std(self.settings.lease).unwrap_or_default()
    }
}
