//! Comments in, answers out; and the same commands from the command line (R6).
//!
//! Decides who may (R3), what a command means where it stands, and which plan it binds to (R6.4). Every refusal is one
//! sentence that says why and what to do, and is never a success (R6.10).
//! *Race:* a comment is delivered twice: it is received once, by its id. *Race:* a command while its pull request is
//! planned: it is refused until the plan stands, because there is nothing yet that it could mean.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Daemon, Error, Head, Wake,
    decide::{Authorised, Merged, Stalled, pull_subject},
    planning::Scope,
    pulls::{OWN_BRANCHES, Seen},
};
use crate::{
    authority::{self, Principal},
    check,
    command::{self, Command},
    desired::{
        Candidate, Selector,
        schema::{Remediation, Verb},
    },
    journal::Approved,
    model::{ComponentName, EnvironmentName, InstanceId, PullNumber, RunId},
    plan::Plan,
    port::{Comment, Use},
    render::comment,
};

/// The shortest beginning of a digest that pins a plan.
const DIGEST_LENGTH_MIN: usize = 6;

impl Daemon {
    /// When the store was made: older comments are history.
    pub(super) async fn birth(&self) -> Result<chrono::DateTime<chrono::Utc>, Error> {
        let bytes = self.store().meta("born", || self.now().to_rfc3339().into_bytes()).await?;
        Ok(String::from_utf8_lossy(&bytes).parse().unwrap_or_else(|_| self.now()))
    }

    /// Reads the comments that were not read yet.
    pub(super) async fn read_comments(self: &Arc<Self>, head: &Arc<Head>, seen: &Seen) -> Result<(), Error> {
        let Some(forge) = &self.hands.forge else { return Ok(()) };
        let own = forge.own_login().await?;
        let birth = self.birth().await?;
        for written in forge.list_comments(seen.pull.number).await? {
            if written.author.eq_ignore_ascii_case(&own) || written.body.contains("<!-- evenkeel:") {
                continue;
            }
            let id = format!("comment/{}", written.id);
            // What was received and not handled was cut off by a crash or an error, and is read again.
            if !self.store().receive(&id, self.now(), &written.author).await? && self.store().is_handled(&id).await? {
                continue;
            }
            self.read_comment(head, seen, &written, birth).await?;
            self.store().handled(&id, self.now()).await?;
        }
        Ok(())
    }

    async fn read_comment(self: &Arc<Self>, head: &Arc<Head>, seen: &Seen, written: &Comment, birth: chrono::DateTime<chrono::Utc>) -> Result<(), Error> {
        let commands = command::parse(&written.body);
        if commands.is_empty() {
            return Ok(());
        }
        if written.created_at < birth {
            if seen.pull.open {
                self.answer(seen, written, "This comment is older than what Evenkeel remembers, so it was not obeyed; say it again if it still holds.").await?;
            }
            return Ok(());
        }
        if written.updated_at > written.created_at {
            return self.answer(seen, written, "This comment was edited before it was read, so it was not obeyed; say it again in a new one.").await;
        }
        let mut answers = vec![];
        for command in commands {
            let says = match command {
                Err(command::Unclear(says)) => says,
                Ok(command) => match self.obey(head, seen, written, &command).await {
                    Ok(says) => says,
                    Err(Error::Refused(says)) => {
                        self.store().audit(self.now(), &format!("user:{}", written.author), "refused", &format!("pull/{}", seen.pull.number.0), &says).await?;
                        says
                    }
                    Err(error) => return Err(error),
                },
            };
            if !says.is_empty() {
                answers.push(says);
            }
        }
        if !answers.is_empty() {
            self.answer(seen, written, &answers.join("\n\n")).await?;
        }
        Ok(())
    }

    async fn answer(self: &Arc<Self>, seen: &Seen, to: &Comment, says: &str) -> Result<(), Error> {
        self.say_on(seen.pull.number, &format!("answer to={}", to.id), &comment::answer(to.id, says), None).await
    }

