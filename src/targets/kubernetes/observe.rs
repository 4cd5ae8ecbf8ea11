//! What of an instance's objects differs from what applying them would leave.
//!
//! *Flow:* render; list what carries our labels, kind by kind; compare each object's mark with the one that it settled to;
//! only what differs is read and sent as a strict dry-run, which says what would change.
//! *Guarantees:* what could not be read completely is an error, never *gone*; a dry-run changes nothing.
//! *Race:* an object changes between list and dry-run: its version is in the precondition of what is then done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::{
    future::{BoxFuture, FutureExt},
    stream::{self, StreamExt},
};
use serde_json::Value;

use super::{
    Kubernetes, NOT_THERE_YET,
    client::{Cluster, KINDS_AGAIN, KINDS_KNOWN, Kind, Kinds, Refusal, Write},
    drift::{self, LAST_APPLIED, Masks},
    fields::{self, Extra, escaped},
    inventory::{Held, Inventory},
    object::{self, Key},
    render::{Object, Rendered, wrong},
};
use crate::{
    model::{Change, Field, InstanceId, Overwrite, ResourceChange},
    port::{ChangedBy, Job, KubernetesWork, Observation, TargetError, Use},
};

/// How many requests of one instance are under way at once.
const SIDE_BY_SIDE: usize = 16;
/// With more objects of one kind missing than this, the kind is listed as a whole, and not asked for one by one.
const ONE_BY_ONE: usize = 20;

/// An object that is to be changed, as it was found.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) key: Key,
    pub(super) change: Change,
    pub(super) fields: Vec<Field>,
    /// The object that it is about; absent where there is none.
    pub(super) uid: Option<String>,
    pub(super) version: Option<String>,
    /// Places that nobody declared, to be removed.
    pub(super) extras: Vec<Extra>,
}

/// What was found of one object.
pub(super) enum Found {
    /// It is as it should be.
    Same(Held),
    /// It is to be changed.
    Differs(Box<Step>, Option<ChangedBy>),
    /// Why it can't be, with the place where it was written.
    Problem(String),
}

/// What is looked at.
struct Scope<'s> {
    /// These objects; all where it is not set.
    keys: Option<&'s BTreeSet<Key>>,
    /// Whether what is held was found by its labels alone.
    rebuilt: bool,
}

/// What a look begins with.
pub(super) struct Base {
    pub(super) cluster: Cluster,
    pub(super) kinds: Kinds,
    pub(super) rendered: Arc<Rendered>,
    pub(super) shared_with: Vec<String>,
}

/// Everything that was found of an instance.
pub(super) struct Looked {
    pub(super) observation: Observation,
    pub(super) steps: BTreeMap<String, Step>,
    pub(super) rendered: Arc<Rendered>,
    pub(super) cluster: Cluster,
    pub(super) kinds: Kinds,
    /// What it holds, as far as it is as it should be or is to be changed.
    pub(super) inventory: Inventory,
}

impl Kubernetes {
    /// Looks at every object of an instance.
    pub(super) async fn look(&self, job: &Job, work: &KubernetesWork, apply: bool) -> Result<Looked, TargetError> {
        let (cluster, shared_with) = self.cluster(job, work, apply).await?;
        let (rendered, kinds) = self.declared(job, work, &cluster).await?;
        let kept = self.inventory(job.formerly.as_ref().unwrap_or(&job.instance)).await?;
        let base = Base { cluster, kinds, rendered, shared_with };
        let live = self.list(job, &base.cluster, &base.kinds, &base.rendered, kept.as_deref()).await?;
        let inventory = match &kept {
            Some(kept) => (**kept).clone(),
            // A store that lost it finds it again by our labels (R1.7).
            None => {
                let ours = live.iter().filter(|(_, object)| fields::applied(object).is_some());
                ours.map(|(key, _)| (key.clone(), Held::default())).collect()
            }
        };
        let scope = Scope { keys: None, rebuilt: kept.is_none() };
        self.found(job, work, base, live, inventory, scope).await
    }

