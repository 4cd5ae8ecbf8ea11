//! Plans the moves of a cluster from an observation: required moves and moves for balance. Pure.
//!
//! Decides which nodes take part, which quantity is balanced, and whether the cluster is ready for each move. Missing
//! prerequisites are reported in the plan, not during the apply. An impossible move for balance becomes a note; an
//! impossible required move refuses the plan.

use super::{
    catalog::{self, By, Group, NodeRow},
    observe::{Seen, Version},
    plan::{MOVE, REBALANCE},
    planner::{self, Rebalance, Wanted},
};
use crate::targets::citus::placement::{BalanceBy, BalanceWord, Moves, RebalanceMode, TransferMode};
use crate::targets::citus::planner::layout::{self, Balance, Because, Layout, Node, Placement};
use crate::targets::citus::steps::Moving;
use crate::targets::citus::steps::{
    Compared, Found, Task, field, holds_shards, is_to_hold, is_to_hold_there, undeclared,
};
use crate::{
    domain::message::layout::{percent, size},
    model::{
        Change,
        layout::{LayoutPlan, Load, MoveFigures, NodeLoad},
    },
};
use serde_json::json;
use std::collections::BTreeMap;

/// The maximum number of unbalanced colocations in the notes.
const SKEWED_SHOWN: usize = 3;

/// The first version that can move tables of one colocation group concurrently.
const PARALLEL_SINCE: Version = Version(13, 2);

/// Returns the number of concurrent moves. Before [`PARALLEL_SINCE`] a move locks its whole colocation, and a second
/// move with concurrent writes waits for the first one.
pub fn at_once(version: Version, moves: &Moves) -> usize {
    let is_serial = version < PARALLEL_SINCE && moves.transfer_mode != TransferMode::BlockWrites;
    if is_serial { 1 } else { usize::try_from(moves.parallel).unwrap_or(1).max(1) }
}

/// Whether groups of one colocation can move concurrently.
pub fn shares_colocation(version: Version) -> bool {
    version >= PARALLEL_SINCE
}

