//! Tracks the assignment of placements to nodes during planning.

use super::layout::Layout;
use std::collections::BTreeMap;

/// The current assignment.
pub(super) struct State<'l> {
    pub(super) layout: &'l Layout,
    pub(super) home: &'l [usize],
    pub(super) at: Vec<usize>,
    pub(super) loads: Vec<u64>,
    /// The bytes that each node can still accept.
    pub(super) room: Vec<i128>,
    /// The other nodes of a group with several placements.
    pub(super) others: BTreeMap<usize, Vec<usize>>,
}

impl<'l> State<'l> {
    pub(super) fn new(layout: &'l Layout, home: &'l [usize], at: Vec<usize>) -> Self {
        let mut loads = vec![0; layout.nodes.len()];
        let mut room: Vec<i128> = layout.nodes.iter().map(|node| node.room.map_or(i128::MAX / 2, i128::from)).collect();
        let mut of_group: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (index, placement) in layout.placements.iter().enumerate() {
            loads[at[index]] += placement.weight;
            if at[index] != home[index] {
                room[at[index]] -= i128::from(placement.bytes);
            }
            of_group.entry(placement.group).or_default().push(index);
        }
        of_group.retain(|_, placements| placements.len() > 1);
        Self { layout, home, at, loads, room, others: of_group }
    }

    pub(super) fn weight(&self, index: usize) -> u64 {
        self.layout.placements[index].weight
    }

    pub(super) fn bytes(&self, index: usize) -> u64 {
        self.layout.placements[index].bytes
    }

    /// Whether a placement can move to a node.
    pub(super) fn may(&self, index: usize, node: usize) -> bool {
        let placement = &self.layout.placements[index];
        let is_home = self.home[index] == node;
        let twin = self.others.get(&placement.group);
        let is_free = twin.is_none_or(|all| all.iter().all(|other| *other == index || self.at[*other] != node));
        let is_allowed = self.layout.nodes[node].holds && placement.pin.is_none_or(|pin| pin == node);
        is_allowed && is_free && (is_home || self.room[node] >= i128::from(placement.bytes))
    }

    /// Whether a placement may move for balance.
    pub(super) fn is_movable(&self, index: usize) -> bool {
        self.layout.placements[index].pin.is_none() && self.weight(index) > 0
    }

    pub(super) fn put(&mut self, index: usize, node: usize) {
        let (from, weight, bytes) = (self.at[index], self.weight(index), i128::from(self.bytes(index)));
        self.loads[from] -= weight;
        self.loads[node] += weight;
        if from != self.home[index] {
            self.room[from] += bytes;
        }
        if node != self.home[index] {
            self.room[node] -= bytes;
        }
        self.at[index] = node;
    }

    /// Returns the additional cost of a placement on a node, in bytes.
    pub(super) fn cost(&self, index: usize, node: usize) -> i128 {
        let moved = |node: usize| if node == self.home[index] { 0 } else { i128::from(self.bytes(index)) };
        moved(node) - moved(self.at[index])
    }
}
