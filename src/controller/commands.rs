//! What commands do, whether they stand in a comment or come through the API (R6.9).
//!
//! Decides nothing about who may: that was asked before. Every refusal is one sentence that says why and what to do
//! (R6.10).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Daemon, Error, Head, SETTLED,
    conversation::{environments, matched_nothing},
    decide::{Authorised, pull_subject},
    looking::Look,
    planning::Scope,
    pulls::{OWN_BRANCHES, Seen},
    remediation::Merged,
};
use crate::{
    domain::{
        authorization::{Principal, permit},
        command::Command,
        declaration::{
            Selector,
            schema::{Direction, Remediation, Verb},
        },
        journal::Approved,
        plan::{self, InstancePlan, Plan, validation},
    },
    model::{ComponentName, EnvironmentName, InstanceId, PullNumber, RunId},
    ports::{Comment, Use},
};

/// The shortest beginning of a digest that pins a plan.
pub(super) const DIGEST_LENGTH_MIN: usize = 6;

impl Daemon {
    /// `/apply` on a pull request.
    pub(super) async fn apply_pull(
        self: &Arc<Self>,
        head: &Arc<Head>,
        seen: &Seen,
        written: &Comment,
        who: &Principal,
        command: &Command,
    ) -> Result<String, Error> {
        if self.is_remediation(seen.pull.number).await? {
            return self.apply_remediation(head, seen, who).await;
        }
        let changed = self.changed_by(seen).await?;
        if seen.pull.open {
            return Err(self.not_merged(head, who, command, &changed).await);
        }
        if seen.pull.merged_as.is_none() {
            return Err(Error::Refused(
                "Nothing was applied: this pull request was closed without being merged.".into(),
            ));
        }
        let mut selected = self.select(head, command.selector.as_ref(), &changed).await?;
        if command.selector.is_none() {
            selected.retain(|id| seen.environments.contains(&id.environment));
        }
        if selected.is_empty() {
            return Err(Error::Refused(matched_nothing(head, command.selector.as_ref())));
        }
        self.allow(head, who, Verb::Apply, &environments(&selected)).await?;
        let mut started = vec![];
        for environment in environments(&selected) {
            let mut pending: BTreeSet<InstanceId> =
                self.pending(head, &environment).await?.intersection(&selected).cloned().collect();
            if pending.is_empty() {
                continue;
            }
            self.upstreams_selected(head, &environment, &pending).await?;
            if let Some(number) = self.carrier(head, &environment, &pending).await?.filter(|n| *n != seen.pull.number) {
                return Err(Error::Refused(format!(
                    "Nothing was applied: superseded by {number}, which carries the plan of all that is pending in `{environment}`; say `/apply {environment}` there."
                )));
            }
            let shown =
                self.store().last_plan(&pull_subject(seen.pull.number, &environment), Some(written.created_at)).await?;
            let Some((plan, at)) = shown else { return Err(self.no_plan_here(head, seen, &environment).await?) };
            pinned(&plan, command.digest.as_deref())?;
            if command.digest.is_none() && written.created_at - at < SETTLED {
                return Err(Error::Refused(format!(
                    "Nothing was applied: the plan of `{environment}` just changed; look at it and repeat, or say `/apply {environment} {}` to mean just that one.",
                    plan.digest.short()
                )));
            }
            pending.extend(downstream(head, &plan, &selected));
            let because = format!("[`/apply`](#issuecomment-{}) of @{}", written.id, written.author);
            started.push((
                environment.clone(),
                self.start(head, &plan, pending, because, who, Some(seen.pull.number)).await?,
            ));
        }
        if started.is_empty() {
            self.none_unknown(&selected).await?;
            let names: Vec<String> = environments(&selected).iter().map(|e| format!("`{e}`")).collect();
            return Err(Error::Refused(format!(
                "There is nothing to apply in {}: what is on the branch is what is applied.",
                names.join(", ")
            )));
        }
        let said: Vec<String> =
            started.iter().map(|(environment, run)| format!("Run {run} applies `{environment}`.")).collect();
        Ok(said.join(" "))
    }