/// Adds the moves of a plan.
pub(super) fn moves(this: &Compared<'_>, found: &mut Found) {
    let catalog = &this.seen.catalog;
    let is_lost = |node: &&NodeRow| node.is_primary && !node.is_active && holds_shards(this, node);
    if let Some(node) = catalog.nodes.iter().find(is_lost) {
        let has_to = !undeclared(this).is_empty() || !this.work.placement.drain.is_empty();
        let message = format!("`{}` is inactive: what is on it can't be measured, so nothing is moved", node.name);
        if has_to {
            found.refuse(|| message.clone());
        }
        return found.notes.push(message);
    }
    let (by, is_told) = match by(this) {
        Ok(by) => (by, true),
        Err(why) => {
            found.notes.push(format!("nothing is balanced: {why}"));
            (By::Bytes, false)
        }
    };
    let (mut layout, groups) = match catalog::layout(catalog, &by) {
        Ok(layout) => layout,
        Err(why) => return found.refuse(|| format!("the catalogs contradict each other: {why}")),
    };
    nodes(this, &mut layout);
    pins(this, &mut layout, &groups, found);
    let limit = f64::from(this.work.placement.skew.0) / 100.0;
    let wanted = Wanted::within(limit);
    let home: Vec<usize> = layout.placements.iter().map(|placement| placement.node).collect();
    let before = layout::balance(&layout, &home);
    let replayed = replayed(this, &mut layout, &groups);
    let full = planner::plan(&layout, is_told.then_some(wanted));
    let goes = this.work.approved.is_empty() && is_due(this, &full, found);
    found.more = !goes && full.moves.iter().any(|step| step.because == Because::Balance);
    let plan = if goes { full.clone() } else { planner::plan(&layout, None) };
    for placement in &plan.stuck {
        let placement = &layout.placements[*placement];
        let (group, node) = (&groups[placement.group].name, &layout.nodes[placement.node].name);
        let why = "no other node has room for it, or may hold it";
        found.refuse(|| format!("`{group}` has to leave `{node}`, and {why}"));
    }
    notes(this, found, &layout, &groups, (&full, &plan), limit);
    let fresh = taken(this, found, &layout, &groups, &plan);
    let moves: Vec<Moving> = replayed.into_iter().chain(fresh).collect();
    if !moves.is_empty() || plan.before.skew() > limit {
        found.layout = Some(figures(this, &layout, (&before, plan.bytes_at_least), &moves, limit));
    }
    for moving in moves {
        let r#type = if moving.for_balance { REBALANCE } else { MOVE };
        let fields = vec![field("/node", json!(moving.from), json!(moving.to))];
        let resource = moved(&moving.group, &moving.from);
        found.step(r#type, resource, Change::Move, fields, Task::Move(moving));
    }
}

/// Returns the approved moves that are still possible, and applies them to the layout.
fn replayed(this: &Compared<'_>, layout: &mut Layout, groups: &[Group]) -> Vec<Moving> {
    if this.work.approved.is_empty() {
        return vec![];
    }
    let place: BTreeMap<String, usize> =
        layout.nodes.iter().enumerate().map(|(at, node)| (node.name.clone(), at)).collect();
    let called = |placement: &Placement| moved(&groups[placement.group].name, &layout.nodes[placement.node].name);
    let known: BTreeMap<String, usize> =
        layout.placements.iter().enumerate().map(|(at, placement)| (called(placement), at)).collect();
    let mut moves = vec![];
    for approved in &this.work.approved {
        let (Some(at), Some(to)) = (known.get(&approved.resource), place.get(&approved.to)) else { continue };
        let group = layout.placements[*at].group;
        let is_there = |placement: &Placement| placement.group == group && placement.node == *to;
        if !layout.nodes[*to].holds || layout.placements.iter().any(is_there) {
            continue;
        }
        let moving = moving(layout, groups, *at, *to, approved.for_balance);
        if unready(this, &moving).is_none() {
            layout.placements[*at].node = *to;
            moves.push(moving);
        }
    }
    moves
}

/// Returns the move of a placement from its present node.
fn moving(layout: &Layout, groups: &[Group], placement: usize, to: usize, for_balance: bool) -> Moving {
    let placement = &layout.placements[placement];
    let group = &groups[placement.group];
    Moving {
        group: group.name.clone(),
        tables: group.tables.clone(),
        shard: group.shard,
        from: layout.nodes[placement.node].name.clone(),
        to: layout.nodes[to].name.clone(),
        bytes: placement.bytes,
        weight: placement.weight,
        colocation: group.colocation,
        for_balance,
    }
}

/// Returns the resource address of a move: the group at its source.
pub fn moved(group: &str, from: &str) -> String {
    format!("shards {group} on {from}")
}

/// Returns the balanced quantity.
fn by(this: &Compared<'_>) -> Result<By, String> {
    match &this.work.placement.balance {
        BalanceBy::Word(BalanceWord::Bytes) => Ok(By::Bytes),
        BalanceBy::Word(BalanceWord::Shards) => Ok(By::Shards),
        BalanceBy::Query(_) => Ok(By::ProgressEvent(this.seen.costs.clone())),
        BalanceBy::Word(BalanceWord::Tenants) => tenants(this.seen).map(By::ProgressEvent),
    }
}

/// Returns the number of tenants of each shard, by the rows of tables whose primary key is the distribution column.
pub(super) fn tenants(seen: &Seen) -> Result<BTreeMap<i64, u64>, String> {
    let mut rows: BTreeMap<i64, u64> = BTreeMap::new();
    for (worker, message) in &seen.workers {
        for (shard, count) in &message.rows {
            let empty = message.sizes.get(shard).is_none_or(|bytes| *bytes <= 16 << 10);
            match u64::try_from(*count) {
                Ok(count) => drop(rows.insert(*shard, count)),
                // The table was never analyzed, and the shard is nearly empty.
                Err(_) if empty => drop(rows.insert(*shard, 0)),
                Err(_) => {
                    return Err(format!(
                        "the tenants of shard {shard} on `{worker}` were never counted; `ANALYZE` the table"
                    ));
                }
            }
        }
    }
    if rows.is_empty() {
        return Err(
            "no distributed table has its distribution column as its primary key, so tenants can't be counted".into()
        );
    }
    Ok(rows)
}

/// Changes the nodes to their target state: new nodes exist and are empty, and removed nodes hold nothing.
fn nodes(this: &Compared<'_>, layout: &mut Layout) {
    let rows: BTreeMap<&str, &NodeRow> =
        this.seen.catalog.nodes.iter().filter(|row| row.is_primary).map(|row| (&*row.name, row)).collect();
    for node in &mut layout.nodes {
        if let Some(holds) = rows.get(&*node.name).and_then(|row| is_to_hold_there(this, row)) {
            // A plan of moves alone uses only the present nodes.
            node.holds = holds && (node.holds || !this.work.only_moves);
        }
    }
    for node in this.work.nodes.iter().flatten().filter(|_| !this.work.only_moves) {
        let name = node.address.to_string();
        if !layout.nodes.iter().any(|known| known.name == name) {
            let holds = is_to_hold(this.work, &name).unwrap_or(node.holds);
            layout.nodes.push(Node { name, holds, room: None });
        }
    }
    let moves = &this.work.moves;
    if let Some(usable) = moves.usable() {
        for node in &mut layout.nodes {
            let used = this.seen.workers.get(&node.name).map_or(0, |worker| worker.bytes);
            node.room = Some(usable.saturating_sub(used));
        }
    }
}

fn pins(this: &Compared<'_>, layout: &mut Layout, groups: &[Group], found: &mut Found) {
    for (pin, shard) in this.work.placement.pins.iter().zip(&this.seen.pins) {
        let Some(group) = shard.and_then(|shard| groups.iter().position(|group| group.shards.contains(&shard))) else {
            found.notes.push(format!(
                "the tenant `{}` of `{}` is on no shard yet, so its pin has no effect",
                pin.tenant, pin.table
            ));
            continue;
        };
        let Some(node) = layout.nodes.iter().position(|node| node.name == pin.node) else {
            found.refuse(|| {
                format!("the tenant `{}` of `{}` is pinned to `{}`, which is no node", pin.tenant, pin.table, pin.node)
            });
            continue;
        };
        if !layout.nodes[node].holds {
            found.refuse(|| {
                format!(
                    "the tenant `{}` of `{}` is pinned to `{}`, which is to hold nothing",
                    pin.tenant, pin.table, pin.node
                )
            });
            continue;
        }
        let of_group = |placement: &&mut Placement| placement.group == group;
        if layout
            .placements
            .iter()
            .any(|placement| placement.group == group && placement.node == node && placement.pin.is_none())
        {
            layout
                .placements
                .iter_mut()
                .filter(of_group)
                .filter(|placement| placement.node == node)
                .for_each(|placement| placement.pin = Some(node));
            continue;
        }
        let mut all = layout.placements.iter_mut().filter(of_group);
        match all.find(|placement| placement.pin.is_none_or(|other| other == node)) {
            Some(placement) => placement.pin = Some(node),
            None => found.refuse(|| {
                format!("the tenant `{}` of `{}` is pinned to `{}`, and another of the same shard elsewhere; isolate one of them with `isolate_tenant_to_new_shard`", pin.tenant, pin.table, pin.node)
            }),
        }
    }
}

/// Whether moves for balance are part of the plan.
fn is_due(this: &Compared<'_>, full: &Rebalance, found: &mut Found) -> bool {
    let asks = full.moves.iter().filter(|step| step.because == Because::Balance).count();
    if asks == 0 {
        return true;
    }
    if !this.work.vacate.is_empty() {
        // The removal of nodes takes precedence over balance.
        return false;
    }
    let bytes = size(full.bytes);
    match this.work.placement.rebalance {
        RebalanceMode::Report => {
            found.notes.push(format!(
                "{asks} moves would bring the nodes into balance ({bytes}); `rebalance: report` makes none"
            ));
            return false;
        }
        RebalanceMode::Scheduled if !this.work.only_moves => {
            found.notes.push(format!("the next rebalance makes {asks} moves ({bytes})"));
            return false;
        }
        _ => {}
    }
    let cooldown = i64::try_from(this.work.moves.cooldown.as_seconds()).unwrap_or(i64::MAX);
    // A command bypasses the cooldown, and a clock that was set back restarts it.
    let last = this.memory.rebalanced_at.filter(|_| !this.work.by_command).map(|at| at.min(this.now));
    let remaining = last.map_or(0, |at| at.saturating_add(cooldown) - this.now);
    if remaining > 0 {
        let hours = (remaining + 3599) / 3600;
        found.notes.push(format!("{asks} moves ({bytes}) wait for the end of `moves.cooldown`, in {hours} h"));
        return false;
    }
    true
}

fn notes(
    this: &Compared<'_>,
    found: &mut Found,
    layout: &Layout,
    groups: &[Group],
    plans: (&Rebalance, &Rebalance),
    limit: f64,
) {
    let (full, plan) = plans;
    if full.before.skew() > limit {
        let (above, below) = (percent(full.before.above), percent(-full.before.below));
        found
            .notes
            .push(format!("the nodes carry {above} to {below} of the mean; the limit is {:.0} %", limit * 100.0));
    }
    found.notes.extend(skewed_alone(layout, groups, limit));
    if let Some(short) = &full.short {
        let holding = layout.nodes.iter().filter(|node| node.holds).count();
        let name = |placement: usize| groups[layout.placements[placement].group].name.clone();
        found.notes.push(super::message::why(short, holding, limit, name));
    }
    let parallel = this.work.moves.parallel;
    if plan.moves.len() > 1 && parallel > 1 {
        let version = this.seen.version;
        found.notes.push(match at_once(version, &this.work.moves) {
            1 => format!(
                "the moves are made one after the other: Citus {version} can't make several at once while writes go on"
            ),
            _ if shares_colocation(version) => format!("{parallel} shard groups move at once"),
            _ => format!("{parallel} shard groups move at once, of different colocations"),
        });
    }
}

/// Returns the colocations whose own shards are unbalanced, independent of the total load; the worst first.
fn skewed_alone(layout: &Layout, groups: &[Group], limit: f64) -> Vec<String> {
    let mut loads: BTreeMap<i32, (usize, Vec<u64>)> = BTreeMap::new();
    for (at, placement) in layout.placements.iter().enumerate() {
        let (_, load) =
            loads.entry(groups[placement.group].colocation).or_insert_with(|| (at, vec![0; layout.nodes.len()]));
        load[placement.node] += placement.weight;
    }
    let holding: Vec<usize> = (0..layout.nodes.len()).filter(|at| layout.nodes[*at].holds).collect();
    let skew = |(at, load): (usize, Vec<u64>)| {
        let group = &groups[layout.placements[at].group];
        let count = groups.iter().filter(|other| other.colocation == group.colocation).count();
        let mean = load.iter().sum::<u64>() as f64 / holding.len().max(1) as f64;
        let part = |at: &usize| load[*at] as f64 / mean - 1.0;
        let (above, below) =
            holding.iter().map(part).fold((0.0_f64, 0.0_f64), |(a, b), part| (a.max(part), b.min(part)));
        // A few groups can't be balanced over many nodes.
        let counts = count >= 2 * holding.len() && mean > 0.0 && above.max(-below) > limit;
        counts.then(|| {
            (
                above.max(-below),
                format!(
                    "the shards of `{}` alone are at {} to {} of their mean",
                    group.tables.join("`, `"),
                    percent(above),
                    percent(below)
                ),
            )
        })
    };
    if loads.len() < 2 {
        return vec![];
    }
    let mut skewed: Vec<(f64, String)> = loads.into_values().filter_map(skew).collect();
    skewed.sort_by(|a, b| b.0.total_cmp(&a.0));
    skewed.into_iter().take(SKEWED_SHOWN).map(|(_, message)| message).collect()
}

/// Returns the moves of a plan that the cluster is ready for.
fn taken(this: &Compared<'_>, found: &mut Found, layout: &Layout, groups: &[Group], plan: &Rebalance) -> Vec<Moving> {
    let mut moves = vec![];
    let mut left_out: BTreeMap<String, usize> = BTreeMap::new();
    for step in &plan.moves {
        let moving = moving(layout, groups, step.placement, step.to, step.because == Because::Balance);
        match unready(this, &moving) {
            None => moves.push(moving),
            Some(why) if moving.for_balance => *left_out.entry(why).or_default() += 1,
            Some(why) => found.refuse(|| format!("`{}` can't leave `{}`: {why}", moving.group, moving.from)),
        }
    }
    for (why, count) in left_out {
        found.notes.push(format!("{count} moves for the balance can't be made: {why}"));
    }
    moves
}

/// Returns why the cluster is not ready for a move.
fn unready(this: &Compared<'_>, moving: &Moving) -> Option<String> {
    let mode = this.work.moves.transfer_mode;
    if mode == TransferMode::BlockWrites {
        return None;
    }
    if mode == TransferMode::Auto {
        let rows = &this.seen.catalog.tables;
        let without = rows.iter().find(|row| moving.tables.contains(&row.name) && !row.has_identity);
        if let Some(row) = without {
            return Some(format!(
                "`{}` has no primary key and no replica identity; give it one, or say `moves.transferMode: blockWrites`",
                row.name
            ));
        }
    }
    let worker = this.seen.workers.get(&moving.from)?;
    if worker.wal_level != "logical" {
        return Some(format!(
            "`{}` has `wal_level = {}`; set `logical` and restart it, or say `moves.transferMode: blockWrites`",
            moving.from, worker.wal_level
        ));
    }
    (worker.free_slots < 1)
        .then(|| format!("`{}` has no free replication slot; raise `max_replication_slots`", moving.from))
}

fn figures(
    this: &Compared<'_>,
    layout: &Layout,
    (before, at_least): (&Balance, u64),
    moves: &[Moving],
    limit: f64,
) -> LayoutPlan {
    let nodes = layout.nodes.iter().enumerate().map(|(at, node)| {
        let before = Load { load: before.loads[at], bytes: before.bytes[at] };
        let mut after = before;
        for moving in moves {
            if moving.from == node.name {
                (after.load, after.bytes) = (after.load - moving.weight, after.bytes - moving.bytes);
            } else if moving.to == node.name {
                (after.load, after.bytes) = (after.load + moving.weight, after.bytes + moving.bytes);
            }
        }
        NodeLoad { node: node.name.clone(), holds: node.holds, before, after }
    });
    // A coordinator without shards is omitted.
    let nodes = nodes.filter(|node| node.holds || node.before.bytes + node.after.bytes > 0);
    let speed = this.memory.bytes_per_second;
    let figures = |moving: &Moving| MoveFigures {
        resource: moved(&moving.group, &moving.from),
        to: moving.to.clone(),
        bytes: moving.bytes,
        seconds: moving.seconds(speed),
    };
    LayoutPlan {
        balance: match &this.work.placement.balance {
            BalanceBy::Query(_) => "query".into(),
            BalanceBy::Word(BalanceWord::Bytes) => "bytes".into(),
            BalanceBy::Word(BalanceWord::Shards) => "shards".into(),
            BalanceBy::Word(BalanceWord::Tenants) => "tenants".into(),
        },
        limit,
        nodes: nodes.collect(),
        moves: moves.iter().map(figures).collect(),
        bytes: moves.iter().map(|moving| moving.bytes).sum(),
        bytes_at_least: at_least.min(moves.iter().map(|moving| moving.bytes).sum()),
    }
}
