//! Determines the change that one object needs, by a strict dry-run.
//!
//! Owns the comparison of one live object with the result of applying it: the fields that would change, the undeclared
//! additions of other managers, and the objects of the inventory that are no longer declared.

use crate::targets::kubernetes::work::KubernetesWork;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, Ordering},
};

use serde_json::Value;

use super::{
    Kubernetes,
    client::{Cluster, KINDS_AGAIN, Refusal, Write},
    fields::{self, Extra, escaped},
    inventory::{Inventory, InventoryEntry},
    kinds::{GroupKind, Kinds},
    live::Live,
    masking::{LAST_APPLIED, Masks},
    object::{self, Key},
    rendered::{Object, Rendered, wrong},
    schema::Schemas,
    steps::{Found, Step},
};
use crate::{
    model::{Change, ChangedBy, Field, InstanceId},
    ports::{Job, TargetError, TargetErrorKind, Use},
};

/// The input of one observation of an instance.
pub(super) struct Comparison<'l> {
    pub(super) this: &'l Kubernetes,
    pub(super) job: &'l Job,
    pub(super) work: &'l KubernetesWork,
    pub(super) cluster: &'l Cluster,
    pub(super) kinds: &'l Kinds,
    pub(super) rendered: &'l Rendered,
    pub(super) inventory: &'l Inventory,
    /// The schemas for objects that do not exist yet, if there are many.
    pub(super) schemas: Option<&'l Schemas>,
    /// Set if the decision needs the declarations of other instances and they are unknown.
    pub(super) contested: &'l AtomicBool,
}

/// The objects of the inventory that are no longer declared.
#[derive(Default)]
pub(super) struct Undeclared {
    /// The objects to delete.
    pub(super) steps: Vec<Step>,
    /// The objects that are not deleted, each with the reason.
    pub(super) retained: Vec<String>,
    /// The objects whose deletion is in progress.
    pub(super) terminating: Vec<String>,
}

