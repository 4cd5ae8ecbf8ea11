//! Checks permissions and approvals of commands, remediations and protected paths (R3.6).
//!
//! For each instance, the reviews of the newest merged pull request that changed it count. Without such a pull request there
//! are no approvals, and the refusal contains a hint how to get them.
//! *Invariant:* while the `StateRepo` can't be read, no principal has permissions.
//! *Race:* a plan changes after a review: the review counts only where the reviewed plan covers the current actions.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    controller::{
        context::{Context, Error},
        records::{PLAN_SETTLED, pull_request_subject},
        source::{Head, Source},
    },
    domain::{
        authorization::{
            self, Principal, Rights,
            approvals::{Given, MissingApprovals, missing, standing},
            paths, permit,
        },
        declaration::schema::{Approvals, Team, Verb},
        message::Refusal,
        plan::{InstancePlan, Plan, covers},
    },
    model::{EnvironmentName, InstanceId, PullNumber},
    ports::{EntryKind, Files, FilesError, Pull},
};

/// Returns the paths that differ between two contents.
///
/// # Errors
/// When a folder can't be listed.
pub(crate) fn changed_paths(before: &dyn Files, after: &dyn Files, folder: &str) -> Result<Vec<String>, FilesError> {
    let entries = |files: &dyn Files| -> Result<BTreeMap<String, (EntryKind, String)>, FilesError> {
        Ok(files.list(folder)?.into_iter().map(|entry| (entry.name, (entry.sort, entry.id))).collect())
    };
    let (old, new) = (entries(before)?, entries(after)?);
    let mut paths = vec![];
    for name in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
        let (old_entry, new_entry) = (old.get(name), new.get(name));
        if old_entry == new_entry {
            continue;
        }
        let path = crate::ports::join(folder, name).unwrap_or_default();
        if [old_entry, new_entry].into_iter().flatten().any(|(sort, _)| *sort == EntryKind::Folder) {
            paths.extend(changed_paths(before, after, &path)?);
        }
        if [old_entry, new_entry].into_iter().flatten().any(|(sort, _)| *sort != EntryKind::Folder) {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// The controller of permissions and approvals.
pub(super) struct Authorization {
    context: Arc<Context>,
    source: Arc<Source>,
}

impl Authorization {
    pub(crate) fn new(context: Arc<Context>, source: Arc<Source>) -> Arc<Self> {
        Arc::new(Self { context, source })
    }

    /// Returns the rights in an environment; none while the `StateRepo` can't be read.
    ///
    /// # Errors
    /// When the store or the repository can't be read.
    pub(crate) async fn rights(
        self: &Arc<Self>,
        head: &Head,
        environment: &EnvironmentName,
    ) -> Result<Vec<Rights>, Error> {
        if head.desired.state_repo.is_none() {
            return Ok(vec![]);
        }
        Ok(self.source.guards(head).await?.rights(environment))
    }

    /// Returns the missing approvals of a command on instances of a plan.
    ///
    /// # Errors
    /// When the forge, the repository or the store fails.
    pub(crate) async fn missing_approvals(
        self: &Arc<Self>,
        head: &Head,
        principal: &Principal,
        verb: Verb,
        plan: &Plan,
        instances: &BTreeSet<InstanceId>,
    ) -> Result<Option<MissingApprovals>, Error> {
        let rights = self.rights(head, &plan.environment).await?;
        let needs = permit(&rights, principal, verb).unwrap_or_default();
        if needs.is_empty() {
            return Ok(None);
        }
        let mut by_pull: BTreeMap<PullNumber, Vec<&InstancePlan>> = BTreeMap::new();
        let has_work = |instance: &&InstancePlan| instance.digest.is_none() || !instance.actions.is_empty();
        for instance in plan.instances.iter().filter(|i| instances.contains(&i.id)).filter(has_work) {
            let Some(number) = self.changed_by_pull(head, &instance.id).await? else {
                if verb == Verb::Destroy {
                    return Ok(Some(MissingApprovals::RemovedWithoutPullRequest(instance.id.clone())));
                }
                return Ok(Some(MissingApprovals::ChangedWithoutPullRequest(instance.id.clone())));
            };
            by_pull.entry(number).or_default().push(instance);
        }
        for (number, instances) in by_pull {
            if let Some(message) =
                self.missing_approvals_of(head, number, &needs, &plan.environment, &instances).await?
            {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    async fn missing_approvals_of(
        self: &Arc<Self>,
        head: &Head,
        number: PullNumber,
        needs: &[&Approvals],
        environment: &EnvironmentName,
        instances: &[&InstancePlan],
    ) -> Result<Option<MissingApprovals>, Error> {
        let Some(forge) = self.context.forge.clone() else { return Ok(Some(MissingApprovals::NoForge)) };
        let pull = forge.get_pull(number).await?;
        let mut given = vec![];
        for review in standing(&pull, forge.list_reviews(number).await?) {
            let reviewed_plan = self
                .context
                .store
                .last_plan(&pull_request_subject(number, environment), Some(review.at - PLAN_SETTLED))
                .await?;
            let covers = instances.iter().all(|current| {
                let reviewed = reviewed_plan.as_ref().and_then(|(plan, _)| plan.instance(&current.id));
                reviewed.is_some_and(|reviewed| match (reviewed.digest, current.digest) {
                    (None, None) => true,
                    (Some(_), Some(_)) => covers(&reviewed.actions, &current.actions).is_ok(),
                    _ => false,
                })
            });
            given.push(Given {
                by: self.principal_of(head, &review.author).await?,
                head: review.head,
                at: review.at,
                covers,
            });
        }
        Ok(missing(needs, number, &pull.head, &given))
    }

    /// Returns the missing approvals of the pull request of a remediation. Its description is its plan, so that every review
    /// of its head covers the plan.
    ///
    /// # Errors
    /// When the forge, the repository or the store fails.
    pub(crate) async fn missing_approvals_of_remediation(
        self: &Arc<Self>,
        head: &Head,
        principal: &Principal,
        environment: &EnvironmentName,
        pull: &Pull,
    ) -> Result<Option<MissingApprovals>, Error> {
        let rights = self.rights(head, environment).await?;
        let needs = permit(&rights, principal, Verb::Apply).unwrap_or_default();
        self.missing_approvals_of_head(head, pull, &needs).await
    }

    async fn missing_approvals_of_head(
        self: &Arc<Self>,
        head: &Head,
        pull: &Pull,
        needs: &[&Approvals],
    ) -> Result<Option<MissingApprovals>, Error> {
        let Some(forge) = self.context.forge.clone().filter(|_| !needs.is_empty()) else { return Ok(None) };
        let mut given = vec![];
        for review in standing(pull, forge.list_reviews(pull.number).await?) {
            let by = self.principal_of(head, &review.author).await?;
            given.push(Given { by, head: review.head, at: review.at, covers: true });
        }
        Ok(missing(needs, pull.number, &pull.head, &given))
    }

    /// Returns the newest merged pull request that changed an instance since it was applied; `None` where a commit without a
    /// pull request changed it later.
    async fn changed_by_pull(self: &Arc<Self>, head: &Head, id: &InstanceId) -> Result<Option<PullNumber>, Error> {
        let applied = self.context.store.applied(id).await?;
        for (number, commit) in self.source.merged_pull_requests(head).await? {
            if let Some(applied) = &applied
                && self.context.repository.contains(&applied.revision, &commit).await?
            {
                return Ok(None);
            }
            let plan = self.context.store.last_plan(&pull_request_subject(number, &id.environment), None).await?;
            if plan.is_none_or(|(plan, _)| plan.instance(id).is_none()) {
                continue;
            }
            return Ok(self.source.is_unchanged_since(head, id, &commit).await?.then_some(number));
        }
        Ok(None)
    }

    /// Returns the missing approvals of a pull request for the protected paths that it changes.
    ///
    /// # Errors
    /// When the forge, the repository or the store fails.
    pub(crate) async fn missing_approvals_of_paths(
        self: &Arc<Self>,
        base: &Head,
        merged: &Arc<dyn Files>,
        pull: &Pull,
    ) -> Result<Option<MissingApprovals>, Error> {
        let Some(state_repo) = base.desired.state_repo.clone().filter(|repo| !repo.protected_paths.is_empty()) else {
            return Ok(None);
        };
        let (before, after) = (Arc::clone(&base.content), Arc::clone(merged));
        let changed = tokio::task::spawn_blocking(move || changed_paths(&*before, &*after, ""));
        let changed = changed.await.map_err(|_| Error::Refused(Refusal::Stopping))?;
        let changed = changed.map_err(|error| Error::Refused(Refusal::Unreadable { reason: error.to_string() }))?;
        for protected in &state_repo.protected_paths {
            let is_protected = |path: &&String| protected.paths.iter().any(|pattern| paths::matches(pattern, path));
            let Some(path) = changed.iter().find(is_protected) else { continue };
            let needs = Approvals { count: protected.approvals, from: protected.from.clone() };
            if let Some(message) = self.missing_approvals_of_head(base, pull, &[&needs]).await? {
                return Ok(Some(MissingApprovals::ProtectedPath(path.clone(), Box::new(message))));
            }
        }
        Ok(None)
    }

    /// Returns every team with all its definitions in force.
    async fn teams(self: &Arc<Self>, head: &Head) -> Result<BTreeMap<String, Vec<Team>>, Error> {
        let mut teams: BTreeMap<String, Vec<Team>> = BTreeMap::new();
        let declared = head.desired.state_repo.iter().flat_map(|repo| repo.teams.clone());
        let in_force =
            self.source.guards(head).await?.rights.into_values().flatten().flat_map(|rights| rights.guard.teams);
        for (name, team) in declared.chain(in_force) {
            let definitions = teams.entry(name).or_default();
            if !definitions.contains(&team) {
                definitions.push(team);
            }
        }
        Ok(teams)
    }

    /// Returns the principal of a login, with its level and teams on the forge.
    ///
    /// # Errors
    /// When the forge, the repository or the store fails.
    pub(crate) async fn principal_of(self: &Arc<Self>, head: &Head, login: &str) -> Result<Principal, Error> {
        let Some(forge) = &self.context.forge else {
            return Err(Error::Refused(Refusal::NoForge));
        };
        let level = authorization::Level::parse(&forge.get_permission(login).await?);
        let mut teams = BTreeSet::new();
        for (name, definitions) in self.teams(head).await? {
            let mut is_in = true;
            for team in definitions {
                let listed = team.users.iter().any(|user| user.eq_ignore_ascii_case(login));
                let member = match &team.github {
                    Some(team) if !listed => forge.is_member(team, login).await?,
                    _ => false,
                };
                is_in &= listed || member;
            }
            if is_in {
                teams.insert(name);
            }
        }
        Ok(Principal::User { login: login.to_owned(), level, teams, command_id: None })
    }

    /// Checks that a principal may use a command in environments.
    ///
    /// # Errors
    /// [`Error::Refused`] with the first environment where the principal may not; else when the store can't be read.
    pub(crate) async fn allow(
        self: &Arc<Self>,
        head: &Head,
        principal: &Principal,
        verb: Verb,
        environments: &BTreeSet<EnvironmentName>,
    ) -> Result<(), Error> {
        for environment in environments {
            let rights = self.rights(head, environment).await?;
            if authorization::permit(&rights, principal, verb).is_none() {
                return Err(Error::Refused(Refusal::not_permitted(&rights, principal, verb, environment)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
