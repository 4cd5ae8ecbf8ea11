//! Remediations that were merged: which run, which wait and why, which are spent (R4.1, R4.2).
//!
//! A remediation is a filter, never a source of arguments. *Race:* its branch is edited and merged at once: what counts is
//! the file at head.

use crate::domain::message;
use crate::domain::message::run::RunCause;
use crate::domain::remediation::Unusable;
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
        plan::Observed,
        remediation,
    },
    model::{Action, ComponentName, EnvironmentName, InstanceId, PullNumber, Revision, RunId},
};

/// The path of a remediation's file in the repository.
pub(crate) fn remediation_path(root: &str, environment: &EnvironmentName, name: &str) -> String {
    format!("{root}/{}", remediation::path(environment, name))
}

impl Remediations {
    /// Makes runs of merged remediations that may run, and says why others wait.
    pub(crate) async fn take_merged(
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
            // Spent by name and the commit that added it: the same file added again is another remediation.
            if merged.commit.as_ref() == Some(&commit) && (merged.spent || merged.run.is_some()) {
                continue;
            }
            if merged.commit.as_ref() != Some(&commit) {
                merged = MergedRemediation { commit: Some(commit.clone()), ..MergedRemediation::default() };
                let pull = self.source.pull_request_merged_as(&commit).await?;
                let by =
                    pull.and_then(|pull| pull.merged_by).map_or_else(|| "somebody".into(), |by| format!("user:{by}"));
                self.snooze_cuts(name.as_str(), remediation, &by).await?;
            }
            let not_as_merged = self.not_as_merged(name, remediation, &commit).await?;
            let expires_at = remediation.expires_at;
            let unusable = if expires_at < now {
                Some(Unusable::Expired(expires_at))
            } else {
                not_as_merged.or(remediation.actions.is_empty().then_some(Unusable::Empty))
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
            if let Err(error) = self.take_remediation(head, name, remediation, &commit, merged).await {
                tracing::warn!(kind = "remediation-failed", %name, error = crate::error_chain(&error), "a merged remediation could not start; it is tried again");
            }
        }
        Ok(())
    }

    async fn take_remediation(
        self: &Arc<Self>,
        head: &Arc<Head>,
        name: &ComponentName,
        remediation: &Remediation,
        commit: &Revision,
        mut merged: MergedRemediation,
    ) -> Result<(), Error> {
        let environment = &remediation.environment;
        let pull = self.source.pull_request_merged_as(commit).await?;
        let who = match pull.as_ref().and_then(|pull| pull.merged_by.clone()) {
            Some(login) => {
                let command_id = format!("merge/{environment}/{name}/{commit}");
                Some(self.authorization.person(head, &login).await?.by(command_id))
            }
            None => None,
        };
        merged.pull = pull.as_ref().map(|pull| pull.number);
        let unusable = match (&who, &pull) {
            (Some(who), Some(pull)) => {
                match self.authorization.allow(head, who, Verb::Apply, &BTreeSet::from([environment.clone()])).await {
                    Err(Error::Refused(refusal)) => Some(Unusable::NotAllowed(refusal.to_string())),
                    Err(error) => return Err(error),
                    Ok(()) => self
                        .authorization
                        .missing_approvals_of_remediation(head, who, environment, pull)
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
        } else if let Some(who) = who {
            let because = RunCause::MergedRemediation(merged.pull, who.mention());
            match self.run_remediation(head, name, remediation, because, &who, merged.pull).await {
                Ok(id) => {
                    merged.run = Some(id);
                    // One that was made before the daemon died may have ended meanwhile.
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

    /// Makes the run of a merged remediation.
    pub(crate) async fn run_remediation(
        self: &Arc<Self>,
        head: &Arc<Head>,
        name: &ComponentName,
        remediation: &Remediation,
        because: RunCause,
        who: &Principal,
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
            // Only the reviewed actions may run, as they were proposed.
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
            principal: who.name(),
            command_id: who.command_id().map(str::to_owned),
            kind: match applies {
                true => RunKind::Apply { by_merge: false },
                false => RunKind::Remediation { name: name.to_string() },
            },
            pull,
        };
        self.runs.create_run(head, authorised).await
    }

    /// Why a merged remediation is no authority for anything: it is not what was written, or not what was merged.
    async fn not_as_merged(
        self: &Arc<Self>,
        name: &ComponentName,
        remediation: &Remediation,
        commit: &Revision,
    ) -> Result<Option<Unusable>, Error> {
        if let Some(reason) = self.runs.edited(name.as_str(), remediation).await? {
            return Ok(Some(reason));
        }
        let (then, _) = self.source.load(commit).await?;
        let same = then.remediations.get(name).is_some_and(|(merged, _)| **merged == *remediation);
        Ok((!same).then_some(Unusable::EditedAfterMerge))
    }

    /// The remediations that are merged and not spent, by environment.
    pub(crate) async fn held(&self, environment: &EnvironmentName) -> Result<Vec<(String, MergedRemediation)>, Error> {
        let all: Vec<(String, MergedRemediation)> = self.context.store.collection::<MergedRemediation>().all().await?;
        Ok(all
            .into_iter()
            .filter(|(key, merged)| key.starts_with(&format!("{environment}/")) && !merged.spent)
            .collect())
    }

    /// The instances whose drift is a merged remediation's business: it runs, it waits, or nobody took it up yet.
    pub(super) async fn awaited_by_remediations(
        &self,
        head: &Head,
        environment: &EnvironmentName,
        observed: &BTreeMap<InstanceId, Observed>,
    ) -> Result<BTreeSet<InstanceId>, Error> {
        let reverts = |action: &RemediationAction| {
            let revert = observed.get(&action.instance).map(Observed::revert_actions).unwrap_or_default();
            revert.iter().any(|one| one.digest == action.digest)
        };
        let taken: Vec<(String, MergedRemediation)> =
            self.context.store.collection::<MergedRemediation>().all().await?;
        let taken: BTreeMap<String, MergedRemediation> = taken.into_iter().collect();
        let mut held = BTreeSet::new();
        for (name, (remediation, file)) in &head.desired.remediations {
            if remediation.environment != *environment || remediation.direction != Direction::Revert {
                continue;
            }
            let is_held = match taken.get(&format!("{environment}/{name}")) {
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
            if is_held {
                held.extend(remediation.actions.iter().map(|action| action.instance.clone()));
            }
        }
        Ok(held)
    }

    /// Snoozes the drift whose actions were cut from a remediation before it was merged.
    async fn snooze_cuts(&self, name: &str, remediation: &Remediation, by: &str) -> Result<(), Error> {
        let written: Option<Remediation> = self.context.store.collection::<Remediation>().get(&name.to_owned()).await?;
        let written = written.filter(|written| written.direction == Direction::Revert);
        for RemediationAction { instance: id, digest, .. } in written.into_iter().flat_map(|one| one.actions) {
            if !remediation.actions.iter().any(|left| left.digest == digest) {
                let because = format!("cut from the remediation `{name}`");
                let actions = BTreeSet::from([digest]);
                let snooze = Snooze { actions, until: self.context.now() + SNOOZE, by: by.to_owned(), because };
                self.observer.snooze(&id, snooze).await?;
            }
        }
        Ok(())
    }
}
