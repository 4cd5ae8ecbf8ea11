//! Writes plan comments on pull requests, and selects the pull request of the head plan (R6.3, R6.6).
//!
//! *Invariant:* the plan of the pending instances is commented on one pull request, the newest merged one that changed them.
//! *Race:* the daemon dies between the record of a plan and its comment: the next head plan finds no comment in the outbox,
//! and writes the comment.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    controller::{
        context::Error,
        pull_requests::PullRequests,
        records::{OWN_BRANCHES, pull_request_subject},
        source::Head,
    },
    domain::{
        declaration::{Desired, schema::Verb},
        message::comment::{self, Concerned},
    },
    model::{EnvironmentName, InstanceId, PullNumber, Revision},
};

/// The number of commits that are searched for the changes of pending instances.
const PENDING_COMMITS_MAX: usize = 50;

impl PullRequests {
    /// Comments the plan of the pending instances on the newest merged pull request that changed them (R6.6), unless its last
    /// plan is the same.
    ///
    /// # Errors
    /// When the repository or the store fails.
    pub(crate) async fn comment_head_plan(
        self: &Arc<Self>,
        head: &Head,
        plan: &crate::domain::plan::Plan,
    ) -> Result<(), Error> {
        let environment: &EnvironmentName = &plan.environment;
        for (number, _) in self.source.merged_pull_requests(head).await? {
            let subject = pull_request_subject(number, environment);
            let Some((shown, _)) = self.context.store.last_plan(&subject, None).await? else {
                // A pull request that could not be planned before its merge gets this plan.
                let Some(mut tracked) = self.source.tracked(number).await?.filter(|tracked| {
                    tracked.environments.is_empty() && !tracked.pull.branch.starts_with(OWN_BRANCHES)
                }) else {
                    continue;
                };
                tracked.environments.insert(environment.clone());
                self.record(&tracked).await?;
                self.context.store.record_plan(&subject, plan, self.context.now()).await?;
                return self.comment_plan(number, plan, vec![]).await;
            };
            if !shown.instances.iter().any(|i| plan.instance(&i.id).is_some()) {
                continue;
            }
            // A recorded plan without a comment in the outbox was interrupted by a crash.
            if shown.digest == plan.digest && self.is_plan_queued(number, plan).await? {
                return Ok(());
            }
            let concerned = self.pending_set(head, environment, plan).await?;
            self.comment_superseded(environment, number, &concerned).await?;
            self.context.store.record_plan(&subject, plan, self.context.now()).await?;
            let note = comment::concerns(&concerned, number);
            return self.comment_plan(number, plan, note.into_iter().collect()).await;
        }
        Ok(())
    }

    /// Returns the pull request with the plan of pending instances: the newest that changed one of them (R6.6).
    ///
    /// # Errors
    /// When the repository or the store fails.
    pub(crate) async fn pull_with_plan(
        self: &Arc<Self>,
        head: &Head,
        environment: &EnvironmentName,
        pending: &BTreeSet<InstanceId>,
    ) -> Result<Option<PullNumber>, Error> {
        for (number, commit) in self.source.merged_pull_requests(head).await? {
            let plan = self.context.store.last_plan(&pull_request_subject(number, environment), None).await?;
            let Some((plan, _)) = plan else { continue };
            for id in pending.iter().filter(|id| plan.instance(id).is_some()) {
                let applied = self.context.store.applied(id).await?;
                let is_applied = match &applied {
                    Some(applied) => self.context.repository.contains(&applied.revision, &commit).await?,
                    None => false,
                };
                if !is_applied {
                    return Ok(Some(number));
                }
            }
        }
        Ok(None)
    }

