//! At start: what was under way goes on (R7.1).
//!
//! Every `started` without its `finished` is looked at again and becomes done, redo or stalled; every open run is
//! driven on. Nothing is assumed from what the store says about the world.

use std::sync::Arc;

use super::{Daemon, Error, Wake};
use crate::journal::Status;

impl Daemon {
    /// Takes up the runs that did not end.
    pub(super) async fn recover(self: &Arc<Self>) -> Result<(), Error> {
        self.store().unlock_all().await?;
        for mut run in self.store().open_runs().await? {
            let begun: Vec<_> = run.instances.iter().filter(|(_, i)| matches!(i.status, Status::Running | Status::Effected)).map(|(id, _)| id.clone()).collect();
            for id in begun {
                tracing::warn!(run = run.id.0, instance = %id, "was under way when the daemon stopped; looking at it again");
                if let Err(error) = self.take_up(&mut run, &id).await {
                    tracing::error!(run = run.id.0, instance = %id, error = crate::error_chain(&error), "could not be looked at again; it is tried at the next start");
                }
            }
            self.queue.wake(Wake::Run(run.id), "was under way at start");
        }
        Ok(())
    }
}
