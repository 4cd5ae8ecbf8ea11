//! Pull requests: which there are, which moved, and the plan of each (R6.1, R6.2).
//!
//! *Race:* a push while its pull request is planned: the plan is of the older head, and the newer head is planned next;
//! statuses stand on commits, so neither hides the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{
    Daemon, Error, Head, Wake, approvals::changed_paths, decide::pull_subject, planning::Scope, propose::Proposal,
};
use crate::{
    domain::{
        authorization::Level,
        declaration::schema::{Forks, OnDelete},
        message::comment,
        plan::{Plan, validation},
    },
    model::{EnvironmentName, InstanceId, PullNumber, Revision},
    ports::{Merged, Pull, Use},
};

/// A pull request as it was seen last.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Seen {
    /// As the forge describes it.
    pub(super) pull: Pull,
    /// The head and base that were planned last.
    #[serde(default)]
    pub(super) planned: Option<(Revision, Revision)>,
    /// The environments that it changes, as planned last.
    #[serde(default)]
    pub(super) environments: BTreeSet<EnvironmentName>,
    /// Whether somebody asked for a new plan.
    #[serde(default)]
    pub(super) again: bool,
    /// Whether approvals of protected paths are lacking, which may be given without another commit.
    #[serde(default)]
    pub(super) lacks: bool,
    /// When it had last changed when a look at it ended well.
    #[serde(default)]
    pub(super) looked: Option<DateTime<Utc>>,
}

impl Seen {
    fn new(pull: Pull) -> Self {
        Self { pull, planned: None, environments: BTreeSet::new(), again: false, lacks: false, looked: None }
    }
}

/// How old a change has to be until one look at it has seen all of it; clocks of two machines differ a little.
const SETTLED_AFTER: chrono::Duration = chrono::Duration::seconds(5);
/// How long a pull request that is over is looked at again at start.
const LATELY_DAYS: i64 = 7;

/// The branches that we open pull requests from.
pub(super) const OWN_BRANCHES: &str = "evenkeel/";

impl Daemon {
    pub(super) async fn seen(&self, number: PullNumber) -> Result<Option<Seen>, Error> {
        Ok(self.store().get("pull", &number.0.to_string()).await?)
    }

    /// Remembers what was seen. An answer of the forge may be older than what is known: a merge is never taken back.
    pub(super) async fn remember(&self, seen: &Seen) -> Result<(), Error> {
        let _turn = self.remembering.lock().await;
        let known = self.seen(seen.pull.number).await?.map(|known| known.pull).filter(|pull| pull.merged_as.is_some());
        let is_news = known.is_none() && seen.pull.merged_as.is_some();
        let pull = known.filter(|_| seen.pull.merged_as.is_none()).unwrap_or_else(|| seen.pull.clone());
        let seen = Seen { pull, ..seen.clone() };
        self.store().put("pull", &seen.pull.number.0.to_string(), self.now(), &seen).await?;
        // Head may have moved before anybody knew whose word the merge was.
        for environment in self.head().iter().filter(|_| is_news).flat_map(|head| head.desired.environments.keys()) {
            self.queue.wake(Wake::Decide(environment.clone()), "a merge is known");
        }
        Ok(())
    }

    /// Lists pull requests, remembers what changed, and answers the numbers of those that did.
    pub(super) async fn refresh_pulls(self: &Arc<Self>) -> Result<Vec<PullNumber>, Error> {
        let Some(forge) = &self.hands.forge else { return Ok(vec![]) };
        let mut changed = vec![];
        for listed in forge.list_pulls().await? {
            let seen = self.seen(listed.number).await?;
            let known = seen.as_ref().is_some_and(|seen| {
                seen.pull.updated_at == listed.updated_at
                    && seen.pull.head == listed.head
                    && seen.pull.open == listed.open
            });
            if known {
                continue;
            }
            // Only the single answer says who merged it.
            let pull = if listed.merged_as.is_some() { forge.get_pull(listed.number).await? } else { listed };
            changed.push(pull.number);
            let seen = match seen {
                Some(seen) => Seen { pull, ..seen },
                None => Seen::new(pull),
            };
            self.remember(&seen).await?;
        }
        Ok(changed)
    }

    /// Looks at the list, and at each pull request that changed or whose base moved.
    pub(super) async fn look_at_pulls(self: &Arc<Self>) -> Result<(), Error> {
        let mut numbers: BTreeSet<PullNumber> = self.refresh_pulls().await?.into_iter().collect();
        let base = self.head().map(|head| head.revision.clone());
        let all: Vec<(String, Seen)> = self.store().list("pull").await?;
        for (_, seen) in &all {
            let base_moved = seen.pull.open && seen.planned.as_ref().map(|(_, base)| base) != base.as_ref();
            // A look that failed, or was cut off, is made again.
            if base_moved || seen.looked != Some(seen.pull.updated_at) {
                numbers.insert(seen.pull.number);
            }
        }
        for number in numbers {
            self.queue.wake(Wake::Pull(number), "pull request changed");
        }
        Ok(())
    }

