//! Observes an instance: determines which objects differ from the result of applying them.
//!
//! *Flow:* render the declared objects; list the objects with the instance's labels, kind by kind; compare each
//! object's mark with its settled mark; read each object that differs and send it as a strict dry-run, which returns
//! the change.
//! *Invariant:* an incomplete read is an error and never makes an object appear deleted. A dry-run changes nothing.
//! *Race:* an object changes between list and dry-run. The resource version of the dry-run is a precondition of the
//! apply.

use crate::targets::kubernetes::work::KubernetesWork;
use std::collections::{BTreeMap, BTreeSet};
use std::{sync::Arc, time::Duration};

use futures::future::FutureExt;
use serde_json::Value;

use super::plan::Details;
use super::{
    Kubernetes,
    client::{Cluster, KINDS_AGAIN, KINDS_KNOWN, Refusal},
    confirm::{Comparison, Undeclared},
    drift::{self},
    fields::{self},
    inventory::{Inventory, InventoryEntry},
    kinds::Kinds,
    live::{Live, get, side_by_side},
    object::Key,
    rendered::{Object, Rendered, wrong},
    schema::Schemas,
    steps::{Found, Step},
};
use crate::{
    model::{Change, Overwrite, ResourceChange},
    ports::{Job, Observation, TargetError, TargetErrorKind},
};

/// The number of missing objects above which only those that do not clearly fit their schema get a dry-run.
const DRY_RUNS_MAX: usize = 200;

/// The scope of an observation.
struct Scope<'s> {
    /// The objects to observe; all if `None`.
    keys: Option<&'s BTreeSet<Key>>,
    /// Whether the inventory was rebuilt from labels alone.
    rebuilt: bool,
}

/// The input of an observation.
pub(super) struct Base {
    pub(super) cluster: Cluster,
    pub(super) kinds: Kinds,
    pub(super) rendered: Arc<Rendered>,
    pub(super) shared_with: Vec<String>,
}

/// The result of an observation.
pub(super) struct Observed {
    pub(super) observation: Observation,
    pub(super) steps: BTreeMap<String, Step>,
    /// The objects that are no longer declared and not deleted, each with the reason.
    pub(super) retained: Vec<String>,
    /// The objects whose deletion is in progress.
    pub(super) terminating: Vec<String>,
    pub(super) rendered: Arc<Rendered>,
    pub(super) cluster: Cluster,
    pub(super) kinds: Kinds,
    /// The new inventory: the objects that need no change, and those to be changed.
    pub(super) inventory: Inventory,
}

impl Kubernetes {
    /// Observes every object of an instance.
    pub(super) async fn observe_all(
        &self,
        job: &Job,
        work: &KubernetesWork,
        apply: bool,
    ) -> Result<Observed, TargetError> {
        let (cluster, shared_with) = self.cluster(job, work, apply).await?;
        let (mut rendered, mut kinds) = self.declared(job, work, &cluster, KINDS_KNOWN).await?;
        let stored = self.inventory(job.formerly.as_ref().unwrap_or(&job.instance)).await?;
        if stored.iter().flat_map(|stored| stored.keys()).any(|key| kinds.preferred(key).is_none()) {
            // A kind that was missing in the last discovery may exist again.
            (rendered, kinds) = self.declared(job, work, &cluster, KINDS_AGAIN).await?;
        }
        let live = match self.list(job, &cluster, &kinds, &rendered, stored.as_deref()).await {
            Err(error) if error.kind == TargetErrorKind::NotFound => {
                // A kind was deleted, or is served in another version.
                (rendered, kinds) = self.declared(job, work, &cluster, KINDS_AGAIN).await?;
                self.list(job, &cluster, &kinds, &rendered, stored.as_deref()).await?
            }
            done => done?,
        };
        let base = Base { cluster, kinds, rendered, shared_with };
        let inventory = match &stored {
            Some(stored) => (**stored).clone(),
            // A store that lost the inventory rebuilds it from the labels (R1.7).
            None => {
                let applied =
                    |object: &Option<Value>| object.as_ref().is_some_and(|object| fields::applied(object).is_some());
                let ours = live.iter().filter(|(_, object)| applied(object));
                ours.map(|(key, _)| (key.clone(), InventoryEntry::default())).collect()
            }
        };
        let scope = Scope { keys: None, rebuilt: stored.is_none() };
        self.found(job, work, base, live, inventory, scope).await
    }

