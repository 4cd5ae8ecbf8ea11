//! Simulates the world and the tool that changes it: states with serials, resources and faults.

use super::{
    Clock,
    cluster::Cluster,
    compare::{changed, field, made_fields, meddled, origins, outputs, resource_changes},
    crash_points::{SimulatedProcess, pass},
    module::{Module, OutputSpec},
};
use crate::adapters::sim::tofu_state::{Fields, TofuState};
use crate::{
    adapters::store::Store,
    domain::kind::TargetKind,
    model::{Change, InstanceId, ResourceChange, Retry, Seal},
    ports::{
        Attached, CrashPoint, Fence, Job, Observation, Output, Prepared, Probe, Progress, TargetAdapter, TargetError,
        TargetErrorKind,
    },
    targets::{
        citus::{CitusKind, work::CitusWork},
        concurrency::{ConcurrencyLimit, Slot},
        opentofu::{OpenTofu, drift, plan::Details, work::TofuWork},
    },
};
use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// An injected fault of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The state is unreachable.
    OutOfReach(String),
    /// Another process holds the state lock.
    Locked(String),
    /// A resource refuses every change.
    Refuses {
        /// The resource.
        resource: String,
        /// The error of the provider.
        message: String,
    },
    /// A resource differs from the requested one after every change.
    NeverSettles(String),
    /// Every request hangs forever.
    Hangs,
}

#[derive(Default)]
pub(super) struct State {
    states: BTreeMap<String, TofuState>,
    live: BTreeMap<String, BTreeMap<String, Fields>>,
    /// Citus clusters, by the name of their connection.
    pub(super) clusters: BTreeMap<String, Cluster>,
    pub(super) faults: BTreeMap<InstanceId, Fault>,
    pub(super) silent: BTreeSet<String>,
    /// The effects since the last query, in order.
    pub(super) effects: Vec<String>,
    made: u64,
    lineages: u64,
    /// The last effect of each instance, with its fence, its process and its outcome.
    begun: BTreeMap<InstanceId, Begun>,
}

#[derive(Clone)]
struct Begun {
    fence: Fence,
    life: Option<Arc<SimulatedProcess>>,
    ended: Option<Result<(), TargetError>>,
}

/// The simulated world. Clones share their state.
#[derive(Clone)]
pub struct World {
    pub(super) state: Arc<Mutex<State>>,
    pub(super) clock: Arc<Clock>,
    seal: Arc<Seal>,
    /// The daemon process that uses this handle, and the store from which its supervisor reads tokens.
    life: Option<(Arc<SimulatedProcess>, Store)>,
    /// The limit of concurrent observations, and the duration of an observation.
    pace: Option<(ConcurrencyLimit, Duration)>,
}

/// Returns the place of an instance's state: the `key` of its backend's settings, else its own name.
fn place(job: &Job) -> String {
    let name = job.formerly.as_ref().unwrap_or(&job.instance);
    let config = job.target.declared.get("backendConfig");
    config.and_then(|config| config.get("key")).and_then(Value::as_str).map_or_else(|| name.to_string(), str::to_owned)
}

/// Returns the root module of a job; any other kind is an error.
fn tofu(job: &Job) -> Result<TofuWork, TargetError> {
    if job.target.kind != OpenTofu.name() {
        return Err(TargetError::new(TargetErrorKind::Unreachable, "there is no such target in this world"));
    }
    TofuWork::new(job)
}

/// Returns the cluster of a job, if the job is for one.
fn cluster(job: &Job) -> Option<Result<CitusWork, TargetError>> {
    (job.target.kind == CitusKind.name()).then(|| CitusWork::new(job))
}

fn module(job: &Job, work: &TofuWork) -> Result<Module, TargetError> {
    let path = format!("{}/main.tf", work.root);
    let unreadable = |why: String| TargetError {
        retry: Retry::WhenInputChanges,
        ..TargetError::new(TargetErrorKind::TofuFailed, format!("`tofu plan` of `{}` failed: {why}", job.instance))
    };
    let content = job.content.read(&path).map_err(|error| unreadable(error.to_string()))?;
    Module::read(&String::from_utf8_lossy(&content), &work.variables).map_err(unreadable)
}

impl State {
    /// Returns the state at a place, and creates the state if it does not exist.
    fn state_of(&mut self, place: &str) -> &mut TofuState {
        if !self.states.contains_key(place) {
            self.lineages += 1;
            let lineage = format!("{:08}", self.lineages);
            self.states.insert(place.to_owned(), TofuState { lineage, ..TofuState::default() });
        }
        self.states.entry(place.to_owned()).or_default()
    }
}

