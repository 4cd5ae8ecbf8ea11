//! Tracks and plans pull requests (R6.1, R6.2).
//!
//! *Owns:* the records of pull requests, and the plans that are recorded for them.
//!
//! *Invariant:* a recorded merge is never replaced by an older state of the forge.
//! *Race:* a push arrives while the pull request is planned: the plan belongs to the older head, and the newer head is
//! planned next. A status belongs to a commit, so that both statuses are visible.
//! *Race:* the forge replies with a state that is older than the recorded state: the recorded merge is kept.

mod plan;
mod plan_comment;

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::Mutex;

use super::{
    authorization::Authorization,
    context::{Context, Error},
    notifier::Notifier,
    planning::{HeadPlan, Planner},
    records::{MergedRemediation, OWN_BRANCHES, TrackedPullRequest},
    remediation::Remediations,
    source::{Head, Source},
    work_queue::{Reason, ReconcileRequest},
};
use crate::model::{EnvironmentName, PullNumber, Revision};

/// The minimal age of a change at which one sync has read all of it: the clocks of two machines differ, and a forge has
/// timestamps in seconds.
const SETTLED_AFTER: chrono::Duration = chrono::Duration::seconds(5);
/// The time for which a closed pull request is synced again at start, in days.
const RECENT_DAYS: i64 = 7;

/// A pull request that was synced and planned, and whose comments are read next.
pub(crate) struct SyncedPullRequest {
    pub(crate) head: Arc<Head>,
    pub(crate) tracked: TrackedPullRequest,
    /// The `updated_at` of the forge at the beginning of the sync.
    updated_at: chrono::DateTime<chrono::Utc>,
}

/// The controller of pull requests.
pub(super) struct PullRequests {
    context: Arc<Context>,
    notifier: Arc<Notifier>,
    source: Arc<Source>,
    authorization: Arc<Authorization>,
    planner: Arc<Planner>,
    remediations: Arc<Remediations>,
    /// The head since which the pull requests were listed by this process. `None` before the first list.
    listed_for: Mutex<Option<Revision>>,
    /// Whether this process has synced the pull requests that were open before it started.
    resumed: Mutex<bool>,
}

impl PullRequests {
    pub(crate) fn new(
        context: Arc<Context>,
        notifier: Arc<Notifier>,
        source: Arc<Source>,
        authorization: Arc<Authorization>,
        planner: Arc<Planner>,
        remediations: Arc<Remediations>,
    ) -> Arc<Self> {
        Arc::new(Self {
            context,
            notifier,
            source,
            authorization,
            planner,
            remediations,
            listed_for: Mutex::default(),
            resumed: Mutex::default(),
        })
    }

    /// Records a pull request as the forge described it. A recorded merge is kept.
    ///
    /// # Errors
    /// When the store can't be written.
    pub(crate) async fn record(&self, tracked: &TrackedPullRequest) -> Result<(), Error> {
        let records = self.context.store.collection::<TrackedPullRequest>();
        let (before, after) = records
            .update(&tracked.pull.number, self.context.now(), |stored| {
                let merged = stored.map(|stored| &stored.pull).filter(|pull| pull.merged_as.is_some());
                let pull = merged.filter(|_| tracked.pull.merged_as.is_none()).unwrap_or(&tracked.pull);
                TrackedPullRequest { pull: pull.clone(), ..tracked.clone() }
            })
            .await?;
        let was_merged = before.is_some_and(|before| before.pull.merged_as.is_some());
        if !was_merged && after.pull.merged_as.is_some() {
            // Head may have moved before the merge was recorded, without an authorization.
            for environment in self.source.head().iter().flat_map(|head| head.desired.environments.keys()) {
                self.context.queue.enqueue(ReconcileRequest::Merges(environment.clone()), Reason::MergeRecorded);
            }
        }
        Ok(())
    }

    /// Lists the pull requests and records those that changed. Returns their numbers.
    async fn list(self: &Arc<Self>) -> Result<Vec<PullNumber>, Error> {
        let Some(forge) = &self.context.forge else { return Ok(vec![]) };
        let mut changed = vec![];
        for listed in forge.list_pulls().await? {
            let tracked = self.source.tracked(listed.number).await?;
            let is_known = tracked.as_ref().is_some_and(|tracked| {
                tracked.pull.updated_at == listed.updated_at
                    && tracked.pull.head == listed.head
                    && tracked.pull.open == listed.open
            });
            if is_known {
                continue;
            }
            // The forge returns who merged a pull request only for a single pull request, not in a list.
            let pull = if listed.merged_as.is_some() { forge.get_pull(listed.number).await? } else { listed };
            changed.push(pull.number);
            let tracked = match tracked {
                Some(tracked) => TrackedPullRequest { pull, ..tracked },
                None => TrackedPullRequest::new(pull),
            };
            self.record(&tracked).await?;
        }
        Ok(changed)
    }

