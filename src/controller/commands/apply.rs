//! Executes `/apply` from comments and the API (R6.9).
//!
//! *Invariant:* an apply executes only actions of the plan that its comment or digest refers to (R6.4).
//! *Race:* the plan of the pull request changes shortly before the comment: the command is refused, because the author may
//! not have read the new plan.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    controller::{
        commands::{Commands, DIGEST_LENGTH_MIN},
        context::Error,
        planning::{environments, matched_nothing},
        records::{PLAN_SETTLED, TrackedPullRequest, pull_request_subject},
        runs::Authorised,
        source::Head,
    },
    domain::{
        authorization::Principal,
        command::Command,
        declaration::{Selector, schema::Verb},
        journal::{Approved, RunKind},
        message::{Refusal, answer::Answer, run::RunCause},
        plan::{
            self, InstancePlan, Plan,
            validation::{self, Violation},
        },
    },
    model::{ComponentName, EnvironmentName, InstanceId, PullNumber, RunId},
    ports::Comment,
};

/// Returns the selected instances of a plan that are declared, such as the downstreams of pending instances.
fn downstream(head: &Head, plan: &Plan, selected: &BTreeSet<InstanceId>) -> BTreeSet<InstanceId> {
    plan.instances
        .iter()
        .map(|instance| instance.id.clone())
        .filter(|id| selected.contains(id) && head.instance(id).is_some())
        .collect()
}

fn check_digest(plan: &Plan, digest: Option<&str>) -> Result<(), Error> {
    match digest {
        Some(digest) if !plan.digest.to_string().starts_with(digest) => Err(Error::Refused(Refusal::OtherDigest {
            verb: Verb::Apply,
            environment: plan.environment.clone(),
            digest: plan.digest,
            requested: Some(digest.to_owned()),
        })),
        _ => Ok(()),
    }
}

impl Commands {
    /// `/apply` on a pull request.
    ///
    /// # Errors
    /// [`Error::Refused`] with the reason; else when the forge, the repository or the store fails.
    pub(super) async fn apply_pull(
        self: &Arc<Self>,
        head: &Arc<Head>,
        tracked: &TrackedPullRequest,
        written: &Comment,
        principal: &Principal,
        command: &Command,
    ) -> Result<String, Error> {
        if self.pull_requests.is_remediation(tracked.pull.number).await? {
            return self.apply_remediation(head, tracked, principal).await;
        }
        let changed = self.source.changed_by(tracked).await?;
        if tracked.pull.open {
            return Err(self.not_merged(head, principal, command, &changed).await);
        }
        if tracked.pull.merged_as.is_none() {
            return Err(Error::Refused(Refusal::Closed));
        }
        let mut selected = self.planner.select(head, command.selector.as_ref(), &changed).await?;
        if command.selector.is_none() {
            selected.retain(|id| tracked.environments.contains(&id.environment));
        }
        if selected.is_empty() {
            return Err(Error::Refused(Refusal::Empty(matched_nothing(head, command.selector.as_ref()))));
        }
        self.authorization.allow(head, principal, Verb::Apply, &environments(&selected)).await?;
        let mut started = vec![];
        for environment in environments(&selected) {
            let mut pending: BTreeSet<InstanceId> =
                self.planner.pending(head, &environment).await?.intersection(&selected).cloned().collect();
            if pending.is_empty() {
                continue;
            }
            self.ensure_upstreams_selected(head, &environment, &pending).await?;
            if let Some(number) = self
                .pull_requests
                .pull_with_plan(head, &environment, &pending)
                .await?
                .filter(|n| *n != tracked.pull.number)
            {
                return Err(Error::Refused(Refusal::Superseded { by: number, environment }));
            }
            let recorded = self
                .context
                .store
                .last_plan(&pull_request_subject(tracked.pull.number, &environment), Some(written.created_at))
                .await?;
            let Some((plan, at)) = recorded else { return Err(self.missing_plan(head, tracked, &environment).await?) };
            check_digest(&plan, command.digest.as_deref())?;
            if command.digest.is_none() && written.created_at - at < PLAN_SETTLED {
                return Err(Error::Refused(Refusal::PlanChanged { environment, digest: plan.digest }));
            }
            pending.extend(downstream(head, &plan, &selected));
            let because = RunCause::Comment(Verb::Apply, written.id, written.author.clone());
            started.push((
                environment.clone(),
                self.start(head, &plan, pending, because, principal, Some(tracked.pull.number)).await?,
            ));
        }
        if started.is_empty() {
            self.refuse_unknown(&selected).await?;
            return Err(Error::Refused(Refusal::NothingPending(environments(&selected).into_iter().collect())));
        }
        Ok(Answer::Applies(started).to_string())
    }

