//! Watches live objects and reports the instances that need an observation.
//!
//! Owns one watch for each kind of each cluster, over all objects with Evenkeel's labels. A watch compares each event
//! with the mark in the inventory. An object that differs is a *suspect*, which the next drift check reads and
//! confirms.
//! *Invariant:* no object stays in memory. A watch only triggers observations and never decides that an object
//! drifted.
//! *Race:* a watch breaks. The watch resumes from its version, or lists and compares everything again; until then
//! every drift check reads everything. The periodic complete observation finds changes that no watch reports.
//! *Race:* events of an apply arrive before its inventory is written. They create suspects that the next drift check
//! clears.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http_body_util::BodyExt;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;
use tokio::{sync::Notify, task::JoinHandle};

use super::{
    client::{Cluster, Refusal, WATCH_SECONDS},
    fields,
    inventory::Inventory,
    kinds::{GroupKind, Kind},
    object::{self, COMPONENT, ENVIRONMENT, Key},
};
use crate::model::{EnvironmentName, InstanceId, Seal};

/// The longest delay before a broken watch is retried.
const AGAIN_MAX: Duration = Duration::from_secs(10);
/// The longest line of a watch: the largest object that a cluster stores is 3 MiB.
const LINE_BYTES_MAX: usize = 16 << 20;

/// The cached inventories, by instance.
pub(super) type Inventories = Arc<Mutex<HashMap<InstanceId, Arc<Inventory>>>>;

pub(super) struct Watches {
    shared: Arc<Shared>,
    /// Keyed by environment with connection and account, and by group and kind.
    watches: Mutex<HashMap<(String, GroupKind), Watch>>,
}

/// The objects to observe, each with the number of its last event. An event during an observation keeps the object a
/// suspect.
pub(super) type Suspects = BTreeMap<Key, u64>;

struct Watch {
    /// The Kubernetes user of the watch. After a change of the credentials another watch replaces this one.
    who: String,
    alive: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Shared {
    seal: Arc<Seal>,
    inventories: Inventories,
    /// The objects to observe, by instance.
    suspects: Mutex<BTreeMap<InstanceId, Suspects>>,
    /// The number of events that created a suspect.
    count: AtomicU64,
    /// The objects that differed in the last observation; a later event may end the difference.
    differing: Mutex<BTreeMap<InstanceId, BTreeSet<Key>>>,
    /// The instances with changes that [`Watches::changed`] has not returned yet.
    pending: Mutex<BTreeSet<InstanceId>>,
    changed: Notify,
}

impl Watches {
    /// Creates the set of watches over shared inventories.
    pub(super) fn new(seal: Arc<Seal>, inventories: Inventories) -> Self {
        let shared = Shared {
            seal,
            inventories,
            suspects: Mutex::default(),
            count: AtomicU64::new(0),
            differing: Mutex::default(),
            pending: Mutex::default(),
            changed: Notify::new(),
        };
        Self { shared: Arc::new(shared), watches: Mutex::default() }
    }

    /// Watches kinds of a cluster for the objects of an environment; existing watches continue. Returns whether all of
    /// the watches are running and no event was missed.
    pub(super) fn watch(
        &self,
        place: &str,
        who: &str,
        cluster: &Cluster,
        environment: &EnvironmentName,
        kinds: BTreeMap<GroupKind, Kind>,
    ) -> bool {
        let mut watches = self.watches.lock();
        let mut all = true;
        for ((group, kind), resource) in kinds {
            let key = (place.to_owned(), (group.clone(), kind.clone()));
            if watches.get(&key).is_none_or(|watch| watch.who != who) {
                let alive = Arc::new(AtomicBool::new(false));
                let task = WatchTask {
                    shared: Arc::clone(&self.shared),
                    cluster: cluster.clone(),
                    environment: environment.clone(),
                    group,
                    kind,
                    resource,
                    alive: Arc::clone(&alive),
                };
                let watch = Watch { who: who.to_owned(), alive, task: tokio::spawn(task.run()) };
                watches.insert(key.clone(), watch);
            }
            let Some(watch) = watches.get(&key) else { continue };
            all &= watch.alive.load(Ordering::Acquire);
        }
        all
    }

