//! Plans the merge of a pull request into the present base (R6.1, R6.2).

use crate::domain::message::Refusal;
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

fn summary(plan: &Plan) -> String {
    let found = &plan.summary;
    let unknown =
        plan.instances.iter().filter(|instance| instance.digest.is_none() && instance.problem.is_none()).count();
    let counted = [
        (found.update, "to change"),
        (found.create, "to create"),
        (found.replace, "to replace"),
        (found.destroy, "to destroy"),
        (unknown as u64, "known later"),
    ];
    let parts: Vec<String> =
        counted.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    if parts.is_empty() { "nothing to change".into() } else { parts.join(", ") }
}

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
            let (state, message) = if proposal.pushed == pull.head {
                ("success", "the plan stands in the description".into())
            } else {
                match self.remediations.cuts(&pull, &proposal).await? {
                    Err(message) => ("failure", message),
                    Ok(_) => ("success", "what is left of the plan in the description runs".into()),
                }
            };
            self.notifier.set_status(&pull.head, "evenkeel/plan", state, &message).await?;
        } else if let Some(why) = self.not_planned(head, &pull, tracked.replan).await? {
            self.notifier.set_status(&pull.head, "evenkeel/plan", "error", &why).await?;
        } else {
            self.notifier.set_status(&pull.head, "evenkeel/plan", "pending", "planning").await?;
            (tracked.environments, tracked.lacks_approvals) = self.plan_merge(head, &pull).await?;
        }
        // Planning takes a while, and the pull request may have been merged meanwhile: what was tracked since stays.
        let fresh = self.source.tracked(pull.number).await?.map_or(pull, |tracked| tracked.pull);
        *tracked = TrackedPullRequest { pull: fresh, planned: Some(now), replan: false, ..tracked.clone() };
        self.record(tracked).await
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
    async fn not_planned(self: &Arc<Self>, head: &Head, pull: &Pull, asked: bool) -> Result<Option<String>, Error> {
        let forks = head.desired.state_repo.as_ref().map(|repo| repo.forks).unwrap_or_default();
        if pull.fork && forks == Forks::Ignore {
            return Ok(Some("pull requests from forks are not planned (`forks: ignore`)".into()));
        }
        let Some(forge) = self.context.forge.as_ref().filter(|_| !asked) else { return Ok(None) };
        let level = Level::parse(&forge.get_permission(&pull.author).await?);
        Ok((level < Level::Write && forks != Forks::Plan).then(|| {
            format!(
                "@{} may not write here, and planning runs code; a principal with the permission can comment `/plan`",
                pull.author
            )
        }))
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
                let message = format!(
                    "it can't be merged: {} differ on both sides",
                    paths.iter().take(3).cloned().collect::<Vec<_>>().join(", ")
                );
                self.notifier.set_status(&pull.head, "evenkeel/plan", "failure", &message).await?;
                let what = "conflict";
                self.notifier
                    .comment_on(pull.number, what, &comment::conflict(&message, what), Some("plan env=".into()))
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
        lacks: Option<String>,
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
            blocked.push(match merged.desired.problems.len() {
                1 => format!("a problem in the declarations: {first}"),
                n => format!("{n} problems in the declarations; the first: {first}"),
            });
        }
        blocked.extend(unsplit.into_iter().chain(lacks));
        for plan in plans {
            let plan = self.of_pull_head(plan?, &pull.head);
            let notes = validation::plan(&plan, &guards.limits(&plan.environment));
            blocked.extend(notes.iter().filter(|note| note.fatal).map(|note| note.message.clone()));
            blocked.extend(
                plan.instances.iter().filter_map(|i| i.problem.as_ref().map(|why| format!("`{}`: {why}", i.id))),
            );
            lines.push(format!("{}: {}", plan.environment, summary(&plan)));
            self.context
                .store
                .record_plan(&pull_request_subject(pull.number, &plan.environment), &plan, self.context.now())
                .await?;
            self.comment_plan(pull.number, &plan, &notes).await?;
            let context = format!("evenkeel/apply/{}", plan.environment);
            self.notifier.set_status(&pull.head, &context, "pending", "applied after the merge").await?;
            environments.insert(plan.environment.clone());
        }
        lines.extend(self.removed(base, merged).await?);
        match blocked.first() {
            Some(first) => self.notifier.set_status(&pull.head, "evenkeel/plan", "failure", first).await?,
            None if lines.is_empty() => {
                self.notifier.set_status(&pull.head, "evenkeel/plan", "success", "no instance is changed").await?
            }
            None => self.notifier.set_status(&pull.head, "evenkeel/plan", "success", &lines.join("; ")).await?,
        }
        Ok(environments)
    }

    /// What becomes of what a pull request removes, where nothing is destroyed.
    async fn removed(self: &Arc<Self>, base: &Head, merged: &Head) -> Result<Vec<String>, Error> {
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
                Some(new) => lines.push(format!("{id} renamed to {}", new.component)),
                None if goes(id) => {}
                None if merged.desired.complete => orphans.push(id.to_string()),
                None => lines.push(format!("{id} may have been removed: a file can't be read")),
            }
        }
        if !orphans.is_empty() {
            lines.push(format!("{} no longer declared, kept as orphans", orphans.join(", ")));
        }
        Ok(lines)
    }

    /// People know a pull request by its own head, not by the merge that was planned; the digest is the same.
    fn of_pull_head(&self, plan: Plan, head: &Revision) -> Plan {
        Plan { revision: head.clone(), ..plan }
    }
}
