//! Applies and deletes the objects of an instance in dependency order.
//!
//! *Flow:* the inventory is written as the union of old and planned objects. Kinds are applied in rank order, and
//! objects of one rank concurrently: a patch for the exact resource version removes undeclared fields, then a
//! server-side apply sets the declared ones. Objects that are no longer declared are deleted in reverse order. The
//! inventory is written again without the deleted objects.
//! *Invariant:* an object is changed only if its uid and resource version are those observed. After a version conflict
//! the object is observed again, and applied if the new change is covered by the planned one. A deletion always names
//! the uid.
//! *Assumption:* one run at a time applies an instance. The run lock guarantees this.
//! *Race:* the daemon stops at any point. The inventory lists every object that may exist, and the next apply does the
//! remaining changes.

use crate::targets::kubernetes::work::KubernetesWork;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use futures::future::FutureExt;
use serde_json::{Value, json};

use super::{
    Kubernetes,
    client::{Refusal, Write},
    confirm::{Comparison, terminating},
    deletion::lives_in,
    fields,
    inventory::{Inventory, InventoryEntry},
    kinds::{Kind, Kinds},
    live::side_by_side,
    object::{self, is_namespace_or_definition, rank},
    observe::Observed,
    rendered::Object,
    steps::{Found, Step},
};
use crate::{
    model::{Backoff, Change, Retry},
    ports::{Diagnostic, Fence, Job, Observation, Prepared, Progress, ProgressEvent, TargetError, TargetErrorKind},
};

/// The maximum number of attempts for an object that keeps changing.
const ATTEMPTS_MAX: u32 = 8;
/// The time limit for a namespace or definition to become ready, and for a deletion to complete.
const DELETION_TIME_MAX: Duration = Duration::from_secs(60);
/// The poll interval of these waits.
const DELETION_CHECK: Duration = Duration::from_millis(50);

/// The reason why an object was not changed.
enum Stop {
    /// The change differs from the planned one.
    Stale(String),
    /// The server refused the request.
    Refused(String),
}

impl Kubernetes {
    /// Observes an instance with the credentials for apply, and stores its inventory if nothing changes.
    pub(super) async fn prepare_work(&self, job: &Job, work: &KubernetesWork) -> Result<Prepared, TargetError> {
        let mut observed = self.observe_all(job, work, true).await.map_err(|mut error| {
            if error.kind == TargetErrorKind::NotThereYet {
                // The server may need a moment to serve kinds that an upstream has just created.
                error.retry = Retry::After(Backoff::REMOTE);
            }
            error
        })?;
        let observation = std::mem::take(&mut observed.observation);
        if let Some(why) = &observation.refused {
            return Err(TargetError {
                retry: Retry::WhenInputChanges,
                ..TargetError::new(TargetErrorKind::Immutable, why.clone())
            });
        }
        if observation.changes.is_empty() {
            self.store_inventory(&job.instance, observed.inventory).await?;
            return Ok(Prepared { observation, ticket: Box::new(()) });
        }
        Ok(Prepared { observation, ticket: Box::new(observed) })
    }

    /// Applies the prepared changes that remain in the observation.
    pub(super) async fn apply_work(
        &self,
        job: &Job,
        work: &KubernetesWork,
        prepared: Prepared,
        fence: Fence,
        progress: Progress,
    ) -> Result<(), TargetError> {
        let Prepared { observation: Observation { changes, .. }, ticket } = prepared;
        if changes.is_empty() {
            return Ok(());
        }
        let Ok(observed) = ticket.downcast::<Observed>() else {
            return Err(TargetError::new(
                TargetErrorKind::PlanMissing,
                format!("the plan of `{}` is of another kind", job.instance),
            ));
        };
        tracing::debug!(kind = "objects-applied", instance = %job.instance, run = fence.run.0, objects = changes.len(), "applying objects");
        let mut applying = Applying {
            this: self,
            job,
            work,
            steps: changes.iter().filter_map(|change| observed.steps.get(&change.resource)).cloned().collect(),
            inventory: observed.inventory.clone(),
            observed: &observed,
            kinds: observed.kinds.clone(),
            failures: vec![],
            stale: None,
            begun: false,
        };
        if let Some(why) = applying.cascade_conflict() {
            return Err(TargetError {
                retry: Retry::WhenInputChanges,
                ..TargetError::new(TargetErrorKind::InUse, why)
            });
        }
        for step in applying.steps.iter().filter(|step| step.change != Change::Destroy) {
            applying.inventory.entry(step.key.clone()).or_default();
        }
        // The write carries the fencing token: an owner that lost the run lock stops here.
        self.store_inventory(&job.instance, applying.inventory.clone()).await?;
        let done = applying.run(&progress).await;
        let Applying { inventory, failures, stale, begun, .. } = applying;
        self.store_inventory(&job.instance, inventory).await?;
        done?;
        conclude(job, failures, stale, begun)
    }
}

