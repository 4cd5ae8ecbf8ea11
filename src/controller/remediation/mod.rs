//! Remediations: drift becomes pull requests, one for each root cause, updated in place and closed when it heals (R4.4).
//!
//! *Invariants:* a branch with commits of other people is never overwritten; a proposal that was closed is not opened
//! again until the observation changes (R4.5).
//! *Race:* a person merges while the proposal is updated: the push is refused, because the branch moved or is deleted, and
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
pub(crate) use propose::takes_over;

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

    /// All proposals, by environment and root cause.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(crate) async fn proposals(&self) -> Result<Vec<(String, Proposal)>, Error> {
        Ok(self.context.store.collection::<Proposal>().all().await?)
    }
}
