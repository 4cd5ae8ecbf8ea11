//! Brings a layout into a band with few bytes moved. Pure.
//!
//! *Flow:* overloaded nodes shed placements, which settle on the nodes with the largest deficit. Nodes that still lack
//! load take placements from others. Single moves and swaps repair the remaining deviations, and unnecessary moves are
//! undone. A second run starts from the moves of Citus's own rebalancer; the cheaper result wins.
//! *Invariant:* every node of a result is inside its band; otherwise there is no result. Ties are resolved by order.

use super::{band::Band, fair::Fair, layout::Layout, state::State};

/// The number of starting points for the choice of groups.
const BEGINNINGS: usize = 24;

/// The maximum number of repairs for each node.
const MENDS_EACH: usize = 8;

/// Finds an assignment in which each node is inside its band, with few bytes moved.
pub(super) fn solve(layout: &Layout, home: &[usize], at: &[usize], fair: &Fair, bands: &[Band]) -> Option<Vec<usize>> {
    if bands.iter().any(|band| band.low > band.high) {
        return None;
    }
    let mut state = State::new(layout, home, at.to_vec());
    for (giant, own) in &fair.giants {
        if state.at[*giant] != *own {
            if !state.may(*giant, *own) {
                return None;
            }
            state.put(*giant, *own);
        }
    }
    let nodes = &fair.nodes[..];
    let begun = state.at.clone();
    let pool = shed(&state, nodes, bands);
    settle(&mut state, nodes, bands, pool);
    take(&mut state, nodes, bands);
    let first = finish(state, nodes, bands);
    let mut state = State::new(layout, home, begun);
    downhill(&mut state, nodes, bands);
    let second = finish(state, nodes, bands);
    first.into_iter().chain(second).min_by_key(|(bytes, _)| *bytes).map(|(_, at)| at)
}

/// Repairs deviations and undoes unnecessary moves. Returns the bytes moved and the assignment.
fn finish(mut state: State<'_>, nodes: &[usize], bands: &[Band]) -> Option<(u64, Vec<usize>)> {
    if !mend(&mut state, nodes, bands) {
        return None;
    }
    while give_back(&mut state, bands) {}
    let moved = (0..state.at.len()).filter(|index| state.at[*index] != state.home[*index]);
    Some((moved.map(|index| state.bytes(index)).sum(), state.at))
}

/// Repeatedly moves the heaviest suitable placement from the fullest to the emptiest node, until every node is inside
/// its band: the rules of Citus's own rebalancer, over all groups at once.
fn downhill(state: &mut State<'_>, nodes: &[usize], bands: &[Band]) {
    let mut on = by_node(state);
    // Each move reduces the difference in load of two nodes. The number of moves is limited, so that the loop ends.
    for _ in 0..state.at.len() {
        let Some((index, to)) = down(state, nodes, bands, &on) else { return };
        let from = state.at[index];
        on[from].retain(|other| *other != index);
        let weight = state.weight(index);
        let place = on[to].partition_point(|other| {
            (std::cmp::Reverse(state.weight(*other)), *other) < (std::cmp::Reverse(weight), index)
        });
        on[to].insert(place, index);
        state.put(index, to);
    }
}

/// Returns the next move of [`downhill`].
fn down(state: &State<'_>, nodes: &[usize], bands: &[Band], on: &[Vec<usize>]) -> Option<(usize, usize)> {
    let mut order = nodes.to_vec();
    order.sort_by_key(|node| (std::cmp::Reverse(state.loads[*node]), *node));
    for source in &order {
        let load = state.loads[*source];
        for target in order.iter().rev().filter(|target| *target != source) {
            let is_over = load > bands[*source].high;
            let there = state.loads[*target];
            if there >= bands[*target].high || (there >= bands[*target].low && !is_over) {
                break;
            }
            let is_better = |index: &usize| {
                let weight = state.weight(*index);
                let came = there + weight;
                // The improvement is at least half of the moved weight.
                came <= load - weight || (came < load && 2 * (load - came) >= weight)
            };
            let mut could = on[*source].iter().filter(|index| is_better(index));
            if let Some(index) = could.find(|index| state.may(**index, *target)) {
                return Some((*index, *target));
            }
        }
    }
    None
}

/// Returns the movable placements of each node, the heaviest first.
fn by_node(state: &State<'_>) -> Vec<Vec<usize>> {
    let mut all = vec![vec![]; state.layout.nodes.len()];
    for (index, node) in state.at.iter().enumerate().filter(|(index, _)| state.is_movable(*index)) {
        all[*node].push(index);
    }
    for on in &mut all {
        on.sort_by_key(|index| (std::cmp::Reverse(state.weight(*index)), *index));
    }
    all
}

