//! Delivers comments and commit statuses to the forge through the outbox (R7.2).
//!
//! *Owns:* the outbox.
//! *Invariant:* a message is stored before it is sent.
//! *Race:* a text is replaced while it is being sent: the newer text stays undelivered and is sent next.

use std::sync::Arc;

use chrono::Duration;

use super::{
    context::Context,
    work_queue::{Reason, ReconcileRequest},
};
use crate::{
    adapters::store::{self, Outgoing},
    domain::message::comment,
    model::{PullNumber, Retry, Revision},
    ports::{Forge, ForgeError},
};

/// The number of messages that are read at once.
const BATCH: u32 = 50;

/// The number of attempts to deliver a message. The delays grow to five minutes, so that the attempts last most of a day.
const ATTEMPTS_MAX: u32 = 200;

async fn deliver(forge: &dyn Forge, outgoing: &Outgoing) -> Result<(), ForgeError> {
    match outgoing {
        Outgoing::Comment { pull, marker, body, outdates } => {
            let id = forge.ensure_comment(*pull, marker, body).await?;
            if let Some(topic) = outdates {
                forge.outdate_comments(*pull, topic, id).await?;
            }
            Ok(())
        }
        Outgoing::Status { revision, context, state, description } => {
            forge.ensure_status(revision, context, state, description).await
        }
    }
}

/// The controller of the outbox.
pub(super) struct Notifier {
    context: Arc<Context>,
}

impl Notifier {
    pub(crate) fn new(context: Arc<Context>) -> Arc<Self> {
        Arc::new(Self { context })
    }

    /// Delivers the due messages.
    ///
    /// # Errors
    /// When the store fails. A failure of the forge is recorded, and the message is sent again later.
    pub(crate) async fn deliver(self: &Arc<Self>) -> Result<(), store::Error> {
        let Some(forge) = self.context.forge.clone() else { return Ok(()) };
        loop {
            let batch = self.context.store.undelivered(self.context.now(), BATCH).await?;
            if batch.is_empty() {
                return Ok(());
            }
            for (id, attempts, outgoing) in batch {
                if self.context.stopping() {
                    return Ok(());
                }
                match deliver(&*forge, &outgoing).await {
                    Ok(()) => self.context.store.said(id, &outgoing, self.context.now()).await?,
                    Err(error) => {
                        let wait = match error.retry {
                            Retry::After(backoff) if attempts < ATTEMPTS_MAX => Some(backoff.wait(attempts)),
                            _ => None,
                        };
                        let at = wait.map(|wait| {
                            self.context.now() + Duration::seconds(i64::try_from(wait.as_seconds()).unwrap_or(300))
                        });
                        let at = at.map(|at| error.not_before.map_or(at, |not_before| at.max(not_before)));
                        tracing::warn!(kind = "forge-write-failed", error = error.to_string(), next = ?at, "a write to the forge failed; it is tried again");
                        self.context
                            .store
                            .mark_undeliverable(id, &outgoing, &error.to_string(), at, self.context.now())
                            .await?;
                    }
                }
            }
        }
    }

    async fn enqueue(self: &Arc<Self>, name: &str, outgoing: &Outgoing) -> Result<(), store::Error> {
        if self.context.forge.is_none() {
            return Ok(());
        }
        self.context.store.say(name, outgoing, self.context.now()).await?;
        self.context.queue.enqueue(ReconcileRequest::Outbox, Reason::MessageQueued);
        Ok(())
    }

    /// Queues a comment on a pull request under a marker. Replaces an earlier comment with the same marker.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn comment_on(
        self: &Arc<Self>,
        pull: PullNumber,
        marker: &str,
        body: &str,
        outdates: Option<String>,
    ) -> Result<(), store::Error> {
        let hidden = comment::marker(marker);
        let body = self.context.redactor.redact(body);
        let body = if body.trim_end().ends_with(&hidden) { body } else { format!("{}\n{hidden}", body.trim_end()) };
        let outgoing = Outgoing::Comment { pull, marker: hidden, body, outdates };
        self.enqueue(&format!("comment/{}/{marker}", pull.0), &outgoing).await
    }

    /// Queues a status of a commit.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn set_status(
        self: &Arc<Self>,
        revision: &Revision,
        context: &str,
        state: &str,
        description: &str,
    ) -> Result<(), store::Error> {
        let description: String = self.context.redactor.redact(description).chars().take(140).collect();
        let outgoing = Outgoing::Status {
            revision: revision.clone(),
            context: context.to_owned(),
            state: state.to_owned(),
            description,
        };
        self.enqueue(&format!("status/{revision}/{context}"), &outgoing).await
    }
}

#[cfg(test)]
mod tests;
