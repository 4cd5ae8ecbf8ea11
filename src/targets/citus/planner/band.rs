//! The lowest and the highest load that a node may have.

/// What every node may carry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Band {
    pub(super) low: u64,
    pub(super) high: u64,
}
