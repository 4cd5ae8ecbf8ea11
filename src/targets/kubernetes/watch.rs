//! Changes of live objects, as they happen.
//!
//! One watch for each kind of each cluster, over everything that carries our labels. Of an object nothing is kept: its
//! event is compared with the mark that the inventory has of it, and one that differs is a *suspect*, which the next pass
//! reads and confirms.
//! Decides only that somebody has to look. *Guarantees:* a watch that broke goes on where it was, or lists everything anew
//! and compares it; while it can't, every pass reads everything. What no watch sees the slow full pass finds.
//! *Race:* events of our own apply arrive before its inventory is written: they are suspects that turn out to be none.

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

/// The longest wait before a watch that broke is tried again.
const AGAIN_MAX: Duration = Duration::from_secs(10);
/// The longest line of a watch: the largest object that a cluster stores is 3 MiB.
const LINE_BYTES_MAX: usize = 16 << 20;

/// The inventories in memory, by instance.
pub(super) type Inventories = Arc<Mutex<HashMap<InstanceId, Arc<Inventory>>>>;

/// All watches.
pub(super) struct Watches {
    shared: Arc<Shared>,
    /// By where it looks, group and kind.
    watches: Mutex<HashMap<(String, GroupKind), Watch>>,
}

/// What has to be looked at, each with the number of the last event about it: an event that comes while it is looked at
/// makes it a suspect again.
pub(super) type Suspects = BTreeMap<Key, u64>;

struct Watch {
    /// As whom: other credentials are another watch in its place.
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
    /// The keys to observe.
    suspects: Mutex<BTreeMap<InstanceId, Suspects>>,
    /// How many events made a suspect so far.
    count: AtomicU64,
    /// What differed when it was looked at last: it may be as it was before.
    differing: Mutex<BTreeMap<InstanceId, BTreeSet<Key>>>,
    /// Which instances nobody was woken for yet.
    unheard: Mutex<BTreeSet<InstanceId>>,
    changed: Notify,
}

impl Watches {
    /// No watch yet, over these inventories.
    pub(super) fn new(seal: Arc<Seal>, inventories: Inventories) -> Self {
        let shared = Shared {
            seal,
            inventories,
            suspects: Mutex::default(),
            count: AtomicU64::new(0),
            differing: Mutex::default(),
            unheard: Mutex::default(),
            changed: Notify::new(),
        };
        Self { shared: Arc::new(shared), watches: Mutex::default() }
    }

    /// Watches kinds of a cluster for the objects of an environment; what is watched already goes on. Answers whether all
    /// of them are watched and nothing was missed.
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
                let one = One {
                    shared: Arc::clone(&self.shared),
                    cluster: cluster.clone(),
                    environment: environment.clone(),
                    group,
                    kind,
                    resource,
                    alive: Arc::clone(&alive),
                };
                let watch = Watch { who: who.to_owned(), alive, task: tokio::spawn(one.go_on()) };
                watches.insert(key.clone(), watch);
            }
            let Some(watch) = watches.get(&key) else { continue };
            all &= watch.alive.load(Ordering::Acquire);
        }
        all
    }

    /// What has to be looked at of an instance; nothing of it is forgotten until it is taken back by [`Self::seen`].
    pub(super) fn suspects(&self, id: &InstanceId) -> Suspects {
        self.shared.suspects.lock().get(id).cloned().unwrap_or_default()
    }

    /// Says that suspects were looked at, as they were known before.
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

    /// Says what differs of an instance.
    pub(super) fn set_differing(&self, id: &InstanceId, keys: BTreeSet<Key>) {
        let mut differing = self.shared.differing();
        if keys.is_empty() {
            differing.remove(id);
        } else {
            differing.insert(id.clone(), keys);
        }
    }

    /// Waits for an instance that has to be looked at.
    pub(super) async fn changed(&self) -> InstanceId {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(id) = self.shared.unheard.lock().pop_first() {
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
        let is_unheard = self.unheard.lock().insert(id.clone());
        if is_new || is_unheard {
            self.changed.notify_waiters();
        }
    }

    fn inventory(&self, id: &InstanceId) -> Option<Arc<Inventory>> {
        self.inventories.lock().get(id).cloned()
    }
}

/// One watch.
struct One {
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

/// Why a watch does not go on.
enum End {
    /// It goes on where it was.
    Ended,
    /// Where it was is not known any more.
    TooOld,
}

impl One {
    fn labels(&self) -> String {
        format!("{ENVIRONMENT}={},{COMPONENT}", self.environment)
    }

    async fn go_on(self) {
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

    /// Reads everything and compares it; answers the version from which the watch goes on.
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
            let of = inventories.iter().filter(|(id, _)| id.environment == self.environment);
            of.map(|(id, inventory)| (id.clone(), Arc::clone(inventory))).collect()
        };
        for (id, inventory) in known {
            let of = inventory.iter().filter(|(key, _)| key.kind == self.kind && key.group == self.group);
            for (key, _) in of.filter(|(key, held)| held.uid.is_some() && !there.contains(*key)) {
                self.shared.suspect(&id, key.clone());
            }
        }
        let ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::debug!(kind = %self.kind, objects = there.len(), ms, "a watch has listed what there is");
        Ok(version)
    }

    /// Follows changes until the watch ends.
    async fn follow(&self, version: &mut String) -> Result<End, Refusal> {
        let answer = match self.cluster.watch(&self.resource, &self.labels(), version).await {
            Ok(answer) => answer,
            Err(refusal) if refusal.code == 410 => return Ok(End::TooOld),
            Err(refusal) => return Err(refusal),
        };
        self.alive.store(true, Ordering::Release);
        let mut body = answer.into_body();
        let mut line: Vec<u8> = vec![];
        // The server ends a watch by itself; one that is silent beyond that is dead.
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
                    "DELETED" => self.gone(&event.object),
                    _ => {}
                }
            }
        }
    }

    fn key(&self, object: &Value) -> Option<Key> {
        Key::of_metadata(Arc::clone(&self.group), Arc::clone(&self.kind), object)
    }

    /// Compares a live object with what the inventory has of it.
    fn compare(&self, object: &Value) -> Option<Key> {
        let key = self.key(object)?;
        let id = object::owner(object)?;
        let inventory = self.shared.inventory(&id)?;
        if let Some(held) = inventory.get(&key) {
            let same = held.uid.as_deref() == object::text(object, "/metadata/uid")
                && held.settled == Some(self.shared.seal.mark(&fields::canonical(object)))
                && !object::is_terminating(object);
            if !same || self.shared.differing().get(&id).is_some_and(|keys| keys.contains(&key)) {
                self.shared.suspect(&id, key.clone());
            }
        }
        Some(key)
    }

    /// An object that is gone, or that does not carry our labels any more.
    fn gone(&self, object: &Value) {
        let (Some(key), Some(id)) = (self.key(object), object::owner(object)) else { return };
        if self.shared.inventory(&id).is_some_and(|inventory| inventory.contains_key(&key)) {
            self.shared.suspect(&id, key);
        }
    }
}