impl World {
    /// Returns an empty world in which long operations advance the clock.
    pub fn new(seal: Arc<Seal>, clock: Arc<Clock>) -> Self {
        Self { state: Arc::default(), clock, seal, life: None, pace: None }
    }

    /// Returns a handle of the same world for a daemon process.
    pub fn in_life(&self, life: Arc<SimulatedProcess>, store: Store) -> Self {
        Self { life: Some((life, store)), ..self.clone() }
    }

    /// Returns a handle of the same world in which an observation takes `look` and at most `lanes` run at once.
    pub fn paced(&self, lanes: ConcurrencyLimit, look: Duration) -> Self {
        Self { pace: Some((lanes, look)), ..self.clone() }
    }

    /// Waits for the duration of an observation; forever if the instance hangs.
    async fn take_time(&self, id: &InstanceId) -> Option<Slot> {
        let (lanes, look) = self.pace.as_ref()?;
        let slot = lanes.take(id).await;
        tokio::time::sleep(*look).await;
        let hangs = self.state.lock().faults.get(id) == Some(&Fault::Hangs);
        if hangs {
            std::future::pending::<()>().await;
        }
        slot
    }

    pub(super) async fn pass(&self, cut: CrashPoint, what: &str) {
        pass(self.life.as_ref().map(|(life, _)| life), cut, what).await;
    }

    /// Checks that the daemon of this handle still holds the lease of the environment.
    pub(super) async fn in_force(&self, id: &InstanceId, fence: Fence) -> Result<(), TargetError> {
        match &self.life {
            Some((_, store)) if !store.is_in_force(&id.environment, fence.token).await? => Err(TargetError::new(
                TargetErrorKind::Fenced,
                format!("another daemon has taken over `{}`", id.environment),
            )),
            _ => Ok(()),
        }
    }

    /// Changes a resource outside Evenkeel; without a value, deletes it.
    pub fn meddle(&self, place: &str, resource: &str, field: &str, value: Option<&str>) {
        let mut state = self.state.lock();
        let things = state.live.entry(place.to_owned()).or_default();
        match value {
            Some(value) => {
                drop(things.entry(resource.to_owned()).or_default().insert(field.to_owned(), value.to_owned()))
            }
            None => drop(things.remove(resource)),
        }
    }

    /// Puts a resource into a state and into the world, as an earlier tool would have done.
    pub fn hold(&self, place: &str, resource: &str, field: &str, value: &str) {
        self.meddle(place, resource, field, Some(value));
        let mut state = self.state.lock();
        let stored = state.state_of(place);
        stored.serial += 1;
        stored.resources.entry(resource.to_owned()).or_default().insert(field.to_owned(), value.to_owned());
    }

    /// Deletes a state and all of its resources.
    pub fn wipe(&self, place: &str) {
        let mut state = self.state.lock();
        state.states.remove(place);
        state.live.remove(place);
    }

    /// Injects a fault into an instance, or removes the fault.
    pub fn set_fault(&self, id: &InstanceId, fault: Option<Fault>) {
        let mut state = self.state.lock();
        match fault {
            Some(fault) => drop(state.faults.insert(id.clone(), fault)),
            None => drop(state.faults.remove(id)),
        }
    }

    /// Makes an address unresponsive, or responsive again.
    pub fn silence(&self, address: &str, silent: bool) {
        let mut state = self.state.lock();
        state.silent.remove(address);
        if silent {
            state.silent.insert(address.to_owned());
        }
    }

