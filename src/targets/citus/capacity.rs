//! Evaluates capacity rules: figures, the time over their limits, and forecasts. Pure.
//!
//! Decides whether a figure has been over its limit for the duration of its rule.
//! *Invariant:* never changes a limit or a node. A pull request proposes more nodes.

use super::{observe::Seen, rebalance::tenants};
use crate::targets::citus::placement::{Capacity, CapacityWhen, Moves};
use crate::targets::citus::steps::Memory;
use crate::{domain::message::layout::size, ports::MoreCapacity};

/// The interval of stored samples, in seconds.
const SAMPLE_EVERY: i64 = 3600;
/// The maximum number of stored samples: two weeks.
const SAMPLES_MAX: usize = 14 * 24;
/// The forecast horizon, in days.
const AHEAD_DAYS: i64 = 30;
/// The minimum history for a forecast, in seconds.
const FORECAST_MIN: i64 = 6 * 3600;
const DAY: i64 = 24 * 3600;

/// The measured figure of one rule.
struct Figure {
    /// The mean of the nodes; for disks, the fullest node.
    value: f64,
    limit: f64,
    /// The sum over the cluster.
    total: u64,
    format_value: fn(f64) -> String,
    what: &'static str,
}

fn count(value: f64) -> String {
    format!("{value:.0}")
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes are positive")]
fn bytes(value: f64) -> String {
    size(value.max(0.0) as u64)
}

fn percent(value: f64) -> String {
    format!("{value:.0} %")
}

fn figure(when: &CapacityWhen, moves: &Moves, seen: &Seen) -> Result<Figure, String> {
    let holding: Vec<&str> = (seen.catalog.nodes.iter())
        .filter(|node| node.is_primary && node.is_active && node.holds)
        .map(|node| node.name.as_str())
        .collect();
    if holding.is_empty() {
        return Err("no node holds shards".into());
    }
    let nodes = holding.len() as f64;
    let used = |node: &&str| seen.workers.get(*node).map_or(0, |worker| worker.bytes);
    if let Some(limit) = when.tenants_per_worker {
        let total: u64 = tenants(seen)?.values().sum();
        return Ok(Figure {
            value: total as f64 / nodes,
            limit: limit as f64,
            total,
            format_value: count,
            what: "tenants on a node",
        });
    }
    let total: u64 = holding.iter().map(used).sum();
    if let Some(limit) = when.bytes_per_worker {
        return Ok(Figure {
            value: total as f64 / nodes,
            limit: limit.0 as f64,
            total,
            format_value: bytes,
            what: "on a node",
        });
    }
    let (Some(limit), Some(disk)) = (when.disk_used, moves.disk_size) else {
        return Err("`diskUsed` needs `moves.diskSize`".into());
    };
    let fullest = holding.iter().map(used).max().unwrap_or(0);
    let value = fullest as f64 / disk.0 as f64 * 100.0;
    Ok(Figure { value, limit: f64::from(limit.0), total, format_value: percent, what: "of the fullest disk" })
}

/// Returns the rules that are due, with the updated memory, and notes on rules that can't be evaluated.
pub fn wanted(
    rules: &[Capacity],
    moves: &Moves,
    seen: &Seen,
    memory: &mut Memory,
    now: i64,
    notes: &mut Vec<String>,
) -> Vec<MoreCapacity> {
    let mut wanted = vec![];
    let mut known = std::mem::take(&mut memory.rules);
    for rule in rules {
        let CapacityWhen { tenants_per_worker, bytes_per_worker, disk_used, .. } = &rule.when;
        let limit = match (tenants_per_worker, bytes_per_worker, disk_used) {
            (Some(_), ..) => "tenants",
            (None, Some(_), _) => "bytes",
            _ => "disk",
        };
        let name = format!("{}.{} {limit}", rule.raise.component, rule.raise.variable);
        let figure = match figure(&rule.when, moves, seen) {
            Ok(figure) => figure,
            Err(why) => {
                notes.push(format!("the capacity rule for `{name}` is not known: {why}"));
                // An unknown figure is neither over nor under its limit.
                known.remove(&name).map(|known| memory.rules.insert(name, known));
                continue;
            }
        };
        let mut rule_memory = known.remove(&name).unwrap_or_default();
        let is_due = rule_memory.samples.last().is_none_or(|(at, _)| now - at >= SAMPLE_EVERY);
        if is_due {
            rule_memory.samples.push((now, figure.total));
            let excess = rule_memory.samples.len().saturating_sub(SAMPLES_MAX);
            rule_memory.samples.drain(..excess);
        }
        rule_memory.over_since = (figure.value > figure.limit).then(|| rule_memory.over_since.unwrap_or(now));
        if let Some(since) = rule_memory.over_since
            && now - since >= i64::try_from(rule.when.r#for.as_seconds()).unwrap_or(i64::MAX)
        {
            let Figure { value, limit, format_value, what, .. } = figure;
            let message = format!(
                "{} {what}, and the limit is {}; for {} it has been over it.{}",
                format_value(value),
                format_value(limit),
                ago(now - since),
                forecast(&rule_memory.samples, value, format_value)
            );
            wanted.push(MoreCapacity {
                component: rule.raise.component.clone(),
                variable: rule.raise.variable.clone(),
                by: rule.raise.by,
                max: rule.raise.max,
                message,
            });
        }
        memory.rules.insert(name, rule_memory);
    }
    wanted
}

fn ago(seconds: i64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / DAY),
    }
}

