//! Tests that the planner of shard moves keeps its guarantees for any layout.

use evenkeel::targets::citus::planner::{
    Rebalance, Wanted,
    layout::{Because, Layout, Node, Placement, Short, balance},
    plan,
};
use proptest::prelude::*;

const TEN: Option<Wanted> = Some(Wanted { limit: 0.1, aim: 0.05 });

/// Returns nodes `n0`, `n1`, …, which all accept shards, with groups of these weights.
fn layout(on: &[&[u64]]) -> Layout {
    let nodes = (0..on.len()).map(|at| Node { name: format!("n{at}:5432"), holds: true, room: None }).collect();
    let groups = on.iter().enumerate().flat_map(|(node, weights)| weights.iter().map(move |weight| (node, *weight)));
    let placements =
        groups.enumerate().map(|(group, (node, weight))| Placement { group, node, bytes: weight, weight, pin: None });
    Layout { nodes, placements: placements.collect() }
}

fn applied(layout: &Layout, plan: &Rebalance) -> Layout {
    let mut after = layout.clone();
    for step in &plan.moves {
        assert_eq!(after.placements[step.placement].node, step.from);
        after.placements[step.placement].node = step.to;
    }
    after
}

#[test]
fn a_worker_that_joins_is_filled_with_as_little_as_brings_all_within_the_limit() {
    // As on a real cluster: 64 equal groups, three workers, and a fourth one that is empty.
    let alike = [100_u64; 22];
    let layout = layout(&[&alike, &alike[..21], &alike[..21], &[]]);
    let found = plan(&layout, TEN);
    assert!(found.after.skew() <= 0.1 && found.short.is_none(), "{found:?}");
    assert_eq!((found.moves.len(), found.bytes, found.bytes_at_least), (16, 1600, 1600), "{found:?}");
    assert!(found.moves.iter().all(|step| step.to == 3 && step.because == Because::Balance));
    assert!(plan(&applied(&layout, &found), TEN).moves.is_empty());
}

#[test]
fn two_groups_with_opposite_skew_need_no_move() {
    // The first two groups are of one colocation group, the others of another: only the total of a node counts.
    let layout = layout(&[&[90, 10], &[10, 90]]);
    let found = plan(&layout, TEN);
    assert!(found.moves.is_empty() && found.short.is_none() && found.before.skew() == 0.0, "{found:?}");
}