    async fn obey(self: &Arc<Self>, head: &Arc<Head>, seen: &Seen, written: &Comment, command: &Command) -> Result<String, Error> {
        let who = self.person(head, &written.author).await?;
        match command.verb {
            Verb::Help => {
                let environments: BTreeSet<EnvironmentName> = head.desired.environments.keys().filter(|e| authority::may(head.desired.state_repo.as_deref(), &who, Verb::Help, e)).cloned().collect();
                let all = head.desired.environments.keys().take(usize::from(environments.is_empty())).cloned().collect();
                self.allow(head, &who, Verb::Help, &all)?;
                Ok(command::help())
            }
            Verb::Plan => self.plan_again(head, seen, &who, command).await,
            Verb::Drift => self.drift_now(head, seen, &who, command).await,
            Verb::Apply => self.apply_pull(head, seen, written, &who, command).await,
            other => Err(Error::Refused(format!("`/{}` is not there yet; `/help` lists what there is.", other.word()))),
        }
    }

    fn allow(&self, head: &Head, who: &Principal, verb: Verb, environments: &BTreeSet<EnvironmentName>) -> Result<(), Error> {
        let state_repo = head.desired.state_repo.as_deref();
        match environments.iter().find(|environment| !authority::may(state_repo, who, verb, environment)) {
            Some(environment) => Err(Error::Refused(authority::refusal(state_repo, who, verb, environment))),
            None => Ok(()),
        }
    }

    async fn plan_again(self: &Arc<Self>, head: &Arc<Head>, seen: &Seen, who: &Principal, command: &Command) -> Result<String, Error> {
        let selected = self.select(head, command.selector.as_ref(), &self.changed_by(seen).await?).await?;
        if selected.is_empty() && command.selector.is_some() {
            return Err(Error::Refused(matched_nothing(head, command.selector.as_ref())));
        }
        let mut asked = environments(&selected);
        if command.selector.is_none() && !seen.environments.is_empty() {
            asked.retain(|environment| seen.environments.contains(environment));
        }
        self.allow(head, who, Verb::Plan, &asked)?;
        if !seen.pull.open {
            return Err(Error::Refused("This pull request is over; its plan at head is shown when it changes.".into()));
        }
        if let Some(now) = self.seen(seen.pull.number).await? {
            self.remember(&Seen { again: true, ..now }).await?;
        }
        self.queue.wake(Wake::Pull(seen.pull.number), "/plan");
        Ok("Planning again; a plan with another digest is a new comment, and the same one stays.".into())
    }

    /// What a selector means among the instances of head.
    async fn select(&self, head: &Head, selector: Option<&Selector>, changed: &BTreeSet<InstanceId>) -> Result<BTreeSet<InstanceId>, Error> {
        let observed = self.store().all_observed().await?;
        let mut pending: BTreeSet<InstanceId> = BTreeSet::new();
        for environment in head.desired.environments.keys() {
            pending.extend(self.pending(head, environment).await?);
        }
        let selects = |instance: &crate::desired::Instance| {
            let candidate = Candidate {
                id: &instance.id,
                kind: instance.kind,
                labels: &instance.labels,
                changed: changed.contains(&instance.id),
                drifted: observed.get(&instance.id).is_some_and(|o| !o.drift.is_empty()),
                pending: pending.contains(&instance.id),
            };
            selector.is_none_or(|selector| selector.selects(&candidate))
        };
        Ok(head.desired.instances.values().filter(|instance| selects(instance)).map(|instance| instance.id.clone()).collect())
    }

    async fn drift_now(self: &Arc<Self>, head: &Arc<Head>, seen: &Seen, who: &Principal, command: &Command) -> Result<String, Error> {
        let changed = self.changed_by(seen).await?;
        let mut selected = self.select(head, command.selector.as_ref(), &changed).await?;
        if command.selector.is_none() && !seen.environments.is_empty() {
            selected.retain(|id| seen.environments.contains(&id.environment));
        }
        if selected.is_empty() {
            return Err(Error::Refused(matched_nothing(head, command.selector.as_ref())));
        }
        self.allow(head, who, Verb::Drift, &environments(&selected))?;
        futures::future::join_all(selected.iter().map(|id| self.pass(id))).await;
        let mut rows = vec![];
        for status in self.status().await?.instances.into_iter().filter(|status| selected.contains(&status.id)) {
            rows.push((status.id.clone(), status.verdict, status.says()));
        }
        Ok(comment::drift(&rows))
    }