    /// Returns the suspects of an instance. They stay suspects until [`Self::seen`] clears them.
    pub(super) fn suspects(&self, id: &InstanceId) -> Suspects {
        self.shared.suspects.lock().get(id).cloned().unwrap_or_default()
    }

    /// Clears suspects after an observation, except those with an event since.
    pub(super) fn seen(&self, id: &InstanceId, seen: &Suspects) {
        let mut suspects = self.shared.suspects.lock();
        if let Some(there) = suspects.get_mut(id) {
            there.retain(|key, count| seen.get(key) != Some(count));
            if there.is_empty() {
                suspects.remove(id);
            }
        }
    }

    /// Returns the objects that differed at the last observation of an instance.
    pub(super) fn differing(&self, id: &InstanceId) -> BTreeSet<Key> {
        self.shared.differing().get(id).cloned().unwrap_or_default()
    }

    /// Sets the objects of an instance that differ.
    pub(super) fn set_differing(&self, id: &InstanceId, keys: BTreeSet<Key>) {
        let mut differing = self.shared.differing();
        if keys.is_empty() {
            differing.remove(id);
        } else {
            differing.insert(id.clone(), keys);
        }
    }

    /// Waits for an instance that needs an observation.
    pub(super) async fn changed(&self) -> InstanceId {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(id) = self.shared.pending.lock().pop_first() {
                return id;
            }
            changed.await;
        }
    }
}

impl Shared {
    fn differing(&self) -> parking_lot::MutexGuard<'_, BTreeMap<InstanceId, BTreeSet<Key>>> {
        self.differing.lock()
    }

    fn suspect(&self, id: &InstanceId, key: Key) {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let mut suspects = self.suspects.lock();
        let is_new = suspects.entry(id.clone()).or_default().insert(key, count).is_none();
        drop(suspects);
        let is_pending = self.pending.lock().insert(id.clone());
        if is_new || is_pending {
            self.changed.notify_waiters();
        }
    }

    fn inventory(&self, id: &InstanceId) -> Option<Arc<Inventory>> {
        self.inventories.lock().get(id).cloned()
    }
}

/// The task of one watch.
struct WatchTask {
    shared: Arc<Shared>,
    cluster: Cluster,
    environment: EnvironmentName,
    group: Arc<str>,
    kind: Arc<str>,
    resource: Kind,
    alive: Arc<AtomicBool>,
}

#[derive(Deserialize)]
struct Event {
    r#type: String,
    object: Value,
}

/// The reason why a watch ended.
enum End {
    /// The watch can resume from its version.
    Ended,
    /// The version is no longer available.
    TooOld,
}

impl WatchTask {
    fn labels(&self) -> String {
        format!("{ENVIRONMENT}={},{COMPONENT}", self.environment)
    }

