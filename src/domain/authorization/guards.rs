//! Computes the guards in force (R3.4): limits, `protect`, `allowRewrite` and permissions.
//!
//! The guards in force may differ from the declared ones. Each commit of the branch is judged alone: a tighter guard is
//! in force at once. A looser guard is in force only if its commit changes nothing else that the guard protects. Never
//! reads the applied records.
//! *Invariant:* commits are judged one by one, in order. A commit that loosens a guard and a later one that uses the
//! looser guard are two decisions.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::Rights;
use crate::{
    domain::{
        declaration::{Desired, Instance, schema::Limits},
        plan::Protection,
    },
    model::{EnvironmentName, InstanceId, Revision},
};

/// A guard, and the commit since which it is in force.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Held<T> {
    /// The guard.
    pub guard: T,
    /// The commit.
    pub since: Revision,
}

/// The guards in force.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InForce {
    /// The last judged commit.
    pub revision: Option<Revision>,
    /// The limits of each environment.
    pub limits: BTreeMap<EnvironmentName, Held<Limits>>,
    /// The protected addresses of each instance.
    pub protect: BTreeMap<InstanceId, Held<Vec<String>>>,
    /// Whether tables of each instance may be rewritten.
    #[serde(default)]
    pub rewrites: BTreeMap<InstanceId, Held<bool>>,
    /// The permissions in each environment: the declared ones, and the earlier ones if a commit changed permissions
    /// together with instances that they guard. All of them are in force.
    #[serde(default)]
    pub rights: BTreeMap<EnvironmentName, Vec<Held<Rights>>>,
}

impl InForce {
    /// Returns the limits of one run in an environment.
    pub fn limits(&self, environment: &EnvironmentName) -> Limits {
        self.limits.get(environment).map(|entry| entry.guard.clone()).unwrap_or_default()
    }

    /// Returns the protected addresses of an instance, and whether its stored data is protected.
    pub fn protect(&self, id: &InstanceId) -> Protection {
        Protection {
            addresses: self.protect.get(id).map(|entry| entry.guard.clone()).unwrap_or_default(),
            data: self.rewrites.get(id).is_some_and(|entry| !entry.guard),
        }
    }

    /// Returns the permissions in an environment.
    pub fn rights(&self, environment: &EnvironmentName) -> Vec<Rights> {
        self.rights.get(environment).into_iter().flatten().map(|entry| entry.guard.clone()).collect()
    }

    /// Returns the guards after one more commit, and one sentence for each refused loosening. Without an earlier
    /// commit, every declared guard is in force.
    pub fn after(&self, before: Option<&Desired>, commit: &Desired, revision: &Revision) -> (Self, Vec<String>) {
        let mut next = Self { revision: Some(revision.clone()), ..self.clone() };
        let mut refused = vec![];
        for (name, environment) in &commit.environments {
            let declared = &environment.limits;
            let known = before.and_then(|_| self.limits.get(name)).map(|entry| &entry.guard);
            let guard = match known {
                // A refused loosening stays refused in later commits.
                Some(known) if before.and_then(|b| b.environments.get(name)).is_some_and(|b| b.limits == *declared) => {
                    known.clone()
                }
                Some(known) if !alone(before, commit, name) => {
                    let counts = tighter(known, declared);
                    if counts != *declared {
                        refused.push(format!("`limits` of `{name}` are loosened together with changes of what they guard: split in two pull requests"));
                    }
                    counts
                }
                _ => declared.clone(),
            };
            if known != Some(&guard) {
                next.limits.insert(name.clone(), Held { guard, since: revision.clone() });
            }
        }
        refused.extend(next.judge_rights(before, commit, revision));
        for (id, instance) in &commit.instances {
            let Some(spec) = &instance.spec else { continue };
            // A renamed instance keeps the protection of its former name.
            let was_declared = before.is_some_and(|before| before.instances.contains_key(id));
            let former = instance.renamed_from.as_ref().filter(|_| !was_declared);
            let protect_of =
                |id: &InstanceId| before.and_then(|_| self.protect.get(id)).map(|entry| entry.guard.clone());
            let mut known = protect_of(id);
            if let Some(old) = former.and_then(protect_of) {
                known.get_or_insert_default().extend(old);
            }
            let declared_before = before.and_then(|before| before.instances.get(former.unwrap_or(id)));
            let same =
                declared_before.is_some_and(|before| before.digest.is_some() && before.digest == instance.digest);
            let is_same_protect = declared_before
                .and_then(|before| before.spec.as_ref())
                .is_some_and(|before| before.protect == spec.protect);
            let recorded = |id: &InstanceId| before.and(self.rewrites.get(id));
            let recorded = recorded(id).or_else(|| former.and_then(recorded));
            refused.extend(next.judge_rewrites(recorded, declared_before, instance, !same, revision));
            let mut guard = spec.protect.clone();
            if let Some(known) = known.as_ref().filter(|_| !same || is_same_protect) {
                let lifted: Vec<String> = known.iter().filter(|entry| !guard.contains(entry)).cloned().collect();
                if let Some(first) = lifted.first().filter(|_| !is_same_protect) {
                    refused.push(format!("`protect` of `{id}` is lifted from `{first}` together with a change of it: split in two pull requests"));
                }
                guard.extend(lifted);
            }
            let known = known.as_ref();
            let name = former.unwrap_or(id);
            // An instance that was never protected has no record.
            if (known != Some(&guard) || name != id) && (known.is_some() || !guard.is_empty()) {
                next.protect.insert(id.clone(), Held { guard, since: revision.clone() });
            }
        }
        (next, refused)
    }
}