    /// Refuses to call what could not be observed applied (R2.9).
    async fn none_unknown(&self, selected: &BTreeSet<InstanceId>) -> Result<(), Error> {
        for id in selected {
            if let Some(error) = self.store().observed(id).await?.and_then(|observed| observed.error) {
                return Err(Error::Refused(format!("Nothing was applied: `{id}` is unknown: {}.", error.says)));
            }
        }
        Ok(())
    }

    /// Why a command on a pull request without a plan of an environment is refused: another one carries it (R6.6).
    async fn no_plan_here(&self, head: &Head, seen: &Seen, environment: &EnvironmentName) -> Result<Error, Error> {
        for (number, _) in self.merged_pulls(head).await? {
            let carries = self.store().last_plan(&pull_subject(number, environment), None).await?.is_some();
            if carries && number != seen.pull.number {
                return Ok(Error::Refused(format!(
                    "Nothing was applied: the plan of `{environment}` stands on {number}; say `/apply {environment}` there."
                )));
            }
        }
        Ok(Error::Refused(format!(
            "Nothing was applied: no plan of `{environment}` was posted here before this comment. Say `/plan {environment}`, and `/apply` when it stands."
        )))
    }

    /// Why nothing is applied from a pull request that is still open.
    async fn not_merged(
        self: &Arc<Self>,
        head: &Head,
        who: &Principal,
        command: &Command,
        changed: &BTreeSet<InstanceId>,
    ) -> Error {
        let refusal = async {
            let selected = self.select(head, command.selector.as_ref(), changed).await?;
            let meant: BTreeSet<InstanceId> = selected.intersection(changed).cloned().collect();
            if let Some(selector) = command.selector.as_ref().filter(|_| meant.is_empty()) {
                return Ok(if selected.is_empty() {
                    format!("Nothing was applied: {}", matched_nothing(head, Some(selector)))
                } else {
                    format!(
                        "Nothing was applied: this pull request changes nothing in `{selector}`, and it is not merged."
                    )
                });
            }
            self.allow(head, who, Verb::Apply, &environments(&meant)).await?;
            Ok("Nothing was applied: this pull request is not merged, and what is applied is what is on the branch. Merge it, then say `/apply` again.".into())
        };
        refusal.await.map_or_else(|error| error, Error::Refused)
    }

    /// A selection that leaves out a pending upstream is refused (R6.1).
    pub(super) async fn upstreams_selected(
        &self,
        head: &Head,
        environment: &EnvironmentName,
        selected: &BTreeSet<InstanceId>,
    ) -> Result<(), Error> {
        let pending = self.pending(head, environment).await?;
        for id in selected {
            if let Some(upstream) = head.instance(id).and_then(|instance| {
                instance.upstreams.iter().find(|up| pending.contains(*up) && !selected.contains(*up))
            }) {
                return Err(Error::Refused(format!(
                    "Nothing was applied: `{id}` depends on `{upstream}`, which is pending and not selected; select both."
                )));
            }
        }
        Ok(())
    }

    /// The part of a plan that is about some instances, if it is complete and nothing that holds now forbids it.
    async fn of_plan(
        self: &Arc<Self>,
        head: &Arc<Head>,
        plan: &Plan,
        instances: &BTreeSet<InstanceId>,
    ) -> Result<Vec<InstancePlan>, Error> {
        let guards = self.guards(head).await?;
        let mut chosen: Vec<_> =
            plan.instances.iter().filter(|instance| instances.contains(&instance.id)).cloned().collect();
        // What counts is what is protected now, not when the plan was made.
        for instance in &mut chosen {
            plan::mark_protected(&guards.protect(&instance.id), &mut instance.actions);
        }
        if let Some(problem) =
            chosen.iter().find_map(|i| i.problem.as_ref().map(|why| format!("`{}` could not be planned: {why}", i.id)))
        {
            return Err(Error::Refused(format!("Nothing was applied: {problem}")));
        }
        let limits = guards.limits(&plan.environment);
        let part = Plan::new(
            plan.environment.clone(),
            plan.revision.clone(),
            plan.base.clone(),
            plan.because.clone(),
            chosen
                .iter()
                .cloned()
                .map(|mut i| {
                    i.after.retain(|up| instances.contains(up));
                    i
                })
                .collect(),
        );
        if let Some(note) = validation::plan(&part, &limits).into_iter().find(|note| note.fatal) {
            return Err(Error::Refused(format!("Nothing was applied: {}.", note.says)));
        }
        if let Some(says) = validation::within(&part.summary, &limits).into_iter().next() {
            return Err(Error::Refused(format!(
                "Nothing was applied: {says}. Raise the limit in a pull request of its own, or change less."
            )));
        }
        Ok(chosen)
    }

