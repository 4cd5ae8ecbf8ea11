//! Reads the live objects of an instance, kind by kind.
//!
//! *Invariant:* a list that can't be read completely is an error, so that a lost page never makes an object appear
//! deleted. For an object that is unchanged since its apply, only the name stays in memory.

use std::collections::{BTreeMap, BTreeSet};

use futures::{
    future::{BoxFuture, FutureExt},
    stream::{self, StreamExt},
};
use serde_json::Value;

use super::{
    Kubernetes,
    client::{Cluster, Refusal},
    fields,
    inventory::Inventory,
    kinds::{GroupKind, Kind, Kinds},
    object::{self, Key},
    rendered::Rendered,
};
use crate::{
    model::InstanceId,
    ports::{Job, TargetError},
};

/// The number of concurrent requests for one instance.
const SIDE_BY_SIDE: usize = 16;
/// The number of missing objects of one kind above which the whole kind is listed, instead of a request for each
/// object.
const ONE_BY_ONE: usize = 20;

/// Live objects by name; `None` for an object that is unchanged since its apply.
pub(super) type Live = BTreeMap<Key, Option<Value>>;

impl Kubernetes {
    /// Lists the live objects that an instance declares, owns, or labels as its own.
    pub(super) async fn list(
        &self,
        job: &Job,
        cluster: &Cluster,
        kinds: &Kinds,
        rendered: &Rendered,
        inventory: Option<&Inventory>,
    ) -> Result<Live, TargetError> {
        let mut wanted: BTreeMap<GroupKind, (Option<Kind>, BTreeSet<&Key>)> = BTreeMap::new();
        for object in &rendered.objects {
            let kind = kinds.exact(&object.version, &object.key.kind).or_else(|| kinds.preferred(&object.key)).cloned();
            let entry =
                wanted.entry((object.key.group.clone(), object.key.kind.clone())).or_insert((kind, BTreeSet::new()));
            entry.1.insert(&object.key);
        }
        for key in inventory.into_iter().flat_map(Inventory::keys) {
            let kind = || kinds.preferred(key).cloned();
            let entry =
                wanted.entry((key.group.clone(), key.kind.clone())).or_insert_with(|| (kind(), BTreeSet::new()));
            entry.1.insert(key);
        }
        let id = job.formerly.as_ref().unwrap_or(&job.instance);
        let labels = format!("{}={},{}={}", object::ENVIRONMENT, id.environment, object::COMPONENT, id.component);
        let same = |key: &Key, object: &Value| {
            let entry = inventory.and_then(|inventory| inventory.get(key));
            entry.is_some_and(|entry| {
                entry.applied.is_some()
                    && rendered.get(key).map(|object| object.mark) == entry.applied
                    && entry.uid.as_deref() == object::text(object, "/metadata/uid")
                    && !object::is_terminating(object)
                    && entry.settled == Some(self.seal.mark(&fields::canonical(object)))
            })
        };
        let mut lists = vec![];
        for (kind, keys) in wanted.into_values() {
            if let Some(kind) = kind {
                let query = OfKind { cluster, kind, labels: &labels, id: &job.instance, same: &same };
                lists.push(query.list(keys).boxed());
            }
        }
        let mut all = BTreeMap::new();
        for list in side_by_side(lists).await {
            all.extend(list?);
        }
        Ok(all)
    }
}

/// A query for the objects of one kind.
struct OfKind<'k> {
    cluster: &'k Cluster,
    kind: Kind,
    labels: &'k str,
    id: &'k InstanceId,
    /// Whether an object is unchanged since its apply.
    same: &'k (dyn Fn(&Key, &Value) -> bool + Sync),
}

impl OfKind<'_> {
    /// Lists the live objects: by label, and expected ones without the label individually.
    async fn list(self, keys: BTreeSet<&Key>) -> Result<Vec<(Key, Option<Value>)>, TargetError> {
        let Self { cluster, kind, labels, id, same } = self;
        let failed = |refusal: Refusal| refusal.into_error(&format!("the `{}` of `{id}`", kind.plural));
        let mut found: Vec<(Key, Option<Value>)> = vec![];
        let sample = keys.first().map(|key| (key.group.clone(), key.kind.clone()));
        let Some((group, name)) = sample else { return Ok(found) };
        let version = kind.version.to_string();
        cluster
            .list(&kind, labels, &mut |mut object| {
                // List items carry neither kind nor version.
                object["apiVersion"] = version.as_str().into();
                object["kind"] = (*name).into();
                if let Some(mut key) = Key::of(&object) {
                    (key.group, key.kind) = (group.clone(), name.clone());
                    let as_it_was = same(&key, &object);
                    found.push((key, (!as_it_was).then_some(object)));
                }
            })
            .await
            .map_err(failed)?;
        let there: BTreeSet<&Key> = found.iter().map(|(key, _)| key).collect();
        let mut missing: Vec<&Key> = keys.into_iter().filter(|key| !there.contains(*key)).collect();
        if missing.len() > ONE_BY_ONE {
            let mut all = BTreeSet::new();
            let mut put = |object: Value| {
                let text = |pointer| object::text(&object, pointer).unwrap_or_default().to_owned();
                all.insert((text("/metadata/namespace"), text("/metadata/name")));
            };
            cluster.names(&kind, None, &mut put).await.map_err(failed)?;
            missing.retain(|key| {
                all.contains(&(key.namespace.as_deref().unwrap_or_default().to_owned(), key.name.to_string()))
            });
        }
        let asked = missing.into_iter().map(|key| get(cluster, &kind, key).boxed()).collect();
        for object in side_by_side(asked).await {
            found.extend(object.map_err(failed)?.map(|(key, object)| (key, Some(object))));
        }
        Ok(found)
    }
}

/// Returns one object by its name, or `None` if it does not exist.
pub(super) async fn get(cluster: &Cluster, kind: &Kind, key: &Key) -> Result<Option<(Key, Value)>, Refusal> {
    Ok(cluster.get(kind, key).await?.map(|object| (key.clone(), object)))
}

/// Runs futures concurrently, and returns the results in order.
pub(super) async fn side_by_side<T>(all: Vec<BoxFuture<'_, T>>) -> Vec<T> {
    stream::iter(all).buffered(SIDE_BY_SIDE).collect().await
}
