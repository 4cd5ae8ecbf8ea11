//! Proposes remediations of drift as pull requests, and runs merged remediations (R4.4).
//!
//! Each root cause has one proposal. A proposal is updated in place, and closed when its drift ends.
//! *Owns:* the proposals, the merged remediations, and the capacity requests.
//!
//! *Invariant:* a branch with commits of another author is never overwritten. A proposal that a reviewer closed is not opened
//! again until the observation changes (R4.5).
//! *Race:* a reviewer merges while the proposal is updated: the push is refused, because the branch moved or was deleted, and
//! the next request finds the merge.

mod adopt;
mod automatic_revert;
mod capacity;
mod merged;
mod proposal;
mod propose;
mod publish;
mod withdraw;

use std::sync::Arc;

pub(crate) use merged::remediation_path;
pub(crate) use propose::is_adopted_by_head;

use super::{
    authorization::Authorization,
    context::{Context, Error},
    notifier::Notifier,
    observe::Observer,
    planning::Planner,
    records::Proposal,
    runs::Runs,
    source::Source,
};

/// The controller of remediations.
pub(super) struct Remediations {
    context: Arc<Context>,
    notifier: Arc<Notifier>,
    source: Arc<Source>,
    authorization: Arc<Authorization>,
    observer: Arc<Observer>,
    planner: Arc<Planner>,
    runs: Arc<Runs>,
}

impl Remediations {
    pub(crate) fn new(
        context: Arc<Context>,
        notifier: Arc<Notifier>,
        source: Arc<Source>,
        authorization: Arc<Authorization>,
        observer: Arc<Observer>,
        planner: Arc<Planner>,
        runs: Arc<Runs>,
    ) -> Arc<Self> {
        Arc::new(Self { context, notifier, source, authorization, observer, planner, runs })
    }

    /// Returns all proposals, by environment and root cause.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(crate) async fn proposals(&self) -> Result<Vec<(String, Proposal)>, Error> {
        Ok(self.context.store.collection::<Proposal>().all().await?)
    }
}

#[cfg(test)]
mod tests;
