//! Plans the merge of a pull request into the current base (R6.1, R6.2).
//!
//! *Invariant:* the code of a pull request runs only where its author or a command may run it (R3.8).
//! *Race:* the pull request is merged while it is planned: the record keeps the merge.

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
        authorization::{Level, MissingApprovals},
        declaration::schema::{Forks, OnDelete},
        message::{
            Refusal, comment,
            plan_status::{Blocked, PlanLine, PlanStatus},
        },
        plan::{InstancePlan, Plan, validation},
    },
    model::{EnvironmentName, InstanceId, Revision},
    ports::{Merged, Pull, Use},
};

impl PullRequests {
    /// Plans a pull request, unless its head and base are planned already, and sets its status.
    ///
    /// # Errors
    /// When the forge, the repository or the store fails.
    pub(crate) async fn plan_pull(
        self: &Arc<Self>,
        head: &Arc<Head>,
        tracked: &mut TrackedPullRequest,
    ) -> Result<(), Error> {
        let pull = tracked.pull.clone();
        let current = (pull.head.clone(), head.revision.clone());
        if (tracked.planned.as_ref() == Some(&current) && !tracked.replan && !tracked.lacks_approvals) || pull.draft {
            return Ok(());
        }
        let proposal = self.remediations.proposal_of(pull.number).await?.filter(|proposal| !proposal.adopts);
        let proposal = match proposal {
            Some(proposal) if self.changes_other_files(head, &pull, &proposal).await? => None,
            proposal => proposal,
        };
        if let Some(proposal) = proposal {
            // The description of a proposal without commits of another author is its plan.
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
        // The pull request may have been merged while it was planned: the recorded description is newer.
        let recorded = self.source.tracked(pull.number).await?.map_or(pull, |tracked| tracked.pull);
        *tracked = TrackedPullRequest { pull: recorded, planned: Some(current), replan: false, ..tracked.clone() };
        self.record(tracked).await
    }

    async fn set_plan_status(&self, head: &Revision, status: &PlanStatus) -> Result<(), Error> {
        self.notifier.set_status(head, "evenkeel/plan", status.state(), &status.to_string()).await?;
        Ok(())
    }

    /// Whether the branch of a proposal changes other files than remediations: then it is planned like any pull request.
    async fn changes_other_files(
        self: &Arc<Self>,
        base: &Head,
        pull: &Pull,
        proposal: &Proposal,
    ) -> Result<bool, Error> {
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

    /// Returns the reason why a pull request is not planned: a plan runs code of its author (R3.8).
    async fn not_planned(
        self: &Arc<Self>,
        head: &Head,
        pull: &Pull,
        by_command: bool,
    ) -> Result<Option<PlanStatus>, Error> {
        let forks = head.desired.state_repo.as_ref().map(|repo| repo.forks).unwrap_or_default();
        if pull.fork && forks == Forks::Ignore {
            return Ok(Some(PlanStatus::Fork));
        }
        let Some(forge) = self.context.forge.as_ref().filter(|_| !by_command) else { return Ok(None) };
        let level = Level::parse(&forge.get_permission(&pull.author).await?);
        Ok((level < Level::Write && forks != Forks::Plan).then(|| PlanStatus::AuthorMayNotWrite(pull.author.clone())))
    }

    /// Plans the merge of a pull request into the current base. Returns the environments that it changes, and whether
    /// approvals of protected paths are missing.
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
                let topic = "conflict";
                self.notifier
                    .comment_on(
                        pull.number,
                        topic,
                        &comment::conflict(&status.to_string(), topic),
                        Some("plan env=".into()),
                    )
                    .await?;
                return Ok((BTreeSet::new(), false));
            }
        };
        let (desired, content) = self.source.load(&merged).await?;
        let missing = self.authorization.missing_approvals_of_paths(base, &content, pull).await?;
        let merged = Arc::new(Head { revision: merged, desired, content });
        if !merged.desired.problems.is_empty() {
            // The instances of the other files are planned.
            let topic = "problems";
            self.notifier
                .comment_on(pull.number, topic, &comment::problems(&merged.desired.problems, topic), None)
                .await?;
        }
        let mut changed: BTreeMap<EnvironmentName, BTreeSet<InstanceId>> = BTreeMap::new();
        for (id, instance) in &merged.desired.instances {
            if instance.problems.is_empty()
                && base.instance(id).is_none_or(|declared| declared.digest != instance.digest)
            {
                changed.entry(id.environment.clone()).or_default().insert(id.clone());
            }
        }
        let lacks_approvals = missing.is_some();
        for (id, record) in
            self.planner.orphans(&merged).await?.into_iter().filter(|(id, _)| base.instance(id).is_some())
        {
            if record.spec.on_delete == OnDelete::Destroy {
                changed.entry(id.environment.clone()).or_default().insert(id);
            }
        }
        Ok((self.plan_changes(base, &merged, pull, changed, missing).await?, lacks_approvals))
    }

    async fn plan_changes(
        self: &Arc<Self>,
        base: &Arc<Head>,
        merged: &Arc<Head>,
        pull: &Pull,
        changed: BTreeMap<EnvironmentName, BTreeSet<InstanceId>>,
        missing: Option<MissingApprovals>,
    ) -> Result<BTreeSet<EnvironmentName>, Error> {
        // The guards that would be in force after a merge as one commit (R3.4).
        let (guards, refused_changes) =
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
        blocked.extend(refused_changes.into_iter().map(Blocked::Guard).chain(missing.map(Blocked::Approvals)));
        for plan in plans {
            let plan = self.with_pull_head(plan?, &pull.head);
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

    /// Returns the removed instances that are renamed or orphaned, and not destroyed.
    async fn removed(self: &Arc<Self>, base: &Head, merged: &Head) -> Result<Vec<PlanLine>, Error> {
        let renamed: BTreeMap<&InstanceId, &InstanceId> = merged
            .desired
            .instances
            .values()
            .filter_map(|instance| Some((instance.renamed_from.as_ref()?, &instance.id)))
            .collect();
        let (mut orphans, mut lines) = (vec![], vec![]);
        let applied = self.planner.orphans(merged).await?;
        let is_destroyed =
            |id: &InstanceId| applied.get(id).is_some_and(|record| record.spec.on_delete == OnDelete::Destroy);
        for id in base.desired.instances.keys().filter(|id| merged.instance(id).is_none()) {
            match renamed.get(id) {
                Some(new) => lines.push(PlanLine::Renamed(id.clone(), new.component.clone())),
                None if is_destroyed(id) => {}
                None if merged.desired.complete => orphans.push(id.clone()),
                None => lines.push(PlanLine::MayBeRemoved(id.clone())),
            }
        }
        if !orphans.is_empty() {
            lines.push(PlanLine::Orphans(orphans));
        }
        Ok(lines)
    }

    /// Returns a plan with the head of the pull request as its revision, and not the planned merge. The digest is the same.
    fn with_pull_head(&self, plan: Plan, head: &Revision) -> Plan {
        Plan { revision: head.clone(), ..plan }
    }
}
