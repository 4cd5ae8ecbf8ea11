//! Defines the range of load that a node may have.

#[derive(Clone, Copy, Debug)]
pub(super) struct Band {
    pub(super) low: u64,
    pub(super) high: u64,
}