    /// Returns the effects since the last call, in order.
    pub fn effects(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().effects)
    }

    /// Returns all resources as `place resource.field = value`.
    pub fn things(&self) -> Vec<String> {
        let state = self.state.lock();
        let lines = state.live.iter().flat_map(|(place, things)| {
            things.iter().flat_map(move |(name, fields)| {
                fields.iter().map(move |(field, value)| format!("{place} {name}.{field} = {value}"))
            })
        });
        let clusters = state
            .clusters
            .iter()
            .flat_map(|(name, cluster)| cluster.things().map(move |thing| format!("{name} {thing}")));
        lines.chain(clusters).collect()
    }

    fn look(&self, job: &Job, work: &TofuWork) -> Result<Observation, TargetError> {
        let state = self.state.lock();
        if let Some(Fault::OutOfReach(why)) = state.faults.get(&job.instance) {
            return Err(TargetError::new(
                TargetErrorKind::StateOutOfReach,
                format!("the state of `{}` can't be reached: {why}", job.instance),
            ));
        }
        let (module, place) = (module(job, work)?, place(job));
        let stored = state.states.get(&place).cloned().unwrap_or_default();
        let live = state.live.get(&place).cloned().unwrap_or_default();
        if work.destroy {
            let nothing = Module::default();
            let changes = resource_changes(&nothing, &stored, &live);
            let holds_anything = !stored.resources.is_empty();
            let identity = Some(stored.lineage).filter(|lineage| !lineage.is_empty());
            return Ok(Observation {
                changes,
                holds_anything,
                identity,
                own: Some(Arc::new(Details { serial: Some(stored.serial), origins: BTreeMap::new() })),
                ..Default::default()
            });
        }
        let mut changes = resource_changes(&module, &stored, &live);
        if let Some(Fault::NeverSettles(name)) = state.faults.get(&job.instance)
            && !changes.iter().any(|change| change.resource == *name)
        {
            let fields = module.resources.get(name).into_iter().flatten();
            let fields = fields.map(|(key, spec)| field(key, live.get(name).and_then(|live| live.get(key)), spec));
            changes.push(changed(name, Change::Update, fields.collect()));
        }
        let (outputs, output_changes) = outputs(&self.seal, &module, &stored, &live, &changes);
        changes.extend(output_changes);
        let adopt_only = stored.resources.keys().filter(|name| !changes.iter().any(|change| change.resource == **name));
        let adopt_only = adopt_only
            .filter_map(|name| meddled(name, &stored.resources[name], live.get(name)?, module.resources.get(name)?))
            .collect::<Vec<_>>();
        let origins = origins(&module, &changes);
        let mut adopt_only = adopt_only;
        if work.refresh {
            changes = drift::refreshes(&std::mem::take(&mut adopt_only));
        }
        Ok(Observation {
            own: Some(Arc::new(Details { serial: Some(stored.serial), origins })),
            changes,
            adopt_only,
            outputs,
            holds_anything: !stored.resources.is_empty(),
            identity: Some(stored.lineage).filter(|lineage| !lineage.is_empty()),
            ..Observation::default()
        })
    }

    /// Applies changes, one after the other, as tofu does.
    async fn make(&self, job: &Job, work: &TofuWork, changes: &[ResourceChange]) -> Result<(), TargetError> {
        let (module, place) = (module(job, work)?, place(job));
        self.state.lock().state_of(&place).serial += 1;
        if work.refresh {
            let mut state = self.state.lock();
            let live = state.live.get(&place).cloned().unwrap_or_default();
            let stored = &mut state.state_of(&place).resources;
            stored
                .iter_mut()
                .for_each(|(name, fields)| live.get(name).into_iter().for_each(|live| fields.clone_from(live)));
            return Ok(());
        }
        for change in changes.iter().filter(|change| change.r#type != "output") {
            self.make_one(job, &module, &place, change)?;
            self.pass(CrashPoint::InEffect, &format!("{} {place} {}", change.change.verb(), change.resource)).await;
        }
        let mut state = self.state.lock();
        let live = state.live.get(&place).cloned().unwrap_or_default();
        let value = |spec: &OutputSpec| live.get(&spec.resource).and_then(|fields| fields.get(&spec.field)).cloned();
        let outputs = module.outputs.iter().filter_map(|(name, spec)| Some((name.clone(), value(spec)?))).collect();
        state.states.entry(place).or_default().outputs = outputs;
        Ok(())
    }

    fn make_one(&self, job: &Job, module: &Module, place: &str, change: &ResourceChange) -> Result<(), TargetError> {
        let mut state = self.state.lock();
        let refuses = match state.faults.get(&job.instance) {
            Some(Fault::Refuses { resource, message }) => Some((resource.clone(), message.clone())),
            _ => None,
        };
        let name = &change.resource;
        if let Some((_, message)) = refuses.as_ref().filter(|(resource, _)| resource == name) {
            let message = format!("`tofu apply` of `{}` failed: {name}: {message}", job.instance);
            return Err(TargetError {
                retry: Retry::WhenInputChanges,
                effect_may_have_begun: true,
                ..TargetError::new(TargetErrorKind::ApplyFailed, message)
            });
        }
        state.effects.push(format!("{} {place} {name}", change.change.verb()));
        let fields = match change.change {
            Change::Destroy => None,
            _ => {
                state.made += u64::from(change.change != Change::Update);
                let (made, old) = (
                    state.made,
                    state.live.get(place).and_then(|things| things.get(name)).cloned().unwrap_or_default(),
                );
                Some(made_fields(&module.resources[name], &old, made, change.change == Change::Update))
            }
        };
        let State { states, live, .. } = &mut *state;
        let (things, stored) =
            (live.entry(place.to_owned()).or_default(), &mut states.entry(place.to_owned()).or_default().resources);
        match fields {
            Some(fields) => {
                things.insert(name.clone(), fields.clone());
                stored.insert(name.clone(), fields);
            }
            None => {
                things.remove(name);
                stored.remove(name);
            }
        }
        Ok(())
    }
}

