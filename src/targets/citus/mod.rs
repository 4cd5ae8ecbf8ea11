//! Manages the nodes, tables and shard layout of Citus clusters.
//!
//! Owns the comparison (`drift`), the choice of moves that balance the nodes (`rebalance`, `planner`), and the
//! execution of each step (`apply`, `moving`).
//! *Invariant:* ids of Citus are never used beyond one observation. No shard moves on the basis of an incomplete
//! observation. Only nodes that the plan names are drained.
//! *Observation:* all catalogs are read in one snapshot, and the sizes from all workers concurrently. Between
//! observations a cheap fingerprint of the layout triggers the next one.
//! *Race:* two daemons, or a run and an effect of a killed daemon. One advisory lock represents a run, and another one
//! each effect in its own session. A run waits for a move that continues without its daemon.

mod access;
mod adapter;
mod adopt;
mod apply;
pub mod capacity;
pub mod catalog;
pub mod declaration;
pub mod drift;
mod init;
mod kind;
pub mod message;
pub mod migrations;
mod moving;
pub mod observe;
pub mod placement;
pub mod plan;
pub mod planner;
pub mod rebalance;
pub mod steps;
mod tables;
mod watch;
pub mod work;

use crate::targets::citus::work::CitusWork;
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use crate::targets::citus::steps::{Compared, Found, Memory};
use access::Session;
pub use access::{Login, Logins, Rights};
pub use kind::CitusKind;
use observe::Version;
use parking_lot::Mutex;

use super::concurrency::ConcurrencyLimit;
use crate::{
    model::{InstanceId, Redactor, Retry},
    ports::{InventoryStore, Job, Observation, TargetError, TargetErrorKind, Use},
};

/// The duration after which a job stops counting towards the concurrency limit, so that it does not delay others.
const SLOW_AFTER: Duration = Duration::from_secs(20);
/// The number of clusters that are observed concurrently.
const PARALLEL: usize = 4;

/// The prefix of stored records, which distinguishes them from those of other targets.
const RECORD_PREFIX: &str = "citus ";

/// The settings for connections.
#[derive(Clone)]
pub struct Settings {
    /// The resolver of credentials.
    pub logins: Logins,
}

/// The Citus target.
pub struct Citus {
    settings: Settings,
    redactor: Redactor,
    concurrency: ConcurrencyLimit,
    store: Arc<dyn InventoryStore>,
    watches: watch::Watches,
    /// Effects that were requested to end.
    interrupted: Mutex<BTreeSet<InstanceId>>,
    /// Effects that are in flight.
    in_flight: Mutex<BTreeSet<InstanceId>>,
    /// The environments that may share each instance's connection.
    shared: Mutex<HashMap<InstanceId, Vec<String>>>,
}

/// Checks that the coordinator of a connection is reachable, and returns its identity.
///
/// # Errors
/// A message that explains why the coordinator is unreachable.
pub async fn reach(login: &Login, redactor: &Redactor) -> Result<String, String> {
    let session = Session::open(login, "evenkeel", redactor).await.map_err(|error| error.line())?;
    let seen = observe::observe(&session, &CitusWork::default()).await.map_err(|error| error.line())?;
    let nodes = seen.catalog.nodes.iter().filter(|node| node.group != 0).count();
    Ok(format!("Citus {} answers, with {nodes} workers, the cluster is {}", seen.version, seen.identity))
}

/// Observes a cluster several times over one session, and measures each part.
///
/// # Errors
/// A message that explains why the cluster can't be observed.
pub async fn timed(login: &Login, redactor: &Redactor, looks: usize) -> Result<Vec<observe::Times>, String> {
    let session = Session::open(login, "evenkeel bench", redactor).await.map_err(|error| error.line())?;
    let mut times = vec![];
    for _ in 0..looks {
        times.push(observe::timed(&session).await.map_err(|error| error.line())?);
    }
    Ok(times)
}

/// Observes a cluster and declares it. Also returns notes on what a declaration can't contain.
///
/// # Errors
/// A message that explains why the cluster can't be observed completely.
pub async fn declare(
    login: &Login,
    redactor: &Redactor,
    connection: &str,
) -> Result<(declaration::Citus, Vec<String>), String> {
    let session = Session::open(login, "evenkeel init", redactor).await.map_err(|error| error.line())?;
    let seen = observe::observe(&session, &CitusWork::default()).await.map_err(|error| error.line())?;
    Ok(init::declared(&seen, connection))
}

impl Citus {
    /// Creates the target from its settings.
    pub fn new(settings: Settings, redactor: Redactor, store: Arc<dyn InventoryStore>) -> Self {
        Self {
            concurrency: ConcurrencyLimit::new(PARALLEL, SLOW_AFTER),
            settings,
            redactor,
            store,
            watches: watch::Watches::default(),
            interrupted: Mutex::default(),
            in_flight: Mutex::default(),
            shared: Mutex::default(),
        }
    }