    /// Looks at some objects of an instance; the others are taken for what they were.
    pub(super) async fn look_at(
        &self,
        job: &Job,
        work: &KubernetesWork,
        base: Base,
        keys: &BTreeSet<Key>,
    ) -> Result<Looked, TargetError> {
        let inventory = self.inventory(&job.instance).await?.unwrap_or_default();
        let failed = |refusal: Refusal| refusal.of(&format!("an object of `{}`", job.instance));
        let mut asked = vec![];
        for key in keys {
            if let Some(kind) = base.kinds.of(key) {
                asked.push(get(&base.cluster, kind, key).boxed());
            }
        }
        let mut live = BTreeMap::new();
        for found in side_by_side(asked).await {
            live.extend(found.map_err(failed)?);
        }
        let inventory = inventory.iter().filter(|(key, _)| keys.contains(*key));
        let inventory = inventory.map(|(key, held)| (key.clone(), held.clone())).collect();
        self.found(job, work, base, live, inventory, Scope { keys: Some(keys), rebuilt: false }).await
    }

    async fn found(
        &self,
        job: &Job,
        work: &KubernetesWork,
        base: Base,
        mut live: BTreeMap<Key, Value>,
        inventory: Inventory,
        scope: Scope<'_>,
    ) -> Result<Looked, TargetError> {
        let Base { cluster, kinds, rendered, shared_with } = base;
        let unreachable = |refusal: Refusal| refusal.of(&format!("the cluster of `{}`", job.instance));
        let identity = cluster.identity().await.map_err(unreachable)?;
        let holds_anything = !live.is_empty();
        let contested = std::sync::atomic::AtomicBool::new(false);
        let look = Look {
            this: self,
            job,
            work,
            cluster: &cluster,
            kinds: &kinds,
            rendered: &rendered,
            inventory: &inventory,
            contested: &contested,
        };
        let mut observation = Observation {
            holds_anything,
            identity: Some(identity),
            shared_with: Some(shared_with),
            warnings: rendered.warnings.clone(),
            ..Observation::default()
        };
        let wanted = rendered.objects.iter().filter(|object| scope.keys.is_none_or(|keys| keys.contains(&object.key)));
        let (mut objects, mut looks) = (vec![], vec![]);
        for object in wanted {
            objects.push(object);
            looks.push(look.object(object, live.remove(&object.key)).boxed());
        }
        let (mut now, mut steps, mut problems) = (Inventory::new(), vec![], vec![]);
        for (object, found) in objects.into_iter().zip(side_by_side(looks).await) {
            match found? {
                Found::Same(held) => drop(now.insert(object.key.clone(), held)),
                Found::Problem(problem) => problems.push(problem),
                Found::Differs(step, by) => {
                    if let Some(held) = inventory.get(&object.key) {
                        now.insert(object.key.clone(), held.clone());
                    }
                    if let Some(by) = by {
                        observation.changed_by.insert(object.key.to_string(), by);
                    }
                    if step.change == Change::Replace && !look.may_replace(&object.key) {
                        let why = format!(
                            "`{}` can't be changed in place: say `force: [{{ kind: {} }}]` to have it deleted and made again",
                            object.key, object.key.kind
                        );
                        observation.refused.get_or_insert(why);
                    }
                    steps.push(*step);
                }
            }
        }
        if !problems.is_empty() {
            return Err(wrong(&job.instance, problems));
        }
        let mut gone = look.left_over(&live, &mut now, &mut observation.warnings);
        if scope.rebuilt {
            // What was found by its labels alone is deleted once somebody has seen it.
            observation.warnings.extend(
                gone.iter().map(|step| {
                    format!("`{}` carries the labels of `{}`, and is not declared", step.key, job.instance)
                }),
            );
            gone.clear();
        }
        // What is deleted goes in the reverse order.
        gone.reverse();
        steps.extend(gone);
        observation.contested = contested.load(std::sync::atomic::Ordering::Relaxed);
        for step in &steps {
            observation.changes.push(step.shown());
            let overwrite = Overwrite { serial: None, uid: step.uid.clone(), resource_version: step.version.clone() };
            observation.overwrites.insert(step.key.to_string(), overwrite);
        }
        let steps = steps.into_iter().map(|step| (step.key.to_string(), step)).collect();
        Ok(Looked { observation, steps, rendered, cluster, kinds, inventory: now })
    }

