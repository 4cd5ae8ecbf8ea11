//! Decides whether a namespace or definition may be deleted, by the objects that it contains.
//!
//! Owns the checks before a cascading deletion. A deletion is allowed if each contained object belongs to the instance
//! and is no longer declared, or was created by the cluster for such an object.
//! *Invariant:* a deletion never cascades to an object outside the plan. A kind that can't be listed blocks the
//! deletion.
//! *Race:* another writer creates an object in the namespace after the check. The object is deleted with the
//! namespace, as with `kubectl delete`.

use serde_json::Value;

use super::{
    client::{KINDS_AGAIN, Refusal},
    confirm::Comparison,
    inventory::Inventory,
    kinds::{Kind, Kinds},
    live::side_by_side,
    object::{self, Key, is_namespace_or_definition},
};
use futures::future::FutureExt;

/// The number of blocking objects that a message names.
const NAMED: usize = 3;

/// Whether an object is in the given namespace, or is a custom resource of the given definition.
pub(super) fn lives_in(kinds: &Kinds, container: &Key, key: &Key) -> bool {
    match &*container.kind {
        "Namespace" => key.namespace.as_ref() == Some(&container.name),
        // `widgets.example.com` defines the `widgets` of `example.com`.
        _ => kinds.preferred(key).is_some_and(|kind| *container.name == *format!("{}.{}", kind.plural, key.group)),
    }
}

