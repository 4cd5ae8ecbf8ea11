//! Computes a lower bound for the bytes that any plan has to move. Pure.
//!
//! Tests and reports compare plans with the bound. No decision depends on it.

use super::{
    band::Band,
    layout::{Layout, Placement},
};

/// Returns the provable minimum of bytes that a plan moves to bring every node into its band.
pub(super) fn at_least(layout: &Layout, home: &[usize], stuck: &[usize], bands: Option<Vec<Band>>) -> u64 {
    let mut loads = vec![0_u64; layout.nodes.len()];
    let (mut bytes, mut loose) = (0, 0);
    let mut movable: Vec<Vec<&Placement>> = vec![vec![]; layout.nodes.len()];
    for (index, (placement, node)) in layout.placements.iter().zip(home).enumerate() {
        match placement.pin {
            _ if stuck.binary_search(&index).is_ok() => loads[*node] += placement.weight,
            Some(pin) => {
                loads[pin] += placement.weight;
                bytes += if pin == *node { 0 } else { placement.bytes };
            }
            None if !layout.nodes[*node].holds => {
                loose += placement.weight;
                bytes += placement.bytes;
            }
            None => {
                loads[*node] += placement.weight;
                movable[*node].push(placement);
            }
        }
    }
    let Some(bands) = bands else { return bytes };
    let nodes = || (0..layout.nodes.len()).filter(|node| layout.nodes[*node].holds);
    // The excess of a node leaves it in whole placements; a deficit is filled with whole placements.
    let whole = movable.iter().flatten().map(|placement| placement.weight).fold(loose, gcd).max(1);
    let mut leaves = 0;
    for node in nodes().filter(|node| loads[*node] > bands[*node].high) {
        let smallest = movable[node].iter().map(|placement| placement.bytes).min().unwrap_or(0);
        leaves += cheapest(&movable[node], (loads[node] - bands[node].high).next_multiple_of(whole)).max(smallest);
    }
    let lacking: u64 = nodes().map(|node| bands[node].low.saturating_sub(loads[node]).next_multiple_of(whole)).sum();
    let all: Vec<&Placement> = movable.concat();
    bytes + leaves.max(cheapest(&all, lacking.saturating_sub(loose)))
}

/// Converts a float to an integer; a negative number becomes 0.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is not negative, and saturates")]
pub(super) fn whole(number: f64) -> u64 {
    number.max(0.0) as u64
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Returns the fewest bytes that have a weight, as if placements could be divided.
fn cheapest(from: &[&Placement], mut weight: u64) -> u64 {
    let mut from: Vec<&&Placement> = from.iter().filter(|placement| placement.weight > 0).collect();
    from.sort_by(|a, b| (a.bytes as f64 / a.weight as f64).total_cmp(&(b.bytes as f64 / b.weight as f64)));
    let mut bytes = 0;
    for placement in from {
        if placement.weight >= weight {
            let part = u128::from(placement.bytes) * u128::from(weight) / u128::from(placement.weight);
            return bytes + u64::try_from(part).unwrap_or(u64::MAX);
        }
        weight -= placement.weight;
        bytes += placement.bytes;
    }
    bytes
}
