//! The layout of shards on nodes, as the planner sees it, and how evenly the nodes are loaded.

/// A node, as the planner knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `host:port`.
    pub name: String,
    /// Whether it is to hold shards; all that is on another one leaves it.
    pub holds: bool,
    /// How many bytes it may take; nothing where that is no concern.
    pub room: Option<u64>,
}

/// One placement of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The group's number; two placements of one group are never on one node.
    pub group: usize,
    /// The node, by its place in the layout.
    pub node: usize,
    /// How much moves with it.
    pub bytes: u64,
    /// What is balanced: bytes, one for each, tenants, or a cost.
    pub weight: u64,
    /// Where it has to be; never where another placement of its group is, which would do as well.
    pub pin: Option<usize>,
}

/// Where everything is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The placements.
    pub placements: Vec<Placement>,
}

/// Why something moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Because {
    /// It is pinned elsewhere.
    Pin,
    /// Its node is to hold nothing.
    Drain,
    /// The nodes carry unlike.
    Balance,
}

/// A placement that moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The placement, by its place in the layout.
    pub placement: usize,
    /// From where.
    pub from: usize,
    /// To where.
    pub to: usize,
    /// Why.
    pub because: Because,
}

/// How alike the nodes carry, as shares of the mean.
#[derive(Clone, Debug, PartialEq)]
pub struct Balance {
    /// The load of each node, in the balanced unit.
    pub loads: Vec<u64>,
    /// The bytes on each node.
    pub bytes: Vec<u64>,
    /// The mean load of the nodes that hold shards.
    pub mean: f64,
    /// How far the fullest is above it: 0.25 is a quarter more.
    pub above: f64,
    /// How far the emptiest is below it.
    pub below: f64,
}

impl Balance {
    /// The larger of both sides.
    pub fn skew(&self) -> f64 {
        self.above.max(self.below)
    }
}

/// Why the limit can't be reached.
#[derive(Clone, Debug, PartialEq)]
pub enum Short {
    /// One group alone is more than a node may carry: its largest tenant wants a shard of its own.
    TooLarge {
        /// The placement.
        placement: usize,
        /// How far its node is above the mean with nothing else on it.
        above: f64,
    },
    /// There are too few groups to be divided.
    TooFew {
        /// How many there are.
        groups: usize,
        /// The best that they can do: above and below the mean.
        best: (f64, f64),
        /// About how many reach the limit.
        enough: u64,
    },
    /// Pins or the available space allow nothing better.
    Bound {
        /// The best that was found.
        best: f64,
    },
}

/// How alike nodes carry.
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
