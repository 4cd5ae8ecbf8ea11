//! Defines the layout of shards on nodes for the planner, and measures its balance.

/// A node of a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `host:port`.
    pub name: String,
    /// Whether the node should hold shards; a node that should not is drained.
    pub holds: bool,
    /// The bytes that the node can accept; `None` if unlimited.
    pub room: Option<u64>,
}

/// A placement of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The number of the group; two placements of one group are never on one node.
    pub group: usize,
    /// The node, by its index in the layout.
    pub node: usize,
    /// The bytes that a move transfers.
    pub bytes: u64,
    /// The balanced quantity: bytes, 1 for each, tenants, or a cost.
    pub weight: u64,
    /// The required node; not set if another placement of its group is there already.
    pub pin: Option<usize>,
}

/// An assignment of placements to nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The placements.
    pub placements: Vec<Placement>,
}

/// The reason for a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Because {
    /// The placement is pinned to another node.
    Pin,
    /// The node is drained.
    Drain,
    /// The nodes are unbalanced.
    Balance,
}

/// A move of a placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The placement, by its index in the layout.
    pub placement: usize,
    /// The source node.
    pub from: usize,
    /// The destination node.
    pub to: usize,
    /// The reason.
    pub because: Because,
}

/// The balance of the nodes, as shares of the mean.
#[derive(Clone, Debug, PartialEq)]
pub struct Balance {
    /// The load of each node, in the balanced unit.
    pub loads: Vec<u64>,
    /// The bytes on each node.
    pub bytes: Vec<u64>,
    /// The mean load of the nodes that hold shards.
    pub mean: f64,
    /// The excess of the fullest node over the mean: 0.25 is a quarter more.
    pub above: f64,
    /// The deficit of the emptiest node.
    pub below: f64,
}

impl Balance {
    /// Returns the larger of both deviations.
    pub fn skew(&self) -> f64 {
        self.above.max(self.below)
    }
}

/// The reason why the limit can't be reached.
#[derive(Clone, Debug, PartialEq)]
pub enum Short {
    /// One group exceeds the limit of a node: its largest tenant needs its own shard.
    TooLarge {
        /// The placement.
        placement: usize,
        /// The excess of its node over the mean, with this group alone.
        above: f64,
    },
    /// There are too few groups to divide.
    TooFew {
        /// The number of groups.
        groups: usize,
        /// The best possible deviations: above and below the mean.
        best: (f64, f64),
        /// The approximate number of groups that reaches the limit.
        enough: u64,
    },
    /// Pins or the available space prevent a better balance.
    Bound {
        /// The best balance that was found.
        best: f64,
    },
}

/// Measures the balance of an assignment.
pub fn balance(layout: &Layout, at: &[usize]) -> Balance {
    let mut loads = vec![0; layout.nodes.len()];
    let mut bytes = vec![0; layout.nodes.len()];
    for (placement, node) in layout.placements.iter().zip(at) {
        loads[*node] += placement.weight;
        bytes[*node] += placement.bytes;
    }
    let holding = || layout.nodes.iter().enumerate().filter(|(_, node)| node.holds).map(|(at, _)| at);
    let count = holding().count();
    let total: u64 = loads.iter().sum();
    let mean = if count == 0 { 0.0 } else { total as f64 / count as f64 };
    let share = |load: u64| if mean > 0.0 { load as f64 / mean - 1.0 } else { 0.0 };
    let above = holding().map(|node| share(loads[node])).fold(0.0, f64::max);
    let below = holding().map(|node| -share(loads[node])).fold(0.0, f64::max);
    Balance { loads, bytes, mean, above, below }
}
