//! Plans which shard groups move between nodes to balance their load. Pure.
//!
//! A *group* moves as one: the shards of one range in all tables of a colocation group, or a distributed schema.
//! *Flow:* required moves come first (pins, drained nodes). If a node deviates from the mean by more than the limit,
//! overloaded nodes shed their excess, underloaded nodes take what they lack, and unnecessary moves are undone.
//! *Invariant:* the plan depends on the layout alone and is deterministic. A plan never makes the balance worse. The
//! plan of a planned layout is empty. Two placements of one group are never on one node. No node receives more bytes
//! than it can accept.
//! *Invariant:* the planner reads no cluster and no clock, and uses no randomness.

pub mod layout;

mod band;
mod bound;
mod fair;
mod solve;
mod state;

use self::{
    band::Band,
    bound::at_least,
    fair::Fair,
    layout::{Balance, Because, Layout, Move, Short, balance},
    solve::solve,
    state::State,
};
use std::collections::{BTreeMap, BTreeSet};

/// The maximum rounds of balancing and required moves in one plan.
const ROUNDS_MAX: usize = 4;

/// The maximum number of plans, each made for the result of the previous one.
const PLANS_MAX: usize = 8;

/// The number of steps from the aim to the limit that are tried if the aim is out of reach.
const STEPS: u32 = 4;

/// A plan of moves.
#[derive(Clone, Debug, PartialEq)]
pub struct Rebalance {
    /// The moves, in the best order.
    pub moves: Vec<Move>,
    /// The bytes that the moves transfer.
    pub bytes: u64,
    /// The lower bound of bytes for any plan with the same result.
    pub bytes_at_least: u64,
    /// The balance before the moves.
    pub before: Balance,
    /// The balance after the moves.
    pub after: Balance,
    /// The reason why the limit is not reached, if it is not.
    pub short: Option<Short>,
    /// Placements that can't be moved from a drained node or to their pin.
    pub stuck: Vec<usize>,
}

/// The allowed imbalance, on both sides of the mean: `0.1` is ten percent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wanted {
    /// The deviation above which groups are moved.
    pub limit: f64,
    /// The deviation to reach, smaller than the limit so that it is not exceeded again soon.
    pub aim: f64,
}

impl Wanted {
    /// Returns a limit with an aim of half of it.
    pub fn within(limit: f64) -> Self {
        Self { limit, aim: limit / 2.0 }
    }
}

/// Plans the moves. Without a limit for the balance, only pinned and drained placements move.
pub fn plan(layout: &Layout, wanted: Option<Wanted>) -> Rebalance {
    let first = once(layout, wanted);
    let home: Vec<usize> = layout.placements.iter().map(|placement| placement.node).collect();
    let mut current = moved(layout, &first.moves);
    let mut last = None;
    for _ in 0..PLANS_MAX {
        let more = once(&current, wanted);
        if more.moves.is_empty() {
            break;
        }
        current = moved(&current, &more.moves);
        last = Some(more);
    }
    // Usually the first plan leaves nothing to do.
    let Some(last) = last else { return first };
    let at: Vec<usize> = current.placements.iter().map(|placement| placement.node).collect();
    let moves = ordered(layout, &home, &at, &first.before);
    let bytes = moves.iter().map(|step| layout.placements[step.placement].bytes).sum();
    let bytes_at_least = first.bytes_at_least.min(bytes);
    Rebalance { moves, bytes, bytes_at_least, before: first.before, ..last }
}

/// Returns the layout after moves; moved placements use the available space.
fn moved(layout: &Layout, moves: &[Move]) -> Layout {
    let mut current = layout.clone();
    for step in moves {
        current.placements[step.placement].node = step.to;
        if let Some(room) = &mut current.nodes[step.to].room {
            *room = room.saturating_sub(layout.placements[step.placement].bytes);
        }
    }
    current
}

/// Makes one plan. If the limit is out of reach, another plan may improve the result.
fn once(layout: &Layout, wanted: Option<Wanted>) -> Rebalance {
    let home: Vec<usize> = layout.placements.iter().map(|placement| placement.node).collect();
    let before = balance(layout, &home);
    let (mut at, mut stuck) = forced(layout, &home, home.clone());
    let (mut short, mut aim) = (None, None);
    for wanted in wanted.iter().cycle().take(ROUNDS_MAX) {
        let (next, reached, why) = balanced(layout, &home, &at, *wanted);
        short = why;
        // A move may have unblocked a pinned placement.
        let (mut next, unplaced) = forced(layout, &home, next);
        untwined(layout, &home, &mut next);
        stuck = unplaced;
        if next == at {
            break;
        }
        (at, aim) = (next, reached.or(aim));
    }
    let after = balance(layout, &at);
    // The last required moves may have left the bands.
    let is_in =
        |node: usize, band: &Band| (band.low..=band.high).contains(&after.loads[node]) || !layout.nodes[node].holds;
    let aim = aim.filter(|bands: &Vec<Band>| bands.iter().enumerate().all(|(node, band)| is_in(node, band)));
    let moves = ordered(layout, &home, &at, &before);
    let bytes = moves.iter().map(|step| layout.placements[step.placement].bytes).sum();
    let bytes_at_least = at_least(layout, &home, &stuck, aim);
    Rebalance { moves, bytes, bytes_at_least, before, after, short, stuck }
}

