//! The OpenTofu state of one instance in the simulated world.

use std::collections::BTreeMap;

pub(super) type Fields = BTreeMap<String, String>;

/// A state as the tool keeps it.
#[derive(Clone, Debug, Default)]
pub(super) struct TofuState {
    pub(super) serial: u64,
    /// That of each new state is another one.
    pub(super) lineage: String,
    pub(super) resources: BTreeMap<String, Fields>,
    pub(super) outputs: BTreeMap<String, String>,
}
