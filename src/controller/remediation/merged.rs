//! Runs merged remediations, and records which of them wait or are spent (R4.1, R4.2).
//!
//! *Invariant:* a remediation is a filter of planned actions, never a source of arguments. A remediation runs at most once.
//! *Race:* a branch is edited and merged at the same time: only the file at head counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    controller::{
        context::Error,
        records::{MergedRemediation, SNOOZE, Snooze},
        remediation::Remediations,
        runs::Authorised,
        source::Head,
    },
    domain::{
        authorization::Principal,
        declaration::schema::{Direction, Remediation, RemediationAction, Verb},
        journal::{Approved, RunKind, RunState},
        message::{self, run::RunCause},
        plan::Observed,
        remediation::{self, Unusable},
    },
    model::{Action, ComponentName, EnvironmentName, InstanceId, PullNumber, Revision, RunId},
};

/// Returns the path of the file of a remediation in the repository.
pub(crate) fn remediation_path(root: &str, environment: &EnvironmentName, name: &str) -> String {
    format!("{root}/{}", remediation::path(environment, name))
}

impl Remediations {
    /// Starts the merged remediations of an environment that are authorised, and reports why the others wait.
    ///
    /// # Errors
    /// When the forge, the repository or the store fails.
    pub(crate) async fn start_merged(
        self: &Arc<Self>,
        head: &Arc<Head>,
        environment: &EnvironmentName,
    ) -> Result<(), Error> {
        let now = self.context.now();
        for (name, (remediation, file)) in
            head.desired.remediations.iter().filter(|(_, (r, _))| r.environment == *environment)
        {
            let path = format!("{}/{file}", self.context.settings.root);
            let Some(commit) = self.context.repository.added_by(&head.revision, &path).await? else { continue };
            let key = format!("{environment}/{name}");
            let mut merged: MergedRemediation =
                self.context.store.collection::<MergedRemediation>().get(&key).await?.unwrap_or_default();
            // A file that is added again by another commit is another remediation.
            if merged.commit.as_ref() == Some(&commit) && (merged.spent || merged.run.is_some()) {
                continue;
            }
            if merged.commit.as_ref() != Some(&commit) {
                merged = MergedRemediation { commit: Some(commit.clone()), ..MergedRemediation::default() };
                let pull = self.source.pull_request_merged_as(&commit).await?;
                let by = pull
                    .and_then(|pull| pull.merged_by)
                    .map_or_else(|| "an unknown user".into(), |by| format!("user:{by}"));
                self.snooze_cuts(name.as_str(), remediation, &by).await?;
            }
            let unusable_content = self.unusable_content(name, remediation, &commit).await?;
            let expires_at = remediation.expires_at;
            let unusable = if expires_at < now {
                Some(Unusable::Expired(expires_at))
            } else {
                unusable_content.or(remediation.actions.is_empty().then_some(Unusable::Empty))
            };
            if let Some(reason) = unusable {
                let pull = self.source.pull_request_merged_as(&commit).await?;
                if let Some(pull) = pull.filter(|_| !remediation.actions.is_empty()) {
                    let marker = format!("remediation-waits name={name}");
                    let text = message::remediation::spent(&reason);
                    self.notifier.comment_on(pull.number, &marker, &text, None).await?;
                }
                merged.spent = true;
                merged.waits = Some(reason.to_string());
                self.context.store.collection::<MergedRemediation>().put(&key, now, &merged).await?;
                continue;
            }
            if let Err(error) = self.start_remediation(head, name, remediation, &commit, merged).await {
                tracing::warn!(kind = "remediation-failed", %name, error = crate::error_chain(&error), "a merged remediation could not start; it is tried again");
            }
        }
        Ok(())
    }

    async fn start_remediation(
        self: &Arc<Self>,
        head: &Arc<Head>,
        name: &ComponentName,
        remediation: &Remediation,
        commit: &Revision,
        mut merged: MergedRemediation,
    ) -> Result<(), Error> {
        let environment = &remediation.environment;
        let pull = self.source.pull_request_merged_as(commit).await?;
        let principal = match pull.as_ref().and_then(|pull| pull.merged_by.clone()) {
            Some(login) => {
                let command_id = format!("merge/{environment}/{name}/{commit}");
                Some(self.authorization.principal_of(head, &login).await?.by(command_id))
            }
            None => None,
        };
        merged.pull = pull.as_ref().map(|pull| pull.number);
        let unusable = match (&principal, &pull) {
            (Some(principal), Some(pull)) => {
                match self
                    .authorization
                    .allow(head, principal, Verb::Apply, &BTreeSet::from([environment.clone()]))
                    .await
                {
                    Err(Error::Refused(refusal)) => Some(Unusable::NotAllowed(refusal.to_string())),
                    Err(error) => return Err(error),
                    Ok(()) => self
                        .authorization
                        .missing_approvals_of_remediation(head, principal, environment, pull)
                        .await?
                        .map(|missing| Unusable::NotApproved(missing.to_string())),
                }
            }
            _ => Some(Unusable::NotByPullRequest(environment.clone(), name.clone())),
        };
        merged.waits = unusable.as_ref().map(ToString::to_string);
        if let Some(reason) = unusable {
            if let Some(number) = merged.pull {
                let text = message::remediation::waiting(&reason);
                self.notifier.comment_on(number, &format!("remediation-waits name={name}"), &text, None).await?;
            }
        } else if let Some(principal) = principal {
            let because = RunCause::MergedRemediation(merged.pull, principal.mention());
            match self.run_remediation(head, name, remediation, because, &principal, merged.pull).await {
                Ok(id) => {
                    merged.run = Some(id);
                    // A run that an earlier daemon created may have ended.
                    let run = self.context.store.run(id).await?;
                    merged.spent = run.is_some_and(|run| matches!(run.state, RunState::Ended { .. }));
                }
                Err(Error::Refused(message)) => (merged.waits, merged.spent) = (Some(message.to_string()), true),
                Err(error) => return Err(error),
            }
            merged.spent |= remediation.direction == Direction::Apply;
        }
        self.context
            .store
            .collection::<MergedRemediation>()
            .put(&format!("{environment}/{name}"), self.context.now(), &merged)
            .await?;
        Ok(())
    }

