//! Measures the planner of shard moves against a lower bound and the rules of Citus's rebalancer.

pub(crate) mod observation;

use std::time::Instant;

use evenkeel::targets::citus::planner::{
    Wanted,
    layout::{Layout, Node, Placement, balance},
    plan,
};

use super::{Row, median};

/// The bytes that Citus's `by_disk_size` adds to each group of shards.
const BASE_COST: u64 = 100 << 20;
/// The maximum deviation of a node from the mean in Citus's rules, as a share.
const THRESHOLD: f64 = 0.1;
/// The minimum improvement of a move in Citus's rules, as a share of the moved bytes.
const IMPROVEMENT: f64 = 0.5;

/// A pseudo-random generator with the same numbers in every run.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
    /// Returns a size from a heavy-tailed distribution: Pareto from 64 MiB with this exponent, cut at 4 GiB.
    fn size(&mut self, exponent: f64) -> u64 {
        let share = ((self.next() >> 11) as f64 / (1_u64 << 53) as f64).max(1e-12);
        ((64 << 20) as f64 / share.powf(1.0 / exponent)).min((4_u64 << 30) as f64) as u64
    }
}

/// Returns a cluster: a number of nodes, and groups of shards, each with its node and size.
fn cluster(nodes: usize, groups: &[(usize, u64)]) -> Layout {
    let nodes = (0..nodes).map(|at| Node { name: format!("10.0.0.{at}:5432"), holds: true, room: None }).collect();
    let placements = groups.iter().enumerate();
    let placements = placements.map(|(group, (node, bytes))| Placement {
        group,
        node: *node,
        bytes: *bytes,
        weight: *bytes,
        pin: None,
    });
    Layout { nodes, placements: placements.collect() }
}

/// Simulates the rules of Citus: for each colocation group, move the largest group of shards that improves the
/// balance from the fullest node to the emptiest, until all nodes are within the threshold. Returns the moved
/// bytes and the final placement.
fn greedy(layout: &Layout, colocation: &[usize]) -> (u64, Vec<usize>) {
    let mut at: Vec<usize> = layout.placements.iter().map(|placement| placement.node).collect();
    let cost = |index: usize| (layout.placements[index].bytes + BASE_COST) as f64;
    let mut bytes = 0;
    for group in 0..=colocation.iter().copied().max().unwrap_or(0) {
        let mine: Vec<usize> = (0..at.len()).filter(|index| colocation[*index] == group).collect();
        let mut loads = vec![0.0; layout.nodes.len()];
        for index in &mine {
            loads[at[*index]] += cost(*index);
        }
        let mean = loads.iter().sum::<f64>() / loads.len() as f64;
        let (low, high) = (mean * (1.0 - THRESHOLD), mean * (1.0 + THRESHOLD));
        while let Some((index, to)) = step(&mine, &at, &loads, (low, high), &cost) {
            loads[at[index]] -= cost(index);
            loads[to] += cost(index);
            at[index] = to;
        }
    }
    for (placement, node) in layout.placements.iter().zip(&at) {
        bytes += if placement.node == *node { 0 } else { placement.bytes };
    }
    (bytes, at)
}

/// Returns the next move of the greedy planner.
fn step(
    mine: &[usize],
    at: &[usize],
    loads: &[f64],
    (low, high): (f64, f64),
    cost: &dyn Fn(usize) -> f64,
) -> Option<(usize, usize)> {
    let mut order: Vec<usize> = (0..loads.len()).collect();
    order.sort_by(|a, b| loads[*b].total_cmp(&loads[*a]).then(a.cmp(b)));
    for source in &order {
        if loads[*source] <= low {
            return None;
        }
        let mut on: Vec<usize> = mine.iter().copied().filter(|index| at[*index] == *source).collect();
        on.sort_by(|a, b| cost(*b).total_cmp(&cost(*a)).then(a.cmp(b)));
        for target in order.iter().rev() {
            if loads[*target] >= high || (loads[*target] >= low && loads[*source] <= high) {
                break;
            }
            for index in &on {
                let (came, remaining) = (loads[*target] + cost(*index), loads[*source] - cost(*index));
                if came <= remaining {
                    return Some((*index, *target));
                }
                if came >= loads[*source] {
                    continue;
                }
                let better = (loads[*source] - came) / cost(*index);
                if better >= IMPROVEMENT {
                    return Some((*index, *target));
                }
            }
        }
    }
    None
}

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = large();
    rows.extend(against_greedy());
    rows
}

