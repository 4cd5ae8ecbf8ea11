//! Manages Kubernetes objects by server-side apply, and observes them through watches.
//!
//! Owns rendering, observation, drift detection, apply and health of the objects of one instance.
//! *Invariant:* rendering has no access to the network or to the daemon's environment. Evenkeel never deletes an
//! object that it did not create or that another instance owns. An incomplete observation never leads to a deletion.
//! No live object stays in memory.
//! *Drift detection:* after an apply, the owned fields of the server's response are hashed. The hash is the *settled*
//! mark: it includes all defaulting and admission. An object with another hash is read and sent as a strict dry-run,
//! which returns the changes that an apply would make; `managedFields` name the manager that made the difference
//! (`fields`).
//! *Race:* two instances declare one object. The observation reports the conflict, and neither instance applies the
//! object.
//! *Race:* a credential file is replaced. The next observation uses the new file.

mod access;
mod adapter;
mod adopt;
mod apply;
mod client;
mod closure;
mod confirm;
pub mod declaration;
mod deletion;
pub mod drift;
pub mod fields;
mod inventory;
mod kind;
mod kinds;
mod live;
pub mod local;
pub mod manifest;
mod masking;
mod object;
mod observe;
pub mod plan;
mod render;
mod rendered;
mod schema;
mod steps;
mod substitute;
mod verify;
mod watch;
pub mod work;

use crate::targets::kubernetes::work::KubernetesWork;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

pub use access::Access;
use client::Cluster;
use inventory::Inventory;
pub use kind::KubernetesKind;
use kinds::{Kind, Kinds};
use parking_lot::Mutex;
use rendered::Rendered;

use super::concurrency::ConcurrencyLimit;
use crate::{
    model::{InstanceId, Redactor, Seal},
    ports::TargetErrorKind,
    ports::{InventoryStore, Job, Observation, TargetError, Use},
};

/// The duration after which a job stops counting towards the concurrency limit, so that it does not delay others.
const SLOW_AFTER: Duration = Duration::from_secs(20);
/// The interval of complete observations, independent of watches.
const FULL_OBSERVATION_INTERVAL: Duration = Duration::from_secs(600);
/// The number of cached renderings of one instance: the applied one and the planned one.
const RENDERINGS_MAX: usize = 2;

/// The time limit for a program to print its version.
const VERSION_TIME_MAX: Duration = Duration::from_secs(20);

/// The address of an API server and its certificate authority, as declared.
type Address = (Option<String>, Option<String>);

/// Resolves the credentials of a connection and the other environments that may use it, by (instance, connection,
/// whether for apply).
pub type Accesses = Arc<dyn Fn(&InstanceId, &str, bool) -> Result<(Access, Vec<String>), String> + Send + Sync>;

/// The settings for rendering and for connections.
#[derive(Clone)]
pub struct Settings {
    /// The kustomize program: a name on `PATH`, or a path.
    pub kustomize: String,
    /// The helm program.
    pub helm: String,
    /// The maximum number of instances that are observed concurrently.
    pub parallel: usize,
    /// The resolver of credentials.
    pub accesses: Accesses,
}

/// The Kubernetes target.
pub struct Kubernetes {
    settings: Settings,
    seal: Arc<Seal>,
    redactor: Redactor,
    concurrency: ConcurrencyLimit,
    store: Arc<dyn InventoryStore>,
    rendered: Mutex<Renderings>,
    clusters: Mutex<HashMap<String, Cluster>>,
    /// The merged address of the cluster of each instance.
    addresses: Mutex<HashMap<InstanceId, Address>>,
    inventories: watch::Inventories,
    watches: watch::Watches,
    tracked: Mutex<HashMap<InstanceId, Tracked>>,
}

/// The result of the last complete observation of an instance; the next one confirms only suspected objects.
struct Tracked {
    rendered: Arc<Rendered>,
    at: Instant,
}

/// Renderings by instance, the newest last.
#[derive(Default)]
struct Renderings(HashMap<InstanceId, Vec<(String, Arc<Rendered>)>>);

