//! Reads the recorded pull requests that were merged along the branch.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    controller::{
        records::{TrackedPullRequest, pull_request_subject},
        source::{Head, Source, error::Error},
    },
    model::{InstanceId, PullNumber, Revision},
    ports::Pull,
};

impl Source {
    /// Returns the merged pull requests along the branch with their merge commits, newest first.
    ///
    /// # Errors
    /// When the store or the repository can't be read.
    pub(crate) async fn merged_pull_requests(&self, head: &Head) -> Result<Vec<(PullNumber, Revision)>, Error> {
        let tracked: Vec<(PullNumber, TrackedPullRequest)> =
            self.context.store.collection::<TrackedPullRequest>().all().await?;
        let commits = self.context.repository.first_parents(None, &head.revision).await?;
        let at = |revision: &Revision| commits.iter().position(|commit| commit.revision == *revision);
        let mut merged: Vec<(usize, PullNumber, Revision)> = tracked
            .iter()
            .filter_map(|(_, tracked)| {
                let revision = tracked.pull.merged_as.clone()?;
                Some((at(&revision)?, tracked.pull.number, revision))
            })
            .collect();
        merged.sort();
        Ok(merged.into_iter().map(|(_, number, revision)| (number, revision)).collect())
    }

    /// Returns the pull request that was merged as a commit.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(crate) async fn pull_request_merged_as(&self, commit: &Revision) -> Result<Option<Pull>, Error> {
        let all: Vec<(PullNumber, TrackedPullRequest)> =
            self.context.store.collection::<TrackedPullRequest>().all().await?;
        Ok(all.into_iter().map(|(_, tracked)| tracked.pull).find(|pull| pull.merged_as.as_ref() == Some(commit)))
    }

    /// Whether an instance has the same digest at head as at a commit.
    ///
    /// # Errors
    /// When the repository can't be read.
    pub(crate) async fn is_unchanged_since(
        self: &Arc<Self>,
        head: &Head,
        id: &InstanceId,
        commit: &Revision,
    ) -> Result<bool, Error> {
        let (at_commit, _) = self.load(commit).await?;
        let digest = |instance: &Arc<crate::domain::declaration::Instance>| instance.digest;
        Ok(at_commit.instances.get(id).and_then(digest) == head.instance(id).and_then(digest))
    }

    /// Returns the record of a pull request.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(crate) async fn tracked(&self, number: PullNumber) -> Result<Option<TrackedPullRequest>, Error> {
        Ok(self.context.store.collection::<TrackedPullRequest>().get(&number).await?)
    }

    /// Returns the instances that a pull request changes, by its last plans.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(crate) async fn changed_by(&self, tracked: &TrackedPullRequest) -> Result<BTreeSet<InstanceId>, Error> {
        let mut changed = BTreeSet::new();
        for environment in &tracked.environments {
            if let Some((plan, _)) =
                self.context.store.last_plan(&pull_request_subject(tracked.pull.number, environment), None).await?
            {
                changed.extend(plan.instances.into_iter().map(|instance| instance.id));
            }
        }
        Ok(changed)
    }
}