/// 100 nodes and 20 colocation groups of 500 groups of shards each. A tenth of the nodes has three times the load
/// of the others.
fn large() -> Vec<Row> {
    let (mut times, mut ratios) = (vec![], vec![]);
    for seed in 0..10 {
        let mut dice = Dice(seed);
        let groups: Vec<(usize, u64)> = (0..10_000)
            .map(|_| (if dice.below(4) == 0 { dice.below(10) } else { dice.below(100) }, dice.size(1.5)))
            .collect();
        let layout = cluster(100, &groups);
        let since = Instant::now();
        let found = plan(&layout, Some(Wanted::within(0.1)));
        times.push(since.elapsed().as_secs_f64() * 1000.0);
        assert!(found.short.is_none() && found.after.skew() <= 0.1);
        ratios.push(found.bytes as f64 / found.bytes_at_least as f64);
    }
    let worst = ratios.iter().copied().fold(0.0, f64::max);
    vec![
        Row {
            what: "shard moves: 100 nodes, 20 colocation groups, 10,000 groups",
            found: format!("{:.0} ms", median(times)),
            bound: "< 1000 ms".into(),
        },
        Row {
            what: "the same: bytes moved, as a multiple of the lower bound",
            found: format!("{:.4}", median(ratios)),
            bound: format!("at worst of ten {worst:.4}; <= 1.05; sizes Pareto 1.5 from 64 MiB to 4 GiB"),
        },
    ]
}

/// Ten skewed clusters, and one of two colocation groups with opposite skew: the moved bytes at the balance that
/// the greedy planner reaches.
fn against_greedy() -> Vec<Row> {
    let mut savings = vec![];
    let mut worst: f64 = f64::MAX;
    for seed in 0..10_u64 {
        let mut dice = Dice(1000 + seed);
        let nodes = 4 + dice.below(12);
        let count = nodes * 32;
        let colocation: Vec<usize> = (0..count).map(|_| dice.below(3)).collect();
        let hot = 1 + dice.below(nodes / 2);
        let groups: Vec<(usize, u64)> = (0..count)
            .map(|_| (if dice.below(3) == 0 { dice.below(hot) } else { dice.below(nodes) }, dice.size(1.8)))
            .collect();
        let saved = saving(&cluster(nodes, &groups), &colocation);
        savings.push(saved);
        worst = worst.min(saved);
    }
    let mean = savings.iter().sum::<f64>() / savings.len() as f64;
    // One colocation group has more bytes on the first node, the other on the second.
    let opposite: Vec<(usize, u64)> =
        (0..128).map(|at| (usize::from((at % 4 == 0) != (at < 64)), (256 << 20) + at as u64)).collect();
    let halves: Vec<usize> = (0..128).map(|at| usize::from(at < 64)).collect();
    let layout = cluster(2, &opposite);
    let (theirs, _) = greedy(&layout, &halves);
    let ours = plan(&layout, Some(Wanted::within(THRESHOLD)));
    vec![
        Row {
            what: "bytes moved against Citus's greedy, at its balance: saved",
            found: format!("{:.0} %", mean * 100.0),
            bound: format!("mean of ten skewed clusters; at least {:.0} %, never more", worst * 100.0),
        },
        Row {
            what: "the same: two colocation groups with opposite skew",
            found: format!("{:.1} GB", ours.bytes as f64 / 1e9),
            bound: format!("greedy {:.1} GB", theirs as f64 / 1e9),
        },
    ]
}

/// Returns the share of the greedy planner's bytes that is saved at the same balance.
fn saving(layout: &Layout, colocation: &[usize]) -> f64 {
    let (theirs, at) = greedy(layout, colocation);
    let reached = balance(layout, &at).skew();
    let found = plan(layout, Some(Wanted { limit: reached, aim: reached }));
    assert!(found.after.skew() <= reached + 1e-9, "{} against {reached}", found.after.skew());
    assert!(found.bytes <= theirs, "{} against {theirs}", found.bytes);
    1.0 - found.bytes as f64 / theirs as f64
}