/// Swaps interchangeable placements of a group: if one leaves a node and another one of its group arrives there, the
/// first one stays and the other one takes its destination.
fn untwined(layout: &Layout, home: &[usize], at: &mut [usize]) {
    let mut of_group: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, placement) in layout.placements.iter().enumerate() {
        of_group.entry(placement.group).or_default().push(index);
    }
    for twins in of_group.into_values().filter(|twins| twins.len() > 1) {
        for index in &twins {
            let comes = twins.iter().find(|other| *other != index && at[**other] == home[*index]);
            let Some(other) = comes.copied().filter(|_| at[*index] != home[*index]) else { continue };
            let may = |index: usize, node: usize| layout.placements[index].pin.is_none_or(|pin| pin == node);
            if may(*index, home[*index]) && may(other, at[*index]) {
                at.swap(*index, other);
            }
        }
    }
}

/// Returns the moves between two layouts; moves from the fullest nodes come first.
fn ordered(layout: &Layout, home: &[usize], at: &[usize], before: &Balance) -> Vec<Move> {
    let moved = home.iter().zip(at).enumerate().filter(|(_, (from, to))| from != to);
    let mut moves: Vec<Move> = moved
        .map(|(placement, (from, to))| {
            let because = match &layout.placements[placement] {
                placement if placement.pin == Some(*to) => Because::Pin,
                _ if !layout.nodes[*from].holds => Because::Drain,
                _ => Because::Balance,
            };
            Move { placement, from: *from, to: *to, because }
        })
        .collect();
    let fullest = |step: &Move| std::cmp::Reverse(before.loads[step.from]);
    let largest = |step: &Move| std::cmp::Reverse(layout.placements[step.placement].weight);
    moves.sort_by_key(|step| (step.because, fullest(step), largest(step), step.placement));
    // A placement leaves a node before another placement of its group arrives.
    let group = |step: &Move| layout.placements[step.placement].group;
    let mut there: BTreeSet<(usize, usize)> =
        layout.placements.iter().zip(home).map(|(placement, node)| (placement.group, *node)).collect();
    let mut order = vec![];
    loop {
        let before = order.len();
        moves.retain(|step| {
            let is_free = !there.contains(&(group(step), step.to));
            if is_free {
                there.remove(&(group(step), step.from));
                there.insert((group(step), step.to));
                order.push(*step);
            }
            !is_free
        });
        if order.len() == before {
            return order;
        }
    }
}

/// Moves pinned and drained placements, each to the emptiest possible node; returns those without a node as well.
fn forced(layout: &Layout, home: &[usize], at: Vec<usize>) -> (Vec<usize>, Vec<usize>) {
    let mut state = State::new(layout, home, at);
    let (mut stuck, mut drained) = (vec![], vec![]);
    let mut pinned = vec![];
    for (index, placement) in layout.placements.iter().enumerate() {
        match placement.pin {
            Some(pin) if pin == state.at[index] && layout.nodes[pin].holds => {}
            Some(pin) => pinned.push((index, pin)),
            None if !layout.nodes[state.at[index]].holds => drained.push(index),
            None => {}
        }
    }
    // One placement may have to leave before another of its group can arrive.
    loop {
        let before = pinned.len();
        pinned.retain(|(index, pin)| {
            let goes = *pin != state.at[*index] && state.may(*index, *pin);
            if goes {
                state.put(*index, *pin);
            }
            !goes
        });
        if pinned.len() == before {
            break;
        }
    }
    stuck.extend(pinned.into_iter().map(|(index, _)| index));
    drained.sort_by_key(|index| (std::cmp::Reverse(layout.placements[*index].weight), *index));
    for index in drained {
        let takers = (0..layout.nodes.len()).filter(|node| state.may(index, *node));
        match takers.min_by_key(|node| (state.loads[*node], *node)) {
            Some(node) => state.put(index, node),
            None => stuck.push(index),
        }
    }
    stuck.sort_unstable();
    (state.at, stuck)
}

/// Brings all nodes inside the limit. Returns the new assignment, the bands that were reached, and the reason if they
/// exceed the limit.
fn balanced(
    layout: &Layout,
    home: &[usize],
    at: &[usize],
    wanted: Wanted,
) -> (Vec<usize>, Option<Vec<Band>>, Option<Short>) {
    let limit = wanted.limit;
    let fair = Fair::new(layout, home, at, limit);
    let skew = fair.skew(layout, at);
    let mean = balance(layout, at).mean;
    let above = |placement: usize| layout.placements[placement].weight as f64 / mean - 1.0;
    let giant = fair.giants.first().map(|(placement, _)| *placement);
    let too_large = giant.map(|placement| Short::TooLarge { placement, above: above(placement) });
    if skew <= limit || fair.nodes.len() < 2 {
        return (at.to_vec(), None, too_large);
    }
    for step in 0..=STEPS {
        let share = wanted.aim + (limit - wanted.aim) * f64::from(step) / f64::from(STEPS);
        let bands = fair.bands(layout, share);
        if let Some(found) = solve(layout, home, at, &fair, &bands) {
            return (found, Some(bands), too_large);
        }
    }
    // The limit is out of reach: search for the narrowest band that is worth the moves.
    let (mut low, mut high, mut best) = (limit, skew, None);
    for _ in 0..6 {
        let middle = (low + high) / 2.0;
        let bands = fair.bands(layout, middle);
        match solve(layout, home, at, &fair, &bands) {
            Some(found) => {
                high = fair.skew(layout, &found);
                best = Some((found, bands));
            }
            None => low = middle,
        }
    }
    let reached = best.as_ref().map_or(skew, |(found, _)| fair.skew(layout, found));
    let short = too_large.or_else(|| fair.too_few(layout, limit)).unwrap_or(Short::Bound { best: reached.min(skew) });
    match best.filter(|_| skew - reached > limit / 2.0) {
        Some((found, bands)) => (found, Some(bands), Some(short)),
        None => (at.to_vec(), None, Some(short)),
    }
}
