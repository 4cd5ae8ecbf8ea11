//! Formats a plan of shard moves: bars for each node, before and after.

use std::fmt::Write as _;

use crate::model::layout::{LayoutPlan, Load};

/// The width of a bar, in characters, for a node with twice the mean load or more.
const BAR: usize = 20;
/// The most nodes that are shown. Of more nodes, the fullest and the emptiest are shown.
const NODES_MAX: usize = 40;

/// Returns a table of fixed width with one line per node: its load before and after the moves.
pub fn bars(plan: &LayoutPlan) -> String {
    let mut nodes: Vec<usize> = (0..plan.nodes.len()).collect();
    nodes.sort_by_key(|node| (std::cmp::Reverse(plan.nodes[*node].before.load), *node));
    let left_out = nodes.len().saturating_sub(NODES_MAX);
    if left_out > 0 {
        nodes.drain(NODES_MAX / 2..NODES_MAX / 2 + left_out);
    }
    let holding = plan.nodes.iter().filter(|node| node.holds).count().max(1);
    let mean = plan.nodes.iter().map(|node| node.before.load).sum::<u64>() as f64 / holding as f64;
    let width = nodes.iter().map(|node| plan.nodes[*node].node.len()).max().unwrap_or(0).max(4);
    let column = BAR + 17;
    let mut text = format!("{:width$}  {:column$}  {}\n", "node", "before", "after");
    for (at, node) in nodes.into_iter().enumerate() {
        if left_out > 0 && at == NODES_MAX / 2 {
            let _ = writeln!(text, "{:width$}  … {left_out} nodes between them", "");
        }
        let node = &plan.nodes[node];
        let (before, after) = (bar(node.before, mean), bar(node.after, mean));
        let mark = if node.holds { "" } else { "  (holds nothing)" };
        let _ = writeln!(text, "{:width$}  {before:column$}  {after}{mark}", node.node);
    }
    text
}

/// Returns the load of one node: a bar, the bytes, and the deviation from the mean.
fn bar(load: Load, mean: f64) -> String {
    let share = if mean > 0.0 { load.load as f64 / mean } else { 0.0 };
    let eighths = eighths(share);
    let parts = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let drawn = format!("{}{}", "█".repeat(eighths / 8), parts[eighths % 8]);
    format!("{drawn:BAR$} {:>9} {:>6}", size(load.bytes), percent(share - 1.0))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is between nothing and a whole bar")]
fn eighths(share: f64) -> usize {
    (share * (BAR * 8) as f64 / 2.0).round().clamp(0.0, (BAR * 8) as f64) as usize
}

/// Formats a share as a percentage: `+12 %`.
pub fn percent(share: f64) -> String {
    if share.abs() < 0.005 { "0 %".into() } else { format!("{:+.0} %", share * 100.0) }
}

/// Formats a number of bytes.
pub fn size(bytes: u64) -> String {
    let (mut size, mut unit) = (bytes as f64, 0);
    while size >= 1000.0 && unit < 5 {
        (size, unit) = (size / 1024.0, unit + 1);
    }
    let unit_name = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"][unit];
    if unit == 0 || size >= 100.0 { format!("{size:.0} {unit_name}") } else { format!("{size:.1} {unit_name}") }
}

/// Formats a duration in seconds.
pub fn time(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds.div_ceil(60)),
        _ => format!("{:.1} h", seconds as f64 / 3600.0),
    }
}

/// Returns a summary of a layout plan.
pub fn summary(plan: &LayoutPlan) -> String {
    let spread = |after: bool| {
        let (above, below) = plan.spread(after);
        format!("{} / {}", percent(above), percent(-below))
    };
    if plan.moves.is_empty() {
        return format!("Nothing moves: the nodes are at {} of the mean.", spread(false));
    }
    let moves = if plan.moves.len() == 1 { "1 move".into() } else { format!("{} moves", plan.moves.len()) };
    let seconds = plan.moves.iter().map(|shard_move| shard_move.seconds).sum();
    format!(
        "{moves} of {} (at least {}), about {}: from {} to {} of the mean.",
        size(plan.bytes),
        size(plan.bytes_at_least),
        time(seconds),
        spread(false),
        spread(true)
    )
}

/// Returns a whole plan in Markdown: the summary, the bars and the moves.
pub fn drawn(plan: &LayoutPlan) -> String {
    format!("{}\n\n````text\n{}````\n\n{}", summary(plan), bars(plan), moves(plan))
}

/// The most moves that a table shows.
const MOVES_MAX: usize = 30;

/// Returns the moves of a plan with their cost, as a Markdown table; empty if there are no moves.
pub fn moves(plan: &LayoutPlan) -> String {
    if plan.moves.is_empty() {
        return String::new();
    }
    let mut text = String::from("| move | bytes | about |\n|---|--:|--:|\n");
    for shard_move in plan.moves.iter().take(MOVES_MAX) {
        let to = shard_move.to.as_str();
        let _ = writeln!(
            text,
            "| `{}` → `{to}` | {} | {} |",
            shard_move.resource,
            size(shard_move.bytes),
            time(shard_move.seconds)
        );
    }
    if plan.moves.len() > MOVES_MAX {
        let rest = &plan.moves[MOVES_MAX..];
        let bytes = rest.iter().map(|shard_move| shard_move.bytes).sum();
        let seconds = rest.iter().map(|shard_move| shard_move.seconds).sum();
        let _ = writeln!(text, "| {} more | {} | {} |", rest.len(), size(bytes), time(seconds));
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::layout::{MoveFigures, NodeLoad};

    #[test]
    fn a_plan_is_drawn_and_summarized() {
        let gib = |count: u64| Load { load: count << 30, bytes: count << 30 };
        let node = |at: usize, before, after| NodeLoad {
            node: format!("10.0.0.{at}:5432"),
            holds: at != 9,
            before: gib(before),
            after: gib(after),
        };
        let shard_move =
            MoveFigures { resource: "shards a on b".into(), to: "c".into(), bytes: 10 << 30, seconds: 3000 };
        let plan = LayoutPlan {
            balance: "bytes".into(),
            limit: 0.1,
            nodes: vec![node(1, 18, 8), node(2, 6, 8), node(3, 0, 8), node(9, 0, 0)],
            moves: vec![shard_move],
            bytes: 10 << 30,
            bytes_at_least: 10 << 30,
        };
        assert_eq!(
            bars(&plan),
            "node           before                                 after\n\
             10.0.0.1:5432  ████████████████████  18.0 GiB +125 %  ██████████             8.0 GiB    0 %\n\
             10.0.0.2:5432  ███████▌               6.0 GiB  -25 %  ██████████             8.0 GiB    0 %\n\
             10.0.0.3:5432                             0 B -100 %  ██████████             8.0 GiB    0 %\n\
             10.0.0.9:5432                             0 B -100 %                             0 B -100 %  (holds nothing)\n"
        );
        assert_eq!(
            summary(&plan),
            "1 move of 10.0 GiB (at least 10.0 GiB), about 50 min: from +125 % / -100 % to 0 % / 0 % of the mean."
        );
        assert_eq!(time(100), "100 s");
        assert_eq!(time(9000), "2.5 h");
    }
}
