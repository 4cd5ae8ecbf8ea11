//! Computes the target load of each node, and the allowed band around it.

use super::{
    band::Band,
    bound::whole,
    layout::{Layout, Short, balance},
    state::State,
};

/// The target load of each node. A group that is too large for any node has a node of its own; the others share the
/// rest evenly.
pub(super) struct Fair {
    /// The nodes that may hold shards.
    pub(super) nodes: Vec<usize>,
    /// The target load of each node without a giant group.
    pub(super) mean: f64,
    /// The placements that are too large for any node, each with its own node.
    pub(super) giants: Vec<(usize, usize)>,
}

impl Fair {
    pub(super) fn new(layout: &Layout, home: &[usize], at: &[usize], limit: f64) -> Self {
        let state = State::new(layout, home, at.to_vec());
        let nodes: Vec<usize> = (0..layout.nodes.len()).filter(|node| layout.nodes[*node].holds).collect();
        let weight = |index: usize| layout.placements[index].weight;
        let mut order: Vec<usize> = (0..at.len()).collect();
        order.sort_by_key(|index| (std::cmp::Reverse(weight(*index)), *index));
        let mut remaining: u64 = order.iter().map(|index| weight(*index)).sum();
        let mut fair = Self { nodes, mean: 0.0, giants: vec![] };
        let loads = balance(layout, at).loads;
        for index in order {
            let owned = fair.nodes.iter().filter(|node| fair.giants.iter().any(|(_, own)| own == *node)).count();
            let others = fair.nodes.len() - owned;
            fair.mean = remaining as f64 / others.max(1) as f64;
            if others < 2 || weight(index) as f64 <= fair.mean * (1.0 + limit) {
                break;
            }
            let is_taken = |node: usize| fair.giants.iter().any(|(_, own)| *own == node);
            let free = || fair.nodes.iter().copied().filter(|node| !is_taken(*node));
            let may = |node: &usize| state.may(index, *node);
            let current = free().find(|node| *node == at[index]);
            // Another giant occupies the node: this one moves to the emptiest possible node, or stays.
            let own = current.or_else(|| free().filter(may).min_by_key(|node| (loads[*node], *node)));
            fair.giants.push((index, own.unwrap_or(at[index])));
            remaining -= weight(index);
        }
        fair
    }

    /// Returns the band of each node, for a share of the mean on both sides.
    pub(super) fn bands(&self, layout: &Layout, share: f64) -> Vec<Band> {
        // A load exactly at the limit is inside, despite rounding.
        let share = share + 1e-12;
        let low = whole((self.mean * (1.0 - share)).ceil());
        let high = whole((self.mean * (1.0 + share)).floor());
        let mut bands = vec![Band { low, high }; layout.nodes.len()];
        for (_, own) in &self.giants {
            let weight = self.giants_on(layout, *own);
            bands[*own] = Band { low: weight, high: weight + whole((self.mean * share).floor()) };
        }
        bands
    }

    /// Returns the weight of the giants of a node.
    pub(super) fn giants_on(&self, layout: &Layout, node: usize) -> u64 {
        self.giants.iter().filter(|(_, own)| *own == node).map(|(giant, _)| layout.placements[*giant].weight).sum()
    }

    /// Returns the largest deviation of the nodes from their target load, as a share of the mean.
    pub(super) fn skew(&self, layout: &Layout, at: &[usize]) -> f64 {
        if self.mean <= 0.0 {
            return 0.0;
        }
        let loads = balance(layout, at).loads;
        let off = |node: &usize| match self.giants_on(layout, *node) {
            0 => loads[*node] as f64 / self.mean - 1.0,
            giants => (loads[*node] as f64 - giants as f64) / self.mean,
        };
        self.nodes.iter().map(|node| off(node).abs()).fold(0.0, f64::max)
    }

    /// Returns the shortage if the groups are too few to reach the limit, even with equal weights.
    pub(super) fn too_few(&self, layout: &Layout, limit: f64) -> Option<Short> {
        let (groups, nodes) = (layout.placements.len(), self.nodes.len());
        let each = groups as f64 / nodes as f64;
        let best = (each.ceil() / each - 1.0, 1.0 - each.floor() / each);
        let is_short = best.0.max(best.1) > limit;
        let enough = whole((nodes as f64 / limit).ceil());
        is_short.then_some(Short::TooFew { groups, best, enough })
    }
}