    /// Returns the unapplied changes of the instances of a plan along the branch: pull requests, and commits without a pull
    /// request. The newest change comes first.
    async fn pending_set(
        self: &Arc<Self>,
        head: &Head,
        environment: &EnvironmentName,
        plan: &crate::domain::plan::Plan,
    ) -> Result<Vec<Concerned>, Error> {
        let merged: BTreeMap<Revision, PullNumber> = self
            .source
            .merged_pull_requests(head)
            .await?
            .into_iter()
            .map(|(number, commit)| (commit, number))
            .collect();
        let ids: Vec<&InstanceId> = plan.instances.iter().map(|instance| &instance.id).collect();
        let applied = self.context.store.applied_in(environment).await?;
        let mut concerned = vec![];
        let commits = self.context.repository.first_parents(None, &head.revision).await?;
        let mut after = Arc::clone(&head.desired);
        for (at, commit) in commits.iter().enumerate().take(PENDING_COMMITS_MAX) {
            let is_applied =
                ids.iter().filter_map(|id| applied.get(*id)).all(|record| record.revision == commit.revision);
            if is_applied && ids.iter().any(|id| applied.contains_key(*id)) {
                break;
            }
            let before = match commits.get(at + 1) {
                Some(parent) => self.source.load(&parent.revision).await?.0,
                None => Arc::default(),
            };
            let digest = |desired: &Desired, id: &InstanceId| desired.instances.get(id).and_then(|i| i.digest);
            if ids.iter().any(|id| digest(&before, id) != digest(&after, id)) {
                let number = merged.get(&commit.revision).copied();
                let shown = match number {
                    Some(number) => {
                        self.context.store.last_plan(&pull_request_subject(number, environment), None).await?.is_some()
                    }
                    None => false,
                };
                concerned.push(Concerned {
                    pull: number,
                    commit: commit.revision.clone(),
                    subject: commit.subject.clone(),
                    shown,
                });
            }
            after = before;
        }
        Ok(concerned)
    }

    /// Comments on older pull requests that a newer plan supersedes their plan.
    async fn comment_superseded(
        self: &Arc<Self>,
        environment: &EnvironmentName,
        newest: PullNumber,
        concerned: &[Concerned],
    ) -> Result<(), Error> {
        for older in
            concerned.iter().filter(|change| change.shown).filter_map(|change| change.pull).filter(|n| *n != newest)
        {
            let marker = format!("superseded env={environment}");
            let message = comment::superseded(environment, newest, &marker);
            self.notifier
                .comment_on(older, &marker, &message, Some(format!("evenkeel:plan env={environment} ")))
                .await?;
        }
        Ok(())
    }

    /// Returns the topic and the marker of the comment of a plan. A plan that equals an earlier plan after another one is a
    /// new comment, and the earlier comment is outdated.
    async fn plan_marker(
        &self,
        number: PullNumber,
        plan: &crate::domain::plan::Plan,
    ) -> Result<(String, String), Error> {
        let destroys = plan.because == comment::DESTROY;
        let topic = format!("{} env={}", if destroys { "destroy" } else { "plan" }, plan.environment);
        let recorded = self.context.store.last_plan(&pull_request_subject(number, &plan.environment), None).await?;
        let since =
            recorded.filter(|(recorded, _)| recorded.digest == plan.digest).map(|(_, at)| at.timestamp_millis());
        let marker = format!("{topic} digest={} since={}", plan.digest, since.unwrap_or_default());
        Ok((topic, marker))
    }

    /// Whether the comment of a recorded plan is in the outbox, delivered or not.
    async fn is_plan_queued(&self, number: PullNumber, plan: &crate::domain::plan::Plan) -> Result<bool, Error> {
        let (_, marker) = self.plan_marker(number, plan).await?;
        Ok(self.context.store.is_in_outbox(&format!("comment/{}/{marker}", number.0)).await?)
    }

    /// Comments a plan on a pull request. A plan with another digest is a new comment, and the old comment is outdated (R6.3).
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn comment_plan(
        self: &Arc<Self>,
        number: PullNumber,
        plan: &crate::domain::plan::Plan,
        notes: Vec<comment::Note>,
    ) -> Result<(), Error> {
        let destroys = plan.because == comment::DESTROY;
        let (topic, marker) = self.plan_marker(number, plan).await?;
        let mut notes = notes;
        if let Some(head) = self.source.head().filter(|_| !destroys) {
            let rights = self.authorization.rights(&head, &plan.environment).await?;
            let needs = rights.iter().rev().find_map(|rights| rights.approvals(Verb::Apply)).cloned();
            notes.extend(needs.filter(|_| plan.has_work()).map(|needs| comment::needs(&plan.environment, &needs)));
        }
        let body = comment::plan(plan, &notes, &marker);
        self.notifier.comment_on(number, &marker, &body, Some(format!("evenkeel:{topic} "))).await?;
        Ok(())
    }
}