#[async_trait]
impl TargetAdapter for World {
    async fn observe(&self, job: &Job) -> Result<Observation, TargetError> {
        let _slot = self.take_time(&job.instance).await;
        match cluster(job) {
            Some(work) => Ok(self.look_at_cluster(job, &work?)?.0),
            None => self.look(job, &tofu(job)?),
        }
    }
    async fn prepare(&self, job: &Job) -> Result<Prepared, TargetError> {
        if let Some(Fault::Locked(by)) = self.state.lock().faults.get(&job.instance) {
            let message = format!("the state of `{}` is locked by {by}", job.instance);
            return Err(TargetError {
                retry: Retry::WhenInputChanges,
                ..TargetError::new(TargetErrorKind::StateLocked, message)
            });
        }
        if let Some(work) = cluster(job) {
            return self.prepare_cluster(job, &work?);
        }
        let observation = self.look(job, &tofu(job)?)?;
        let serial = observation.own::<Details>().and_then(|details| details.serial).unwrap_or(0);
        Ok(Prepared { observation, ticket: Box::new(serial) })
    }
    async fn apply(&self, job: &Job, prepared: Prepared, fence: Fence, _: Progress) -> Result<(), TargetError> {
        if let Some(work) = cluster(job) {
            return self.change_cluster(job, &work?, prepared, fence).await;
        }
        let work = &tofu(job)?;
        let (id, what) = (&job.instance, format!("apply {}", job.instance));
        self.pass(CrashPoint::BeforeEffect, &what).await;
        self.in_force(id, fence).await?;
        let planned = prepared.ticket.downcast::<u64>().map_or(0, |serial| *serial);
        let current = self.state.lock().states.get(&place(job)).map_or(0, |state| state.serial);
        if planned != current {
            return Err(TargetError::new(
                TargetErrorKind::PlanStale,
                format!("the state of `{}` changed between plan and apply; nothing was applied", job.instance),
            ));
        }
        let life = self.life.as_ref().map(|(life, _)| Arc::clone(life));
        let begun = Begun { fence, life, ended: None };
        self.state.lock().begun.insert(id.clone(), begun.clone());
        let done = self.make(job, work, &prepared.observation.changes).await;
        self.state.lock().begun.insert(id.clone(), Begun { ended: Some(done.clone()), ..begun });
        self.pass(CrashPoint::AfterEffect, &what).await;
        done
    }
    async fn attach(&self, job: &Job, fence: Fence, _: Progress) -> Result<Attached, TargetError> {
        loop {
            let begun = self.state.lock().begun.get(&job.instance).cloned();
            match begun.filter(|begun| begun.fence == fence) {
                Some(Begun { ended: Some(ended), .. }) => return Ok(Attached::Ended(ended)),
                Some(Begun { life: Some(life), .. }) if !life.is_host_lost() => tokio::task::yield_now().await,
                _ => return Ok(Attached::Gone),
            }
        }
    }
    async fn unlock(&self, job: &Job) -> Result<Option<String>, TargetError> {
        let mut state = self.state.lock();
        Ok(match state.faults.get(&job.instance).cloned() {
            Some(Fault::Locked(by)) => {
                state.faults.remove(&job.instance);
                Some(by)
            }
            _ => None,
        })
    }
    async fn outputs(&self, job: &Job) -> Result<BTreeMap<String, Output>, TargetError> {
        if cluster(job).is_some() {
            return Ok(BTreeMap::new());
        }
        let module = module(job, &tofu(job)?)?;
        let stored = self.state.lock().states.get(&place(job)).cloned().unwrap_or_default();
        let sensitive = |name: &String| module.outputs.get(name).is_some_and(|output| output.secret);
        Ok(stored
            .outputs
            .iter()
            .map(|(name, value)| {
                (name.clone(), Output { value: Some(value.as_str().into()), sensitive: sensitive(name) })
            })
            .collect())
    }
    async fn rename(&self, from: &InstanceId, to: &InstanceId) -> Result<(), TargetError> {
        let mut state = self.state.lock();
        let (from, to) = (from.to_string(), to.to_string());
        if let Some(stored) = state.states.remove(&from) {
            state.states.insert(to.clone(), stored);
        }
        if let Some(things) = state.live.remove(&from) {
            state.live.insert(to, things);
        }
        Ok(())
    }
}

#[async_trait]
impl Probe for World {
    async fn probe(&self, http: Option<&str>, tcp: Option<&str>, _: Duration) -> Result<(), String> {
        let address = http.or(tcp).unwrap_or_default();
        if self.state.lock().silent.contains(address) { Err(format!("{address} did not answer")) } else { Ok(()) }
    }
}