/// Returns the placements that leave overloaded nodes.
fn shed(state: &State<'_>, nodes: &[usize], bands: &[Band]) -> Vec<usize> {
    let on = by_node(state);
    let mut pool = vec![];
    for node in nodes {
        let load = state.loads[*node];
        let band = bands[*node];
        if load > band.high {
            pool.extend(choose(state, &on[*node], load - band.high, load - band.low));
        }
    }
    pool
}

/// Chooses placements of a node with at least the needed weight and at most the spare weight, with few bytes.
fn choose(state: &State<'_>, from: &[usize], need: u64, most: u64) -> Vec<usize> {
    let bytes = |chosen: &[usize]| chosen.iter().map(|index| state.bytes(*index)).sum::<u64>();
    let weight = |chosen: &[usize]| chosen.iter().map(|index| state.weight(*index)).sum::<u64>();
    let mut cheapest: Vec<usize> = from.to_vec();
    cheapest.sort_by(|a, b| {
        let ratio = |index: &usize| state.bytes(*index) as f64 / state.weight(*index) as f64;
        ratio(a).total_cmp(&ratio(b)).then(state.weight(*b).cmp(&state.weight(*a))).then(a.cmp(b))
    });
    let mut best: Option<Vec<usize>> = None;
    for order in [&cheapest[..], from] {
        for begin in 0..order.len().min(BEGINNINGS) {
            let (mut chosen, mut remaining) = (vec![], need);
            let mut rest = vec![];
            for index in &order[begin..] {
                let weight = state.weight(*index);
                if weight <= remaining {
                    remaining -= weight;
                    chosen.push(*index);
                } else {
                    rest.push(*index);
                }
            }
            if remaining > 0 {
                // The last placement may weigh more than the remaining need.
                let closing = rest.iter().chain(&order[..begin]).filter(|index| state.weight(**index) >= remaining);
                match closing.min_by_key(|index| (state.bytes(**index), state.weight(**index), **index)) {
                    Some(index) => chosen.push(*index),
                    None => continue,
                }
            }
            // Placements that the last one made unnecessary are dropped.
            let mut over = weight(&chosen) - need;
            chosen.sort_by_key(|index| (std::cmp::Reverse(state.bytes(*index)), *index));
            chosen.retain(|index| {
                let goes = state.weight(*index) > over;
                if !goes {
                    over -= state.weight(*index);
                }
                goes
            });
            let fits = weight(&chosen) <= most;
            if fits && best.as_ref().is_none_or(|best| bytes(&chosen) < bytes(best)) {
                best = Some(chosen);
            }
        }
    }
    best.unwrap_or_else(|| from.first().copied().into_iter().collect())
}

/// Assigns shed placements to the nodes with the largest deficit.
fn settle(state: &mut State<'_>, nodes: &[usize], bands: &[Band], mut pool: Vec<usize>) {
    pool.sort_by_key(|index| (std::cmp::Reverse(state.weight(*index)), *index));
    for index in pool {
        let weight = state.weight(index);
        let here = state.at[index];
        let takers = nodes.iter().copied().filter(|node| *node != here && state.may(index, *node));
        let best = takers.min_by_key(|node| {
            let load = state.loads[*node];
            let lacks = bands[*node].low.saturating_sub(load);
            let is_over = load + weight > bands[*node].high;
            (is_over, std::cmp::Reverse(lacks), load, *node)
        });
        if let Some(node) = best {
            state.put(index, node);
        }
    }
}

/// Moves spare placements of other nodes to underloaded nodes.
fn take(state: &mut State<'_>, nodes: &[usize], bands: &[Band]) {
    loop {
        let lacking = nodes.iter().copied().filter(|node| state.loads[*node] < bands[*node].low);
        let Some(node) = lacking.min_by_key(|node| (state.loads[*node], *node)) else { return };
        let need = bands[node].low - state.loads[node];
        let most = bands[node].high - state.loads[node];
        let spare = |index: usize| {
            let from = state.at[index];
            let load = state.loads[from];
            from != node && (!state.layout.nodes[from].holds || load >= bands[from].low + state.weight(index))
        };
        let could: Vec<usize> = (0..state.at.len())
            .filter(|index| state.is_movable(*index) && state.weight(*index) <= most)
            .filter(|index| spare(*index) && state.may(*index, node))
            .collect();
        // Prefers one placement that fills the deficit, and one that has moved already; otherwise fills a part of it.
        let ratio = |index: &usize| state.cost(*index, node) as f64 / state.weight(*index) as f64;
        let enough = could.iter().filter(|index| state.weight(**index) >= need);
        let closing = enough.min_by_key(|index| (state.cost(**index, node), state.weight(**index), **index));
        let part = could.iter().filter(|index| state.weight(**index) < need).max_by(|a, b| {
            ratio(b)
                .total_cmp(&ratio(a))
                .then(state.weight(**a).cmp(&state.weight(**b)))
                .then(state.loads[state.at[**a]].cmp(&state.loads[state.at[**b]]))
                .then(b.cmp(a))
        });
        let chosen = match (closing, part) {
            // One placement slightly over the need is better than several small ones.
            (Some(full), Some(part)) => {
                let exact = |index: usize| state.weight(index) as f64 <= need as f64 * 1.02;
                if exact(*full) || state.cost(*full, node) <= state.cost(*part, node) { *full } else { *part }
            }
            (Some(full), None) => *full,
            (None, Some(part)) => *part,
            (None, None) => return,
        };
        state.put(chosen, node);
    }
}