    /// The objects that a job declares, with the kinds of the cluster; a kind that is missing is looked up once more.
    pub(super) async fn declared(
        &self,
        job: &Job,
        work: &KubernetesWork,
        cluster: &Cluster,
    ) -> Result<(Arc<Rendered>, Kinds), TargetError> {
        let kinds = cluster.kinds(KINDS_KNOWN).await?;
        if work.destroy {
            return Ok((Arc::default(), kinds));
        }
        match self.rendered(job, work, &kinds).await {
            Err(error) if error.kind == NOT_THERE_YET => {
                let kinds = cluster.kinds(KINDS_AGAIN).await?;
                Ok((self.rendered(job, work, &kinds).await?, kinds))
            }
            done => Ok((done?, kinds)),
        }
    }

    /// The live objects that an instance declares or holds, or that carry its labels.
    async fn list(
        &self,
        job: &Job,
        cluster: &Cluster,
        kinds: &Kinds,
        rendered: &Rendered,
        kept: Option<&Inventory>,
    ) -> Result<BTreeMap<Key, Value>, TargetError> {
        let mut wanted: BTreeMap<(Arc<str>, Arc<str>), (Option<Kind>, BTreeSet<&Key>)> = BTreeMap::new();
        for object in &rendered.objects {
            let kind = kinds.exact(&object.version, &object.key.kind).cloned();
            let entry =
                wanted.entry((object.key.group.clone(), object.key.kind.clone())).or_insert((kind, BTreeSet::new()));
            entry.1.insert(&object.key);
        }
        for key in kept.into_iter().flat_map(Inventory::keys) {
            let kind = || kinds.of(key).cloned();
            let entry =
                wanted.entry((key.group.clone(), key.kind.clone())).or_insert_with(|| (kind(), BTreeSet::new()));
            entry.1.insert(key);
        }
        let id = job.formerly.as_ref().unwrap_or(&job.instance);
        let labels = format!("{}={},{}={}", object::ENVIRONMENT, id.environment, object::COMPONENT, id.component);
        let mut lists = vec![];
        for (kind, keys) in wanted.into_values() {
            if let Some(kind) = kind {
                lists.push(list_kind(cluster, kind, keys, &labels, &job.instance).boxed());
            }
        }
        let mut all = BTreeMap::new();
        for list in side_by_side(lists).await {
            all.extend(list?);
        }
        Ok(all)
    }
}

/// The live objects of one kind: by label, and those that are expected and don't carry it, one by one.
async fn list_kind(
    cluster: &Cluster,
    kind: Kind,
    keys: BTreeSet<&Key>,
    labels: &str,
    id: &InstanceId,
) -> Result<Vec<(Key, Value)>, TargetError> {
    let kind = &kind;
    let failed = |refusal: Refusal| refusal.of(&format!("the `{}` of `{id}`", kind.plural));
    let mut found: Vec<(Key, Value)> = vec![];
    let sample = keys.first().map(|key| (key.group.clone(), key.kind.clone()));
    let Some((group, name)) = sample else { return Ok(found) };
    let version = kind.version.to_string();
    cluster
        .list(kind, labels, &mut |mut object| {
            // The items of a list don't say what they are.
            object["apiVersion"] = version.as_str().into();
            object["kind"] = (*name).into();
            if let Some(mut key) = Key::of(&object) {
                (key.group, key.kind) = (group.clone(), name.clone());
                found.push((key, object));
            }
        })
        .await
        .map_err(failed)?;
    let there: BTreeSet<Key> = found.iter().map(|(key, _)| key.clone()).collect();
    let mut missing: Vec<&Key> = keys.into_iter().filter(|key| !there.contains(*key)).collect();
    if missing.len() > ONE_BY_ONE {
        let mut all = BTreeSet::new();
        let mut put = |object: Value| {
            let metadata = &object["metadata"];
            all.insert((
                metadata["namespace"].as_str().unwrap_or_default().to_owned(),
                metadata["name"].as_str().unwrap_or_default().to_owned(),
            ));
        };
        cluster.names(kind, &mut put).await.map_err(failed)?;
        missing.retain(|key| {
            all.contains(&(key.namespace.as_deref().unwrap_or_default().to_owned(), key.name.to_string()))
        });
    }
    let asked = missing.into_iter().map(|key| get(cluster, kind, key).boxed()).collect();
    for one in side_by_side(asked).await {
        found.extend(one.map_err(failed)?);
    }
    Ok(found)
}

