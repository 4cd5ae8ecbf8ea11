//! Executes `/apply` on the pull request of a remediation, and `evenkeel apply --remediation` (R4.2).
//!
//! *Invariant:* a remediation runs at most once.
//! *Race:* the merge authorises the remediation during the command: the merge is handled first, and the command finds its
//! run.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    controller::{
        commands::Commands,
        context::Error,
        records::{MergedRemediation, TrackedPullRequest},
        source::Head,
        work_queue::ReconcileRequest,
    },
    domain::{
        authorization::{Principal, permit},
        declaration::schema::{Direction, Remediation, Verb},
        message::{Refusal, answer::Answer, run::RunCause},
    },
    model::{ComponentName, RunId},
};

impl Commands {
    /// `/apply` on the pull request of a remediation: runs that remediation, never the pending changes of head (R4.2).
    ///
    /// # Errors
    /// [`Error::Refused`] with the reason; else when the forge, the repository or the store fails.
    pub(super) async fn apply_remediation(
        self: &Arc<Self>,
        head: &Arc<Head>,
        tracked: &TrackedPullRequest,
        principal: &Principal,
    ) -> Result<String, Error> {
        if tracked.pull.merged_as.is_none() {
            return Err(Error::Refused(Refusal::MergeApplies));
        }
        for environment in head.desired.environments.keys() {
            for (key, merged) in self.remediations.unspent(environment).await? {
                let name: Option<ComponentName> = key.rsplit('/').next().and_then(|name| name.parse().ok());
                let Some((name, (remediation, _))) = name
                    .and_then(|name| head.desired.remediations.get(&name).map(|found| (name.clone(), found.clone())))
                else {
                    continue;
                };
                if merged.pull != Some(tracked.pull.number) || merged.run.is_some() {
                    continue;
                }
                self.authorization.allow(head, principal, Verb::Apply, &BTreeSet::from([environment.clone()])).await?;
                if let Some(missing) = self
                    .authorization
                    .missing_approvals_of_remediation(head, principal, environment, &tracked.pull)
                    .await?
                {
                    return Err(Error::Refused(Refusal::NotApproved { verb: Verb::Apply, missing }));
                }
                let run = self.resume_remediation(head, &name, &remediation, principal, merged).await?;
                return Ok(Answer::AppliesRemediation(run).to_string());
            }
        }
        Err(Error::Refused(Refusal::NothingLeftHere))
    }

    async fn resume_remediation(
        self: &Arc<Self>,
        head: &Arc<Head>,
        name: &ComponentName,
        remediation: &Remediation,
        principal: &Principal,
        mut merged: MergedRemediation,
    ) -> Result<RunId, Error> {
        let run = self
            .remediations
            .run_remediation(head, name, remediation, RunCause::Remediation(principal.name()), principal, merged.pull)
            .await?;
        merged.run = Some(run);
        merged.waits = None;
        merged.spent = remediation.direction == Direction::Apply;
        self.context
            .store
            .collection::<MergedRemediation>()
            .put(&format!("{}/{name}", remediation.environment), self.context.now(), &merged)
            .await?;
        Ok(run)
    }

    /// Runs a merged remediation by its name, for the API.
    ///
    /// # Errors
    /// [`Error::Refused`] with the reason; else when the forge, the repository or the store fails.
    pub(super) async fn apply_named_remediation(
        self: &Arc<Self>,
        head: &Arc<Head>,
        name: &ComponentName,
        principal: &Principal,
    ) -> Result<RunId, Error> {
        let Some((remediation, _)) = head.desired.remediations.get(name) else {
            return Err(Error::Refused(Refusal::NoRemediation(name.to_string())));
        };
        self.authorization
            .allow(head, principal, Verb::Apply, &BTreeSet::from([remediation.environment.clone()]))
            .await?;
        let environment = &remediation.environment;
        {
            // A remediation that its merge authorises starts here. Otherwise its record contains the missing approvals.
            let _merges = self.context.queue.take(ReconcileRequest::Merges(environment.clone())).await;
            self.pull_requests.ensure_listed(head).await?;
            self.remediations.start_merged(head, environment).await?;
        }
        let merged: MergedRemediation = self
            .context
            .store
            .collection::<MergedRemediation>()
            .get(&format!("{environment}/{name}"))
            .await?
            .unwrap_or_default();
        let rights = self.authorization.rights(head, environment).await?;
        let needs = permit(&rights, principal, Verb::Apply).unwrap_or_default();
        if merged.pull.is_none() && !needs.is_empty() && !merged.spent && merged.run.is_none() {
            return Err(Error::Refused(Refusal::RemediationNotReviewed {
                name: name.to_string(),
                environment: environment.clone(),
            }));
        }
        if merged.spent || merged.run.is_some() {
            return Err(Error::Refused(Refusal::RemediationSpent(name.to_string())));
        }
        let remediation = Arc::clone(remediation);
        if let Some(number) = merged.pull
            && let Some(tracked) = self.source.tracked(number).await?
            && let Some(missing) = self
                .authorization
                .missing_approvals_of_remediation(head, principal, &remediation.environment, &tracked.pull)
                .await?
        {
            return Err(Error::Refused(Refusal::NotApproved { verb: Verb::Apply, missing }));
        }
        self.resume_remediation(head, name, &remediation, principal, merged).await
    }
}