impl Renderings {
    fn get(&self, id: &InstanceId, name: &str) -> Option<Arc<Rendered>> {
        self.0.get(id)?.iter().find(|(known, _)| known == name).map(|(_, rendered)| Arc::clone(rendered))
    }
    fn put(&mut self, id: &InstanceId, name: String, rendered: Arc<Rendered>) {
        let all = self.0.entry(id.clone()).or_default();
        all.retain(|(known, _)| *known != name);
        all.push((name, rendered));
        if all.len() > RENDERINGS_MAX {
            all.remove(0);
        }
    }
}

/// Checks that the cluster of a connection is reachable, and returns its identity. Returns `None` if only the
/// declarations contain the address.
///
/// # Errors
/// A message that explains why the cluster is unreachable.
pub async fn reach(access: &Access) -> Result<Option<String>, String> {
    if matches!(access, Access::Token(_)) {
        return Ok(None);
    }
    let line = |error: TargetError| error.line();
    let cluster = Cluster::new(access::client(access, &KubernetesWork::default()).await.map_err(line)?);
    let version = cluster.read("/version").await.map_err(|refusal| refusal.message)?;
    let uid = cluster.identity().await.map_err(|refusal| refusal.message)?;
    Ok(Some(format!("{} answers, the cluster is {uid}", version["gitVersion"].as_str().unwrap_or("a server"))))
}

