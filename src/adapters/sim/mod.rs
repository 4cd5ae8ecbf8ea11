//! A world in memory behind the same ports as the real one, for scenarios and fault tests.
//!
//! Decides nothing: it does what is asked, at a time that only moves when it is told to, and fails where it was told to
//! fail. Never sleeps, never reads a clock, never touches a disk or a network.
//! *Invariant:* the same script gives the same world: ids are counted, commits are hashed by their content.

mod cluster;
mod clusters;
mod compare;
mod crash_points;
mod forge;
mod module;
mod repository;
mod tofu_state;
mod world;

use chrono::{DateTime, Duration, Utc};
use parking_lot::Mutex;

pub use crash_points::{CrashPoints, SimulatedProcess};
pub use forge::Forge;
pub use module::Module;
pub use repository::Repository;
pub use world::{Fault, World};

use crate::ports;

/// A clock that moves when it is told to.
pub struct Clock(Mutex<DateTime<Utc>>);

impl Clock {
    /// A clock that stands at a time.
    pub fn new(at: DateTime<Utc>) -> Self {
        Self(Mutex::new(at))
    }
    /// Moves it forward.
    pub fn forward(&self, by: Duration) {
        *self.0.lock() += by;
    }
}

impl ports::Clock for Clock {
    fn now(&self) -> DateTime<Utc> {
        *self.0.lock()
    }
}