    async fn run(self) {
        let mut wait = Duration::from_millis(100);
        let mut version: Option<String> = None;
        loop {
            let began = Instant::now();
            let end = match version.take() {
                None => match self.list().await {
                    Ok(listed) => {
                        version = Some(listed);
                        continue;
                    }
                    Err(refusal) => Err(refusal),
                },
                Some(mut at) => {
                    let end = self.follow(&mut at).await;
                    version = Some(at);
                    end
                }
            };
            match end {
                Ok(End::Ended) if began.elapsed() > Duration::from_secs(1) => {
                    wait = Duration::from_millis(100);
                    continue;
                }
                Ok(End::Ended) => {}
                Ok(End::TooOld) => version = None,
                Err(refusal) => {
                    if self.alive.swap(false, Ordering::AcqRel) {
                        tracing::warn!(kind = %self.kind, %refusal, "a watch broke; passes read everything until it is back");
                    }
                    if refusal.code == 410 {
                        version = None;
                    }
                }
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(AGAIN_MAX);
        }
    }

    /// Lists and compares all objects. Returns the version from which the watch continues.
    async fn list(&self) -> Result<String, Refusal> {
        let since = Instant::now();
        let mut there: HashSet<Key> = HashSet::new();
        let version = self
            .cluster
            .list(&self.resource, &self.labels(), &mut |object| {
                let key = self.compare(&object);
                there.extend(key);
            })
            .await?;
        let known: Vec<(InstanceId, Arc<Inventory>)> = {
            let inventories = self.shared.inventories.lock();
            let environment = inventories.iter().filter(|(id, _)| id.environment == self.environment);
            environment.map(|(id, inventory)| (id.clone(), Arc::clone(inventory))).collect()
        };
        for (id, inventory) in known {
            let of_kind = inventory.iter().filter(|(key, _)| key.kind == self.kind && key.group == self.group);
            for (key, _) in of_kind.filter(|(key, entry)| entry.uid.is_some() && !there.contains(*key)) {
                self.shared.suspect(&id, key.clone());
            }
        }
        let ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::debug!(kind = %self.kind, objects = there.len(), ms, "a watch has listed what there is");
        Ok(version)
    }

    /// Follows events until the watch ends.
    async fn follow(&self, version: &mut String) -> Result<End, Refusal> {
        let answer = match self.cluster.watch(&self.resource, &self.labels(), version).await {
            Ok(answer) => answer,
            Err(refusal) if refusal.code == 410 => return Ok(End::TooOld),
            Err(refusal) => return Err(refusal),
        };
        self.alive.store(true, Ordering::Release);
        let mut body = answer.into_body();
        let mut line: Vec<u8> = vec![];
        // The server closes a watch after `WATCH_SECONDS`; a watch without data beyond that is broken.
        let silence = Duration::from_secs(u64::from(WATCH_SECONDS) + 30);
        loop {
            let Ok(frame) = tokio::time::timeout(silence, body.frame()).await else { return Ok(End::Ended) };
            let Some(Ok(frame)) = frame else { return Ok(End::Ended) };
            let Ok(data) = frame.into_data() else { continue };
            for part in data.split_inclusive(|byte| *byte == b'\n') {
                line.extend_from_slice(part);
                if line.len() > LINE_BYTES_MAX {
                    return Ok(End::TooOld);
                }
                if !line.ends_with(b"\n") {
                    continue;
                }
                let event: Result<Event, _> = serde_json::from_slice(&line);
                line.clear();
                let Ok(event) = event else { continue };
                if event.r#type == "ERROR" {
                    return Ok(if event.object["code"] == 410 { End::TooOld } else { End::Ended });
                }
                if let Some(at) = object::text(&event.object, "/metadata/resourceVersion") {
                    *version = at.to_owned();
                }
                match event.r#type.as_str() {
                    "ADDED" | "MODIFIED" => drop(self.compare(&event.object)),
                    "DELETED" => self.deleted(&event.object),
                    _ => {}
                }
            }
        }
    }

    fn key(&self, object: &Value) -> Option<Key> {
        Key::of_metadata(Arc::clone(&self.group), Arc::clone(&self.kind), object)
    }

    /// Compares a live object with its mark in the inventory.
    fn compare(&self, object: &Value) -> Option<Key> {
        let key = self.key(object)?;
        let id = object::owner(object)?;
        let inventory = self.shared.inventory(&id)?;
        if let Some(entry) = inventory.get(&key) {
            let same = entry.uid.as_deref() == object::text(object, "/metadata/uid")
                && entry.settled == Some(self.shared.seal.mark(&fields::canonical(object)))
                && !object::is_terminating(object);
            if !same || self.shared.differing().get(&id).is_some_and(|keys| keys.contains(&key)) {
                self.shared.suspect(&id, key.clone());
            }
        }
        Some(key)
    }

    /// Handles an object that was deleted or no longer carries Evenkeel's labels.
    fn deleted(&self, object: &Value) {
        let (Some(key), Some(id)) = (self.key(object), object::owner(object)) else { return };
        if self.shared.inventory(&id).is_some_and(|inventory| inventory.contains_key(&key)) {
            self.shared.suspect(&id, key);
        }
    }
}