async fn get(cluster: &Cluster, kind: &Kind, key: &Key) -> Result<Option<(Key, Value)>, Refusal> {
    Ok(cluster.get(kind, key).await?.map(|object| (key.clone(), object)))
}

/// Some at once, the results in their order.
pub(super) async fn side_by_side<T>(all: Vec<BoxFuture<'_, T>>) -> Vec<T> {
    stream::iter(all).buffered(SIDE_BY_SIDE).collect().await
}

impl Step {
    /// As it stands in a plan.
    pub(super) fn shown(&self) -> ResourceChange {
        drift::change(&self.key, self.change, self.fields.clone())
    }
}

/// One look at an instance.
pub(super) struct Look<'l> {
    pub(super) this: &'l Kubernetes,
    pub(super) job: &'l Job,
    pub(super) work: &'l KubernetesWork,
    pub(super) cluster: &'l Cluster,
    pub(super) kinds: &'l Kinds,
    pub(super) rendered: &'l Rendered,
    pub(super) inventory: &'l Inventory,
    /// Whether it has to be known what other instances declare, and is not.
    pub(super) contested: &'l std::sync::atomic::AtomicBool,
}

impl Look<'_> {
    fn masks(&self) -> Masks<'_> {
        Masks { seal: &self.this.seal, redactor: &self.this.redactor }
    }

    fn is_me(&self, id: &InstanceId) -> bool {
        *id == self.job.instance || Some(id) == self.job.formerly.as_ref()
    }

    /// Another instance that declares an object; it is noted where that has to be known and is not.
    fn other_owner(&self, key: &Key) -> Option<InstanceId> {
        let Some(owners) = &self.work.owners else {
            self.contested.store(true, std::sync::atomic::Ordering::Relaxed);
            return None;
        };
        owners.get(&key.to_string())?.iter().find(|id| !self.is_me(id)).cloned()
    }

    /// Whether an object may be deleted and made again.
    fn may_replace(&self, key: &Key) -> bool {
        let covers = |(kind, name): &(String, Option<String>)| {
            *kind == *key.kind && name.as_ref().is_none_or(|name| *name == *key.name)
        };
        self.work.force.iter().any(covers)
    }

    fn is_ignored(&self, key: &Key, pointer: &str) -> bool {
        self.work
            .ignore
            .iter()
            .filter(|(kind, name, _)| *kind == *key.kind && name.as_ref().is_none_or(|name| *name == *key.name))
            .flat_map(|(_, _, pointers)| pointers)
            .any(|ignored| pointer == ignored || pointer.starts_with(&format!("{ignored}/")))
    }

    /// What is to be done about one object.
    pub(super) async fn object(&self, object: &Object, live: Option<Value>) -> Result<Found, TargetError> {
        if let Some(other) = live.as_ref().and_then(object::owner).filter(|owner| !self.is_me(owner)) {
            match self.other_owner(&object.key) {
                Some(_) if self.job.r#use == Use::Applied => {
                    // It moves there, which is pending and no drift.
                    return Ok(Found::Same(self.inventory.get(&object.key).cloned().unwrap_or_default()));
                }
                Some(owner) => {
                    return Ok(Found::Problem(format!(
                        "{}: `{}` is declared by `{owner}` as well; an object belongs to one instance",
                        object.place, object.key
                    )));
                }
                None if other.environment != self.job.instance.environment => {
                    return Ok(Found::Problem(format!(
                        "{}: `{}` belongs to `{other}`, of another environment; give it another name or namespace",
                        object.place, object.key
                    )));
                }
                None => {}
            }
        }
        match live.filter(|live| !object::is_terminating(live)) {
            None => self.missing(object).await,
            Some(live) => self.there(object, live).await,
        }
    }

    async fn missing(&self, object: &Object) -> Result<Found, TargetError> {
        let value = object.value();
        self.masks().learn(&value);
        let step = Step {
            key: object.key.clone(),
            change: Change::Create,
            fields: self.masks().made(&value),
            uid: None,
            version: None,
            extras: vec![],
        };
        let made = Ok(Found::Differs(Box::new(step), None));
        let Some(kind) = self.kinds.exact(&object.version, &object.key.kind) else { return made };
        match self.cluster.apply(kind, &object.key, object.json(), Write { dry_run: true, ..Write::default() }).await {
            Ok(_) => made,
            Err(refusal) if refusal.is_not_found() => {
                let namespace = object.key.namespace.as_deref().unwrap_or_default();
                let makes = |other: &Object| &*other.key.kind == "Namespace" && &*other.key.name == namespace;
                if self.rendered.objects.iter().any(makes) {
                    return made;
                }
                let error = wrong(
                    &self.job.instance,
                    vec![format!("{}: the cluster has no namespace `{namespace}`", object.place)],
                );
                Err(TargetError { kind: NOT_THERE_YET, ..error })
            }
            Err(refusal) => self.refused(object, refusal),
        }
    }

    async fn there(&self, object: &Object, live: Value) -> Result<Found, TargetError> {
        let uid = object::text(&live, "/metadata/uid").unwrap_or_default().to_owned();
        let version = object::text(&live, "/metadata/resourceVersion").map(str::to_owned);
        let settled = self.this.seal.mark(&fields::canonical(&live));
        let held = Held { uid: Some(uid.as_str().into()), applied: Some(object.mark), settled: Some(settled) };
        if self.inventory.get(&object.key) == Some(&held) {
            return Ok(Found::Same(held));
        }
        let Some(kind) = self.kinds.exact(&object.version, &object.key.kind) else {
            return Ok(Found::Problem(format!("{}: the cluster has no `{}`", object.place, object.key.kind)));
        };
        let value = object.value();
        self.masks().learn(&live);
        self.masks().learn(&value);
        let step = |change, fields, extras| {
            let (uid, version) = (Some(uid.clone()), version.clone());
            Box::new(Step { key: object.key.clone(), change, fields, uid, version, extras })
        };
        let predicted = match self
            .cluster
            .apply(kind, &object.key, object.json(), Write { dry_run: true, ..Write::default() })
            .await
        {
            Ok(predicted) => predicted,
            Err(refusal) if is_immutable(&refusal) => {
                let mut predicted = live.clone();
                overlay(&mut predicted, &value);
                let fields = self.masks().differences(&live, &predicted, &[]);
                let by = self.by(&live, &fields, &[]);
                return Ok(Found::Differs(step(Change::Replace, fields, vec![]), by));
            }
            Err(refusal) => return self.refused(object, refusal),
        };
        self.masks().learn(&predicted);
        let extras = self.extras(&object.key, &live, &predicted);
        let fields = self.masks().differences(&live, &predicted, &extras);
        if fields.is_empty() {
            return Ok(Found::Same(held));
        }
        let by = self.by(&live, &fields, &extras);
        Ok(Found::Differs(step(Change::Update, fields, extras), by))
    }

    /// What applying would leave in place and nobody declared, at its places in the live object.
    fn extras(&self, key: &Key, live: &Value, predicted: &Value) -> Vec<Extra> {
        let mut owned = live.clone();
        owned["metadata"]["managedFields"] = predicted["metadata"]["managedFields"].clone();
        let mut extras = fields::extras(&owned, &fields::ours(predicted));
        if fields::applied(live).is_none()
            && let Some(kept) = object::annotation(live, LAST_APPLIED)
        {
            // What `kubectl apply` kept for itself goes with its hold on the object.
            extras.push(Extra {
                pointer: format!("/metadata/annotations/{}", escaped(LAST_APPLIED)),
                value: kept.into(),
                manager: "kubectl".into(),
                at: None,
            });
        }
        extras.retain(|extra| !self.is_ignored(key, &extra.pointer));
        extras
    }

    fn by(&self, live: &Value, fields: &[Field], extras: &[Extra]) -> Option<ChangedBy> {
        let of = |field: &Field| {
            let extra = extras.iter().find(|extra| extra.pointer == field.path);
            extra.map(|extra| (extra.manager.clone(), extra.at)).or_else(|| fields::writer(live, &field.path))
        };
        fields.iter().filter_map(of).max_by_key(|(_, at)| *at).map(|(manager, at)| ChangedBy { manager, at })
    }

    fn refused(&self, object: &Object, refusal: Refusal) -> Result<Found, TargetError> {
        if refusal.is_wrong() || refusal.is_conflict() || (refusal.code == 403 && refusal.message.contains("denied")) {
            let says = self.this.redactor.redact(&refusal.message);
            return Ok(Found::Problem(format!("{}: `{}`: {says}", object.place, object.key)));
        }
        Err(refusal.of(&format!("`{}` of `{}`", object.key, self.job.instance)))
    }

    /// What is held and not declared any more; what is not to be deleted stays held.
    fn left_over(&self, live: &BTreeMap<Key, Value>, now: &mut Inventory, warnings: &mut Vec<String>) -> Vec<Step> {
        let mut steps = vec![];
        let declared: BTreeSet<&Key> = self.rendered.objects.iter().map(|object| &object.key).collect();
        let mut held: Vec<(&Key, &Held)> = self.inventory.iter().filter(|(key, _)| !declared.contains(key)).collect();
        held.sort_by_key(|(key, _)| (object::rank(&key.kind), *key));
        for (key, held) in held {
            if self.kinds.of(key).is_none() {
                warnings.push(format!("`{key}`: the cluster has no such kind any more"));
                continue;
            }
            let Some(live) = live.get(key) else { continue };
            let is_ours = object::owner(live).is_some_and(|owner| self.is_me(&owner));
            if !is_ours || self.other_owner(key).is_some() {
                // Somebody else has it now, or is about to.
                continue;
            }
            now.insert(key.clone(), held.clone());
            if object::annotation(live, object::PRUNE) == Some("disabled") {
                warnings.push(format!(
                    "`{key}` is not declared any more and stays, because it says `{}: disabled`",
                    object::PRUNE
                ));
                continue;
            }
            if object::is_terminating(live) {
                warnings.push(terminating(key, live));
                continue;
            }
            let text = |pointer| object::text(live, pointer).map(str::to_owned);
            steps.push(Step {
                key: key.clone(),
                change: Change::Destroy,
                fields: vec![],
                uid: text("/metadata/uid"),
                version: text("/metadata/resourceVersion"),
                extras: vec![],
            });
        }
        steps
    }
}