    pub(super) async fn start(
        self: &Arc<Self>,
        head: &Arc<Head>,
        plan: &Plan,
        instances: BTreeSet<InstanceId>,
        because: String,
        who: &Principal,
        pull: Option<PullNumber>,
    ) -> Result<RunId, Error> {
        let suspensions = self.suspensions(Some(head)).await?;
        if let Some(says) = instances.iter().find_map(|id| suspensions.instance(id)) {
            return Err(Error::Refused(format!("Nothing was applied: {says}.")));
        }
        let chosen = self.of_plan(head, plan, &instances).await?;
        if let Some(says) = self.lacking(head, who, Verb::Apply, plan, &instances).await? {
            return Err(Error::Refused(format!("Nothing was applied: {says}.")));
        }
        let approved: BTreeMap<InstanceId, Approved> = instances
            .iter()
            .map(|id| {
                let what = match chosen.iter().find(|shown| shown.id == *id) {
                    Some(shown) if shown.digest.is_none() => Approved::Unknown,
                    Some(shown) => Approved::Actions { actions: shown.actions.clone() },
                    // What the plan does not show is not approved by it.
                    None => Approved::Actions { actions: vec![] },
                };
                (id.clone(), what)
            })
            .collect();
        let authorised = Authorised {
            environment: plan.environment.clone(),
            instances,
            approved,
            because,
            principal: who.name(),
            word: who.word().map(str::to_owned),
            by_merge: false,
            pull,
            remediation: None,
            destroys: false,
            by_drift: false,
            rebalance: None,
        };
        self.create_runs(head, authorised).await
    }

    /// Whether a pull request proposes a remediation, or brought one.
    pub(super) async fn is_remediation(&self, number: PullNumber) -> Result<bool, Error> {
        let merged: Vec<(String, Merged)> = self.store().list("remediation").await?;
        let proposed = self.proposal_of(number).await?.is_some_and(|proposal| !proposal.adopts);
        let known = proposed || merged.iter().any(|(_, merged)| merged.pull == Some(number));
        // One of ours that was planned like any other edits the declarations.
        let is_ours = |seen: &Seen| seen.pull.branch.starts_with(OWN_BRANCHES) && seen.environments.is_empty();
        Ok(known || self.seen(number).await?.as_ref().is_some_and(is_ours))
    }

    /// `/apply` on the pull request of a remediation means this remediation, never head (R4.2).
    async fn apply_remediation(
        self: &Arc<Self>,
        head: &Arc<Head>,
        seen: &Seen,
        who: &Principal,
    ) -> Result<String, Error> {
        if seen.pull.merged_as.is_none() {
            return Err(Error::Refused("Nothing was applied: merging this pull request is what applies it.".into()));
        }
        for environment in head.desired.environments.keys() {
            for (key, merged) in self.held(environment).await? {
                let name: Option<ComponentName> = key.rsplit('/').next().and_then(|name| name.parse().ok());
                let Some((name, (remediation, _))) = name
                    .and_then(|name| head.desired.remediations.get(&name).map(|found| (name.clone(), found.clone())))
                else {
                    continue;
                };
                if merged.pull != Some(seen.pull.number) || merged.run.is_some() {
                    continue;
                }
                self.allow(head, who, Verb::Apply, &BTreeSet::from([environment.clone()])).await?;
                if let Some(says) = self.lacking_on_remediation(head, who, environment, &seen.pull).await? {
                    return Err(Error::Refused(format!("Nothing was applied: {says}.")));
                }
                let run = self.resume_remediation(head, &name, &remediation, who, merged).await?;
                return Ok(format!("Run {run} does what was merged here."));
            }
        }
        Err(Error::Refused("There is nothing to apply here: the remediation is spent, or its run is under way.".into()))
    }

