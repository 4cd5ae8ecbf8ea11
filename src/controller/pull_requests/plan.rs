//! Plans the merge of a pull request into the present base (R6.1, R6.2).

use crate::domain::authorization::MissingApprovals;
use crate::domain::message::Refusal;
use crate::domain::message::plan_status::{Blocked, PlanLine, PlanStatus};
use crate::domain::plan::InstancePlan;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    controller::{
        authorization::changed_paths,
        context::Error,
        planning::Scope,
        pull_requests::PullRequests,
        records::{Proposal, TrackedPullRequest, pull_request_subject},
        source::Head,
    },
    domain::{
        authorization::Level,
        declaration::schema::{Forks, OnDelete},
        message::comment,
        plan::{Plan, validation},
    },
    model::{EnvironmentName, InstanceId, Revision},
    ports::{Merged, Pull, Use},
};

impl PullRequests {
    pub(crate) async fn plan_pull(
        self: &Arc<Self>,
        head: &Arc<Head>,
        tracked: &mut TrackedPullRequest,
    ) -> Result<(), Error> {
        let pull = tracked.pull.clone();
        let now = (pull.head.clone(), head.revision.clone());
        if (tracked.planned.as_ref() == Some(&now) && !tracked.replan && !tracked.lacks_approvals) || pull.draft {
            return Ok(());
        }
        let proposal = self.remediations.proposal_of(pull.number).await?.filter(|proposal| !proposal.adopts);
        let proposal = match proposal {
            Some(proposal) if self.changes_more(head, &pull, &proposal).await? => None,
            proposal => proposal,
        };
        if let Some(proposal) = proposal {
            // The description of one with nobody else's commits is its plan.
            let status = if proposal.pushed == pull.head {
                PlanStatus::InDescription
            } else {
                match self.remediations.cuts(&pull, &proposal).await? {
                    Err(reason) => PlanStatus::Unusable(reason),
                    Ok(_) => PlanStatus::RestOfDescription,
                }
            };
            self.set_plan_status(&pull.head, &status).await?;
        } else if let Some(status) = self.not_planned(head, &pull, tracked.replan).await? {
            self.set_plan_status(&pull.head, &status).await?;
        } else {
            self.set_plan_status(&pull.head, &PlanStatus::Planning).await?;
            (tracked.environments, tracked.lacks_approvals) = self.plan_merge(head, &pull).await?;
        }
        // Planning takes a while, and the pull request may have been merged meanwhile: what was tracked since stays.
        let fresh = self.source.tracked(pull.number).await?.map_or(pull, |tracked| tracked.pull);
        *tracked = TrackedPullRequest { pull: fresh, planned: Some(now), replan: false, ..tracked.clone() };
        self.record(tracked).await
    }

    async fn set_plan_status(&self, head: &Revision, status: &PlanStatus) -> Result<(), Error> {
        self.notifier.set_status(head, "evenkeel/plan", status.state(), &status.to_string()).await
    }

    /// Whether somebody put more on the branch of a proposal than its remediation: then it is planned like any other.
    async fn changes_more(self: &Arc<Self>, base: &Head, pull: &Pull, proposal: &Proposal) -> Result<bool, Error> {
        if proposal.pushed == pull.head && !proposal.shared {
            return Ok(false);
        }
        self.source.use_git_token().await?;
        let fetched = self.context.repository.fetch(&format!("refs/pull/{}/head", pull.number.0)).await?;
        if fetched.as_ref() != Some(&pull.head) {
            return Err(Error::Refused(Refusal::PullRequestMoved(pull.number)));
        }
        let Merged::Clean(merged) = self.context.repository.merge(&base.revision, &pull.head).await? else {
            return Ok(true);
        };
        let content = self.context.repository.files(&merged).await?;
        let changed = changed_paths(&*base.content, &*content, "")
            .map_err(|error| Error::Refused(Refusal::Unreadable { reason: error.to_string() }))?;
        let own = format!("{}/remediations/", self.context.settings.root);
        Ok(changed.iter().any(|path| !path.starts_with(&own)))
    }

    /// Why a pull request is not planned: planning runs code of whoever wrote it (R3.8).
    async fn not_planned(self: &Arc<Self>, head: &Head, pull: &Pull, asked: bool) -> Result<Option<PlanStatus>, Error> {
        let forks = head.desired.state_repo.as_ref().map(|repo| repo.forks).unwrap_or_default();
        if pull.fork && forks == Forks::Ignore {
            return Ok(Some(PlanStatus::Fork));
        }
        let Some(forge) = self.context.forge.as_ref().filter(|_| !asked) else { return Ok(None) };
        let level = Level::parse(&forge.get_permission(&pull.author).await?);
        Ok((level < Level::Write && forks != Forks::Plan).then(|| PlanStatus::AuthorMayNotWrite(pull.author.clone())))
    }

