//! Executes `/destroy`: plans to destroy orphans, and runs a plan with a named digest (R1.9).
//!
//! *Invariant:* a declared instance is never destroyed.
//! *Race:* an orphan is declared again after the command: the run fails before its first effect.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    controller::{
        commands::{Commands, DIGEST_LENGTH_MIN},
        context::Error,
        planning::environments,
        runs::Authorised,
        source::Head,
    },
    domain::{
        authorization::Principal,
        declaration::{Selector, schema::Verb},
        journal::{Approved, RunKind},
        message::{Refusal, answer::Answer, run::RunCause},
        plan::{
            Plan,
            validation::{self, Violation},
        },
    },
    model::{InstanceId, PullNumber, RunId},
};

impl Commands {
    /// `/destroy`: returns the plans without a named digest, and starts the runs of the plans with one.
    ///
    /// # Errors
    /// [`Error::Refused`] with the reason; else when the repository or the store fails.
    pub(super) async fn destroy(
        self: &Arc<Self>,
        head: &Arc<Head>,
        selected: &BTreeSet<InstanceId>,
        digests: &[String],
        principal: &Principal,
        (selector, pull): (&Selector, Option<PullNumber>),
    ) -> Result<(String, Vec<Plan>, Vec<RunId>), Error> {
        self.planner.ensure_orphans(head, selected).await?;
        let (mut message, mut plans, mut runs) = (vec![], vec![], vec![]);
        for environment in environments(selected) {
            let ids: BTreeSet<InstanceId> =
                selected.iter().filter(|id| id.environment == environment).cloned().collect();
            for id in &ids {
                if let Some((_, reason)) = self.planner.in_use(head, id, &ids).await? {
                    return Err(Error::Refused(Refusal::InUse { reason }));
                }
            }
            let plan = self.planner.plan_destroys(head, &environment, &ids).await?;
            if let Some((id, reason)) = plan.instances.iter().find_map(|i| Some((&i.id, i.problem.as_ref()?))) {
                return Err(Error::Refused(Refusal::NotPlanned {
                    verb: Verb::Destroy,
                    id: id.clone(),
                    reason: reason.clone(),
                }));
            }
            let is_named = |digest: &String| {
                digest.len() >= DIGEST_LENGTH_MIN && plan.digest.to_string().starts_with(digest.as_str())
            };
            if digests.iter().any(is_named) {
                let run = self.start_destroy(head, &plan, principal, pull).await?;
                message.push(Answer::Destroys(run, ids.clone()).to_string());
                runs.push(run);
                continue;
            }
            self.may_destroy(head, &plan, principal).await?;
            if let Some(digest) = digests.first() {
                return Err(Error::Refused(Refusal::OtherDigest {
                    verb: Verb::Destroy,
                    environment,
                    digest: plan.digest,
                    requested: Some(digest.clone()),
                }));
            }
            if let Some(number) = pull {
                self.pull_requests.comment_plan(number, &plan, vec![]).await?;
            }
            message.push(
                Answer::DestroyShown { environment, selector: selector.short(), digest: plan.digest }.to_string(),
            );
            plans.push(plan);
        }
        Ok((message.join(" "), plans, runs))
    }

    /// Checks a destroy plan against the current guards, limits and approvals.
    async fn may_destroy(self: &Arc<Self>, head: &Arc<Head>, plan: &Plan, principal: &Principal) -> Result<(), Error> {
        let environment = &plan.environment;
        let limits = self.source.guards(head).await?.limits(environment);
        if let Some(violation) = validation::plan(plan, &limits).into_iter().find(Violation::is_fatal) {
            return Err(Error::Refused(Refusal::InvalidPlan { verb: Verb::Destroy, violation }));
        }
        if let Some(violation) = validation::within(&plan.summary, &limits).into_iter().next() {
            let declared = head.desired.environments.contains_key(environment).then(|| environment.clone());
            return Err(Error::Refused(Refusal::OverLimit {
                verb: Verb::Destroy,
                declared,
                environment: environment.clone(),
                violation,
            }));
        }
        let ids: BTreeSet<InstanceId> = plan.instances.iter().map(|instance| instance.id.clone()).collect();
        match self.authorization.missing_approvals(head, principal, Verb::Destroy, plan, &ids).await? {
            Some(missing) => Err(Error::Refused(Refusal::NotApproved { verb: Verb::Destroy, missing })),
            None => Ok(()),
        }
    }

    async fn start_destroy(
        self: &Arc<Self>,
        head: &Arc<Head>,
        plan: &Plan,
        principal: &Principal,
        pull: Option<PullNumber>,
    ) -> Result<RunId, Error> {
        self.may_destroy(head, plan, principal).await?;
        let approved = plan
            .instances
            .iter()
            .map(|instance| (instance.id.clone(), Approved::Actions { actions: instance.actions.clone() }))
            .collect();
        let authorised = Authorised {
            environment: plan.environment.clone(),
            instances: plan.instances.iter().map(|instance| instance.id.clone()).collect(),
            approved,
            because: RunCause::Command(Verb::Destroy, principal.mention()),
            principal: principal.name(),
            command_id: principal.command_id().map(str::to_owned),
            kind: RunKind::Destroy { by_merge: false },
            pull,
        };
        self.runs.create_run(head, authorised).await
    }
}
