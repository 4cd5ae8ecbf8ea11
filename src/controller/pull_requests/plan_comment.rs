//! Plan comments on pull requests, and which pull request carries the pending set (R6.3, R6.6).

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

/// How far back what is pending is looked for.
const PENDING_COMMITS_MAX: usize = 50;

impl PullRequests {
    /// Shows the plan of what waits at head on the newest merged pull request that is part of it (R6.6), unless it shows
    /// the same already.
    pub(crate) async fn show_head_plan(
        self: &Arc<Self>,
        head: &Head,
        plan: &crate::domain::plan::Plan,
    ) -> Result<(), Error> {
        let environment: &EnvironmentName = &plan.environment;
        for (number, _) in self.source.merged_pull_requests(head).await? {
            let subject = pull_request_subject(number, environment);
            let Some((shown, _)) = self.context.store.last_plan(&subject, None).await? else {
                // One that could not be planned before it was merged carries the plan now.
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
            // One that was kept and not put into the outbox was cut off in between.
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

    /// The pull request that carries the plan of what is pending: the newest that changed any of it (R6.6).
    pub(crate) async fn carrier(
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
                let is_past = match &applied {
                    Some(applied) => self.context.repository.contains(&applied.revision, &commit).await?,
                    None => false,
                };
                if !is_past {
                    return Ok(Some(number));
                }
            }
        }
        Ok(None)
    }

    /// Everything along the branch that changed what a plan is about and is not applied: pull requests, and commits that
    /// came by none; the newest first.
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
            let is_past = ids.iter().filter_map(|id| applied.get(*id)).all(|record| record.revision == commit.revision);
            if is_past && ids.iter().any(|id| applied.contains_key(*id)) {
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

    /// Says on older pull requests that their plan is part of a newer one's.
    async fn comment_superseded(
        self: &Arc<Self>,
        environment: &EnvironmentName,
        carrier: PullNumber,
        concerned: &[Concerned],
    ) -> Result<(), Error> {
        for older in concerned.iter().filter(|one| one.shown).filter_map(|one| one.pull).filter(|n| *n != carrier) {
            let marker = format!("superseded env={environment}");
            let message = comment::superseded(environment, carrier, &marker);
            self.notifier
                .comment_on(older, &marker, &message, Some(format!("evenkeel:plan env={environment} ")))
                .await?;
        }
        Ok(())
    }

    /// What the comment of a plan is about, and its marker. A plan that is what an earlier one was is a new comment all the
    /// same: the earlier one is folded away.
    async fn plan_marker(
        &self,
        number: PullNumber,
        plan: &crate::domain::plan::Plan,
    ) -> Result<(String, String), Error> {
        let destroys = plan.because == comment::DESTROY;
        let topic = format!("{} env={}", if destroys { "destroy" } else { "plan" }, plan.environment);
        let stood = self.context.store.last_plan(&pull_request_subject(number, &plan.environment), None).await?;
        let since = stood.filter(|(stood, _)| stood.digest == plan.digest).map(|(_, at)| at.timestamp_millis());
        let marker = format!("{topic} digest={} since={}", plan.digest, since.unwrap_or_default());
        Ok((topic, marker))
    }

    /// Whether the comment of a plan that is kept stands in the outbox, said or not.
    async fn is_plan_queued(&self, number: PullNumber, plan: &crate::domain::plan::Plan) -> Result<bool, Error> {
        let (_, marker) = self.plan_marker(number, plan).await?;
        Ok(self.context.store.is_in_outbox(&format!("comment/{}/{marker}", number.0)).await?)
    }

    /// Says a plan on a pull request; a plan with another digest is a new comment, and the old one is folded away (R6.3).
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
        self.notifier.comment_on(number, &marker, &body, Some(format!("evenkeel:{topic} "))).await
    }
}