impl Comparison<'_> {
    fn masks(&self) -> Masks<'_> {
        Masks { seal: &self.this.seal, redactor: &self.this.redactor }
    }

    pub(super) fn is_me(&self, id: &InstanceId) -> bool {
        *id == self.job.instance || Some(id) == self.job.formerly.as_ref()
    }

    /// Returns another instance that declares an object. Sets `contested` if the declarations are unknown.
    fn other_owner(&self, key: &Key) -> Option<InstanceId> {
        let Some(owners) = &self.work.owners else {
            self.contested.store(true, Ordering::Relaxed);
            return None;
        };
        owners.declared.get(&key.to_string())?.iter().find(|id| !self.is_me(id)).cloned()
    }

    /// Whether an object may be deleted and created again.
    pub(super) fn may_replace(&self, key: &Key) -> bool {
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

    /// Returns the step that one object needs.
    pub(super) async fn object(&self, object: &Object, live: Option<Value>) -> Result<Found, TargetError> {
        if let Some(other) = live.as_ref().and_then(object::owner).filter(|owner| !self.is_me(owner)) {
            match self.other_owner(&object.key) {
                Some(_) if self.job.r#use == Use::Applied => {
                    // The transfer of the object to that instance is pending and not drift.
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
        if self.schemas.is_some_and(|schemas| schemas.accept(object)) {
            return made;
        }
        match self.cluster.apply(kind, &object.key, object.json(), Write { dry_run: true, ..Write::default() }).await {
            Ok(_) => made,
            Err(refusal) if refusal.is_not_found() => {
                let namespace = object.key.namespace.as_deref().unwrap_or_default();
                let makes = |other: &Object| &*other.key.kind == "Namespace" && &*other.key.name == namespace;
                if self.rendered.objects.iter().any(makes) {
                    return made;
                }
                let kinds = self.cluster.kinds(KINDS_AGAIN).await?;
                let missing = match kinds.exact(&object.version, &object.key.kind) {
                    Some(_) => format!("namespace `{namespace}`"),
                    None => format!("`{}` in `{}`", object.key.kind, object.version),
                };
                let error = wrong(&self.job.instance, vec![format!("{}: the cluster has no {missing}", object.place)]);
                Err(TargetError { kind: TargetErrorKind::NotThereYet, ..error })
            }
            Err(refusal) => self.refused(object, refusal),
        }
    }

    async fn there(&self, object: &Object, live: Value) -> Result<Found, TargetError> {
        let uid = object::text(&live, "/metadata/uid").unwrap_or_default().to_owned();
        let version = object::text(&live, "/metadata/resourceVersion").map(str::to_owned);
        let settled = self.this.seal.mark(&fields::canonical(&live));
        let entry =
            InventoryEntry { uid: Some(uid.as_str().into()), applied: Some(object.mark), settled: Some(settled) };
        if self.inventory.get(&object.key) == Some(&entry) {
            return Ok(Found::Same(entry));
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
            // If another manager took a field and restored its value, Evenkeel owns fewer fields than it declares. Such
            // an object gets a dry-run in every observation.
            let owned = fields::ours(&live) == fields::ours(&predicted);
            return Ok(Found::Same(InventoryEntry { settled: entry.settled.filter(|_| owned), ..entry }));
        }
        let by = self.by(&live, &fields, &extras);
        Ok(Found::Differs(step(Change::Update, fields, extras), by))
    }

    /// Returns the undeclared additions that an apply would not remove, with their pointers in the live object.
    fn extras(&self, key: &Key, live: &Value, predicted: &Value) -> Vec<Extra> {
        let mut owned = live.clone();
        owned["metadata"]["managedFields"] = predicted["metadata"]["managedFields"].clone();
        let mut extras = fields::extras(&owned, &fields::ours(predicted));
        if fields::applied(live).is_none()
            && let Some(last_applied) = object::annotation(live, LAST_APPLIED)
        {
            // The annotation of `kubectl apply` is removed together with its ownership of the object.
            extras.push(Extra {
                pointer: format!("/metadata/annotations/{}", escaped(LAST_APPLIED)),
                value: last_applied.into(),
                manager: "kubectl".into(),
                at: None,
            });
        }
        extras.retain(|extra| !self.is_ignored(key, &extra.pointer));
        extras
    }

    fn by(&self, live: &Value, fields: &[Field], extras: &[Extra]) -> Option<ChangedBy> {
        let author = |field: &Field| {
            let extra = extras.iter().find(|extra| extra.pointer == field.path);
            extra.map(|extra| (extra.manager.clone(), extra.at)).or_else(|| fields::writer(live, &field.path))
        };
        fields.iter().filter_map(author).max_by_key(|(_, at)| *at).map(|(manager, at)| ChangedBy { manager, at })
    }

    fn refused(&self, object: &Object, refusal: Refusal) -> Result<Found, TargetError> {
        if refusal.is_wrong() || refusal.is_conflict() || (refusal.code == 403 && refusal.message.contains("denied")) {
            let message = self.this.redactor.redact(&refusal.message);
            return Ok(Found::Problem(format!("{}: `{}`: {message}", object.place, object.key)));
        }
        Err(refusal.into_error(&format!("`{}` of `{}`", object.key, self.job.instance)))
    }

    /// Returns the objects of the inventory that are no longer declared. Objects that are not deleted stay in the
    /// inventory.
    pub(super) async fn undeclared(&self, live: &Live, new_inventory: &mut Inventory) -> Undeclared {
        let mut undeclared = Undeclared::default();
        let mut deleted_kinds: BTreeMap<GroupKind, bool> = BTreeMap::new();
        let declared: BTreeSet<&Key> = self.rendered.objects.iter().map(|object| &object.key).collect();
        let mut entry: Vec<(&Key, &InventoryEntry)> =
            self.inventory.iter().filter(|(key, _)| !declared.contains(key)).collect();
        entry.sort_by_key(|(key, _)| (object::rank(&key.kind), *key));
        for (key, entry) in entry {
            if self.kinds.preferred(key).is_none() {
                let sort = (key.group.clone(), key.kind.clone());
                let is_deleted = match deleted_kinds.get(&sort) {
                    Some(known) => *known,
                    None => self.is_deleted((&key.group, &key.kind)).await.unwrap_or(false),
                };
                deleted_kinds.insert(sort, is_deleted);
                if is_deleted {
                    tracing::warn!(kind = "object-removed-with-kind", instance = %self.job.instance, object = %key, "an object was removed with its kind");
                    continue;
                }
                undeclared.retained.push(format!("`{key}`: the cluster has no such kind any more"));
                new_inventory.insert(key.clone(), entry.clone());
                continue;
            }
            let Some(Some(live)) = live.get(key) else { continue };
            let is_ours = object::owner(live).is_some_and(|owner| self.is_me(&owner));
            if !is_ours || self.other_owner(key).is_some() {
                // Another instance owns or declares the object.
                continue;
            }
            new_inventory.insert(key.clone(), entry.clone());
            if let Some(why) = self.in_use(key) {
                undeclared.retained.push(format!("`{key}` is not declared any more and stays: {why}"));
                continue;
            }
            if object::annotation(live, object::PRUNE) == Some("disabled") {
                undeclared.retained.push(format!(
                    "`{key}` is not declared any more and stays, because it has `{}: disabled`",
                    object::PRUNE
                ));
                continue;
            }
            if object::is_terminating(live) {
                undeclared.terminating.push(terminating(key, live));
                continue;
            }
            if let Some(why) = self.deletion_blocked_by(key).await {
                undeclared.retained.push(format!("`{key}` is not declared any more and stays: {why}"));
                continue;
            }
            let text = |pointer| object::text(live, pointer).map(str::to_owned);
            undeclared.steps.push(Step {
                key: key.clone(),
                change: Change::Destroy,
                fields: vec![],
                uid: text("/metadata/uid"),
                version: text("/metadata/resourceVersion"),
                extras: vec![],
            });
        }
        undeclared
    }
}

/// Returns why the deletion of an object has not completed.
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
    let message = [
        "immutable",
        "may not change once set",
        "updates to statefulset spec",
        "can not be changed",
        "cannot be changed",
    ];
    let text =
        format!("{} {}", refusal.message, refusal.causes.iter().map(|(_, text)| text.as_str()).collect::<String>());
    refusal.code == 422 && message.iter().any(|word| text.contains(word))
}

/// Merges a manifest over an object. Lists are replaced, except for lists of named items.
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
