//! The lives of a daemon: each place where a crash may come is reached under a name, and some of them end a life.
//!
//! A life that ended does nothing more: whatever of it reaches such a place stays there for ever. An effect that was in
//! flight goes on without its daemon, as under a supervisor, unless the whole machine was lost.

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
    /// How often each place was reached.
    reached: BTreeMap<String, usize>,
    places: Vec<String>,
    cut: Vec<String>,
}

/// All lives of one daemon after the other, and where they are to end.
#[derive(Default)]
pub struct CrashPoints {
    at: BTreeSet<String>,
    /// Whether they are only stopped there, and go on after another took over.
    stops: bool,
    told: Mutex<ProgressEvent>,
}

/// How a life stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Alive,
    /// Everything waits until it goes on.
    Stopped,
    /// The daemon is dead; what it began goes on.
    Dead,
    /// So is everything that ran on its machine.
    HostLost,
}

/// One life.
pub struct SimulatedProcess {
    lives: Arc<CrashPoints>,
    state: watch::Sender<State>,
}

impl CrashPoints {
    /// Lives that end at these places.
    pub fn new(at: BTreeSet<String>) -> Arc<Self> {
        Arc::new(Self { at, stops: false, told: Mutex::default() })
    }
    /// Lives that are stopped at these places, as a laptop that sleeps.
    pub fn stopping(at: BTreeSet<String>) -> Arc<Self> {
        Arc::new(Self { at, stops: true, told: Mutex::default() })
    }
    /// The next life.
    pub fn begin(self: &Arc<Self>) -> Arc<SimulatedProcess> {
        Arc::new(SimulatedProcess { lives: Arc::clone(self), state: watch::Sender::new(State::Alive) })
    }
    /// The places that were reached, in order, each with how often it was before.
    pub fn places(&self) -> Vec<String> {
        self.told.lock().places.clone()
    }
    /// Where lives ended.
    pub fn cuts(&self) -> Vec<String> {
        self.told.lock().cut.clone()
    }
}

impl SimulatedProcess {
    /// Waits until it ends or is stopped.
    pub async fn ended(&self) {
        let mut state = self.state.subscribe();
        // The sender lives as long as this.
        drop(state.wait_for(|state| *state != State::Alive).await);
    }
    /// Lets it go on where it was stopped.
    pub fn go_on(&self) {
        self.state.send_if_modified(|state| {
            let stopped = *state == State::Stopped;
            if stopped {
                *state = State::Alive;
            }
            stopped
        });
    }
    /// Whether its machine is lost, with everything that ran there.
    pub(super) fn is_host_lost(&self) -> bool {
        *self.state.borrow() == State::HostLost
    }
}

#[async_trait]
impl Boundary for SimulatedProcess {
    async fn pass(&self, cut: CrashPoint, what: &str) {
        if *self.state.borrow() == State::Alive {
            let told = &mut *self.lives.told.lock();
            let times = told.reached.entry(format!("{cut:?} {what}")).or_default();
            *times += 1;
            let place = format!("{cut:?} {what} {times}");
            if self.lives.at.contains(&place) {
                told.cut.push(place.clone());
                self.state.send_replace(match cut {
                    _ if self.lives.stops => State::Stopped,
                    CrashPoint::InEffect => State::HostLost,
                    _ => State::Dead,
                });
            }
            told.places.push(place);
        }
        let mut state = self.state.subscribe();
        let goes_on = |state: &State| match cut {
            CrashPoint::InEffect => *state != State::HostLost,
            _ => *state == State::Alive,
        };
        // Without an end, where the life has ended.
        drop(state.wait_for(goes_on).await);
    }
}

/// Reaches a place of a life, where there is one.
pub(super) async fn pass(life: Option<&Arc<SimulatedProcess>>, cut: CrashPoint, what: &str) {
    if let Some(life) = life {
        life.pass(cut, what).await;
    }
}
