//! Executes runs, instance by instance (R5).
//!
//! *Flow:* wait for upstreams; acquire the run lock; plan under the target's lock; compare the plan with the approved
//! actions; journal `started`; apply; journal `finished`; verify; record the result.
//!
//! *Owns:* the documents of runs, their journal, and the stalled instances.
//!
//! *Invariant:* a run executes only actions that its authorization covers. Every effect is between two journal records. A
//! failure stops the dependents of the failed instance and no other instance. A waiting instance occupies no task. A store
//! that can't be written stops an instance before its effect, because the journal record is written before the effect.
//!
//! *Race:* head moves while a run is in progress: the run keeps its revision. The newer head creates a newer run, which
//! supersedes the instances that still wait (R5.3).

mod admit;
mod cancel;
mod claims;
mod create;
mod drain;
mod drive;
mod driven;
mod execute;
mod filter;
mod finish;
mod merge;
mod prepare;
mod rebalance;
mod record;
mod recover;
mod renames;
mod rollout;
mod upstreams;
mod verify;

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::Notify;

pub(crate) use create::Authorised;
pub(crate) use rebalance::RebalanceAuthorization;

use super::{
    context::{Context, Error},
    leader::Leader,
    notifier::Notifier,
    observe::Observer,
    planning::Planner,
    source::Source,
    work_queue::{Reason, ReconcileRequest},
};
use crate::model::RunId;
use claims::RunClaims;

/// The controller of runs.
pub(super) struct Runs {
    context: Arc<Context>,
    leader: Arc<Leader>,
    notifier: Arc<Notifier>,
    source: Arc<Source>,
    observer: Arc<Observer>,
    planner: Arc<Planner>,
    claims: Arc<RunClaims>,
    /// The runs whose rollouts are checked again within [`rollout::CHECK_EVERY`], so that each is enqueued once.
    rollouts: parking_lot::Mutex<BTreeSet<RunId>>,
    /// Notified when a run changes, because another run may wait for the change.
    changed: Notify,
}

impl Runs {
    pub(crate) fn new(
        context: Arc<Context>,
        leader: Arc<Leader>,
        notifier: Arc<Notifier>,
        source: Arc<Source>,
        observer: Arc<Observer>,
        planner: Arc<Planner>,
    ) -> Arc<Self> {
        Arc::new(Self {
            context,
            leader,
            notifier,
            source,
            observer,
            planner,
            claims: Arc::default(),
            rollouts: parking_lot::Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// Enqueues every open run.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(crate) async fn enqueue_open(&self, reason: Reason) -> Result<(), Error> {
        for run in self.context.store.open_run_ids().await? {
            self.context.queue.enqueue(ReconcileRequest::Run(run), reason);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