    /// The instances that a pull request changes, as planned last.
    async fn changed_by(&self, seen: &Seen) -> Result<BTreeSet<InstanceId>, Error> {
        let mut changed = BTreeSet::new();
        for environment in &seen.environments {
            if let Some((plan, _)) = self.store().last_plan(&pull_subject(seen.pull.number, environment), None).await? {
                changed.extend(plan.instances.into_iter().map(|instance| instance.id));
            }
        }
        Ok(changed)
    }

    /// `/apply` on a pull request.
    async fn apply_pull(self: &Arc<Self>, head: &Arc<Head>, seen: &Seen, written: &Comment, who: &Principal, command: &Command) -> Result<String, Error> {
        if self.is_remediation(head, seen.pull.number).await? {
            return self.apply_remediation(head, seen, who).await;
        }
        if seen.pull.open {
            let changed = self.changed_by(seen).await?;
            let meant: BTreeSet<InstanceId> = self.select(head, command.selector.as_ref(), &changed).await?.intersection(&changed).cloned().collect();
            if meant.is_empty() && command.selector.is_some() {
                return Err(Error::Refused(format!("Nothing was applied: {}", matched_nothing(head, command.selector.as_ref()))));
            }
            self.allow(head, who, Verb::Apply, &environments(&meant))?;
            return Err(Error::Refused("Nothing was applied: this pull request is not merged, and what is applied is what is on the branch. Merge it, then say `/apply` again.".into()));
        }
        if seen.pull.merged_as.is_none() {
            return Err(Error::Refused("Nothing was applied: this pull request was closed without being merged.".into()));
        }
        let changed = self.changed_by(seen).await?;
        let mut selected = self.select(head, command.selector.as_ref(), &changed).await?;
        if command.selector.is_none() {
            selected.retain(|id| seen.environments.contains(&id.environment));
        }
        if selected.is_empty() {
            return Err(Error::Refused(matched_nothing(head, command.selector.as_ref())));
        }
        self.allow(head, who, Verb::Apply, &environments(&selected))?;
        let mut started = vec![];
        for environment in environments(&selected) {
            let mut pending: BTreeSet<InstanceId> = self.pending(head, &environment).await?.intersection(&selected).cloned().collect();
            if pending.is_empty() {
                continue;
            }
            self.upstreams_selected(head, &environment, &pending).await?;
            let shown = self.store().last_plan(&pull_subject(seen.pull.number, &environment), Some(written.created_at)).await?;
            let Some((plan, _)) = shown else {
                return Err(Error::Refused(format!("Nothing was applied: no plan of `{environment}` was posted here before this comment. It is being made; say `/apply` again when it stands.")));
            };
            pinned(&plan, command.digest.as_deref())?;
            pending.extend(downstream(head, &plan, &selected));
            let because = format!("[`/apply`](#issuecomment-{}) of @{}", written.id, written.author);
            started.push((environment.clone(), self.start(head, &plan, pending, because, who, Some(seen.pull.number)).await?));
        }
        if started.is_empty() {
            let names: Vec<String> = environments(&selected).iter().map(|e| format!("`{e}`")).collect();
            return Err(Error::Refused(format!("There is nothing to apply in {}: what is on the branch is what is applied.", names.join(", "))));
        }
        Ok(started.iter().map(|(environment, run)| format!("Run {run} applies `{environment}`.")).collect::<Vec<_>>().join(" "))
    }