    /// Creates the run of a merged remediation.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn run_remediation(
        self: &Arc<Self>,
        head: &Arc<Head>,
        name: &ComponentName,
        remediation: &Remediation,
        because: RunCause,
        principal: &Principal,
        pull: Option<PullNumber>,
    ) -> Result<RunId, Error> {
        let instances: BTreeSet<InstanceId> = remediation
            .actions
            .iter()
            .map(|action| action.instance.clone())
            .filter(|id| id.environment == remediation.environment)
            .collect();
        let mut approved: BTreeMap<InstanceId, Approved> =
            instances.iter().map(|id| (id.clone(), Approved::Remediation)).collect();
        let applies = remediation.direction == Direction::Apply;
        if applies {
            // Only the reviewed actions are approved, as they were proposed.
            let stored = self.runs.stored_actions(remediation).await?;
            let mut by_instance: BTreeMap<InstanceId, Vec<Action>> = BTreeMap::new();
            for action in &remediation.actions {
                by_instance.entry(action.instance.clone()).or_default().extend(stored.get(&action.digest).cloned());
            }
            approved.extend(by_instance.into_iter().map(|(id, actions)| (id, Approved::Actions { actions })));
        }
        let authorised = Authorised {
            environment: remediation.environment.clone(),
            instances,
            approved,
            because,
            principal: principal.name(),
            command_id: principal.command_id().map(str::to_owned),
            kind: match applies {
                true => RunKind::Apply { by_merge: false },
                false => RunKind::Remediation { name: name.to_string() },
            },
            pull,
        };
        self.runs.create_run(head, authorised).await
    }

    /// Returns the reason why a merged remediation authorises nothing: its file differs from the proposal or from its merge.
    async fn unusable_content(
        self: &Arc<Self>,
        name: &ComponentName,
        remediation: &Remediation,
        commit: &Revision,
    ) -> Result<Option<Unusable>, Error> {
        if let Some(reason) = self.runs.edited(name.as_str(), remediation).await? {
            return Ok(Some(reason));
        }
        let (at_merge, _) = self.source.load(commit).await?;
        let is_unchanged = at_merge.remediations.get(name).is_some_and(|(merged, _)| **merged == *remediation);
        Ok((!is_unchanged).then_some(Unusable::EditedAfterMerge))
    }

    /// Returns the merged remediations of an environment that are not spent.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(crate) async fn unspent(
        &self,
        environment: &EnvironmentName,
    ) -> Result<Vec<(String, MergedRemediation)>, Error> {
        let all: Vec<(String, MergedRemediation)> = self.context.store.collection::<MergedRemediation>().all().await?;
        Ok(all
            .into_iter()
            .filter(|(key, merged)| key.starts_with(&format!("{environment}/")) && !merged.spent)
            .collect())
    }

    /// Returns the instances whose drift a merged remediation reverts: the remediation runs, waits, or is not handled yet.
    ///
    /// # Errors
    /// When the store or the repository can't be read.
    pub(super) async fn awaited_by_remediations(
        &self,
        head: &Head,
        environment: &EnvironmentName,
        observed: &BTreeMap<InstanceId, Observed>,
    ) -> Result<BTreeSet<InstanceId>, Error> {
        let reverts = |action: &RemediationAction| {
            let revert = observed.get(&action.instance).map(Observed::revert_actions).unwrap_or_default();
            revert.iter().any(|revert| revert.digest == action.digest)
        };
        let recorded: Vec<(String, MergedRemediation)> =
            self.context.store.collection::<MergedRemediation>().all().await?;
        let recorded: BTreeMap<String, MergedRemediation> = recorded.into_iter().collect();
        let mut awaited = BTreeSet::new();
        for (name, (remediation, file)) in &head.desired.remediations {
            if remediation.environment != *environment || remediation.direction != Direction::Revert {
                continue;
            }
            let is_awaited = match recorded.get(&format!("{environment}/{name}")) {
                None => true,
                Some(merged) if !merged.spent => merged.waits.is_some() || merged.run.is_some(),
                // The same file added again is another remediation.
                Some(merged) => {
                    remediation.actions.iter().any(reverts) && {
                        let path = format!("{}/{file}", self.context.settings.root);
                        self.context.repository.added_by(&head.revision, &path).await? != merged.commit
                    }
                }
            };
            if is_awaited {
                awaited.extend(remediation.actions.iter().map(|action| action.instance.clone()));
            }
        }
        Ok(awaited)
    }

    /// Snoozes the drift whose actions a reviewer removed from a remediation before its merge.
    async fn snooze_cuts(&self, name: &str, remediation: &Remediation, by: &str) -> Result<(), Error> {
        let written: Option<Remediation> = self.context.store.collection::<Remediation>().get(&name.to_owned()).await?;
        let written = written.filter(|written| written.direction == Direction::Revert);
        for RemediationAction { instance: id, digest, .. } in written.into_iter().flat_map(|written| written.actions) {
            if !remediation.actions.iter().any(|remaining| remaining.digest == digest) {
                let because = format!("cut from the remediation `{name}`");
                let actions = BTreeSet::from([digest]);
                let snooze = Snooze { actions, until: self.context.now() + SNOOZE, by: by.to_owned(), because };
                self.observer.snooze(&id, snooze).await?;
            }
        }
        Ok(())
    }
}
