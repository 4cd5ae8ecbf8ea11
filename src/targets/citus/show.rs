//! A plan of shard moves for people: bars for each node before and after, and why the limit is out of reach.
//!
//! Decides nothing.

use std::fmt::Write as _;

use super::balance::{Balance, Layout, Rebalance, Short};

/// How wide a bar is where a node carries twice the mean or more.
const BAR: usize = 20;
/// How many nodes are shown; of more, the fullest and the emptiest.
const NODES_MAX: usize = 40;

/// A node for each line, with what it carries before and after, in a table of fixed width.
pub fn bars(layout: &Layout, plan: &Rebalance) -> String {
    let mut nodes: Vec<usize> = (0..layout.nodes.len()).collect();
    nodes.sort_by_key(|node| (std::cmp::Reverse(plan.before.loads[*node]), *node));
    let left_out = nodes.len().saturating_sub(NODES_MAX);
    if left_out > 0 {
        nodes.drain(NODES_MAX / 2..NODES_MAX / 2 + left_out);
    }
    let width = nodes.iter().map(|node| layout.nodes[*node].name.len()).max().unwrap_or(0).max(4);
    let column = BAR + 17;
    let mut text = format!("{:width$}  {:column$}  {}\n", "node", "before", "after");
    for (at, node) in nodes.into_iter().enumerate() {
        if left_out > 0 && at == NODES_MAX / 2 {
            let _ = writeln!(text, "{:width$}  … {left_out} nodes between them", "");
        }
        let name = &layout.nodes[node].name;
        let (before, after) = (bar(&plan.before, node), bar(&plan.after, node));
        let mark = if layout.nodes[node].holds { "" } else { "  (holds nothing)" };
        let _ = writeln!(text, "{name:width$}  {before:column$}  {after}{mark}");
    }
    text
}

/// What one node carries: a bar, the bytes, and how far it is from the mean.
fn bar(balance: &Balance, node: usize) -> String {
    let share = if balance.mean > 0.0 { balance.loads[node] as f64 / balance.mean } else { 0.0 };
    let eighths = eighths(share);
    let parts = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let drawn = format!("{}{}", "█".repeat(eighths / 8), parts[eighths % 8]);
    format!("{drawn:BAR$} {:>9} {:>6}", size(balance.bytes[node]), percent(share - 1.0))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is between nothing and a whole bar")]
fn eighths(share: f64) -> usize {
    (share * (BAR * 8) as f64 / 2.0).round().clamp(0.0, (BAR * 8) as f64) as usize
}

fn percent(share: f64) -> String {
    if share.abs() < 0.005 { "0 %".into() } else { format!("{:+.0} %", share * 100.0) }
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    let (mut size, mut unit) = (bytes as f64, 0);
    while size >= 1000.0 && unit < 5 {
        (size, unit) = (size / 1024.0, unit + 1);
    }
    let unit_name = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"][unit];
    if unit == 0 || size >= 100.0 { format!("{size:.0} {unit_name}") } else { format!("{size:.1} {unit_name}") }
}

/// What a plan does, in a sentence.
pub fn summary(plan: &Rebalance) -> String {
    let spread = |balance: &Balance| format!("{} / {}", percent(balance.above), percent(-balance.below));
    if plan.moves.is_empty() {
        return format!("Nothing moves: the nodes are within {} of the mean.", spread(&plan.before));
    }
    let moves = if plan.moves.len() == 1 { "1 move".into() } else { format!("{} moves", plan.moves.len()) };
    format!(
        "{moves} of {} (at least {}): from {} to {} of the mean.",
        size(plan.bytes),
        size(plan.bytes_at_least),
        spread(&plan.before),
        spread(&plan.after)
    )
}

/// Why the limit is not reached, in a sentence; `name` says what a placement is called.
pub fn why(short: &Short, nodes: usize, limit: f64, name: impl Fn(usize) -> String) -> String {
    match short {
        Short::TooLarge { placement, above } => format!(
            "`{}` alone is {} above what a node carries in the mean: give its largest tenant a shard of its own",
            name(*placement),
            percent(*above)
        ),
        Short::TooFew { groups, best: (above, below), enough } => format!(
            "the best with {groups} groups on {nodes} nodes is {} and {}; about {enough} groups reach {:.0} %",
            percent(*above),
            percent(-below),
            limit * 100.0
        ),
        Short::Bound { best } => format!(
            "no layout within {:.0} % was found; the best is {:.0} %, with what is pinned and the room that there is",
            limit * 100.0,
            best * 100.0
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::balance, *};

    #[test]
    fn a_plan_is_drawn_and_said() {
        let node = |at: usize| balance::Node { name: format!("10.0.0.{at}:5432"), holds: at != 9, room: None };
        let gib = 1_u64 << 30;
        let placements = (0..24).map(|group| balance::Placement {
            group,
            node: [0, 0, 0, 1][group % 4],
            bytes: gib,
            weight: gib,
            pin: None,
        });
        let layout = Layout { nodes: vec![node(1), node(2), node(3)], placements: placements.collect() };
        let plan = balance::plan(&layout, Some(balance::Wanted::within(0.1)));
        assert_eq!(
            bars(&layout, &plan),
            "node           before                                 after\n\
             10.0.0.1:5432  ████████████████████  18.0 GiB +125 %  ██████████             8.0 GiB    0 %\n\
             10.0.0.2:5432  ███████▌               6.0 GiB  -25 %  ██████████             8.0 GiB    0 %\n\
             10.0.0.3:5432                             0 B -100 %  ██████████             8.0 GiB    0 %\n"
        );
        assert_eq!(
            summary(&plan),
            "10 moves of 10.0 GiB (at least 10.0 GiB): from +125 % / -100 % to 0 % / 0 % of the mean."
        );
        let few = Short::TooFew { groups: 32, best: (0.25, 0.375), enough: 200 };
        assert_eq!(
            why(&few, 20, 0.1, |_| String::new()),
            "the best with 32 groups on 20 nodes is +25 % and -38 %; about 200 groups reach 10 %"
        );
    }
}