/// Returns the version that a renderer prints.
///
/// # Errors
/// When it can't be started.
pub async fn version(program: &str) -> Result<String, String> {
    let asked = tokio::process::Command::new(program).arg("version").stdin(std::process::Stdio::null()).output();
    let asked = tokio::time::timeout(VERSION_TIME_MAX, asked).await;
    let output = asked.map_err(|_| format!("`{program} version` did not end"))?;
    let output = output.map_err(|error| format!("could not start `{program}`: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if text.is_empty() { Err(format!("`{program} version` printed nothing")) } else { Ok(text) }
}

impl Kubernetes {
    /// Creates the target from its settings.
    pub fn new(settings: Settings, seal: Arc<Seal>, redactor: Redactor, store: Arc<dyn InventoryStore>) -> Self {
        let inventories = watch::Inventories::default();
        Self {
            concurrency: ConcurrencyLimit::new(settings.parallel, SLOW_AFTER),
            watches: watch::Watches::new(Arc::clone(&seal), Arc::clone(&inventories)),
            settings,
            seal,
            redactor,
            store,
            rendered: Mutex::default(),
            clusters: Mutex::default(),
            addresses: Mutex::default(),
            inventories,
            tracked: Mutex::default(),
        }
    }

    /// Returns the cluster of a job, and the other environments that may use the cluster.
    async fn cluster(
        &self,
        job: &Job,
        work: &KubernetesWork,
        apply: bool,
    ) -> Result<(Cluster, Vec<String>), TargetError> {
        let wrong = |why: String| TargetError {
            retry: crate::model::Retry::WhenInputChanges,
            ..TargetError::new(TargetErrorKind::Connection, why)
        };
        let Some(name) = &job.connection else {
            return Err(wrong(format!("`{}` names no connection to a cluster", job.instance)));
        };
        let (access, shared_with) = (self.settings.accesses)(&job.instance, name, apply).map_err(wrong)?;
        let address = (work.server.clone(), work.certificate_authority.clone());
        {
            let mut addresses = self.addresses.lock();
            if !matches!(job.r#use, Use::Pull(_)) {
                addresses.insert(job.instance.clone(), address);
            } else if address != (None, None) && addresses.get(&job.instance) != Some(&address) {
                return Err(wrong(
                    "a pull request can't say where credentials are sent: another address of the cluster counts once it is merged".into(),
                ));
            }
        }
        let key = self.cluster_key(&access, work);
        let known = self.clusters.lock().get(&key).cloned();
        let cluster = match known {
            Some(cluster) => cluster,
            None => {
                let cluster = Cluster::new(access::client(&access, work).await?);
                self.clusters.lock().insert(key, cluster.clone());
                cluster
            }
        };
        Ok((cluster, shared_with))
    }

    /// Returns the cache key of a cluster and a user. A new client is created
    /// when the credentials change, because they are part of the key.
    fn cluster_key(&self, access: &Access, work: &KubernetesWork) -> String {
        use secrecy::ExposeSecret;
        let who = match access {
            Access::Kubeconfig(path) => {
                let changed = std::fs::metadata(path).and_then(|file| file.modified()).ok();
                format!("{} {changed:?}", path.display())
            }
            Access::Token(token) => token.expose_secret().to_owned(),
            Access::InCluster(token) => {
                format!("in-cluster {}", token.as_ref().map(ExposeSecret::expose_secret).unwrap_or_default())
            }
        };
        self.seal.seal(&serde_json::json!([who, work.server, work.certificate_authority, work.impersonate]))
    }

    /// Observes an instance. Reads only the suspected objects if the watches cover the instance.
    async fn observe_work(&self, job: &Job, work: &KubernetesWork) -> Result<Observation, TargetError> {
        let Some(_slot) = self.concurrency.take(&job.instance).await else {
            return Err(TargetError::new(TargetErrorKind::Lanes, "the target is closed"));
        };
        let is_applied = job.r#use == Use::Applied && !work.destroy;
        let suspects = self.watches.suspects(&job.instance);
        if is_applied
            && !suspects.is_empty()
            && let Some(observation) = self.observe_suspects(job, work, &suspects).await?
        {
            return Ok(observation);
        }
        let before = self.inventory(&job.instance).await?;
        let observed = self.observe_all(job, work, false).await?;
        // If nothing differs at head after an apply, head is the applied revision.
        let is_done = job.r#use == Use::Head && !work.destroy && observed.steps.is_empty() && job.formerly.is_none();
        if is_applied || is_done {
            self.watches.seen(&job.instance, &suspects);
            self.store_observed(job, before.as_ref(), &observed, observed.inventory.clone()).await?;
            self.track(job, work, &observed).await?;
        }
        Ok(observed.observation)
    }

    /// Stores the inventory of an observation if no object differs and no other task has written the inventory since.
    /// With differences, the cluster may be another one, and an apply has better information.
    async fn store_observed(
        &self,
        job: &Job,
        before: Option<&Arc<Inventory>>,
        observed: &observe::Observed,
        inventory: Inventory,
    ) -> Result<(), TargetError> {
        let current = self.inventory(&job.instance).await?;
        let same = match (before, &current) {
            (None, None) => true,
            (Some(before), Some(current)) => Arc::ptr_eq(before, current),
            _ => false,
        };
        if same && observed.steps.is_empty() { self.store_inventory(&job.instance, inventory).await } else { Ok(()) }
    }

    /// Records the result of a complete observation, and watches its kinds.
    async fn track(&self, job: &Job, work: &KubernetesWork, observed: &observe::Observed) -> Result<(), TargetError> {
        let differing = observed.steps.values().map(|step| step.key.clone()).collect();
        self.watches.set_differing(&job.instance, differing);
        let tracked = Tracked { rendered: Arc::clone(&observed.rendered), at: Instant::now() };
        self.tracked.lock().insert(job.instance.clone(), tracked);
        self.watch(job, work, &observed.cluster, &observed.kinds, &observed.inventory)?;
        tracing::debug!(kind = "objects-watched", instance = %job.instance, objects = observed.inventory.len(), "all objects were observed and are watched");
        Ok(())
    }

    /// Watches the kinds of the inventory. Returns whether the watches miss no change.
    fn watch(
        &self,
        job: &Job,
        work: &KubernetesWork,
        cluster: &Cluster,
        kinds: &Kinds,
        inventory: &inventory::Inventory,
    ) -> Result<bool, TargetError> {
        let (access, _) = (self.settings.accesses)(&job.instance, job.connection.as_deref().unwrap_or_default(), false)
            .map_err(|why| TargetError::new(TargetErrorKind::Connection, why))?;
        let connection = job.connection.as_deref().unwrap_or_default();
        let account = work.impersonate.as_deref().unwrap_or_default();
        let place = format!("{} {connection} {account}", job.instance.environment);
        let who = self.cluster_key(&access, work);
        let wanted: BTreeMap<(Arc<str>, Arc<str>), Kind> = inventory
            .keys()
            .filter_map(|key| Some(((key.group.clone(), key.kind.clone()), kinds.preferred(key)?.clone())))
            .collect();
        Ok(self.watches.watch(&place, &who, cluster, &job.instance.environment, wanted))
    }

    /// Observes the suspected objects and those that differed before; `None` if a complete observation is required.
    async fn observe_suspects(
        &self,
        job: &Job,
        work: &KubernetesWork,
        suspects: &watch::Suspects,
    ) -> Result<Option<Observation>, TargetError> {
        let Some(inventory) = self.inventory(&job.instance).await? else { return Ok(None) };
        let (cluster, shared_with) = self.cluster(job, work, false).await?;
        let (rendered, kinds) = self.declared(job, work, &cluster, client::KINDS_KNOWN).await?;
        let is_tracked = self.tracked.lock().get(&job.instance).is_some_and(|known| {
            Arc::ptr_eq(&known.rendered, &rendered) && known.at.elapsed() < FULL_OBSERVATION_INTERVAL
        });
        if !is_tracked {
            return Ok(None);
        }
        if !self.watch(job, work, &cluster, &kinds, &inventory)? {
            return Ok(None);
        }
        let mut keys = self.watches.differing(&job.instance);
        keys.extend(suspects.keys().cloned());
        // An object that was removed from the declaration and still exists is reported in every observation.
        keys.extend(inventory.keys().filter(|key| rendered.get(key).is_none()).cloned());
        let observed = self
            .observe_objects(
                job,
                work,
                observe::Base { cluster, kinds, rendered: Arc::clone(&rendered), shared_with },
                &keys,
            )
            .await?;
        let differing = observed.steps.values().map(|step| step.key.clone()).collect();
        self.watches.set_differing(&job.instance, differing);
        let mut new_inventory = (*inventory).clone();
        for key in &keys {
            match observed.inventory.get(key) {
                Some(entry) => drop(new_inventory.insert(key.clone(), entry.clone())),
                None if rendered.get(key).is_none() => drop(new_inventory.remove(key)),
                None => {}
            }
        }
        self.store_observed(job, Some(&inventory), &observed, new_inventory).await?;
        self.watches.seen(&job.instance, suspects);
        Ok(Some(observed.observation))
    }

    /// Returns the names of the declared objects, as far as the content alone determines them.
    async fn declared_objects(&self, job: &Job, work: &KubernetesWork) -> Result<BTreeSet<String>, TargetError> {
        let (cluster, _) = self.cluster(job, work, false).await?;
        let kinds = cluster.kinds(client::KINDS_KNOWN).await?;
        let rendered = self.rendered(job, work, &kinds).await?;
        Ok(rendered.objects.iter().map(|object| object.key.to_string()).collect())
    }

    /// Forgets the inventory of an instance; the objects stay in the cluster.
    async fn forget(&self, id: &InstanceId) {
        self.tracked.lock().remove(id);
        if let Err(error) = self.forget_inventory(id).await {
            tracing::warn!(kind = "inventory-not-removed", instance = %id, %error, "an inventory could not be removed");
        }
    }

    /// Returns the inventory of an instance; `None` if it is not known.
    async fn inventory(&self, id: &InstanceId) -> Result<Option<Arc<Inventory>>, TargetError> {
        if let Some(known) = self.inventories.lock().get(id) {
            return Ok(Some(Arc::clone(known)));
        }
        let Some(text) = self.store.kept(id).await? else { return Ok(None) };
        let inventory = inventory::read(&text).map_err(|why| {
            TargetError::new(TargetErrorKind::Store, format!("the inventory of `{id}` can't be read: {why}"))
        })?;
        let inventory = Arc::new(inventory);
        self.inventories.lock().insert(id.clone(), Arc::clone(&inventory));
        Ok(Some(inventory))
    }

    /// Stores the inventory of an instance durably.
    async fn store_inventory(&self, id: &InstanceId, inventory: Inventory) -> Result<(), TargetError> {
        let known = self.inventories.lock().get(id).cloned();
        if known.is_some_and(|known| *known == inventory) {
            return Ok(());
        }
        self.store.keep(id, Some(&inventory::written(&inventory))).await?;
        self.inventories.lock().insert(id.clone(), Arc::new(inventory));
        Ok(())
    }

    /// Deletes the stored inventory; the objects stay in the cluster.
    async fn forget_inventory(&self, id: &InstanceId) -> Result<(), TargetError> {
        self.store.keep(id, None).await?;
        self.inventories.lock().remove(id);
        Ok(())
    }
}