    async fn resume_remediation(
        self: &Arc<Self>,
        head: &Arc<Head>,
        name: &ComponentName,
        remediation: &Remediation,
        who: &Principal,
        mut merged: Merged,
    ) -> Result<RunId, Error> {
        let run = self
            .run_remediation(head, name, remediation, format!("the word of {}", who.name()), who, merged.pull)
            .await?;
        merged.run = Some(run);
        merged.waits = None;
        merged.spent = remediation.direction == Direction::Apply;
        self.store().put("remediation", &format!("{}/{name}", remediation.environment), self.now(), &merged).await?;
        Ok(run)
    }

    /// The head, and what a selector means there, if it means anything and the command is allowed on all of it.
    pub(super) async fn chosen(
        self: &Arc<Self>,
        selector: Option<&Selector>,
        verb: Verb,
        who: &Principal,
    ) -> Result<(Arc<Head>, BTreeSet<InstanceId>), Error> {
        let head = self.head().ok_or_else(|| Error::Refused(self.no_head()))?;
        let selected = self.select(&head, selector, &BTreeSet::new()).await?;
        if selected.is_empty() {
            return Err(Error::Refused(matched_nothing(&head, selector)));
        }
        self.allow(&head, who, verb, &environments(&selected)).await?;
        Ok((head, selected))
    }