fn conclude(job: &Job, failures: Vec<String>, stale: Option<String>, begun: bool) -> Result<(), TargetError> {
    if failures.is_empty() {
        let Some(why) = stale else { return Ok(()) };
        return Err(TargetError::new(
            TargetErrorKind::PlanStale,
            format!("`{}` changed between plan and apply: {why}", job.instance),
        ));
    }
    let message = match failures.len() {
        1 => format!("an object of `{}` could not be applied", job.instance),
        count => format!("{count} objects of `{}` could not be applied", job.instance),
    };
    let diagnostic = |summary: String| Diagnostic { summary, detail: String::new(), address: None, place: None };
    Err(TargetError {
        retry: Retry::WhenInputChanges,
        diagnostics: failures.into_iter().take(20).map(diagnostic).collect(),
        effect_may_have_begun: begun,
        ..TargetError::new(TargetErrorKind::ApplyFailed, message)
    })
}

struct Applying<'a> {
    this: &'a Kubernetes,
    job: &'a Job,
    work: &'a KubernetesWork,
    observed: &'a Observed,
    steps: Vec<Step>,
    inventory: Inventory,
    kinds: Kinds,
    failures: Vec<String>,
    stale: Option<String>,
    begun: bool,
}

impl Applying<'_> {
    async fn run(&mut self, progress: &Progress) -> Result<(), TargetError> {
        let (deleted, applied): (Vec<Step>, Vec<Step>) =
            std::mem::take(&mut self.steps).into_iter().partition(|step| step.change == Change::Destroy);
        let mut by_rank: BTreeMap<usize, Vec<Step>> = BTreeMap::new();
        for step in applied {
            by_rank.entry(rank(&step.key.kind)).or_default().push(step);
        }
        for steps in by_rank.into_values() {
            let container: Vec<_> =
                steps.iter().filter(|step| is_namespace_or_definition(&step.key.kind)).map(|s| s.key.clone()).collect();
            self.apply_rank(steps, progress).await;
            if !self.failures.is_empty() || self.stale.is_some() {
                return Ok(());
            }
            if !container.is_empty() {
                self.wait_for_deletion(&container).await?;
                self.wait_for_kinds().await?;
            }
        }
        let mut by_rank: BTreeMap<std::cmp::Reverse<usize>, Vec<Step>> = BTreeMap::new();
        for step in deleted {
            by_rank.entry(std::cmp::Reverse(rank(&step.key.kind))).or_default().push(step);
        }
        for steps in by_rank.into_values() {
            self.delete(steps, progress).await;
            if !self.failures.is_empty() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Applies objects of one rank concurrently.
    async fn apply_rank(&mut self, steps: Vec<Step>, progress: &Progress) {
        let done = side_by_side(steps.iter().map(|step| self.apply_one(step).boxed()).collect()).await;
        for (step, done) in steps.into_iter().zip(done) {
            match done {
                Ok(entry) => {
                    self.begun = true;
                    progress(ProgressEvent::Now(format!("{} {}", step.change.verb(), step.key)));
                    self.inventory.insert(step.key, entry);
                }
                Err(Stop::Stale(why)) => self.stale = Some(why),
                Err(Stop::Refused(why)) => self.failures.push(why),
            }
        }
    }

    /// Returns why a namespace or definition can't be deleted: it contains an object whose deletion was removed from
    /// the plan.
    fn cascade_conflict(&self) -> Option<String> {
        let does = |key: &object::Key| self.steps.iter().any(|step| step.key == *key);
        let cut = self.observed.steps.values().filter(|step| step.change == Change::Destroy && !does(&step.key));
        let cut: Vec<&object::Key> = cut.map(|step| &step.key).collect();
        let containers = self
            .steps
            .iter()
            .filter(|step| step.change == Change::Destroy && is_namespace_or_definition(&step.key.kind));
        let mut found = containers.flat_map(|step| {
            cut.iter().filter(|key| lives_in(&self.kinds, &step.key, key)).map(|key| (&step.key, *key))
        });
        let message = |(container, key): (&object::Key, &object::Key)| {
            format!("`{key}`, which is to stay, would go with `{container}`; take that out as well")
        };
        found.next().map(message)
    }

    fn object(&self, step: &Step) -> Option<&Object> {
        self.observed.rendered.get(&step.key)
    }

    /// Applies one object. Retries while another writer changes the object without changing the planned difference.
    async fn apply_one(&self, step: &Step) -> Result<InventoryEntry, Stop> {
        let refused = |refusal: Refusal| {
            Stop::Refused(format!("`{}`: {}", step.key, self.this.redactor.redact(&refusal.message)))
        };
        let Some(object) = self.object(step) else {
            return Err(Stop::Refused(format!("`{}` is not declared", step.key)));
        };
        let Some(kind) = self.kinds.exact(&object.version, &object.key.kind) else {
            return Err(Stop::Refused(format!(
                "{}: the cluster has no `{}` in `{}`",
                object.place, step.key.kind, object.version
            )));
        };
        let mut current = step.clone();
        for _ in 0..ATTEMPTS_MAX {
            let tried = match current.change {
                Change::Replace => self.replace(kind, object, &current).await,
                _ => self.update(kind, object, &current).await,
            };
            match tried {
                Ok(live) => return Ok(self.entry(object, &live)),
                Err(refusal) if refusal.is_conflict() => {}
                Err(refusal) => return Err(refused(refusal)),
            }
            let live = self.observed.cluster.get(kind, &object.key).await.map_err(refused)?;
            let comparison = Comparison {
                this: self.this,
                job: self.job,
                work: self.work,
                cluster: &self.observed.cluster,
                kinds: &self.kinds,
                rendered: &self.observed.rendered,
                inventory: &self.inventory,
                schemas: None,
                contested: &std::sync::atomic::AtomicBool::new(false),
            };
            match comparison.object(object, live).await {
                Ok(Found::Same(entry)) => return Ok(entry),
                Ok(Found::Differs(fresh, _))
                    if fresh.change == step.change && fresh.fields.iter().all(|field| step.fields.contains(field)) =>
                {
                    current = *fresh
                }
                Ok(Found::Differs(..)) => return Err(Stop::Stale(format!("`{}` is another one now", step.key))),
                Ok(Found::Problem(why)) => return Err(Stop::Refused(why)),
                Err(error) => return Err(Stop::Refused(error.line())),
            }
        }
        Err(Stop::Stale(format!("`{}` keeps changing", step.key)))
    }

    async fn update(&self, kind: &Kind, object: &Object, step: &Step) -> Result<Value, Refusal> {
        let cluster = &self.observed.cluster;
        let mut version = step.version.clone();
        if !step.extras.is_empty() {
            let mut operations = vec![json!({"op": "test", "path": "/metadata/resourceVersion", "value": version})];
            // Removes later list items first, so that earlier positions stay valid.
            let mut pointers: Vec<&str> = step.extras.iter().map(|extra| extra.pointer.as_str()).collect();
            pointers.sort_by_key(|pointer| std::cmp::Reverse(order_of(pointer)));
            operations.extend(pointers.into_iter().map(|pointer| json!({"op": "remove", "path": pointer})));
            let patched = cluster.patch(kind, &object.key, &operations.into()).await.map_err(|mut refusal| {
                // A failed `test`, or a missing path, means another resource version; the object is observed again.
                if refusal.code == 422 {
                    refusal.code = 409;
                }
                refusal
            })?;
            version = object::text(&patched, "/metadata/resourceVersion").map(str::to_owned);
        }
        let write = Write { dry_run: false, uid: step.uid.as_deref(), version: version.as_deref() };
        let live = cluster.apply(kind, &object.key, object.json(), write).await?;
        if step.change == Change::Create && object::is_terminating(&live) {
            // The object existed and was being deleted, together with the applied fields.
            self.wait_until_deleted(kind, &object.key).await?;
            return cluster.apply(kind, &object.key, object.json(), Write::default()).await;
        }
        Ok(live)
    }

    async fn replace(&self, kind: &Kind, object: &Object, step: &Step) -> Result<Value, Refusal> {
        let cluster = &self.observed.cluster;
        if let Some(uid) = &step.uid {
            cluster.delete(kind, &object.key, uid).await?;
            self.wait_until_deleted(kind, &object.key).await?;
        }
        cluster.apply(kind, &object.key, object.json(), Write::default()).await
    }

    async fn wait_until_deleted(&self, kind: &Kind, key: &object::Key) -> Result<(), Refusal> {
        let since = Instant::now();
        loop {
            match self.observed.cluster.get(kind, key).await? {
                None => return Ok(()),
                Some(live) if since.elapsed() > DELETION_TIME_MAX => {
                    let message = terminating(key, &live);
                    return Err(Refusal { code: 422, reason: "Terminating".into(), message, causes: vec![] });
                }
                Some(_) => tokio::time::sleep(DELETION_CHECK).await,
            }
        }
    }

    fn entry(&self, object: &Object, live: &Value) -> InventoryEntry {
        InventoryEntry {
            uid: object::text(live, "/metadata/uid").map(Into::into),
            applied: Some(object.mark),
            settled: Some(self.this.seal.mark(&fields::canonical(live))),
        }
    }

    /// Waits until namespaces exist and definitions are established.
    async fn wait_for_deletion(&self, container: &[object::Key]) -> Result<(), TargetError> {
        let since = Instant::now();
        let mut pending: BTreeSet<&object::Key> = container.iter().collect();
        while !pending.is_empty() {
            for key in pending.clone() {
                let Some(kind) = self.kinds.preferred(key) else { continue };
                let live = self.observed.cluster.get(kind, key).await.map_err(|r| r.into_error(&format!("`{key}`")))?;
                let established = live.is_some_and(|live| match &*key.kind {
                    "Namespace" => object::text(&live, "/status/phase") == Some("Active"),
                    _ => super::verify::condition(&live, "Established").is_some_and(|c| c["status"] == "True"),
                });
                if established {
                    pending.remove(key);
                }
            }
            if let Some(key) = pending.first().filter(|_| since.elapsed() > DELETION_TIME_MAX) {
                let message = format!("`{key}` was applied and is not ready after {} s", DELETION_TIME_MAX.as_secs());
                return Err(TargetError {
                    effect_may_have_begun: true,
                    ..TargetError::new(TargetErrorKind::ApplyFailed, message)
                });
            }
            if !pending.is_empty() {
                tokio::time::sleep(DELETION_CHECK).await;
            }
        }
        Ok(())
    }

    /// Waits until the server serves the kinds of its new definitions.
    async fn wait_for_kinds(&mut self) -> Result<(), TargetError> {
        let since = Instant::now();
        let mut wanted: Vec<(String, String)> = vec![];
        for object in
            self.observed.rendered.objects.iter().filter(|object| &*object.key.kind == "CustomResourceDefinition")
        {
            let spec = &object.value()["spec"];
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            for version in spec["versions"].as_array().into_iter().flatten().filter(|version| version["served"] == true)
            {
                wanted.push((
                    format!("{}/{}", text(&spec["group"]), text(&version["name"])),
                    text(&spec["names"]["kind"]),
                ));
            }
        }
        loop {
            let Some((version, kind)) = wanted.iter().find(|(version, kind)| self.kinds.exact(version, kind).is_none())
            else {
                return Ok(());
            };
            if since.elapsed() > DELETION_TIME_MAX {
                let message = format!("the cluster does not serve `{kind}` in `{version}`");
                return Err(TargetError {
                    effect_may_have_begun: true,
                    ..TargetError::new(TargetErrorKind::ApplyFailed, message)
                });
            }
            tokio::time::sleep(DELETION_CHECK).await;
            self.kinds = self.observed.cluster.kinds(Duration::ZERO).await?;
        }
    }

    /// Deletes objects of one rank concurrently. An object that waits for its finalizers stays in the inventory.
    async fn delete(&mut self, steps: Vec<Step>, progress: &Progress) {
        let done = side_by_side(steps.iter().map(|step| self.delete_one(step).boxed()).collect()).await;
        for (step, done) in steps.into_iter().zip(done) {
            match done {
                Ok(is_deleted) => {
                    self.begun = true;
                    progress(ProgressEvent::Now(format!("{} {}", step.change.verb(), step.key)));
                    if is_deleted {
                        self.inventory.remove(&step.key);
                    }
                }
                Err(why) => self.failures.push(why),
            }
        }
    }

    /// Deletes an object if its uid and owner are unchanged. Returns whether it no longer exists.
    async fn delete_one(&self, step: &Step) -> Result<bool, String> {
        let message = |refusal: Refusal| format!("`{}`: {}", step.key, self.this.redactor.redact(&refusal.message));
        let Some(kind) = self.kinds.preferred(&step.key) else { return Ok(true) };
        let Some(live) = self.observed.cluster.get(kind, &step.key).await.map_err(message)? else { return Ok(true) };
        if object::owner(&live).as_ref() != Some(&self.job.instance) {
            return Ok(true);
        }
        let uid = object::text(&live, "/metadata/uid").unwrap_or_default();
        if Some(uid) != step.uid.as_deref() {
            return Err(format!("`{}` is another object than the one that was observed", step.key));
        }
        self.observed.cluster.delete(kind, &step.key, uid).await.map_err(message)?;
        let remaining = self.observed.cluster.get(kind, &step.key).await.map_err(message)?;
        Ok(remaining.is_none_or(|remaining| object::text(&remaining, "/metadata/uid") != Some(uid)))
    }
}

/// Returns a sort key that puts later list items after earlier ones.
fn order_of(pointer: &str) -> Vec<(usize, String)> {
    pointer.split('/').map(|step| (step.parse().unwrap_or(0), step.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_items_are_removed_first() {
        let mut pointers = ["/spec/list/2", "/spec/list/10", "/spec/list/9/x"];
        pointers.sort_by_key(|pointer| std::cmp::Reverse(order_of(pointer)));
        assert_eq!(pointers, ["/spec/list/10", "/spec/list/9/x", "/spec/list/2"]);
    }
}