    /// Lists the pull requests, and enqueues each that changed, whose base moved, or whose last sync failed.
    ///
    /// # Errors
    /// When the forge or the store fails.
    pub(crate) async fn sync_all(self: &Arc<Self>) -> Result<(), Error> {
        let mut numbers: BTreeSet<PullNumber> = self.list().await?.into_iter().collect();
        let base = self.source.head().map(|head| head.revision.clone());
        let all = self.context.store.collection::<TrackedPullRequest>().all().await?;
        let resumes = base.is_some() && !std::mem::replace(&mut *self.resumed.lock(), base.is_some());
        let recent = self.context.now() - chrono::Duration::days(RECENT_DAYS);
        for (number, tracked) in &all {
            let base_moved = tracked.pull.open && tracked.planned.as_ref().map(|(_, base)| base) != base.as_ref();
            // Comments that were written while no daemon ran, or not handled before a crash, are read at start.
            let resumed = resumes && (tracked.pull.open || tracked.pull.updated_at > recent);
            if base_moved || resumed || tracked.synced != Some(tracked.pull.updated_at) {
                numbers.insert(*number);
            }
        }
        for number in numbers {
            self.context.queue.enqueue(ReconcileRequest::PullRequest(number), Reason::PullRequestChanged);
        }
        Ok(())
    }

    /// Lists the pull requests, unless they were listed since a head was loaded. A merge whose pull request is not recorded
    /// would run without the approved actions of its plan.
    ///
    /// # Errors
    /// When the forge or the store fails.
    pub(crate) async fn ensure_listed(self: &Arc<Self>, head: &Head) -> Result<(), Error> {
        let is_listed = self.listed_for.lock().as_ref() == Some(&head.revision);
        if self.context.forge.is_none() || is_listed {
            return Ok(());
        }
        for number in self.list().await? {
            self.context.queue.enqueue(ReconcileRequest::PullRequest(number), Reason::PullRequestChanged);
        }
        *self.listed_for.lock() = Some(head.revision.clone());
        Ok(())
    }

    /// Syncs one pull request with the forge, and plans it where its head or base moved. Returns `None` where its comments
    /// are not read.
    ///
    /// # Errors
    /// When the forge, the repository or the store fails.
    pub(crate) async fn sync(self: &Arc<Self>, number: PullNumber) -> Result<Option<SyncedPullRequest>, Error> {
        let Some(forge) = self.context.forge.clone() else { return Ok(None) };
        let pull = forge.get_pull(number).await?;
        let updated_at = pull.updated_at;
        let mut tracked = match self.source.tracked(number).await? {
            Some(tracked) => TrackedPullRequest { pull, ..tracked },
            None => TrackedPullRequest::new(pull),
        };
        self.record(&tracked).await?;
        let Some(head) = self.source.head() else { return Ok(None) };
        if tracked.pull.base != self.context.settings.branch {
            tracked.synced = Some(updated_at);
            self.record(&tracked).await?;
            return Ok(None);
        }
        if tracked.pull.open {
            self.plan_pull(&head, &mut tracked).await?;
        } else {
            self.context.target.forget_pull(number).await;
            self.remediations.proposal_closed(&tracked.pull).await?;
        }
        Ok(Some(SyncedPullRequest { head, tracked, updated_at }))
    }

    /// Records that a pull request was synced completely, as the forge described it at the beginning.
    ///
    /// # Errors
    /// When the store can't be written.
    pub(crate) async fn finish_sync(&self, synced: &SyncedPullRequest) -> Result<(), Error> {
        // A change within the second of this sync may not have been read.
        let at = (self.context.now() - synced.updated_at > SETTLED_AFTER).then_some(synced.updated_at);
        match self.source.tracked(synced.tracked.pull.number).await? {
            Some(recorded) => self.record(&TrackedPullRequest { synced: at, ..recorded }).await,
            None => Ok(()),
        }
    }

    /// Plans the head of an environment, and comments the plan on the newest pull request that changed the pending instances
    /// (R6.6).
    ///
    /// # Errors
    /// When the repository or the store fails.
    pub(crate) async fn plan_head(self: &Arc<Self>, environment: &EnvironmentName) -> Result<(), Error> {
        let Some(planned) = self.planner.plan_head(environment).await? else { return Ok(()) };
        let HeadPlan { head, plan, .. } = &planned;
        if plan.has_work() {
            self.comment_head_plan(head, plan).await?;
        }
        self.planner.head_planned(&planned);
        Ok(())
    }

    /// Whether a pull request proposes a remediation, or added one by its merge.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(crate) async fn is_remediation(&self, number: PullNumber) -> Result<bool, Error> {
        let merged = self.context.store.collection::<MergedRemediation>().all().await?;
        let proposed = self.remediations.proposal_of(number).await?.is_some_and(|proposal| !proposal.adopts);
        let is_linked = proposed || merged.iter().any(|(_, merged)| merged.pull == Some(number));
        // A pull request of the daemon with planned environments edits the declarations.
        let is_own = |tracked: &TrackedPullRequest| {
            tracked.pull.branch.starts_with(OWN_BRANCHES) && tracked.environments.is_empty()
        };
        Ok(is_linked || self.source.tracked(number).await?.as_ref().is_some_and(is_own))
    }
}

#[cfg(test)]
mod tests;