    /// At start each pull request that is open or changed lately is looked at: what was said while nobody was there, or
    /// was being read when the daemon died, is read now.
    pub(super) async fn wake_known_pulls(self: &Arc<Self>) -> Result<(), Error> {
        let all: Vec<(String, Seen)> = self.store().list("pull").await?;
        let lately = self.now() - chrono::Duration::days(LATELY_DAYS);
        for (_, seen) in all.iter().filter(|(_, seen)| seen.pull.open || seen.pull.updated_at > lately) {
            self.queue.wake(Wake::Pull(seen.pull.number), "start");
        }
        Ok(())
    }

    /// The pull request that was merged as a commit.
    pub(super) async fn pull_merged_as(&self, commit: &Revision) -> Result<Option<Pull>, Error> {
        let all: Vec<(String, Seen)> = self.store().list("pull").await?;
        Ok(all.into_iter().map(|(_, seen)| seen.pull).find(|pull| pull.merged_as.as_ref() == Some(commit)))
    }

    /// Looks at one pull request: its plan and its comments.
    pub(super) async fn look_at_pull(self: &Arc<Self>, number: PullNumber) -> Result<(), Error> {
        let Some(forge) = self.hands.forge.clone() else { return Ok(()) };
        let pull = forge.get_pull(number).await?;
        let updated_at = pull.updated_at;
        let mut seen = match self.seen(number).await? {
            Some(seen) => Seen { pull, ..seen },
            None => Seen::new(pull),
        };
        self.remember(&seen).await?;
        let Some(head) = self.head() else { return Ok(()) };
        if seen.pull.base != self.settings.branch {
            return self.remember(&Seen { looked: Some(updated_at), ..seen }).await;
        }
        if seen.pull.open {
            self.plan_pull(&head, &mut seen).await?;
        } else {
            self.hands.target.forget_pull(number).await;
            self.proposal_closed(&seen.pull).await?;
        }
        self.read_comments(&head, &seen).await?;
        // A forge counts in seconds: what was said in the second of this look may not have been read.
        let looked = (self.now() - updated_at > SETTLED_AFTER).then_some(updated_at);
        if let Some(now) = self.seen(number).await? {
            self.remember(&Seen { looked, ..now }).await?;
        }
        Ok(())
    }

    async fn plan_pull(self: &Arc<Self>, head: &Arc<Head>, seen: &mut Seen) -> Result<(), Error> {
        let pull = seen.pull.clone();
        let now = (pull.head.clone(), head.revision.clone());
        if (seen.planned.as_ref() == Some(&now) && !seen.again && !seen.lacks) || pull.draft {
            return Ok(());
        }
        let proposal = self.proposal_of(pull.number).await?.filter(|proposal| !proposal.adopts);
        let proposal = match proposal {
            Some(proposal) if self.says_more(head, &pull, &proposal).await? => None,
            proposal => proposal,
        };
        if let Some(proposal) = proposal {
            // The description of one with nobody else's commits is its plan.
            let (state, says) = if proposal.pushed == pull.head {
                ("success", "the plan stands in the description".into())
            } else {
                match self.cuts(&pull, &proposal).await? {
                    Err(says) => ("failure", says),
                    Ok(_) => ("success", "what is left of the plan in the description runs".into()),
                }
            };
            self.say_status(&pull.head, "evenkeel/plan", state, &says).await?;
        } else if let Some(why) = self.not_planned(head, &pull, seen.again).await? {
            self.say_status(&pull.head, "evenkeel/plan", "error", &why).await?;
        } else {
            self.say_status(&pull.head, "evenkeel/plan", "pending", "planning").await?;
            (seen.environments, seen.lacks) = self.plan_merge(head, &pull).await?;
        }
        // Planning takes a while, and the pull request may have been merged meanwhile: what was seen since stays.
        let fresh = self.seen(pull.number).await?.map_or(pull, |seen| seen.pull);
        *seen = Seen { pull: fresh, planned: Some(now), again: false, ..seen.clone() };
        self.remember(seen).await
    }

    /// Whether somebody put more on the branch of a proposal than its remediation: then it is planned like any other.
    async fn says_more(self: &Arc<Self>, base: &Head, pull: &Pull, proposal: &Proposal) -> Result<bool, Error> {
        if proposal.pushed == pull.head && !proposal.shared {
            return Ok(false);
        }
        self.use_git_token().await?;
        let fetched = self.hands.repository.fetch(&format!("refs/pull/{}/head", pull.number.0)).await?;
        if fetched.as_ref() != Some(&pull.head) {
            return Err(Error::Refused(format!("{} moved while it was looked at", pull.number)));
        }
        let Merged::Clean(merged) = self.hands.repository.merge(&base.revision, &pull.head).await? else {
            return Ok(true);
        };
        let content = self.hands.repository.files(&merged).await?;
        let changed =
            changed_paths(&*base.content, &*content, "").map_err(|error| Error::Refused(error.to_string()))?;
        let own = format!("{}/remediations/", self.settings.root);
        Ok(changed.iter().any(|path| !path.starts_with(&own)))
    }