/// A candidate repair: the improvement, the cost in bytes, and the moves.
type Mending = (u64, i128, Vec<(usize, usize)>);

/// Repairs the remaining deviations by single moves and swaps. Returns whether all nodes are inside their bands.
fn mend(state: &mut State<'_>, nodes: &[usize], bands: &[Band]) -> bool {
    let off = |node: usize, load: u64| bands[node].low.saturating_sub(load) + load.saturating_sub(bands[node].high);
    for _ in 0..nodes.len() * MENDS_EACH {
        let worst = nodes.iter().copied().max_by_key(|node| (off(*node, state.loads[*node]), std::cmp::Reverse(*node)));
        let Some(node) = worst.filter(|node| off(*node, state.loads[*node]) > 0) else { return true };
        let on = by_node(state);
        let mut best: Option<Mending> = None;
        let mut consider = |gain: u64, cost: i128, moves: Vec<(usize, usize)>| {
            if gain > 0 && best.as_ref().is_none_or(|(known, paid, _)| (gain, -cost) > (*known, -*paid)) {
                best = Some((gain, cost, moves));
            }
        };
        for other in nodes.iter().copied().filter(|other| *other != node) {
            let is_over = state.loads[node] > bands[node].high;
            let (from, to) = if is_over { (node, other) } else { (other, node) };
            let before = off(from, state.loads[from]) + off(to, state.loads[to]);
            let after = |weight: u64, back: u64| {
                off(from, state.loads[from] + back - weight) + off(to, (state.loads[to] + weight).saturating_sub(back))
            };
            for index in &on[from] {
                let weight = state.weight(*index);
                if state.may(*index, to) {
                    consider(before.saturating_sub(after(weight, 0)), state.cost(*index, to), vec![(*index, to)]);
                }
                // Swap with a lighter placement; the difference is about the deviation.
                let want = weight.saturating_sub(off(node, state.loads[node]));
                let near = on[to].partition_point(|other| state.weight(*other) > want);
                for back in on[to].iter().skip(near.saturating_sub(1)).take(3) {
                    let lighter = state.weight(*back);
                    if lighter < weight && state.may(*index, to) && state.may(*back, from) {
                        let cost = state.cost(*index, to) + state.cost(*back, from);
                        let moves = vec![(*index, to), (*back, from)];
                        consider(before.saturating_sub(after(weight, lighter)), cost, moves);
                    }
                }
            }
        }
        let Some((_, _, moves)) = best else { return false };
        for (index, to) in moves {
            state.put(index, to);
        }
    }
    nodes.iter().all(|node| off(*node, state.loads[*node]) == 0)
}

/// Undoes unnecessary moves, and replaces moves by smaller ones. Returns whether anything changed.
fn give_back(state: &mut State<'_>, bands: &[Band]) -> bool {
    let layout = state.layout;
    let fits =
        |node: usize, load: u64| !layout.nodes[node].holds || (bands[node].low..=bands[node].high).contains(&load);
    let mut moved: Vec<usize> = (0..state.at.len())
        .filter(|index| state.at[*index] != state.home[*index] && state.is_movable(*index))
        .filter(|index| state.layout.nodes[state.home[*index]].holds)
        .collect();
    moved.sort_by_key(|index| (std::cmp::Reverse(state.bytes(*index)), *index));
    let mut changed = false;
    let on = by_node(state);
    for index in moved {
        let (here, home, weight) = (state.at[index], state.home[index], state.weight(index));
        if here == home || !state.may(index, home) {
            continue;
        }
        let (there, back) = (state.loads[here] - weight, state.loads[home] + weight);
        if fits(here, there) && fits(home, back) {
            state.put(index, home);
            changed = true;
            continue;
        }
        // Replace the move by one of another placement of the same node with fewer bytes.
        let is_at_home = |other: usize| state.at[other] == home && state.home[other] == home;
        let cheaper =
            on[home].iter().copied().filter(|other| is_at_home(*other) && state.bytes(*other) < state.bytes(index));
        let instead = cheaper.filter(|other| {
            let other_weight = state.weight(*other);
            fits(here, there + other_weight) && fits(home, back - other_weight) && state.may(*other, here)
        });
        if let Some(other) = instead.min_by_key(|other| (state.bytes(*other), *other)) {
            state.put(index, home);
            state.put(other, here);
            changed = true;
        }
    }
    changed
}
