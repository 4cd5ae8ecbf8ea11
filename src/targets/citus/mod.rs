//! The Citus target: nodes, tables and the layout of shards, looked at as a whole and changed step by step.
//!
//! Decides what differs (`drift`), which moves bring the nodes into balance (`rebalance`, `planner`), and how each
//! step is done (`apply`, `moving`). Never names an id of Citus beyond one look, never moves a shard of a cluster that was
//! not seen as a whole, never drains a node but the one that is meant.
//! *How it is seen:* every catalog in one snapshot, sizes from all workers at once; between looks a cheap fingerprint of the
//! layout says when the next is worth while.
//! *Race:* two daemons, or a run and what a killed daemon left: an advisory lock stands for a run, and another one for each
//! effect in the effect's own session, so that a move that went on without its daemon is waited for.

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

/// A job that takes longer moves to the slow lane, where it does not delay others.
const LONG: Duration = Duration::from_secs(20);
/// How many clusters are looked at at once.
const PARALLEL: usize = 4;

/// What begins a text that is kept here, so that it is told from those of other targets.
const KEPT: &str = "citus ";

/// How clusters are reached.
#[derive(Clone)]
pub struct Settings {
    /// The credentials.
    pub logins: Logins,
}

/// The Citus target.
pub struct Citus {
    settings: Settings,
    redactor: Redactor,
    lanes: ConcurrencyLimit,
    keeper: Arc<dyn InventoryStore>,
    watches: watch::Watches,
    /// Effects that were asked to end.
    interrupted: Mutex<BTreeSet<InstanceId>>,
    /// Effects that are in flight.
    in_flight: Mutex<BTreeSet<InstanceId>>,
    /// What each connection said it may be used by.
    shared: Mutex<HashMap<InstanceId, Vec<String>>>,
}

/// Asks the coordinator of a connection who it is.
///
/// # Errors
/// When it can't be asked, in a sentence.
pub async fn reach(login: &Login, redactor: &Redactor) -> Result<String, String> {
    let session = Session::open(login, "evenkeel", redactor).await.map_err(|error| error.line())?;
    let seen = observe::look(&session, &CitusWork::default()).await.map_err(|error| error.line())?;
    let nodes = seen.catalog.nodes.iter().filter(|node| node.group != 0).count();
    Ok(format!("Citus {} answers, with {nodes} workers, the cluster is {}", seen.version, seen.identity))
}

/// Looks at a cluster some times over one session, part by part.
///
/// # Errors
/// When it can't be looked at, in a sentence.
pub async fn timed(login: &Login, redactor: &Redactor, looks: usize) -> Result<Vec<observe::Times>, String> {
    let session = Session::open(login, "evenkeel bench", redactor).await.map_err(|error| error.line())?;
    let mut times = vec![];
    for _ in 0..looks {
        times.push(observe::timed(&session).await.map_err(|error| error.line())?);
    }
    Ok(times)
}

/// Looks at a cluster and declares what is there; and what a declaration can't say.
///
/// # Errors
/// When it can't be looked at as a whole, in a sentence.
pub async fn declare(
    login: &Login,
    redactor: &Redactor,
    connection: &str,
) -> Result<(declaration::Citus, Vec<String>), String> {
    let session = Session::open(login, "evenkeel init", redactor).await.map_err(|error| error.line())?;
    let seen = observe::look(&session, &CitusWork::default()).await.map_err(|error| error.line())?;
    Ok(init::declared(&seen, connection))
}

impl Citus {
    /// The target with its settings.
    pub fn new(settings: Settings, redactor: Redactor, keeper: Arc<dyn InventoryStore>) -> Self {
        Self {
            lanes: ConcurrencyLimit::new(PARALLEL, LONG),
            settings,
            redactor,
            keeper,
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

    /// A session under the name of an instance, and of what it is for.
    async fn session(&self, job: &Job, rights: Rights, what: &str) -> Result<Session, TargetError> {
        let mut name = format!("evenkeel {} {what}", job.instance);
        // PostgreSQL cuts longer names off.
        name.truncate(63);
        Session::open(&self.login(job, rights)?, &name, &self.redactor).await
    }

    /// Looks at an instance with the credentials of plan.
    async fn observe_work(&self, job: &Job, work: &CitusWork) -> Result<Observation, TargetError> {
        let Some(_slot) = self.lanes.take(&job.instance).await else {
            return Err(TargetError::new(TargetErrorKind::Lanes, "the target is closed"));
        };
        let (observation, ..) = self.look(job, work).await?;
        // What is as head says after an apply is what is applied now.
        let is_done = job.r#use == Use::Head && observation.changes.is_empty();
        if (job.r#use == Use::Applied || is_done) && !work.destroy {
            self.watches.watch(&job.instance, self.login(job, Rights::Plan)?, &self.redactor);
        }
        Ok(observation)
    }

    /// What is there, what would be done, and by which version of Citus.
    async fn look(&self, job: &Job, work: &CitusWork) -> Result<(Observation, Found, Version), TargetError> {
        let migrations = migrations::of(job, work.migrations.as_deref())?;
        let session = self.session(job, Rights::Plan, "look").await?;
        let seen = observe::look(&session, work).await?;
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
        // What can't be read is what an earlier version kept, and is only a help.
        let kept = self.keeper.kept(id).await?;
        Ok(kept.and_then(|text| serde_json::from_str(text.strip_prefix(KEPT)?).ok()).unwrap_or_default())
    }

    /// Remembers something more, whatever a look remembered meanwhile.
    async fn note(&self, id: &InstanceId, change: impl FnOnce(&mut Memory)) -> Result<(), TargetError> {
        let mut memory = self.memory(id).await?;
        change(&mut memory);
        self.remember(id, &memory).await
    }

    async fn remember(&self, id: &InstanceId, memory: &Memory) -> Result<(), TargetError> {
        let text = serde_json::to_string(memory).unwrap_or_default();
        Ok(self.keeper.keep(id, Some(&format!("{KEPT}{text}"))).await?)
    }

    /// Asks what is in flight to begin no further step; answers whether there was anything.
    fn interrupt_effect(&self, id: &InstanceId) -> bool {
        let is_in_flight = self.in_flight.lock().contains(id);
        if is_in_flight {
            self.interrupted.lock().insert(id.clone());
        }
        is_in_flight
    }

    /// Moves what is kept for an instance to another name; answers whether it was kept here.
    async fn rename_records(&self, from: &InstanceId, to: &InstanceId) -> Result<(), TargetError> {
        self.watches.forget(from);
        let Some(text) = self.keeper.kept(from).await?.filter(|text| text.starts_with(KEPT)) else { return Ok(()) };
        self.keeper.keep(to, Some(&text)).await?;
        self.keeper.keep(from, None).await?;
        Ok(())
    }
}