    /// Plans the merge of a pull request into the present base; answers the environments that it changes, and whether
    /// approvals of protected paths are lacking.
    async fn plan_merge(
        self: &Arc<Self>,
        base: &Arc<Head>,
        pull: &Pull,
    ) -> Result<(BTreeSet<EnvironmentName>, bool), Error> {
        self.source.use_git_token().await?;
        let fetched = self.context.repository.fetch(&format!("refs/pull/{}/head", pull.number.0)).await?;
        if fetched.as_ref() != Some(&pull.head) {
            return Err(Error::Refused(Refusal::PullRequestMoved(pull.number)));
        }
        let merged = match self.context.repository.merge(&base.revision, &pull.head).await? {
            Merged::Clean(merged) => merged,
            Merged::Conflict(paths) => {
                let status = PlanStatus::Conflict(paths);
                self.set_plan_status(&pull.head, &status).await?;
                let what = "conflict";
                self.notifier
                    .comment_on(
                        pull.number,
                        what,
                        &comment::conflict(&status.to_string(), what),
                        Some("plan env=".into()),
                    )
                    .await?;
                return Ok((BTreeSet::new(), false));
            }
        };
        let (desired, content) = self.source.load(&merged).await?;
        let lacks = self.authorization.missing_approvals_of_paths(base, &content, pull).await?;
        let merged = Arc::new(Head { revision: merged, desired, content });
        if !merged.desired.problems.is_empty() {
            // One bad file never hides the others: what can be planned is planned all the same.
            let what = "problems";
            self.notifier
                .comment_on(pull.number, what, &comment::problems(&merged.desired.problems, what), None)
                .await?;
        }
        let mut changed: BTreeMap<EnvironmentName, BTreeSet<InstanceId>> = BTreeMap::new();
        for (id, instance) in &merged.desired.instances {
            if instance.problems.is_empty() && base.instance(id).is_none_or(|known| known.digest != instance.digest) {
                changed.entry(id.environment.clone()).or_default().insert(id.clone());
            }
        }
        let lacking = lacks.is_some();
        for (id, record) in
            self.planner.orphans(&merged).await?.into_iter().filter(|(id, _)| base.instance(id).is_some())
        {
            if record.spec.on_delete == OnDelete::Destroy {
                changed.entry(id.environment.clone()).or_default().insert(id);
            }
        }
        Ok((self.plan_changes(base, &merged, pull, changed, lacks).await?, lacking))
    }

    async fn plan_changes(
        self: &Arc<Self>,
        base: &Arc<Head>,
        merged: &Arc<Head>,
        pull: &Pull,
        changed: BTreeMap<EnvironmentName, BTreeSet<InstanceId>>,
        lacks: Option<MissingApprovals>,
    ) -> Result<BTreeSet<EnvironmentName>, Error> {
        // The guards as they would be once this is merged as one commit (R3.4).
        let (guards, unsplit) =
            self.source.guards(base).await?.after(Some(&base.desired), &merged.desired, &merged.revision);
        let scope = |instances: BTreeSet<InstanceId>| Scope {
            instances,
            r#use: Use::Pull(pull.number),
            because: format!("pullRequest/{}", pull.number.0),
            base: Some(base.revision.clone()),
            guards: Some(guards.clone()),
        };
        let plans = futures::future::join_all(changed.into_iter().map(|(environment, instances)| {
            let scope = scope(instances);
            async move { self.planner.plan_environment(&environment, merged, &scope).await.map(|(plan, _)| plan) }
        }))
        .await;
        let (mut lines, mut blocked, mut environments) = (vec![], vec![], BTreeSet::new());
        if let Some(first) = merged.desired.problems.first() {
            blocked.push(Blocked::Problems(merged.desired.problems.len(), first.clone()));
        }
        blocked.extend(unsplit.into_iter().map(Blocked::Guard).chain(lacks.map(Blocked::Approvals)));
        for plan in plans {
            let plan = self.of_pull_head(plan?, &pull.head);
            let notes = validation::plan(&plan, &guards.limits(&plan.environment));
            blocked.extend(notes.iter().filter(|violation| violation.is_fatal()).cloned().map(Blocked::Violation));
            let failed = |i: &InstancePlan| Some(Blocked::Instance(i.id.clone(), i.problem.clone()?));
            blocked.extend(plan.instances.iter().filter_map(failed));
            lines.push(PlanLine::Environment(Box::new(plan.clone())));
            self.context
                .store
                .record_plan(&pull_request_subject(pull.number, &plan.environment), &plan, self.context.now())
                .await?;
            self.comment_plan(pull.number, &plan, notes.into_iter().map(Into::into).collect()).await?;
            let context = format!("evenkeel/apply/{}", plan.environment);
            self.notifier.set_status(&pull.head, &context, "pending", "applied after the merge").await?;
            environments.insert(plan.environment.clone());
        }
        lines.extend(self.removed(base, merged).await?);
        let status = match blocked.into_iter().next() {
            Some(first) => PlanStatus::Blocked(first),
            None => PlanStatus::Planned(lines),
        };
        self.set_plan_status(&pull.head, &status).await?;
        Ok(environments)
    }

    /// What becomes of what a pull request removes, where nothing is destroyed.
    async fn removed(self: &Arc<Self>, base: &Head, merged: &Head) -> Result<Vec<PlanLine>, Error> {
        let renamed: BTreeMap<&InstanceId, &InstanceId> = merged
            .desired
            .instances
            .values()
            .filter_map(|instance| Some((instance.renamed_from.as_ref()?, &instance.id)))
            .collect();
        let (mut orphans, mut lines) = (vec![], vec![]);
        let applied = self.planner.orphans(merged).await?;
        let goes = |id: &InstanceId| applied.get(id).is_some_and(|record| record.spec.on_delete == OnDelete::Destroy);
        for id in base.desired.instances.keys().filter(|id| merged.instance(id).is_none()) {
            match renamed.get(id) {
                Some(new) => lines.push(PlanLine::Renamed(id.clone(), new.component.clone())),
                None if goes(id) => {}
                None if merged.desired.complete => orphans.push(id.clone()),
                None => lines.push(PlanLine::MayBeRemoved(id.clone())),
            }
        }
        if !orphans.is_empty() {
            lines.push(PlanLine::Orphans(orphans));
        }
        Ok(lines)
    }

    /// People know a pull request by its own head, not by the merge that was planned; the digest is the same.
    fn of_pull_head(&self, plan: Plan, head: &Revision) -> Plan {
        Plan { revision: head.clone(), ..plan }
    }
}