/// What keeps an object from going.
pub(super) fn terminating(key: &Key, live: &Value) -> String {
    let finalizers: Vec<&str> =
        live["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if finalizers.is_empty() {
        format!("`{key}` is being deleted")
    } else {
        format!("`{key}` is being deleted, and waits for its finalizers: {}", finalizers.join(", "))
    }
}

/// Whether a refusal means that a field can't be changed in place.
fn is_immutable(refusal: &Refusal) -> bool {
    let says = [
        "immutable",
        "may not change once set",
        "updates to statefulset spec",
        "can not be changed",
        "cannot be changed",
    ];
    let text =
        format!("{} {}", refusal.message, refusal.causes.iter().map(|(_, text)| text.as_str()).collect::<String>());
    refusal.code == 422 && says.iter().any(|word| text.contains(word))
}

/// Puts what a manifest says over an object; lists are replaced, but for those of things with names.
fn overlay(object: &mut Value, manifest: &Value) {
    match (object, manifest) {
        (Value::Object(object), Value::Object(manifest)) => {
            for (name, value) in manifest {
                overlay(object.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (Value::Array(object), Value::Array(manifest)) if manifest.iter().all(|item| item["name"].is_string()) => {
            object.retain(|item| manifest.iter().any(|other| other["name"] == item["name"]));
            for item in manifest {
                match object.iter_mut().find(|other| other["name"] == item["name"]) {
                    Some(there) => overlay(there, item),
                    None => object.push(item.clone()),
                }
            }
        }
        (object, manifest) => *object = manifest.clone(),
    }
}