    /// Observes some objects of an instance; the state of the others is unchanged.
    pub(super) async fn observe_objects(
        &self,
        job: &Job,
        work: &KubernetesWork,
        base: Base,
        keys: &BTreeSet<Key>,
    ) -> Result<Observed, TargetError> {
        let inventory = self.inventory(&job.instance).await?.unwrap_or_default();
        let failed = |refusal: Refusal| refusal.into_error(&format!("an object of `{}`", job.instance));
        let mut asked = vec![];
        for key in keys {
            if let Some(kind) = base.kinds.preferred(key) {
                asked.push(get(&base.cluster, kind, key).boxed());
            }
        }
        let mut live = Live::new();
        for found in side_by_side(asked).await {
            live.extend(found.map_err(failed)?.map(|(key, object)| (key, Some(object))));
        }
        let inventory = inventory.iter().filter(|(key, _)| keys.contains(*key));
        let inventory = inventory.map(|(key, entry)| (key.clone(), entry.clone())).collect();
        self.found(job, work, base, live, inventory, Scope { keys: Some(keys), rebuilt: false }).await
    }

    async fn found(
        &self,
        job: &Job,
        work: &KubernetesWork,
        base: Base,
        mut live: Live,
        inventory: Inventory,
        scope: Scope<'_>,
    ) -> Result<Observed, TargetError> {
        let Base { cluster, kinds, rendered, shared_with } = base;
        let unreachable = |refusal: Refusal| refusal.into_error(&format!("the cluster of `{}`", job.instance));
        let identity = cluster.identity().await.map_err(unreachable)?;
        let holds_anything = !live.is_empty();
        let wanted = rendered.objects.iter().filter(|object| scope.keys.is_none_or(|keys| keys.contains(&object.key)));
        let wanted: Vec<&Object> = wanted.collect();
        let missing: Vec<&Object> = wanted.iter().filter(|object| !live.contains_key(&object.key)).copied().collect();
        let by_schema =
            missing.len() > DRY_RUNS_MAX && self.has_namespaces(job, &cluster, &kinds, &rendered, &missing).await?;
        let schemas = if by_schema { Some(Schemas::of(&cluster, &missing).await) } else { None };
        let contested = std::sync::atomic::AtomicBool::new(false);
        let comparison = Comparison {
            this: self,
            job,
            work,
            cluster: &cluster,
            kinds: &kinds,
            rendered: &rendered,
            inventory: &inventory,
            contested: &contested,
            schemas: schemas.as_ref(),
        };
        let mut observation = Observation {
            holds_anything,
            identity: Some(identity),
            shared_with: Some(shared_with),
            warnings: rendered.warnings.clone(),
            ..Observation::default()
        };
        let (mut new_inventory, mut steps) = comparison.each(wanted, &mut live, &mut observation).await?;
        let Undeclared { steps: mut deletions, retained, terminating } =
            comparison.undeclared(&live, &mut new_inventory).await;
        observation.left = retained.iter().chain(&terminating).cloned().collect();
        observation.warnings.extend(observation.left.iter().cloned());
        if scope.rebuilt {
            // An object that was found by its labels alone is deleted only after an operator has seen the warning.
            observation.warnings.extend(
                deletions.iter().map(|step| {
                    format!("`{}` carries the labels of `{}`, and is not declared", step.key, job.instance)
                }),
            );
            deletions.clear();
        }
        // Deletions run in reverse order.
        deletions.reverse();
        steps.extend(deletions);
        observation.contested = contested.load(std::sync::atomic::Ordering::Relaxed);
        let mut overwrites = BTreeMap::new();
        for step in &steps {
            observation.changes.push(step.shown());
            let overwrite = Overwrite { serial: None, uid: step.uid.clone(), resource_version: step.version.clone() };
            overwrites.insert(step.key.to_string(), overwrite);
        }
        observation.own = Some(Arc::new(Details { overwrites }));
        let steps = steps.into_iter().map(|step| (step.key.to_string(), step)).collect();
        Ok(Observed { observation, steps, retained, terminating, rendered, cluster, kinds, inventory: new_inventory })
    }

