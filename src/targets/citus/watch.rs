//! Watches clusters by a fingerprint of the layout, taken every few seconds.
//!
//! A changed fingerprint triggers a complete observation.
//! *Invariant:* a watch only triggers observations and makes no other decision. A fingerprint that can't be taken is
//! retried in a new session.
//! *Race:* an instance is forgotten during a query. The task of the watch is aborted.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;
use secrecy::ExposeSecret;
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
};

use super::{
    access::{Login, Session},
    observe,
};
use crate::model::{InstanceId, Redactor};

/// The interval between fingerprints.
const EVERY: Duration = Duration::from_secs(5);

/// The watches by instance, and their changes.
pub(super) struct Watches {
    running: Mutex<HashMap<InstanceId, (String, JoinHandle<()>)>>,
    sender: UnboundedSender<InstanceId>,
    changes: tokio::sync::Mutex<UnboundedReceiver<InstanceId>>,
}

impl Default for Watches {
    fn default() -> Self {
        let (sender, changes) = unbounded_channel();
        Self { running: Mutex::default(), sender, changes: tokio::sync::Mutex::new(changes) }
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        for (_, (_, task)) in self.running.lock().drain() {
            task.abort();
        }
    }
}

impl Watches {
    /// Watches a cluster for an instance, unless a watch with this login exists.
    pub(super) fn watch(&self, id: &InstanceId, login: Login, redactor: &Redactor) {
        let mut running = self.running.lock();
        let who = login.url.expose_secret().to_owned();
        if running.get(id).is_some_and(|(known, task)| *known == who && !task.is_finished()) {
            return;
        }
        let (sender, id_for_task, redactor) = (self.sender.clone(), id.clone(), redactor.clone());
        let task = tokio::spawn(async move {
            let mut known: Option<String> = None;
            loop {
                if let Ok(session) = Session::open(&login, "evenkeel watch", &redactor).await {
                    while !session.is_closed() {
                        let Ok(fingerprint) = observe::fingerprint(&session).await else { break };
                        if known.replace(fingerprint.clone()).is_some_and(|known| known != fingerprint)
                            && sender.send(id_for_task.clone()).is_err()
                        {
                            return;
                        }
                        tokio::time::sleep(EVERY).await;
                    }
                }
                tokio::time::sleep(EVERY).await;
            }
        });
        if let Some((_, before)) = running.insert(id.clone(), (who, task)) {
            before.abort();
        }
    }

    /// Waits for an instance that may have changed.
    pub(super) async fn changed(&self) -> InstanceId {
        match self.changes.lock().await.recv().await {
            Some(id) => id,
            None => std::future::pending().await,
        }
    }

    /// Ends the watch of an instance.
    pub(super) fn forget(&self, id: &InstanceId) {
        if let Some((_, task)) = self.running.lock().remove(id) {
            task.abort();
        }
    }
}