    /// Refuses to report an instance as applied that could not be observed (R2.9).
    async fn refuse_unknown(&self, selected: &BTreeSet<InstanceId>) -> Result<(), Error> {
        for id in selected {
            if let Some(error) = self.context.store.observed(id).await?.and_then(|observed| observed.error) {
                return Err(Error::Refused(Refusal::Unknown { id: id.clone(), reason: error.message }));
            }
        }
        Ok(())
    }

    /// Returns the refusal of a command on a pull request without a plan of an environment, such as that another pull request
    /// has the plan (R6.6).
    async fn missing_plan(
        &self,
        head: &Head,
        tracked: &TrackedPullRequest,
        environment: &EnvironmentName,
    ) -> Result<Error, Error> {
        for (number, _) in self.source.merged_pull_requests(head).await? {
            let has_plan =
                self.context.store.last_plan(&pull_request_subject(number, environment), None).await?.is_some();
            if has_plan && number != tracked.pull.number {
                return Ok(Error::Refused(Refusal::PlanElsewhere { environment: environment.clone(), on: number }));
            }
        }
        Ok(Error::Refused(Refusal::NoPlanHere(environment.clone())))
    }

    /// Returns the refusal of `/apply` on an open pull request.
    async fn not_merged(
        self: &Arc<Self>,
        head: &Head,
        principal: &Principal,
        command: &Command,
        changed: &BTreeSet<InstanceId>,
    ) -> Error {
        let refusal = async {
            let selected = self.planner.select(head, command.selector.as_ref(), changed).await?;
            let selected_here: BTreeSet<InstanceId> = selected.intersection(changed).cloned().collect();
            if let Some(selector) = command.selector.as_ref().filter(|_| selected_here.is_empty()) {
                return Ok(if selected.is_empty() {
                    Refusal::Empty(matched_nothing(head, Some(selector)))
                } else {
                    Refusal::UnchangedHere(selector.to_string())
                });
            }
            self.authorization.allow(head, principal, Verb::Apply, &environments(&selected_here)).await?;
            Ok(Refusal::NotMerged)
        };
        refusal.await.map_or_else(|error| error, Error::Refused)
    }

    /// Returns the plans of instances out of a plan, if they are complete, valid, and within the current limits and guards.
    async fn select_from_plan(
        self: &Arc<Self>,
        head: &Arc<Head>,
        plan: &Plan,
        instances: &BTreeSet<InstanceId>,
    ) -> Result<Vec<InstancePlan>, Error> {
        let guards = self.source.guards(head).await?;
        let mut selected_plans: Vec<_> =
            plan.instances.iter().filter(|instance| instances.contains(&instance.id)).cloned().collect();
        // The present protection counts, not that at the time of the plan.
        for instance in &mut selected_plans {
            plan::mark_protected(&guards.protect(&instance.id), &mut instance.actions);
        }
        if let Some((id, reason)) =
            selected_plans.iter().find_map(|i| Some((i.id.clone(), i.problem.as_ref()?.to_string())))
        {
            return Err(Error::Refused(Refusal::NotPlanned { verb: Verb::Apply, id, reason }));
        }
        let limits = guards.limits(&plan.environment);
        let partial_plan = Plan::new(
            plan.environment.clone(),
            plan.revision.clone(),
            plan.base.clone(),
            plan.because.clone(),
            selected_plans
                .iter()
                .cloned()
                .map(|mut i| {
                    i.after.retain(|up| instances.contains(up));
                    i
                })
                .collect(),
        );
        if let Some(violation) = validation::plan(&partial_plan, &limits).into_iter().find(Violation::is_fatal) {
            return Err(Error::Refused(Refusal::InvalidPlan { verb: Verb::Apply, violation }));
        }
        if let Some(violation) = validation::within(&partial_plan.summary, &limits).into_iter().next() {
            return Err(Error::Refused(Refusal::OverLimit {
                verb: Verb::Apply,
                declared: Some(plan.environment.clone()),
                environment: plan.environment.clone(),
                violation,
            }));
        }
        Ok(selected_plans)
    }

