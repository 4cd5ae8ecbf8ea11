//! Defines the figures of a plan that moves data between nodes.

use serde::{Deserialize, Serialize};

/// The figures of a layout plan; none of them is part of a digest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayoutPlan {
    /// The balanced quantity: `bytes`, `shards`, `tenants` or `query`.
    pub balance: String,
    /// The allowed deviation of a node from the mean, as a share: 0.1 is a tenth.
    pub limit: f64,
    /// The nodes, by name.
    pub nodes: Vec<NodeLoad>,
    /// The moves, in order of execution.
    pub moves: Vec<MoveFigures>,
    /// The total size of the moves, in bytes.
    pub bytes: u64,
    /// The lower bound of the total size for any plan with an equal or better balance, in bytes.
    pub bytes_at_least: u64,
}

/// The load of a node, before and after the moves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeLoad {
    /// `host:port`.
    pub node: String,
    /// Whether the node may have shards.
    pub holds: bool,
    /// The load before the moves.
    pub before: Load,
    /// The load after the moves.
    pub after: Load,
}

/// The load of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Load {
    /// The load in the balanced unit.
    pub load: u64,
    /// The load in bytes.
    pub bytes: u64,
}

/// The cost of a move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MoveFigures {
    /// The resource of the move's action.
    pub resource: String,
    /// The destination node.
    pub to: String,
    /// The size of the move, in bytes.
    pub bytes: u64,
    /// The estimated duration in seconds, from the measured throughput of this cluster.
    pub seconds: u64,
}

impl LayoutPlan {
    /// Returns the deviation of the fullest node above the mean and of the emptiest node below it, as shares.
    pub fn spread(&self, after: bool) -> (f64, f64) {
        let load = |node: &NodeLoad| if after { node.after.load } else { node.before.load };
        let total: u64 = self.nodes.iter().map(load).sum();
        let holding: Vec<u64> = self.nodes.iter().filter(|node| node.holds).map(load).collect();
        if total == 0 || holding.is_empty() {
            return (0.0, 0.0);
        }
        let mean = total as f64 / holding.len() as f64;
        let share = |load: u64| load as f64 / mean - 1.0;
        let above = holding.iter().map(|load| share(*load)).fold(0.0, f64::max);
        let below = holding.iter().map(|load| -share(*load)).fold(0.0, f64::max);
        (above, below)
    }
}
