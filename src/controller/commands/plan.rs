//! Executes `/plan` and `evenkeel plan`: plans pull requests and environments again.
//!
//! *Invariant:* a plan changes no target.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    controller::{
        commands::Commands,
        context::Error,
        planning::{Scope, environments, matched_nothing},
        records::TrackedPullRequest,
        source::Head,
        work_queue::{Reason, ReconcileRequest},
    },
    domain::{
        authorization::Principal,
        command::Command,
        declaration::{Selector, schema::Verb},
        message::{Refusal, answer::Answer},
        plan::Plan,
    },
    model::InstanceId,
    ports::Use,
};

impl Commands {
    /// `/plan`: enqueues a new plan of a pull request.
    ///
    /// # Errors
    /// [`Error::Refused`] with the reason; else when the store fails.
    pub(super) async fn replan(
        self: &Arc<Self>,
        head: &Arc<Head>,
        tracked: &TrackedPullRequest,
        principal: &Principal,
        command: &Command,
    ) -> Result<String, Error> {
        let selected =
            self.planner.select(head, command.selector.as_ref(), &self.source.changed_by(tracked).await?).await?;
        if selected.is_empty() && command.selector.is_some() {
            return Err(Error::Refused(Refusal::Empty(matched_nothing(head, command.selector.as_ref()))));
        }
        let mut selected_environments = environments(&selected);
        if command.selector.is_none() && !tracked.environments.is_empty() {
            selected_environments.retain(|environment| tracked.environments.contains(environment));
        }
        self.authorization.allow(head, principal, Verb::Plan, &selected_environments).await?;
        if !tracked.pull.open {
            return Err(Error::Refused(Refusal::PullRequestClosed));
        }
        if let Some(recorded) = self.source.tracked(tracked.pull.number).await? {
            self.pull_requests.record(&TrackedPullRequest { replan: true, ..recorded }).await?;
        }
        self.context.queue.enqueue(ReconcileRequest::PullRequest(tracked.pull.number), Reason::Command(Verb::Plan));
        Ok(Answer::PlanningAgain.to_string())
    }

    /// Plans the pending instances that a selector matches, by environment, for the API.
    ///
    /// # Errors
    /// [`Error::Refused`] with the reason; else when the repository or the store fails.
    pub async fn plan_now(
        self: &Arc<Self>,
        selector: Option<&Selector>,
        principal: &Principal,
    ) -> Result<Vec<Plan>, Error> {
        let (head, selected) = self.resolve_allowed(selector, Verb::Plan, principal).await?;
        let mut plans = vec![];
        for environment in environments(&selected) {
            let mut instances: BTreeSet<InstanceId> =
                self.planner.pending(&head, &environment).await?.intersection(&selected).cloned().collect();
            // Instances that could not be observed are planned as well, because their drift is unknown (R2.9).
            let observed = self.context.store.observed_in(&environment).await?;
            let is_unknown = |id: &&InstanceId| observed.get(*id).is_some_and(|observed| observed.error.is_some());
            instances.extend(selected.iter().filter(|id| id.environment == environment).filter(is_unknown).cloned());
            let scope = Scope { instances, r#use: Use::Head, because: "head".into(), base: None, guards: None };
            let (plan, _) = self.planner.plan_environment(&environment, &head, &scope).await?;
            self.context.store.record_plan(&format!("head/{environment}"), &plan, self.context.now()).await?;
            plans.push(plan);
        }
        Ok(plans)
    }
}