    /// A selection that leaves out a pending upstream is refused (R6.1).
    async fn upstreams_selected(&self, head: &Head, environment: &EnvironmentName, selected: &BTreeSet<InstanceId>) -> Result<(), Error> {
        let pending = self.pending(head, environment).await?;
        for id in selected {
            if let Some(upstream) = head.instance(id).and_then(|instance| instance.upstreams.iter().find(|up| pending.contains(*up) && !selected.contains(*up))) {
                return Err(Error::Refused(format!("Nothing was applied: `{id}` depends on `{upstream}`, which is pending and not selected; select both.")));
            }
        }
        Ok(())
    }

    async fn start(self: &Arc<Self>, head: &Arc<Head>, plan: &Plan, instances: BTreeSet<InstanceId>, because: String, who: &Principal, pull: Option<PullNumber>) -> Result<RunId, Error> {
        let limits = head.desired.environments.get(&plan.environment).map(|e| e.limits.clone()).unwrap_or_default();
        if head.desired.environments.get(&plan.environment).is_some_and(|e| e.suspend) {
            return Err(Error::Refused(format!("Nothing was applied: `{}` is suspended (`suspend: true` in its declaration).", plan.environment)));
        }
        let chosen: Vec<_> = plan.instances.iter().filter(|instance| instances.contains(&instance.id)).cloned().collect();
        if let Some(problem) = chosen.iter().find_map(|i| i.problem.as_ref().map(|why| format!("`{}` could not be planned: {why}", i.id))) {
            return Err(Error::Refused(format!("Nothing was applied: {problem}")));
        }
        let part = Plan::new(plan.environment.clone(), plan.revision.clone(), plan.base.clone(), plan.because.clone(), chosen.into_iter().map(|mut i| { i.after.retain(|up| instances.contains(up)); i }).collect());
        if let Some(note) = check::plan(&part, &limits).into_iter().find(|note| note.fatal) {
            return Err(Error::Refused(format!("Nothing was applied: {}.", note.says)));
        }
        if let Some(says) = check::within(&part.summary, &limits).into_iter().next() {
            return Err(Error::Refused(format!("Nothing was applied: {says}. Raise the limit in a pull request of its own, or change less.")));
        }
        let approved: BTreeMap<InstanceId, Approved> = instances
            .iter()
            .map(|id| {
                let what = match plan.instance(id) {
                    Some(shown) if shown.digest.is_none() => Approved::Unknown,
                    Some(shown) => Approved::Actions { actions: shown.actions.clone() },
                    // What the plan does not show is not approved by it.
                    None => Approved::Actions { actions: vec![] },
                };
                (id.clone(), what)
            })
            .collect();
        let authorised = Authorised { environment: plan.environment.clone(), instances, approved, because, principal: who.name(), by_merge: false, pull, remediation: None };
        self.create_run(head, authorised).await
    }

    /// Whether a pull request proposes a remediation, or brought one.
    async fn is_remediation(&self, head: &Head, number: PullNumber) -> Result<bool, Error> {
        let proposals: Vec<(String, super::propose::Proposal)> = self.store().list("proposal").await?;
        let merged: Vec<(String, Merged)> = self.store().list("remediation").await?;
        let known = proposals.iter().any(|(_, proposal)| proposal.pull == number) || merged.iter().any(|(_, merged)| merged.pull == Some(number));
        Ok(known || !head.desired.remediations.is_empty() && self.seen(number).await?.is_some_and(|seen| seen.pull.branch.starts_with(OWN_BRANCHES)))
    }

    /// `/apply` on the pull request of a remediation means this remediation, never head (R4.2).
    async fn apply_remediation(self: &Arc<Self>, head: &Arc<Head>, seen: &Seen, who: &Principal) -> Result<String, Error> {
        if seen.pull.merged_as.is_none() {
            return Err(Error::Refused("Nothing was applied: merging this pull request is what applies it.".into()));
        }
        for environment in head.desired.environments.keys() {
            for (key, merged) in self.held(environment).await? {
                let name: Option<ComponentName> = key.rsplit('/').next().and_then(|name| name.parse().ok());
                let Some((name, (remediation, _))) = name.and_then(|name| head.desired.remediations.get(&name).map(|found| (name.clone(), found.clone()))) else { continue };
                if merged.pull != Some(seen.pull.number) || merged.run.is_some() {
                    continue;
                }
                self.allow(head, who, Verb::Apply, &BTreeSet::from([environment.clone()]))?;
                let run = self.resume_remediation(head, &name, &remediation, who, merged).await?;
                return Ok(format!("Run {run} reverts the drift."));
            }
        }
        Err(Error::Refused("There is nothing to apply here: the remediation is spent, or its run is under way.".into()))
    }