impl InForce {
    /// Updates the rewrite guard of an instance from a commit; returns the refusal of a loosening.
    fn judge_rewrites(
        &mut self,
        recorded: Option<&Held<bool>>,
        before: Option<&Arc<Instance>>,
        instance: &Instance,
        changed: bool,
        revision: &Revision,
    ) -> Option<String> {
        let declared = instance.allows_rewrites?;
        let declared_before = before.and_then(|before| before.allows_rewrites);
        let recorded = recorded.map(|recorded| recorded.guard);
        let (guard, refused) = match recorded {
            // A refused loosening stays refused in later commits.
            Some(recorded) if declared_before == Some(declared) => (recorded, None),
            Some(false) if declared && changed => {
                let message = "is said together with a change of it: split in two pull requests";
                (false, Some(format!("`allowRewrite` of `{}` {message}", instance.id)))
            }
            _ => (declared, None),
        };
        if recorded != Some(guard) {
            self.rewrites.insert(instance.id.clone(), Held { guard, since: revision.clone() });
        }
        refused
    }

    /// Updates the permissions from a commit; returns the refusals.
    fn judge_rights(&mut self, before: Option<&Desired>, commit: &Desired, revision: &Revision) -> Vec<String> {
        let Some(state_repo) = &commit.state_repo else { return vec![] };
        let mut refused = vec![];
        for name in commit.environments.keys() {
            let declared = Held { guard: Rights::of(state_repo, name), since: revision.clone() };
            let known = self.rights.entry(name.clone()).or_default();
            let is_same = known.last().is_some_and(|last| last.guard == declared.guard);
            let declared_before =
                before.and_then(|before| before.state_repo.as_ref()).map(|repo| Rights::of(repo, name));
            if declared_before.as_ref() == Some(&declared.guard) && !known.is_empty() {
                continue;
            }
            if known.is_empty() || before.is_none() || alone(before, commit, name) {
                let same = known.last().filter(|_| is_same).cloned();
                *known = vec![same.unwrap_or(declared)];
            } else if !is_same {
                known.push(declared);
                refused.push(format!(
                    "who may do what in `{name}` is changed together with what that guards: split in two pull requests"
                ));
            }
        }
        refused
    }
}

/// Returns whether a commit changes no instance of an environment.
fn alone(before: Option<&Desired>, commit: &Desired, environment: &EnvironmentName) -> bool {
    let digests = |desired: &Desired| -> BTreeMap<InstanceId, _> {
        let own = desired.instances.iter().filter(|(id, _)| id.environment == *environment);
        own.map(|(id, instance)| (id.clone(), instance.digest)).collect()
    };
    before.is_some_and(|before| {
        let after = digests(commit);
        after.values().all(Option::is_some) && digests(before) == after
    })
}

fn tighter(a: &Limits, b: &Limits) -> Limits {
    let Limits { destroys, replaces, changes, moves, move_bytes } = b;
    fn both<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
        a.into_iter().chain(b).min()
    }
    Limits {
        destroys: a.destroys.min(*destroys),
        replaces: a.replaces.min(*replaces),
        changes: both(a.changes, *changes),
        moves: both(a.moves, *moves),
        move_bytes: both(a.move_bytes, *move_bytes),
    }
}