impl Comparison<'_> {
    /// Returns why an object can't be deleted: other instances declare objects in it, or their declarations are
    /// unknown.
    pub(super) fn in_use(&self, key: &Key) -> Option<String> {
        let owners = self.work.owners.as_ref()?;
        if let Some(id) = &owners.unknown {
            return Some(format!("whether `{id}` declares it is not known"));
        }
        if !is_namespace_or_definition(&key.kind) {
            return None;
        }
        let is_in = |name: &String| name.parse().is_ok_and(|other| lives_in(self.kinds, key, &other));
        let others = owners.declared.iter().filter(|(name, _)| is_in(name));
        let mut others = others.flat_map(|(_, ids)| ids).filter(|id| !self.is_me(id));
        others.next().map(|id| format!("`{id}` has objects in it"))
    }

    /// Returns why a namespace or definition can't be deleted: it contains objects of other owners, or its content is
    /// unknown.
    pub(super) async fn deletion_blocked_by(&self, key: &Key) -> Option<String> {
        if !is_namespace_or_definition(&key.kind) {
            return None;
        }
        let unknown = |why: &str| Some(format!("what else would be deleted with it is not known: {why}"));
        let inventory = match self.this.inventory(self.job.formerly.as_ref().unwrap_or(&self.job.instance)).await {
            Ok(inventory) => inventory.unwrap_or_default(),
            Err(error) => return unknown(&error.line()),
        };
        // A kind that was defined in the meantime may have objects in the namespace.
        let kinds = match self.cluster.kinds(KINDS_AGAIN).await {
            Ok(kinds) => kinds,
            Err(error) => return unknown(&error.line()),
        };
        let is_space = &*key.kind == "Namespace";
        let found = if is_space {
            self.others_in(key, &inventory, &kinds).await
        } else {
            self.others_of(key, &inventory, &kinds).await
        };
        match found {
            Err(refusal) => unknown(&refusal.message),
            Ok(others) if others.is_empty() => None,
            Ok(others) => {
                let named: Vec<String> = others.iter().take(NAMED).map(|other| format!("`{other}`")).collect();
                let more = others.len().saturating_sub(NAMED);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                Some(format!("{}{more} would go with it", named.join(", ")))
            }
        }
    }

    /// Returns the objects of a namespace that neither Evenkeel nor the cluster may delete.
    async fn others_in(&self, namespace: &Key, inventory: &Inventory, kinds: &Kinds) -> Result<Vec<Key>, Refusal> {
        let asked = kinds.in_namespaces().map(|(group, name, kind)| {
            async move {
                let mut others = vec![];
                let mut put = |object: Value| {
                    let Some(key) = Key::of_metadata(group, name, &object) else { return };
                    if !is_cluster_created(kinds, &key, &object) && !self.is_deleted_anyway(&key, &object, inventory) {
                        others.push(key);
                    }
                };
                self.cluster
                    .names(kind, Some(&namespace.name), &mut put)
                    .await
                    .map_err(|refusal| list_failed(refusal, kind))?;
                Ok(others)
            }
            .boxed()
        });
        let found: Result<Vec<Vec<Key>>, Refusal> = side_by_side(asked.collect()).await.into_iter().collect();
        let mut found = found?.concat();
        found.sort();
        Ok(found)
    }

    /// Returns the objects of a definition that Evenkeel may not delete.
    async fn others_of(&self, definition: &Key, inventory: &Inventory, kinds: &Kinds) -> Result<Vec<Key>, Refusal> {
        let (plural, group) = definition.name.split_once('.').unwrap_or_default();
        let Some((name, kind)) = kinds.of_plural(group, plural) else {
            // The stored objects exist even if their kind is not served.
            return Err(Refusal::silent(format!("`{plural}` are not served")));
        };
        let mut others = vec![];
        let mut put = |object: Value| {
            let Some(key) = Key::of_metadata(group, name, &object) else { return };
            if !self.is_deleted_anyway(&key, &object, inventory) {
                others.push(key);
            }
        };
        self.cluster.names(kind, None, &mut put).await.map_err(|refusal| list_failed(refusal, kind))?;
        others.sort();
        Ok(others)
    }

    /// Whether a kind that the cluster does not serve has no objects left: no definition exists, and no other API
    /// server serves its group.
    pub(super) async fn is_deleted(&self, (group, kind): (&str, &str)) -> Result<bool, Refusal> {
        let resource = |plural: &str, group: &str| Kind {
            version: format!("{group}/v1").as_str().into(),
            plural: plural.into(),
            namespaced: false,
        };
        let mut is_elsewhere = false;
        let mut put = |service: Value| {
            is_elsewhere |= service["spec"]["group"] == group && !service["spec"]["service"].is_null();
        };
        self.cluster.list(&resource("apiservices", "apiregistration.k8s.io"), "", &mut put).await?;
        let definitions = resource("customresourcedefinitions", "apiextensions.k8s.io");
        let mut names = vec![];
        let mut put = |object: Value| {
            let name = object::text(&object, "/metadata/name").unwrap_or_default();
            if name.split_once('.').is_some_and(|(_, definition_group)| definition_group == group) {
                names.push(name.to_owned());
            }
        };
        self.cluster.names(&definitions, None, &mut put).await?;
        for name in names {
            let key = Key {
                group: "apiextensions.k8s.io".into(),
                kind: "CustomResourceDefinition".into(),
                namespace: None,
                name: name.as_str().into(),
            };
            let live = self.cluster.get(&definitions, &key).await?;
            if live.is_some_and(|live| live["spec"]["names"]["kind"] == kind) {
                return Ok(false);
            }
        }
        Ok(!is_elsewhere)
    }

    /// Whether an object is being deleted, or is owned by the instance and no longer declared.
    fn is_deleted_anyway(&self, key: &Key, object: &Value, inventory: &Inventory) -> bool {
        let is_ours = inventory.contains_key(key) && object::owner(object).is_some_and(|owner| self.is_me(&owner));
        let is_retained =
            self.rendered.get(key).is_some() || object::annotation(object, object::PRUNE) == Some("disabled");
        object::is_terminating(object) || (is_ours && !is_retained)
    }
}

fn list_failed(mut refusal: Refusal, kind: &Kind) -> Refusal {
    refusal.message = format!("its `{}` could not be listed: {}", kind.plural, refusal.message);
    refusal
}

/// Whether the cluster created an object, for the namespace or for another object in it.
fn is_cluster_created(kinds: &Kinds, key: &Key, object: &Value) -> bool {
    let owners = object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    // An owner in the namespace is checked as an object of its own. A cluster-scoped owner outlives the namespace, so
    // the owned object counts.
    let is_in_namespace = |owner: &Value| {
        let named = owner["apiVersion"].as_str().zip(owner["kind"].as_str());
        named.and_then(|(version, kind)| kinds.scope(version, kind)) == Some(true)
    };
    let made = match (&*key.group, &*key.kind) {
        ("" | "events.k8s.io", "Event")
        | ("", "Endpoints")
        | ("discovery.k8s.io", "EndpointSlice")
        | ("coordination.k8s.io", "Lease") => true,
        ("", "ConfigMap") => &*key.name == "kube-root-ca.crt",
        ("", "ServiceAccount") => &*key.name == "default",
        ("", "Secret") => object::annotation(object, "kubernetes.io/service-account.name").is_some(),
        _ => false,
    };
    made || owners.is_some_and(|owners| owners.iter().any(is_in_namespace))
}
