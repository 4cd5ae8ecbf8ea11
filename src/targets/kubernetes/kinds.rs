//! Discovers the kinds that a cluster serves: their names in paths, and whether they are namespaced.

use std::{collections::HashMap, sync::Arc};

use kube::{
    Client,
    discovery::{Discovery, Scope},
};

use super::object::Key;

/// Group and kind.
pub(super) type GroupKind = (Arc<str>, Arc<str>);

/// A kind that the cluster serves.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Kind {
    /// `v1`, `apps/v1`.
    pub version: Arc<str>,
    /// The name in paths.
    pub plural: Arc<str>,
    /// Whether the objects of the kind are namespaced.
    pub namespaced: bool,
}

/// The kinds that a cluster serves.
#[derive(Clone, Default)]
pub(super) struct Kinds {
    /// By version and kind.
    exact: Arc<HashMap<(String, String), Kind>>,
    /// In the version that the server prefers, by group and kind.
    preferred: Arc<HashMap<(String, String), Kind>>,
    /// A number that changes when the kinds change.
    pub epoch: u64,
}

impl Kinds {
    /// Discovers the kinds of a server.
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
    /// Whether two discoveries found the same kinds.
    pub(super) fn are(&self, others: &Self) -> bool {
        self.exact == others.exact
    }
    /// Whether objects of a kind are namespaced; `None` if the kind does not exist.
    pub(super) fn scope(&self, version: &str, kind: &str) -> Option<bool> {
        self.exact(version, kind).map(|kind| kind.namespaced)
    }
    /// Returns a kind in one version.
    pub(super) fn exact(&self, version: &str, kind: &str) -> Option<&Kind> {
        self.exact.get(&(version.to_owned(), kind.to_owned()))
    }
    /// Returns a kind in the version that the server prefers.
    pub(super) fn preferred(&self, key: &Key) -> Option<&Kind> {
        self.preferred.get(&(key.group.to_string(), key.kind.to_string()))
    }
    /// Returns all namespaced kinds, with group and name.
    pub(super) fn in_namespaces(&self) -> impl Iterator<Item = (&str, &str, &Kind)> {
        let all = self.preferred.iter().filter(|(_, kind)| kind.namespaced);
        all.map(|((group, name), kind)| (group.as_str(), name.as_str(), kind))
    }
    /// Returns the kind with a plural name, and its name.
    pub(super) fn of_plural(&self, group: &str, plural: &str) -> Option<(&str, &Kind)> {
        let mut all =
            self.preferred.iter().filter(|((kind_group, _), kind)| kind_group == group && *kind.plural == *plural);
        all.next().map(|((_, name), kind)| (name.as_str(), kind))
    }
}
