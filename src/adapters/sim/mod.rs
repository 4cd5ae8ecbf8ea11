//! Simulates the world in memory behind the ports, for scenarios and fault tests.
//!
//! Decides nothing: executes requests, and fails where a script injects a fault. *Invariant:* never sleeps, never
//! reads a clock, never touches a disk or a network; only a script moves the time.
//! *Invariant:* the same script yields the same world: ids are counted, and commits are hashed by their content.

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

/// A clock that only moves on request.
pub struct Clock(Mutex<DateTime<Utc>>);

impl Clock {
    /// Returns a clock at a time.
    pub fn new(at: DateTime<Utc>) -> Self {
        Self(Mutex::new(at))
    }
    /// Advances the clock.
    pub fn forward(&self, by: Duration) {
        *self.0.lock() += by;
    }
}

impl ports::Clock for Clock {
    fn now(&self) -> DateTime<Utc> {
        *self.0.lock()
    }
}
