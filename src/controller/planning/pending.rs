//! Finds the pending instances at head (R1.4), and resolves selectors.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    controller::{
        context::Error,
        planning::{Planner, orphans::to_destroy},
        source::Head,
    },
    domain::{
        declaration::{Candidate, Selector},
        message::EmptySelection,
        plan::{
            Applied,
            pending::{former_name, is_pending},
        },
    },
    model::{EnvironmentName, InstanceId},
};

/// Returns the selector candidate of an instance that is not declared.
pub(crate) fn undeclared<'i>(
    id: &'i InstanceId,
    applied: Option<&'i Applied>,
    changed: bool,
    pending: bool,
) -> Candidate<'i> {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    let kind = applied.map_or("", |applied| &applied.spec.target.kind);
    Candidate { id, kind, labels: &NONE, changed, drifted: false, pending }
}

pub(crate) fn environments(ids: &BTreeSet<InstanceId>) -> BTreeSet<EnvironmentName> {
    ids.iter().map(|id| id.environment.clone()).collect()
}

pub(crate) fn matched_nothing(head: &Head, selector: Option<&Selector>) -> EmptySelection {
    if head.desired.environments.is_empty() {
        return EmptySelection::NoEnvironment;
    }
    match selector {
        Some(Selector::Drifted) => EmptySelection::NoDrift,
        Some(Selector::Pending) => EmptySelection::NothingPending,
        Some(Selector::Changed) => EmptySelection::NoPullRequest,
        Some(selector) => EmptySelection::NoMatch {
            selector: selector.short(),
            environments: head.desired.environments.keys().cloned().collect(),
        },
        None => EmptySelection::NoInstance,
    }
}

impl Planner {
    /// Returns the instances of an environment whose declaration at head differs from the applied declaration.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(crate) async fn pending(
        &self,
        head: &Head,
        environment: &EnvironmentName,
    ) -> Result<BTreeSet<InstanceId>, Error> {
        let applied = self.context.store.applied_in(environment).await?;
        let stalled = self.stalled().await?;
        let mut pending: BTreeSet<InstanceId> = head
            .environment(environment)
            .filter(|instance| instance.problems.is_empty() && former_name(instance, &applied).is_none())
            .filter(|instance| stalled.contains_key(&instance.id) || is_pending(instance, &applied))
            .map(|instance| instance.id.clone())
            .collect();
        pending.extend(to_destroy(head, &applied));
        Ok(pending)
    }

    /// Resolves a selector among the instances of head.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(crate) async fn select(
        &self,
        head: &Head,
        selector: Option<&Selector>,
        changed: &BTreeSet<InstanceId>,
    ) -> Result<BTreeSet<InstanceId>, Error> {
        let observed = self.context.store.all_observed().await?;
        let applied = self.context.store.all_applied().await?;
        let mut pending: BTreeSet<InstanceId> = BTreeSet::new();
        for environment in head.desired.environments.keys() {
            pending.extend(self.pending(head, environment).await?);
        }
        // Includes the instances of environments that are no longer declared.
        pending.extend(to_destroy(head, &applied));
        let selects = |instance: &crate::domain::declaration::Instance| {
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
        let mut selected: BTreeSet<InstanceId> = head
            .desired
            .instances
            .values()
            .filter(|instance| selects(instance))
            .map(|instance| instance.id.clone())
            .collect();
        for id in pending.iter().filter(|id| head.instance(id).is_none()) {
            let is_changed = changed.contains(id);
            let selects = |selector: &Selector| selector.selects(&undeclared(id, applied.get(id), is_changed, true));
            if selector.is_none_or(selects) {
                selected.insert(id.clone());
            }
        }
        Ok(selected)
    }
}