    async fn resume_remediation(self: &Arc<Self>, head: &Arc<Head>, name: &ComponentName, remediation: &Remediation, who: &Principal, mut merged: Merged) -> Result<RunId, Error> {
        let run = self.run_remediation(head, name, remediation, format!("the word of {}", who.name()), who.name(), merged.pull).await?;
        merged.run = Some(run);
        merged.waits = None;
        self.store().put("remediation", &format!("{}/{name}", remediation.environment), self.now(), &merged).await?;
        Ok(run)
    }

    /// What would be done now, for the API: by environment, of what a selector means and is pending.
    pub async fn plan_now(self: &Arc<Self>, selector: Option<&Selector>, who: &Principal) -> Result<Vec<Plan>, Error> {
        let head = self.head().ok_or_else(|| Error::Refused(self.no_head()))?;
        let selected = self.select(&head, selector, &BTreeSet::new()).await?;
        if selected.is_empty() {
            return Err(Error::Refused(matched_nothing(&head, selector)));
        }
        self.allow(&head, who, Verb::Plan, &environments(&selected))?;
        let mut plans = vec![];
        for environment in environments(&selected) {
            let instances: BTreeSet<InstanceId> = self.pending(&head, &environment).await?.intersection(&selected).cloned().collect();
            let scope = Scope { instances, r#use: Use::Head, because: "head".into(), base: None };
            let (plan, _) = self.plan_environment(&environment, &head, &scope).await?;
            self.store().keep_plan(&format!("head/{environment}"), &plan, self.now()).await?;
            plans.push(plan);
        }
        Ok(plans)
    }

    /// Applies what a selector means, for the API. A digest pins the plan that was shown.
    pub async fn apply_now(self: &Arc<Self>, selector: Option<&Selector>, digests: &[String], remediation: Option<&ComponentName>, who: &Principal) -> Result<Vec<RunId>, Error> {
        let head = self.head().ok_or_else(|| Error::Refused(self.no_head()))?;
        if let Some(name) = remediation {
            return self.apply_named_remediation(&head, name, who).await.map(|run| vec![run]);
        }
        let selected = self.select(&head, selector, &BTreeSet::new()).await?;
        if selected.is_empty() {
            return Err(Error::Refused(matched_nothing(&head, selector)));
        }
        self.allow(&head, who, Verb::Apply, &environments(&selected))?;
        let mut runs = vec![];
        for environment in environments(&selected) {
            let mut pending: BTreeSet<InstanceId> = self.pending(&head, &environment).await?.intersection(&selected).cloned().collect();
            if pending.is_empty() {
                continue;
            }
            self.upstreams_selected(&head, &environment, &pending).await?;
            let Some((plan, _)) = self.store().last_plan(&format!("head/{environment}"), None).await? else {
                return Err(Error::Refused(format!("no plan of `{environment}` was shown yet; `evenkeel plan {environment}` makes it")));
            };
            if !digests.iter().any(|digest| digest.len() >= DIGEST_LENGTH_MIN && plan.digest.to_string().starts_with(digest.as_str())) {
                return Err(Error::Refused(format!("the plan of `{environment}` is `{}` now; look at it and apply that", plan.digest.short())));
            }
            pending.extend(downstream(&head, &plan, &selected));
            runs.push(self.start(&head, &plan, pending, format!("`evenkeel apply` of {}", who.name()), who, None).await?);
        }
        if runs.is_empty() {
            let names: Vec<String> = environments(&selected).iter().map(|e| format!("`{e}`")).collect();
            return Err(Error::Refused(format!("there is nothing to apply in {}: what is on the branch is what is applied", names.join(", "))));
        }
        Ok(runs)
    }

    async fn apply_named_remediation(self: &Arc<Self>, head: &Arc<Head>, name: &ComponentName, who: &Principal) -> Result<RunId, Error> {
        let Some((remediation, _)) = head.desired.remediations.get(name) else { return Err(Error::Refused(format!("there is no remediation `{name}` on the branch"))) };
        self.allow(head, who, Verb::Apply, &BTreeSet::from([remediation.environment.clone()]))?;
        let merged: Merged = self.store().get("remediation", &format!("{}/{name}", remediation.environment)).await?.unwrap_or_default();
        if merged.spent || merged.run.is_some() {
            return Err(Error::Refused(format!("the remediation `{name}` is spent, or its run is under way")));
        }
        let remediation = Arc::clone(remediation);
        self.resume_remediation(head, name, &remediation, who, merged).await
    }

    /// Looks at instances now, for the API.
    pub async fn drift_of(self: &Arc<Self>, selector: Option<&Selector>, who: &Principal) -> Result<BTreeSet<InstanceId>, Error> {
        let head = self.head().ok_or_else(|| Error::Refused(self.no_head()))?;
        let selected = self.select(&head, selector, &BTreeSet::new()).await?;
        if selected.is_empty() {
            return Err(Error::Refused(matched_nothing(&head, selector)));
        }
        self.allow(&head, who, Verb::Drift, &environments(&selected))?;
        let passes = futures::future::join_all(selected.iter().map(|id| self.pass(id))).await;
        passes.into_iter().find_map(Result::err).map_or(Ok(()), Err)?;
        for environment in environments(&selected) {
            self.plan_head(&environment).await?;
        }
        Ok(selected)
    }

    /// The instances that a selector means, for the API.
    pub async fn selected(&self, selector: Option<&Selector>) -> Result<BTreeSet<InstanceId>, Error> {
        let head = self.head().ok_or_else(|| Error::Refused(self.no_head()))?;
        let selected = self.select(&head, selector, &BTreeSet::new()).await?;
        if selected.is_empty() { Err(Error::Refused(matched_nothing(&head, selector))) } else { Ok(selected) }
    }

    fn no_head(&self) -> String {
        match self.head_problem() {
            Some(why) => format!("the state repo can't be read: {why}"),
            None => "the state repo has not been read yet; try again in a moment".into(),
        }
    }

    /// The instances whose last run failed.
    pub(super) async fn stalled(&self) -> Result<BTreeMap<InstanceId, Stalled>, Error> {
        let all: Vec<(String, Stalled)> = self.store().list("stalled").await?;
        Ok(all.into_iter().filter_map(|(id, stalled)| Some((id.parse().ok()?, stalled))).collect())
    }
}

fn environments(ids: &BTreeSet<InstanceId>) -> BTreeSet<EnvironmentName> {
    ids.iter().map(|id| id.environment.clone()).collect()
}

/// What the plan changes downstream of what is pending, and is selected as well.
fn downstream(head: &Head, plan: &Plan, selected: &BTreeSet<InstanceId>) -> BTreeSet<InstanceId> {
    plan.instances.iter().map(|instance| instance.id.clone()).filter(|id| selected.contains(id) && head.instance(id).is_some()).collect()
}

fn pinned(plan: &Plan, digest: Option<&str>) -> Result<(), Error> {
    match digest {
        Some(digest) if !plan.digest.to_string().starts_with(digest) => Err(Error::Refused(format!("Nothing was applied: the plan of `{}` that stands here is `{}`, not `{digest}`; look at it and apply that.", plan.environment, plan.digest.short()))),
        _ => Ok(()),
    }
}

fn matched_nothing(head: &Head, selector: Option<&Selector>) -> String {
    let names: Vec<String> = head.desired.environments.keys().map(|name| format!("`{name}`")).collect();
    match selector {
        Some(selector) => format!("`{selector}` matches no instance; the environments are {}.", names.join(", ")),
        None => "There is no instance to look at.".into(),
    }
}