    /// What would be done now, for the API: by environment, of what a selector means and is pending.
    pub async fn plan_now(self: &Arc<Self>, selector: Option<&Selector>, who: &Principal) -> Result<Vec<Plan>, Error> {
        let (head, selected) = self.chosen(selector, Verb::Plan, who).await?;
        let mut plans = vec![];
        for environment in environments(&selected) {
            let mut instances: BTreeSet<InstanceId> =
                self.pending(&head, &environment).await?.intersection(&selected).cloned().collect();
            // What could not be observed is looked at as well: that nothing is pending says nothing of it (R2.9).
            let observed = self.store().all_observed().await?;
            let is_unknown = |id: &&InstanceId| observed.get(*id).is_some_and(|observed| observed.error.is_some());
            instances.extend(selected.iter().filter(|id| id.environment == environment).filter(is_unknown).cloned());
            let scope = Scope { instances, r#use: Use::Head, because: "head".into(), base: None, guards: None };
            let (plan, _) = self.plan_environment(&environment, &head, &scope).await?;
            self.store().keep_plan(&format!("head/{environment}"), &plan, self.now()).await?;
            plans.push(plan);
        }
        Ok(plans)
    }

    /// Applies what a selector means, for the API. A digest pins the plan that was shown.
    pub async fn apply_now(
        self: &Arc<Self>,
        selector: Option<&Selector>,
        digests: &[String],
        remediation: Option<&ComponentName>,
        who: &Principal,
    ) -> Result<Vec<RunId>, Error> {
        let head = self.head().ok_or_else(|| Error::Refused(self.no_head()))?;
        if let Some(name) = remediation {
            return self.apply_named_remediation(&head, name, who).await.map(|run| vec![run]);
        }
        let (head, selected) = self.chosen(selector, Verb::Apply, who).await?;
        let mut runs = vec![];
        for environment in environments(&selected) {
            let mut pending: BTreeSet<InstanceId> =
                self.pending(&head, &environment).await?.intersection(&selected).cloned().collect();
            if pending.is_empty() {
                continue;
            }
            self.upstreams_selected(&head, &environment, &pending).await?;
            let Some((plan, _)) = self.store().last_plan(&format!("head/{environment}"), None).await? else {
                return Err(Error::Refused(format!(
                    "no plan of `{environment}` was shown yet; `evenkeel plan {environment}` makes it"
                )));
            };
            if !digests
                .iter()
                .any(|digest| digest.len() >= DIGEST_LENGTH_MIN && plan.digest.to_string().starts_with(digest.as_str()))
            {
                return Err(Error::Refused(format!(
                    "the plan of `{environment}` is `{}` now; look at it and apply that",
                    plan.digest.short()
                )));
            }
            pending.extend(downstream(&head, &plan, &selected));
            runs.push(
                self.start(&head, &plan, pending, format!("`evenkeel apply` of {}", who.name()), who, None).await?,
            );
        }
        if runs.is_empty() {
            self.none_unknown(&selected).await?;
            let names: Vec<String> = environments(&selected).iter().map(|e| format!("`{e}`")).collect();
            return Err(Error::Refused(format!(
                "there is nothing to apply in {}: what is on the branch is what is applied",
                names.join(", ")
            )));
        }
        Ok(runs)
    }

    async fn apply_named_remediation(
        self: &Arc<Self>,
        head: &Arc<Head>,
        name: &ComponentName,
        who: &Principal,
    ) -> Result<RunId, Error> {
        let Some((remediation, _)) = head.desired.remediations.get(name) else {
            return Err(Error::Refused(format!("there is no remediation `{name}` on the branch")));
        };
        self.allow(head, who, Verb::Apply, &BTreeSet::from([remediation.environment.clone()])).await?;
        let environment = &remediation.environment;
        {
            // What its merge authorises begins by itself; what is lacking is known afterwards.
            let _turn = self.deciding.lock().await;
            self.know_pulls(head).await?;
            self.take_remediations(head, environment).await?;
        }
        let merged: Merged =
            self.store().get("remediation", &format!("{environment}/{name}")).await?.unwrap_or_default();
        let rights = self.rights(head, environment).await?;
        let needs = permit(&rights, who, Verb::Apply).unwrap_or_default();
        if merged.pull.is_none() && !needs.is_empty() && !merged.spent && merged.run.is_none() {
            return Err(Error::Refused(format!(
                "the remediation `{name}` came by no pull request, and `{environment}` needs approvals; bring it by one"
            )));
        }
        if merged.spent || merged.run.is_some() {
            return Err(Error::Refused(format!("the remediation `{name}` is spent, or its run is under way")));
        }
        let remediation = Arc::clone(remediation);
        if let Some(number) = merged.pull
            && let Some(seen) = self.seen(number).await?
            && let Some(says) = self.lacking_on_remediation(head, who, &remediation.environment, &seen.pull).await?
        {
            return Err(Error::Refused(says));
        }
        self.resume_remediation(head, name, &remediation, who, merged).await
    }

    /// Looks at instances, and lets nothing be proposed before the last look has ended.
    pub(super) async fn look_at_all(self: &Arc<Self>, ids: &BTreeSet<InstanceId>) -> Result<(), Error> {
        let _looks: Vec<Look> = ids.iter().map(|id| Look::new(self, id)).collect();
        let passes = futures::future::join_all(ids.iter().map(|id| self.pass(id))).await;
        passes.into_iter().find_map(Result::err).map_or(Ok(()), Err)
    }

    /// Looks at instances now, for the API.
    pub async fn drift_of(
        self: &Arc<Self>,
        selector: Option<&Selector>,
        who: &Principal,
    ) -> Result<BTreeSet<InstanceId>, Error> {
        let (_, selected) = self.chosen(selector, Verb::Drift, who).await?;
        self.look_at_all(&selected).await?;
        for environment in environments(&selected) {
            self.plan_head(&environment).await?;
        }
        Ok(selected)
    }
}

/// What the plan changes downstream of what is pending, and is selected as well.
fn downstream(head: &Head, plan: &Plan, selected: &BTreeSet<InstanceId>) -> BTreeSet<InstanceId> {
    plan.instances
        .iter()
        .map(|instance| instance.id.clone())
        .filter(|id| selected.contains(id) && head.instance(id).is_some())
        .collect()
}

fn pinned(plan: &Plan, digest: Option<&str>) -> Result<(), Error> {
    match digest {
        Some(digest) if !plan.digest.to_string().starts_with(digest) => Err(Error::Refused(format!(
            "Nothing was applied: the plan of `{}` that stands here is `{}`, not `{digest}`; look at it and apply that.",
            plan.environment,
            plan.digest.short()
        ))),
        _ => Ok(()),
    }
}