    /// The proposal that a pull request of ours is.
    pub(super) async fn proposal_of(&self, number: PullNumber) -> Result<Option<Proposal>, Error> {
        let known: Vec<(String, Proposal)> = self.store().list("proposal").await?;
        Ok(known.into_iter().map(|(_, proposal)| proposal).find(|proposal| proposal.pull == number))
    }

    /// Why a pull request is not planned: planning runs code of whoever wrote it (R3.8).
    async fn not_planned(self: &Arc<Self>, head: &Head, pull: &Pull, asked: bool) -> Result<Option<String>, Error> {
        let forks = head.desired.state_repo.as_ref().map(|repo| repo.forks).unwrap_or_default();
        if pull.fork && forks == Forks::Ignore {
            return Ok(Some("pull requests from forks are not planned (`forks: ignore`)".into()));
        }
        let Some(forge) = self.hands.forge.as_ref().filter(|_| !asked) else { return Ok(None) };
        let level = Level::parse(&forge.get_permission(&pull.author).await?);
        Ok((level < Level::Write && forks != Forks::Plan).then(|| {
            format!("@{} may not write here, and planning runs code; somebody who may says `/plan`", pull.author)
        }))
    }

    /// Plans the merge of a pull request into the present base; answers the environments that it changes, and whether
    /// approvals of protected paths are lacking.
    async fn plan_merge(
        self: &Arc<Self>,
        base: &Arc<Head>,
        pull: &Pull,
    ) -> Result<(BTreeSet<EnvironmentName>, bool), Error> {
        self.use_git_token().await?;
        let fetched = self.hands.repository.fetch(&format!("refs/pull/{}/head", pull.number.0)).await?;
        if fetched.as_ref() != Some(&pull.head) {
            return Err(Error::Refused(format!("{} moved while it was looked at", pull.number)));
        }
        let merged = match self.hands.repository.merge(&base.revision, &pull.head).await? {
            Merged::Clean(merged) => merged,
            Merged::Conflict(paths) => {
                let says = format!(
                    "it can't be merged: {} differ on both sides",
                    paths.iter().take(3).cloned().collect::<Vec<_>>().join(", ")
                );
                self.say_status(&pull.head, "evenkeel/plan", "failure", &says).await?;
                let what = "conflict";
                self.say_on(pull.number, what, &comment::conflict(&says, what), Some("plan env=".into())).await?;
                return Ok((BTreeSet::new(), false));
            }
        };
        let (desired, content) = self.load(&merged).await?;
        let lacks = self.lacking_for_paths(base, &content, pull).await?;
        let merged = Arc::new(Head { revision: merged, desired, content });
        if !merged.desired.problems.is_empty() {
            // One bad file never hides the others: what can be planned is planned all the same.
            let what = "problems";
            self.say_on(pull.number, what, &comment::problems(&merged.desired.problems, what), None).await?;
        }
        let mut changed: BTreeMap<EnvironmentName, BTreeSet<InstanceId>> = BTreeMap::new();
        for (id, instance) in &merged.desired.instances {
            if instance.problems.is_empty() && base.instance(id).is_none_or(|known| known.digest != instance.digest) {
                changed.entry(id.environment.clone()).or_default().insert(id.clone());
            }
        }
        let lacking = lacks.is_some();
        for (id, record) in self.orphans(&merged).await?.into_iter().filter(|(id, _)| base.instance(id).is_some()) {
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
        let (guards, unsplit) = self.guards(base).await?.after(Some(&base.desired), &merged.desired, &merged.revision);
        let scope = |instances: BTreeSet<InstanceId>| Scope {
            instances,
            r#use: Use::Pull(pull.number),
            because: format!("pullRequest/{}", pull.number.0),
            base: Some(base.revision.clone()),
            guards: Some(guards.clone()),
        };
        let plans = futures::future::join_all(changed.into_iter().map(|(environment, instances)| {
            let scope = scope(instances);
            async move { self.plan_environment(&environment, merged, &scope).await.map(|(plan, _)| plan) }
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
            blocked.extend(notes.iter().filter(|note| note.fatal).map(|note| note.says.clone()));
            blocked.extend(
                plan.instances.iter().filter_map(|i| i.problem.as_ref().map(|why| format!("`{}`: {why}", i.id))),
            );
            lines.push(format!("{}: {}", plan.environment, summary(&plan)));
            self.store().keep_plan(&pull_subject(pull.number, &plan.environment), &plan, self.now()).await?;
            self.say_plan(pull.number, &plan, &notes).await?;
            let context = format!("evenkeel/apply/{}", plan.environment);
            self.say_status(&pull.head, &context, "pending", "applied after the merge").await?;
            environments.insert(plan.environment.clone());
        }
        lines.extend(self.removed(base, merged).await?);
        match blocked.first() {
            Some(first) => self.say_status(&pull.head, "evenkeel/plan", "failure", first).await?,
            None if lines.is_empty() => {
                self.say_status(&pull.head, "evenkeel/plan", "success", "no instance is changed").await?
            }
            None => self.say_status(&pull.head, "evenkeel/plan", "success", &lines.join("; ")).await?,
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
        let applied = self.orphans(merged).await?;
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
