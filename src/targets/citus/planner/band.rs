//! The lowest and the highest load that a node may have.

/// The band of loads of a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Band {
    pub(super) low: u64,
    pub(super) high: u64,
}