/// Extrapolates the samples linearly.
fn forecast(samples: &[(i64, u64)], value: f64, format_value: fn(f64) -> String) -> String {
    let (Some((from, first)), Some((to, last))) = (samples.first(), samples.last()) else { return String::new() };
    let span = to - from;
    if span < FORECAST_MIN || *first == 0 || *last == 0 {
        return " It is too early to say where it goes.".into();
    }
    let a_day = (*last as f64 - *first as f64) / *last as f64 * value / (span as f64 / DAY as f64);
    let ahead = value + a_day * AHEAD_DAYS as f64;
    format!(
        " As it went in the last {}, it is {} in {AHEAD_DAYS} days with the nodes that there are.",
        ago(span),
        format_value(ahead.max(0.0))
    )
}

#[cfg(test)]
mod tests {
    use super::{
        super::{catalog::NodeRow, observe::Worker},
        *,
    };

    #[test]
    fn a_rule_holds_once_it_has_held_for_its_time() {
        let rule: Capacity = serde_json::from_value(serde_json::json!({
            "when": {"bytesPerWorker": "1GiB", "for": "24h"},
            "raise": {"component": "vm", "variable": "count", "by": 1, "max": 5},
        }))
        .unwrap();
        let node = |name: &str| NodeRow { group: 1, name: name.into(), is_primary: true, is_active: true, holds: true };
        let mut seen = Seen::default();
        seen.catalog.nodes = vec![node("a:1"), node("b:1")];
        let mut fill = |bytes: u64| {
            for name in ["a:1", "b:1"] {
                seen.workers.insert(name.into(), Worker { bytes, ..Worker::default() });
            }
            seen.clone()
        };
        let (mut memory, mut notes) = (Memory::default(), vec![]);
        let mut observe = |seen: &Seen, hour: i64| {
            let found =
                wanted(std::slice::from_ref(&rule), &Moves::default(), seen, &mut memory, hour * 3600, &mut notes);
            found.into_iter().map(|proposal| proposal.message).collect::<Vec<_>>()
        };
        assert!(observe(&fill(1 << 29), 0).is_empty());
        assert!(observe(&fill(3 << 29), 10).is_empty());
        assert!(observe(&fill(3 << 29), 33).is_empty());
        assert_eq!(
            observe(&fill(3 << 29), 34),
            [
                "1.5 GiB on a node, and the limit is 1.0 GiB; for 24 h it has been over it. As it went in the last 34 h, it is 22.7 GiB in 30 days with the nodes that there are."
            ]
        );
        // A figure under the limit resets the duration.
        assert!(observe(&fill(1 << 29), 35).is_empty());
        assert!(observe(&fill(3 << 29), 40).is_empty());
        assert!(notes.is_empty());
    }
}
