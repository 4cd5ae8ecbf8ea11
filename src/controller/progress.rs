//! What an effect tells while it is in flight: its steps into the journal, how far it is into the run and its comment.
//!
//! *Guarantees:* what was told before the effect ended stands before its end. A step that can't be written stops nothing: the
//! world tells what was done.

use std::sync::{Arc, PoisonError};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::{Daemon, Error, run::Driven};
use crate::{
    domain::journal::{Event, Status},
    model::InstanceId,
    ports::{Progress, Told},
};

/// How far an effect is, is written down at most this often.
const NOW_EVERY: chrono::Duration = chrono::Duration::seconds(5);

impl Daemon {
    /// Where an effect tells what it does, and where that is heard.
    pub(super) fn progress() -> (Progress, UnboundedReceiver<Told>) {
        let (say, heard) = unbounded_channel();
        (Arc::new(move |told| drop(say.send(told))), heard)
    }

    /// Hears what an effect tells until it ends.
    pub(super) async fn hear<T>(
        self: &Arc<Self>,
        driven: &Driven,
        id: &InstanceId,
        doing: impl Future<Output = T>,
        mut told: UnboundedReceiver<Told>,
    ) -> T {
        // Both go on side by side: the effect may be in the middle of a write of its own while its steps are written.
        let (end, mut ended) = tokio::sync::oneshot::channel::<()>();
        let doing = async move {
            let done = doing.await;
            drop(end);
            done
        };
        let hearing = async {
            loop {
                tokio::select! {
                    biased;
                    Some(told) = told.recv() => self.heed_told(driven, id, told).await,
                    _ = &mut ended => break,
                }
            }
            while let Ok(told) = told.try_recv() {
                self.heed_told(driven, id, told).await;
            }
        };
        tokio::join!(doing, hearing).0
    }

    async fn heed_told(self: &Arc<Self>, driven: &Driven, id: &InstanceId, told: Told) {
        let written = match told {
            Told::Step(says) => {
                tracing::info!(instance = %id, line = says, "step");
                self.record(driven, id, Event::Step { says }, None).await.map(drop)
            }
            Told::Now(says) => {
                tracing::info!(instance = %id, line = says, "progress");
                self.tell_now(driven, id, says).await
            }
        };
        if let Err(error) = written {
            tracing::warn!(instance = %id, error = crate::error_chain(&error), "could not write down what is done");
        }
    }

    async fn tell_now(self: &Arc<Self>, driven: &Driven, id: &InstanceId, says: String) -> Result<(), Error> {
        {
            let mut said_at = driven.said_at.lock().unwrap_or_else(PoisonError::into_inner);
            if self.now() - *said_at < NOW_EVERY {
                return Ok(());
            }
            *said_at = self.now();
        }
        let mut run = driven.run.lock().await;
        if let Some(instance) = run.instances.get_mut(id).filter(|instance| instance.status == Status::Running) {
            instance.says = self.hands.redactor.redact(&says);
            self.store().set_run(&run).await?;
            self.say_run(&run).await?;
        }
        Ok(())
    }
}
