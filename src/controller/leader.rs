//! The lease: one daemon acts on a store at a time, and the next takes over when the holder died or stopped answering (R7.3).
//!
//! *Invariant:* no decision depends on what clocks say. A holder that is not proved dead has to have renewed nothing for
//! the length of a lease while this process watched, so that neither a clock that jumps nor a machine that slept makes two
//! holders. If there are two all the same, the store refuses the writes of the older one.
//! *Race:* a holder that was stopped goes on after another took over: its next write is refused, and it stops.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::context::{Context, Error};
use crate::adapters::{store, supervisor::Who};

/// How often a lease is renewed while it lasts.
const RENEWALS: u32 = 6;

/// How often whoever waits looks whether the lease is free.
const POLL_EVERY: Duration = Duration::from_millis(200);

/// The controller of the lease.
pub struct Leader {
    context: Arc<Context>,
    /// Another daemon has taken over; never reset.
    fenced: AtomicBool,
}

impl Leader {
    pub(crate) fn new(context: Arc<Context>) -> Arc<Self> {
        Arc::new(Self { context, fenced: AtomicBool::new(false) })
    }

    /// Takes the lease of whoever had it, who is dead.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn take_lease(&self) -> Result<(), Error> {
        let until = self.lease_until();
        self.context.store.take(&self.context.settings.holder, self.context.now(), until, true).await?;
        // Only now nobody else works with what lies there.
        self.context.target.take_over().await;
        Ok(())
    }

    /// Waits until the lease is this daemon's, or it is asked to stop; answers whether it is.
    ///
    /// # Errors
    /// When the store can't be read or written.
    pub async fn wait_for_lease(&self, mut holder_is_dead: impl FnMut() -> bool) -> Result<bool, Error> {
        let mut watched = None;
        let mut said = false;
        while !self.context.stopping() {
            let lease = self.context.store.lease().await?;
            // Whoever has the folder's lock knows that nobody else has it, and not that the holder never took over without.
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
            if !said {
                tracing::info!(
                    kind = "lease-waits",
                    holder = lease.holder,
                    "another daemon has the lease; waiting until it ends"
                );
                said = true;
            }
            watched = Some((lease, since));
            tokio::select! {
                () = tokio::time::sleep(POLL_EVERY) => {}
                () = self.context.stopped() => {}
            }
        }
        Ok(false)
    }

    /// Renews the lease for as long as it is this daemon's.
    pub(crate) async fn renew(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(self.context.settings.lease / RENEWALS);
        loop {
            ticks.tick().await;
            match self.context.store.renew(self.lease_until()).await {
                Ok(()) => {}
                Err(error) => self.check(&Error::Store(error)),
            }
        }
    }

    /// Stops where an error says that another daemon has taken over.
    pub(crate) fn check(&self, error: &Error) {
        if let Error::Store(store::Error::Fenced { .. }) = error
            && !self.fenced.swap(true, Ordering::Relaxed)
        {
            tracing::error!(
                kind = "lease-lost",
                "another daemon took the lease, so this one stops; the store refuses its writes"
            );
            self.context.stop();
        }
    }

    /// Whether another daemon has taken over.
    pub fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Relaxed)
    }

    fn lease_until(&self) -> chrono::DateTime<chrono::Utc> {
        self.context.now() + chrono::Duration::from_std(self.context.settings.lease).unwrap_or_default()
    }
}