#[test]
fn what_cannot_be_reached_is_said_with_the_reason() {
    // One tenant exceeds the target of a node: its node is emptied of other shards, the other nodes are balanced.
    let large = layout(&[&[500, 50, 50], &[100], &[100, 100]]);
    let found = plan(&large, TEN);
    let Some(Short::TooLarge { placement: 0, above }) = &found.short else { panic!("{found:?}") };
    assert!((above - (500.0 / 300.0 - 1.0)).abs() < 1e-9);
    assert_eq!(found.after.loads, [500, 200, 200], "{found:?}");
    // 32 equal groups on 20 nodes: no layout is within 10 %, which needs about 200 groups.
    let alike: Vec<Vec<u64>> = (0..20).map(|node| vec![7; if node < 12 { 2 } else { 1 }]).collect();
    let few = layout(&alike.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let found = plan(&few, TEN);
    let Some(Short::TooFew { groups: 32, best, enough: 200 }) = found.short else { panic!("{found:?}") };
    assert_eq!(best, (0.25, 0.375));
    assert!(found.moves.is_empty());
}

#[test]
fn pins_and_drains_come_first_and_a_full_node_takes_nothing() {
    let mut all = layout(&[&[10, 10, 10], &[10, 10, 10], &[10, 10, 10], &[]]);
    all.nodes[0].holds = false;
    all.nodes[3].room = Some(15);
    all.placements[4].pin = Some(2);
    let found = plan(&all, None);
    let drained: Vec<_> = found.moves.iter().filter(|step| step.because == Because::Drain).collect();
    assert_eq!((drained.len(), found.stuck.len()), (3, 0));
    assert_eq!(found.moves[0].because, Because::Pin);
    let after = applied(&all, &found);
    assert_eq!((after.placements[4].node, balance(&after, &home(&after)).bytes[3]), (2, 10));
    // If no node accepts the group, the plan reports it, and the group stays.
    let mut none = layout(&[&[10], &[]]);
    none.nodes[0].holds = false;
    none.nodes[1].room = Some(5);
    assert_eq!(plan(&none, TEN).stuck, [0]);
}

#[test]
fn what_is_pinned_and_too_large_does_not_keep_the_others_from_being_balanced() {
    let mut all = layout(&[&[500, 400], &[10; 30], &[]]);
    (all.placements[0].pin, all.placements[1].pin) = (Some(0), Some(0));
    let found = plan(&all, TEN);
    assert!(matches!(found.short, Some(Short::TooLarge { placement: 0, .. })), "{found:?}");
    assert_eq!((found.after.loads[0], found.moves.is_empty()), (900, false), "{found:?}");
    assert!(found.after.loads[1].abs_diff(found.after.loads[2]) <= 30, "{found:?}");
}

#[test]
fn nothing_is_nothing() {
    for empty in [Layout::default(), layout(&[&[]]), layout(&[&[], &[], &[]]), layout(&[&[0, 0], &[0]])] {
        let found = plan(&empty, TEN);
        assert!(found.moves.is_empty() && found.short.is_none() && found.bytes == 0, "{found:?}");
    }
}

fn home(layout: &Layout) -> Vec<usize> {
    layout.placements.iter().map(|placement| placement.node).collect()
}

/// Nodes that accept shards or not, with a capacity or not; groups with up to two placements, pinned or not.
fn any_layout() -> impl Strategy<Value = Layout> {
    let nodes = proptest::collection::vec((0..6_u8, 0..4_u8, 200..3000_u64), 1..9);
    nodes.prop_flat_map(|nodes| {
        let count = nodes.len();
        let nodes: Vec<Node> = nodes
            .into_iter()
            .enumerate()
            .map(|(at, (drain, full, room))| Node {
                name: format!("n{at}:5432"),
                holds: drain > 0 || at == 0,
                room: (full == 0).then_some(room),
            })
            .collect();
        let group = (0..count, 1..400_u64, 0..20_u8, 0..count, 0..10_u8);
        proptest::collection::vec(group, 0..90).prop_map(move |groups| {
            let mut placements = vec![];
            for (group, (node, weight, pinned, pin, twin)) in groups.into_iter().enumerate() {
                let has_twin = twin == 0 && count > 1;
                let other = (node + 1) % count;
                let free = |pin: &usize, own: usize| !has_twin || *pin == own || *pin != node && *pin != other;
                let pin = (pinned == 0).then_some(pin).filter(|pin| free(pin, node));
                let placement = Placement { group, node, bytes: weight * 10, weight, pin };
                if has_twin {
                    let pin = (pinned < 6).then_some((pin.unwrap_or(node) + usize::from(pinned)) % count);
                    placements.push(Placement {
                        node: other,
                        pin: pin.filter(|pin| free(pin, other)),
                        ..placement.clone()
                    });
                }
                placements.push(placement);
            }
            Layout { nodes: nodes.clone(), placements }
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_plan_keeps_its_promises(layout in any_layout(), limit in prop::sample::select(vec![0.05, 0.1, 0.3])) {
        let found = plan(&layout, Some(Wanted::within(limit)));
        prop_assert_eq!(&found, &plan(&layout, Some(Wanted::within(limit))));
        let after = applied(&layout, &found);
        // A pinned or drained placement is on the right node, or is reported as stuck.
        for (index, placement) in after.placements.iter().enumerate() {
            let is_right = match placement.pin {
                Some(pin) => placement.node == pin,
                None => after.nodes[placement.node].holds,
            };
            prop_assert!(is_right || found.stuck.contains(&index));
        }
        // At no moment does a node have two placements of one group.
        let mut moving = layout.clone();
        for step in &found.moves {
            let group = moving.placements[step.placement].group;
            let is_there = |other: &Placement| other.group == group && other.node == step.to;
            prop_assert!(!moving.placements.iter().any(is_there), "two of one group on one node");
            moving.placements[step.placement].node = step.to;
        }
        for (node, room) in layout.nodes.iter().enumerate().filter_map(|(at, node)| Some((at, node.room?))) {
            let came: u64 = found.moves.iter().filter(|step| step.to == node)
                .map(|step| layout.placements[step.placement].bytes).sum();
            prop_assert!(came <= room, "{came} on {room}");
        }
        let bytes: u64 = found.moves.iter().map(|step| layout.placements[step.placement].bytes).sum();
        prop_assert_eq!(found.bytes, bytes);
        prop_assert!(found.bytes_at_least <= found.bytes, "{} of {}", found.bytes_at_least, found.bytes);
        let forced = found.moves.iter().any(|step| step.because != Because::Balance);
        prop_assert!(forced || found.after.skew() <= found.before.skew() + 1e-9);
        prop_assert!(found.short.is_some() || !found.stuck.is_empty() || found.after.skew() <= limit + 1e-9);
        let again = plan(&Layout { nodes: without_room(&layout, &found), ..after }, Some(Wanted::within(limit)));
        prop_assert!(again.moves.is_empty(), "{again:?}");
    }
}

/// Returns the nodes with the capacity that remains after a plan.
fn without_room(layout: &Layout, found: &Rebalance) -> Vec<Node> {
    let came = |node: usize| -> u64 {
        found.moves.iter().filter(|step| step.to == node).map(|step| layout.placements[step.placement].bytes).sum()
    };
    let nodes = layout.nodes.iter().enumerate();
    nodes.map(|(at, node)| Node { room: node.room.map(|room| room - came(at)), ..node.clone() }).collect()
}