    /// Whether every namespace of some objects exists or is declared.
    async fn has_namespaces(
        &self,
        job: &Job,
        cluster: &Cluster,
        kinds: &Kinds,
        rendered: &Rendered,
        objects: &[&Object],
    ) -> Result<bool, TargetError> {
        let names: BTreeSet<&Arc<str>> = objects.iter().filter_map(|object| object.key.namespace.as_ref()).collect();
        for name in names {
            let key = Key { group: "".into(), kind: "Namespace".into(), namespace: None, name: Arc::clone(name) };
            if rendered.get(&key).is_some() {
                continue;
            }
            let Some(kind) = kinds.preferred(&key) else { return Ok(false) };
            let live =
                cluster.get(kind, &key).await.map_err(|refusal| refusal.into_error(&format!("`{}`", job.instance)))?;
            if live.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns the objects that a job declares, with the kinds of the cluster. Discovers the kinds once more if one is
    /// missing.
    pub(super) async fn declared(
        &self,
        job: &Job,
        work: &KubernetesWork,
        cluster: &Cluster,
        known: Duration,
    ) -> Result<(Arc<Rendered>, Kinds), TargetError> {
        let kinds = cluster.kinds(known).await?;
        if work.destroy {
            return Ok((Arc::default(), kinds));
        }
        match self.rendered(job, work, &kinds).await {
            Err(error) if error.kind == TargetErrorKind::NotThereYet => {
                let kinds = cluster.kinds(KINDS_AGAIN).await?;
                Ok((self.rendered(job, work, &kinds).await?, kinds))
            }
            done => {
                let rendered = done?;
                let is_missing = |object: &Object| kinds.exact(&object.version, &object.key.kind).is_none();
                if !rendered.objects.iter().any(is_missing) {
                    return Ok((rendered, kinds));
                }
                // The definitions are among the objects, and may exist by now.
                let kinds = cluster.kinds(KINDS_AGAIN).await?;
                Ok((self.rendered(job, work, &kinds).await?, kinds))
            }
        }
    }
}

impl Comparison<'_> {
    /// Observes objects concurrently. Returns their inventory and the steps that they need.
    async fn each(
        &self,
        wanted: Vec<&Object>,
        live: &mut Live,
        observation: &mut Observation,
    ) -> Result<(Inventory, Vec<Step>), TargetError> {
        let (mut new_inventory, mut steps, mut problems) = (Inventory::new(), vec![], vec![]);
        let (mut objects, mut comparisons) = (vec![], vec![]);
        for object in wanted {
            match live.remove(&object.key) {
                Some(None) => new_inventory
                    .extend(self.inventory.get(&object.key).map(|entry| (object.key.clone(), entry.clone()))),
                found => {
                    objects.push(object);
                    comparisons.push(self.object(object, found.flatten()).boxed());
                }
            }
        }
        for (object, found) in objects.into_iter().zip(side_by_side(comparisons).await) {
            match found? {
                Found::Same(entry) => drop(new_inventory.insert(object.key.clone(), entry)),
                Found::Problem(problem) => problems.push(problem),
                Found::Differs(step, by) => {
                    if let Some(entry) = self.inventory.get(&object.key) {
                        new_inventory.insert(object.key.clone(), entry.clone());
                    }
                    if let Some(by) = by {
                        observation.changed_by.insert(object.key.to_string(), by);
                    }
                    if step.change == Change::Replace && !self.may_replace(&object.key) {
                        let why = format!(
                            "`{}` can't be changed in place: say `force: [{{ kind: {} }}]` to have it deleted and made again",
                            object.key, object.key.kind
                        );
                        observation.refused.get_or_insert(why);
                    } else if step.change == Change::Replace
                        && let Some(why) = self.deletion_blocked_by(&object.key).await
                    {
                        let why = format!("`{}` can't be deleted and made again: {why}", object.key);
                        observation.refused.get_or_insert(why);
                    }
                    steps.push(*step);
                }
            }
        }
        if !problems.is_empty() {
            return Err(wrong(&self.job.instance, problems));
        }
        Ok((new_inventory, steps))
    }
}

impl Step {
    /// Returns the step as a change of a plan.
    pub(super) fn shown(&self) -> ResourceChange {
        drift::change(&self.key, self.change, self.fields.clone())
    }
}
