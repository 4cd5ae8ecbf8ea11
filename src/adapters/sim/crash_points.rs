//! Implements crash points: named places at which a script can end a simulated daemon process.
//!
//! A process that ended does nothing more: a task of it that reaches a crash point waits there forever. An effect
//! in flight continues without its daemon, as under a supervisor, unless the whole host is lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::ports::{Boundary, CrashPoint};

#[derive(Default)]
struct ProgressEvent {
    /// How often each crash point was reached.
    reached: BTreeMap<String, usize>,
    places: Vec<String>,
    cut: Vec<String>,
}

/// The consecutive processes of one daemon, and the crash points at which they end.
#[derive(Default)]
pub struct CrashPoints {
    at: BTreeSet<String>,
    /// Whether the processes are only suspended at those places, and resume after another daemon took over.
    stops: bool,
    told: Mutex<ProgressEvent>,
}

/// The state of a process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Alive,
    /// The process waits until it is resumed.
    Stopped,
    /// The daemon is dead; its effects continue.
    Dead,
    /// The daemon is dead, and so are all processes on its host.
    HostLost,
}

/// One simulated process of the daemon.
pub struct SimulatedProcess {
    lives: Arc<CrashPoints>,
    state: watch::Sender<State>,
}

impl CrashPoints {
    /// Returns processes that end at these places.
    pub fn new(at: BTreeSet<String>) -> Arc<Self> {
        Arc::new(Self { at, stops: false, told: Mutex::default() })
    }
    /// Returns processes that are suspended at these places, like a sleeping laptop.
    pub fn stopping(at: BTreeSet<String>) -> Arc<Self> {
        Arc::new(Self { at, stops: true, told: Mutex::default() })
    }
    /// Starts the next process.
    pub fn begin(self: &Arc<Self>) -> Arc<SimulatedProcess> {
        Arc::new(SimulatedProcess { lives: Arc::clone(self), state: watch::Sender::new(State::Alive) })
    }
    /// Returns the places that were reached, in order, each with its number of earlier visits.
    pub fn places(&self) -> Vec<String> {
        self.told.lock().places.clone()
    }
    /// Returns the places where processes ended.
    pub fn cuts(&self) -> Vec<String> {
        self.told.lock().cut.clone()
    }
}

impl SimulatedProcess {
    /// Waits until the process ends or is suspended.
    pub async fn ended(&self) {
        let mut state = self.state.subscribe();
        // The sender exists as long as `self`.
        drop(state.wait_for(|state| *state != State::Alive).await);
    }
    /// Resumes a suspended process.
    pub fn go_on(&self) {
        self.state.send_if_modified(|state| {
            let stopped = *state == State::Stopped;
            if stopped {
                *state = State::Alive;
            }
            stopped
        });
    }
    /// Returns whether the host of the process is lost, with everything that ran there.
    pub(super) fn is_host_lost(&self) -> bool {
        *self.state.borrow() == State::HostLost
    }
}

#[async_trait]
impl Boundary for SimulatedProcess {
    async fn pass(&self, cut: CrashPoint, what: &str) {
        if *self.state.borrow() == State::Alive {
            let progress = &mut *self.lives.told.lock();
            let times = progress.reached.entry(format!("{cut:?} {what}")).or_default();
            *times += 1;
            let place = format!("{cut:?} {what} {times}");
            if self.lives.at.contains(&place) {
                progress.cut.push(place.clone());
                self.state.send_replace(match cut {
                    _ if self.lives.stops => State::Stopped,
                    CrashPoint::InEffect => State::HostLost,
                    _ => State::Dead,
                });
            }
            progress.places.push(place);
        }
        let mut state = self.state.subscribe();
        let goes_on = |state: &State| match cut {
            CrashPoint::InEffect => *state != State::HostLost,
            _ => *state == State::Alive,
        };
        // If the process ended, this wait never ends.
        drop(state.wait_for(goes_on).await);
    }
}

/// Reaches a crash point of a process, if there is one.
pub(super) async fn pass(life: Option<&Arc<SimulatedProcess>>, cut: CrashPoint, what: &str) {
    if let Some(life) = life {
        life.pass(cut, what).await;
    }
}
