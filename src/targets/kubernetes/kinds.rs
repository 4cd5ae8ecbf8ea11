//! The kinds that a cluster has, by its own discovery: what they are called in paths, and whether they live in namespaces.

use std::{collections::HashMap, sync::Arc};

use kube::{
    Client,
    discovery::{Discovery, Scope},
};

use super::object::Key;

/// Group and kind.
pub(super) type GroupKind = (Arc<str>, Arc<str>);

/// A kind that the cluster has.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Kind {
    /// `v1`, `apps/v1`.
    pub version: Arc<str>,
    /// The name in paths.
    pub plural: Arc<str>,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
}

/// The kinds that a cluster has.
#[derive(Clone, Default)]
pub(super) struct Kinds {
    /// By version and kind.
    exact: Arc<HashMap<(String, String), Kind>>,
    /// In the version that the server prefers, by group and kind.
    preferred: Arc<HashMap<(String, String), Kind>>,
    /// Another number for other kinds.
    pub epoch: u64,
}

impl Kinds {
    /// Asks a server for its kinds.
    pub(super) async fn of_server(client: &Client) -> Result<Self, kube::Error> {
        let discovery = Discovery::new(client.clone()).run_aggregated().await?;
        let (mut exact, mut preferred) = (HashMap::new(), HashMap::new());
        for group in discovery.groups() {
            for version in group.versions() {
                for (resource, capabilities) in group.versioned_resources(version) {
                    let kind = Kind {
                        version: resource.api_version.as_str().into(),
                        plural: resource.plural.as_str().into(),
                        namespaced: capabilities.scope == Scope::Namespaced,
                    };
                    exact.insert((resource.api_version.clone(), resource.kind.clone()), kind);
                }
            }
            for (resource, capabilities) in group.resources_by_stability() {
                if !["list", "delete"].iter().all(|verb| capabilities.supports_operation(verb)) {
                    continue;
                }
                let found = exact.get(&(resource.api_version.clone(), resource.kind.clone())).cloned();
                preferred.extend(found.map(|kind| ((group.name().to_owned(), resource.kind.clone()), kind)));
            }
        }
        Ok(Self { exact: Arc::new(exact), preferred: Arc::new(preferred), epoch: 0 })
    }
    /// Whether these are the same.
    pub(super) fn are(&self, others: &Self) -> bool {
        self.exact == others.exact
    }
    /// Whether objects of a kind live in namespaces; nothing where there is no such kind.
    pub(super) fn scope(&self, version: &str, kind: &str) -> Option<bool> {
        self.exact(version, kind).map(|kind| kind.namespaced)
    }
    /// A kind in one version.
    pub(super) fn exact(&self, version: &str, kind: &str) -> Option<&Kind> {
        self.exact.get(&(version.to_owned(), kind.to_owned()))
    }
    /// A kind in the version that the server prefers.
    pub(super) fn of(&self, key: &Key) -> Option<&Kind> {
        self.preferred.get(&(key.group.to_string(), key.kind.to_string()))
    }
    /// All kinds whose objects live in namespaces, with group and name.
    pub(super) fn in_namespaces(&self) -> impl Iterator<Item = (&str, &str, &Kind)> {
        let all = self.preferred.iter().filter(|(_, kind)| kind.namespaced);
        all.map(|((group, name), kind)| (group.as_str(), name.as_str(), kind))
    }
    /// The kind that paths call so, with its name.
    pub(super) fn of_plural(&self, group: &str, plural: &str) -> Option<(&str, &Kind)> {
        let mut all = self.preferred.iter().filter(|((of, _), kind)| of == group && *kind.plural == *plural);
        all.next().map(|((_, name), kind)| (name.as_str(), kind))
    }
}
