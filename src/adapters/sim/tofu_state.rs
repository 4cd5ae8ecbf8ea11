//! Simulates the OpenTofu state of one instance.

use std::collections::BTreeMap;

pub(super) type Fields = BTreeMap<String, String>;

/// A state in the form in which tofu stores it.
#[derive(Clone, Debug, Default)]
pub(super) struct TofuState {
    pub(super) serial: u64,
    /// The lineage, unique for each new state.
    pub(super) lineage: String,
    pub(super) resources: BTreeMap<String, Fields>,
    pub(super) outputs: BTreeMap<String, String>,
}