    fn login(&self, job: &Job, rights: Rights) -> Result<Login, TargetError> {
        let wrong = |why: String| TargetError {
            retry: Retry::WhenInputChanges,
            ..TargetError::new(TargetErrorKind::Connection, why)
        };
        let name = job.connection.as_deref().unwrap_or_default();
        let login = (self.settings.logins)(&job.instance, name, rights).map_err(wrong)?;
        let mut shared = self.shared.lock();
        shared.insert(job.instance.clone(), login.shared_with.clone());
        Ok(login)
    }

    /// Opens a session with an application name for an instance and a purpose.
    async fn session(&self, job: &Job, rights: Rights, what: &str) -> Result<Session, TargetError> {
        let mut name = format!("evenkeel {} {what}", job.instance);
        // PostgreSQL truncates longer names.
        name.truncate(63);
        Session::open(&self.login(job, rights)?, &name, &self.redactor).await
    }

    /// Observes an instance with the credentials for plan.
    async fn observe_work(&self, job: &Job, work: &CitusWork) -> Result<Observation, TargetError> {
        let Some(_slot) = self.concurrency.take(&job.instance).await else {
            return Err(TargetError::new(TargetErrorKind::Lanes, "the target is closed"));
        };
        let (observation, ..) = self.observe_cluster(job, work).await?;
        // If nothing differs at head after an apply, head is the applied revision.
        let is_done = job.r#use == Use::Head && observation.changes.is_empty();
        if (job.r#use == Use::Applied || is_done) && !work.destroy {
            self.watches.watch(&job.instance, self.login(job, Rights::Plan)?, &self.redactor);
        }
        Ok(observation)
    }

    /// Returns the observation, the steps, and the version of Citus.
    async fn observe_cluster(&self, job: &Job, work: &CitusWork) -> Result<(Observation, Found, Version), TargetError> {
        let migrations = migrations::of(job, work.migrations.as_deref())?;
        let session = self.session(job, Rights::Plan, "look").await?;
        let seen = observe::observe(&session, work).await?;
        let known = self.memory(&job.instance).await?;
        let (mut memory, now) = (known.clone(), chrono::Utc::now().timestamp());
        memory.take_in(&seen, now);
        let compared = Compared { work, seen: &seen, migrations: &migrations, memory: &memory, now };
        let mut found = drift::compare(&compared);
        let capacity = capacity::wanted(&work.capacity, &work.moves, &seen, &mut memory, now, &mut found.notes);
        if memory != known && job.r#use == Use::Applied && !work.destroy {
            self.remember(&job.instance, &memory).await?;
        }
        let shared = self.shared.lock();
        let shared_with = shared.get(&job.instance).cloned();
        let observation = Observation { shared_with, capacity, ..found.observation(&seen) };
        Ok((observation, found, seen.version))
    }

    async fn memory(&self, id: &InstanceId) -> Result<Memory, TargetError> {
        // An unreadable record is from an earlier version. The record only improves later plans, so it is dropped.
        let record = self.store.kept(id).await?;
        Ok(record.and_then(|text| serde_json::from_str(text.strip_prefix(RECORD_PREFIX)?).ok()).unwrap_or_default())
    }

    /// Updates the stored memory, including changes of concurrent observations.
    async fn note(&self, id: &InstanceId, change: impl FnOnce(&mut Memory)) -> Result<(), TargetError> {
        let mut memory = self.memory(id).await?;
        change(&mut memory);
        self.remember(id, &memory).await
    }

    async fn remember(&self, id: &InstanceId, memory: &Memory) -> Result<(), TargetError> {
        let text = serde_json::to_string(memory).unwrap_or_default();
        Ok(self.store.keep(id, Some(&format!("{RECORD_PREFIX}{text}"))).await?)
    }

    /// Requests that the effect in flight begin no further step. Returns whether there is one.
    fn interrupt_effect(&self, id: &InstanceId) -> bool {
        let is_in_flight = self.in_flight.lock().contains(id);
        if is_in_flight {
            self.interrupted.lock().insert(id.clone());
        }
        is_in_flight
    }

    /// Renames the stored record of an instance. Returns whether there was one.
    async fn rename_records(&self, from: &InstanceId, to: &InstanceId) -> Result<(), TargetError> {
        self.watches.forget(from);
        let Some(text) = self.store.kept(from).await?.filter(|text| text.starts_with(RECORD_PREFIX)) else {
            return Ok(());
        };
        self.store.keep(to, Some(&text)).await?;
        self.store.keep(from, None).await?;
        Ok(())
    }
}