    async fn start(
        self: &Arc<Self>,
        head: &Arc<Head>,
        plan: &Plan,
        instances: BTreeSet<InstanceId>,
        because: RunCause,
        principal: &Principal,
        pull: Option<PullNumber>,
    ) -> Result<RunId, Error> {
        let suspensions = self.source.suspensions(Some(head)).await?;
        if let Some(suspension) = instances.iter().find_map(|id| suspensions.instance(id)) {
            return Err(Error::Refused(Refusal::Suspended { verb: Verb::Apply, suspension }));
        }
        let selected_plans = self.select_from_plan(head, plan, &instances).await?;
        if let Some(missing) =
            self.authorization.missing_approvals(head, principal, Verb::Apply, plan, &instances).await?
        {
            return Err(Error::Refused(Refusal::NotApproved { verb: Verb::Apply, missing }));
        }
        let approved: BTreeMap<InstanceId, Approved> = instances
            .iter()
            .map(|id| {
                let approval = match selected_plans.iter().find(|plan| plan.id == *id) {
                    Some(plan) if plan.digest.is_none() => Approved::Unknown,
                    Some(plan) => Approved::Actions { actions: plan.actions.clone() },
                    // An action that the plan does not show is not approved.
                    None => Approved::Actions { actions: vec![] },
                };
                (id.clone(), approval)
            })
            .collect();
        let authorised = Authorised {
            environment: plan.environment.clone(),
            instances,
            approved,
            because,
            principal: principal.name(),
            command_id: principal.command_id().map(str::to_owned),
            kind: RunKind::Apply { by_merge: false },
            pull,
        };
        self.runs.create_runs(head, authorised).await
    }

    /// Applies the pending instances that a selector matches, for the API. The digest names the plan that the principal read.
    ///
    /// # Errors
    /// [`Error::Refused`] with the reason; else when the forge, the repository or the store fails.
    pub async fn apply_now(
        self: &Arc<Self>,
        selector: Option<&Selector>,
        digests: &[String],
        remediation: Option<&ComponentName>,
        principal: &Principal,
    ) -> Result<Vec<RunId>, Error> {
        let head = self.source.loaded_head()?;
        if let Some(name) = remediation {
            return self.apply_named_remediation(&head, name, principal).await.map(|run| vec![run]);
        }
        let (head, selected) = self.resolve_allowed(selector, Verb::Apply, principal).await?;
        let mut runs = vec![];
        for environment in environments(&selected) {
            let mut pending: BTreeSet<InstanceId> =
                self.planner.pending(&head, &environment).await?.intersection(&selected).cloned().collect();
            if pending.is_empty() {
                continue;
            }
            self.ensure_upstreams_selected(&head, &environment, &pending).await?;
            let Some((plan, _)) = self.context.store.last_plan(&format!("head/{environment}"), None).await? else {
                return Err(Error::Refused(Refusal::NoPlan(environment)));
            };
            if !digests
                .iter()
                .any(|digest| digest.len() >= DIGEST_LENGTH_MIN && plan.digest.to_string().starts_with(digest.as_str()))
            {
                return Err(Error::Refused(Refusal::OtherDigest {
                    verb: Verb::Apply,
                    environment,
                    digest: plan.digest,
                    requested: None,
                }));
            }
            pending.extend(downstream(&head, &plan, &selected));
            runs.push(
                self.start(&head, &plan, pending, RunCause::CommandLine(principal.name()), principal, None).await?,
            );
        }
        if runs.is_empty() {
            self.refuse_unknown(&selected).await?;
            return Err(Error::Refused(Refusal::NothingPending(environments(&selected).into_iter().collect())));
        }
        Ok(runs)
    }
}
