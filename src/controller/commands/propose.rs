//! Proposes pending changes without a pull request as a pull request, for review and merge (R3.6).
//!
//! The proposed file lists the actions of the plan. Its reviews are the approvals, and its merge is the `/apply`. The file is
//! a filter like every remediation: the run plans again, and executes only actions that the file covers.
//!
//! *Invariant:* a branch that this daemon did not push is never overwritten.
//! *Race:* the daemon dies between the push and the pull request: the same command finds the pushed branch, and opens the
//! pull request.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    controller::{
        commands::Commands,
        context::Error,
        planning::{Scope, environments},
        records::OWN_BRANCHES,
        remediation::remediation_path,
        source::Head,
        work_queue::{Reason, ReconcileRequest},
    },
    domain::{
        authorization::Principal,
        declaration::{
            Selector,
            schema::{Direction, Remediation, Verb},
        },
        message::{Refusal, comment},
        plan::Plan,
        remediation::{self, Written},
    },
    model::{Action, InstanceId, PullNumber},
    ports::Use,
};

impl Commands {
    /// Opens a pull request for each environment in which a selector matches pending instances.
    ///
    /// # Errors
    /// When no instance matches or is pending, the plan is not complete, or the forge fails.
    pub async fn propose_apply(
        self: &Arc<Self>,
        selector: Option<&Selector>,
        principal: &Principal,
    ) -> Result<Vec<PullNumber>, Error> {
        let (head, selected) = self.resolve_allowed(selector, Verb::Plan, principal).await?;
        let mut pulls = vec![];
        for environment in environments(&selected) {
            let pending = self.planner.pending(&head, &environment).await?;
            let instances: BTreeSet<InstanceId> = pending.intersection(&selected).cloned().collect();
            if instances.is_empty() {
                continue;
            }
            self.ensure_upstreams_selected(&head, &environment, &instances).await?;
            if let Some(number) = self.pull_requests.pull_with_plan(&head, &environment, &instances).await? {
                return Err(Error::Refused(Refusal::ProposedAlready { on: number, environment }));
            }
            let scope = Scope { instances, r#use: Use::Head, because: "propose".into(), base: None, guards: None };
            let (plan, _) = self.planner.plan_environment(&environment, &head, &scope).await?;
            if let Some((id, problem)) = plan.instances.iter().find_map(|i| Some((&i.id, i.problem.as_ref()?))) {
                return Err(Error::Refused(Refusal::NotProposed { id: id.clone(), reason: problem.to_string() }));
            }
            if plan.has_work() {
                pulls.push(self.open_apply(&head, &plan, principal).await?);
            }
        }
        if pulls.is_empty() {
            return Err(Error::Refused(Refusal::NothingToPropose));
        }
        Ok(pulls)
    }

    async fn open_apply(
        self: &Arc<Self>,
        head: &Arc<Head>,
        plan: &Plan,
        principal: &Principal,
    ) -> Result<PullNumber, Error> {
        let Some(forge) = self.context.forge.clone() else {
            return Err(Error::Refused(Refusal::NoForge));
        };
        let now = self.context.now();
        for action in plan.instances.iter().flat_map(|instance| &instance.actions) {
            self.context.store.collection::<Action>().put(&action.digest, now, action).await?;
        }
        let upstreams: Vec<BTreeSet<InstanceId>> =
            plan.instances.iter().map(|instance| instance.after.iter().cloned().collect()).collect();
        let actions = plan
            .instances
            .iter()
            .zip(&upstreams)
            .flat_map(|(instance, after)| instance.actions.iter().map(move |action| (&instance.id, action, after)));
        let because = format!("propose by {}", principal.name());
        let written = Written { direction: Direction::Apply, because: &because, observed_at: now, now };
        let remediation = remediation::remediation(&plan.environment, written, actions);
        // The digest in the name makes a repeated proposal of the same plan find the first one.
        let name = format!("apply-{}-{}", now.format("%Y%m%d"), plan.digest.short());
        let text =
            remediation::write(&name, &remediation).map_err(|reason| Error::Refused(Refusal::Unwritable { reason }))?;
        let path = remediation_path(&self.context.settings.root, &plan.environment, &name);
        let title = format!("Apply what is pending in {}", plan.environment);
        let branch = format!("{}apply/{}/{}", OWN_BRANCHES, plan.environment, plan.digest.short());
        self.source.use_git_token().await?;
        let existing = self.context.repository.fetch(&format!("refs/heads/{branch}")).await?;
        if existing.is_none() {
            let files = vec![(path.clone(), Some(text))];
            // Before the push, so that the next daemon recognises a branch that a killed daemon pushed.
            self.runs.record_proposed(&name, &remediation).await?;
            self.context.repository.push(&branch, &head.revision, None, files, &title).await?;
        } else if self.context.store.collection::<Remediation>().get(&name).await?.is_none() {
            return Err(Error::Refused(Refusal::BranchTaken(branch)));
        }
        let body = self.context.redactor.redact(&comment::proposed_apply(plan, &path));
        let pull = forge.ensure_pull(&branch, &self.context.settings.branch, &title, &body).await?;
        self.context.store.audit(now, &principal.name(), "propose", &format!("pull/{}", pull.0), &title).await?;
        self.context.queue.enqueue(ReconcileRequest::PullRequest(pull), Reason::Proposed);
        Ok(pull)
    }
}
