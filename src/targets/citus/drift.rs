//! Compares a declaration with a cluster and orders the necessary steps. Pure.
//!
//! *Flow:* missing nodes come first, because all other steps may need them; then migrations, schemas and tables; then
//! required moves and moves for balance; then the removal of nodes, which are empty by then.
//! *Invariant:* a node is removed only if the same list of steps places all its shards elsewhere. Undeclared objects
//! stay unchanged, except for nodes if the declaration lists them. No step contains an id of Citus beyond one
//! observation.
//! *Invariant:* no moves are planned while a node is inactive, because its shards can't be measured.

use super::{rebalance, tables};
use crate::targets::citus::placement::whole_name;
use crate::targets::citus::steps::{
    Compared, Found, Step, Task, field, holds_shards, is_to_hold, is_to_hold_there, undeclared,
};
use crate::{
    model::{Change, Drift, DriftField, DriftKind, ResourceChange, Retry},
    ports::{Observation, TargetError, TargetErrorKind},
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The prefix of a node's resource address.
pub(super) const NODE: &str = "node ";

/// The seconds within which Citus should clean up after its moves.
const LEFT_OVER_SECONDS_MAX: i64 = 3600;

/// Returns the steps of some of the changes, and whether all moves for balance are among them.
///
/// # Errors
/// When a node would be removed while a shard that should leave it stays.
pub fn meant(found: Found, changes: &[ResourceChange]) -> Result<(Vec<Step>, bool), TargetError> {
    let is_planned = |step: &Step| changes.iter().any(|change| change.resource == step.change.resource);
    let (steps, cut): (Vec<Step>, Vec<Step>) = found.steps.into_iter().partition(is_planned);
    if let Some(why) = blocks_removal(&steps, &cut).or_else(|| splits_rewrite(&steps, &cut)) {
        return Err(TargetError { retry: Retry::WhenInputChanges, ..TargetError::new(TargetErrorKind::InUse, why) });
    }
    let is_cut = cut.iter().any(|step| matches!(&step.task, Task::Move(moving) if moving.for_balance));
    Ok((steps, !is_cut && !found.more))
}

/// Returns why a table can't be rewritten: only one of two tables that are rewritten together is in the plan.
fn splits_rewrite(steps: &[Step], cut: &[Step]) -> Option<String> {
    let split = |steps: &[Step], other: &[Step]| {
        steps.iter().find_map(|step| {
            let Task::Along(with) = &step.task else { return None };
            let is_main = |main: &Step| matches!(&main.task, Task::Rewrite { table, .. } if table == with);
            other.iter().any(is_main).then(|| (step.change.resource.clone(), with.clone()))
        })
    };
    let (along, with) = split(steps, cut).or_else(|| split(cut, steps))?;
    Some(format!("`{along}` and `table {with}` are rewritten together; leave both in, or take both out"))
}

/// Returns why a node can't be removed: a move that empties it was removed from the plan.
fn blocks_removal(steps: &[Step], cut: &[Step]) -> Option<String> {
    let mut removed = steps.iter().filter_map(|step| match &step.task {
        Task::Remove(address) => Some(address.to_string()),
        _ => None,
    });
    removed.find_map(|node| {
        let remaining_shard = cut.iter().find_map(|step| match &step.task {
            Task::Move(moving) if moving.from == node => Some(&moving.group),
            _ => None,
        })?;
        Some(format!("`{node}` can't be removed while `{remaining_shard}` stays on it; take its removal out as well"))
    })
}

/// Compares a declaration with a cluster.
pub fn compare(this: &Compared<'_>) -> Found {
    let mut found = Found::default();
    if this.work.destroy {
        // Nodes, tables and data are never destroyed: nodes belong to their host resources, tables and data to their
        // owners.
        return found;
    }
    nodes(this, &mut found);
    migrations(this, &mut found);
    schemas(this, &mut found);
    tables::tables(this, &mut found);
    tables::reference_tables(this, &mut found);
    rebalance::moves(this, &mut found);
    removals(this, &mut found);
    asides(this, &mut found);
    found
}

fn nodes(this: &Compared<'_>, found: &mut Found) {
    let rows = &this.seen.catalog.nodes;
    if let Some(row) = rows.iter().find(|row| row.group == 0 && this.work.vacate.contains(&row.name)) {
        found.refuse(|| format!("`{}` is the coordinator, and can't be taken out of the cluster", row.name));
    }
    for node in this.work.nodes.iter().flatten().filter(|node| !this.work.vacate.contains(&node.address.to_string())) {
        let name = node.address.to_string();
        let holds = is_to_hold(this.work, &name).unwrap_or(node.holds);
        match rows.iter().find(|row| row.name == name) {
            None => {
                let fields = vec![field("/shards", Value::Null, json!(holds))];
                let task = Task::Add { address: node.address.clone(), holds };
                found.step("citus_node", format!("{NODE}{name}"), Change::Create, fields, task);
            }
            Some(row) if !row.is_primary => {
                found.refuse(|| format!("`{name}` is declared as a worker, and it is a secondary of the cluster"));
            }
            Some(row) if !row.is_active => {
                let fields = vec![field("/active", json!(false), json!(true))];
                found.step(
                    "citus_node",
                    format!("{NODE}{name}"),
                    Change::Update,
                    fields,
                    Task::Activate(node.address.clone()),
                );
            }
            Some(_) => {}
        }
    }
    for row in rows.iter().filter(|row| row.is_primary && row.is_active) {
        let (Some(holds), Ok(address)) = (is_to_hold_there(this, row), row.name.parse()) else { continue };
        if holds != row.holds {
            let fields = vec![field("/shards", json!(row.holds), json!(holds))];
            let task = Task::Holds { address, holds };
            found.step("citus_node", format!("{NODE}{}", row.name), Change::Update, fields, task);
        }
    }
}

fn migrations(this: &Compared<'_>, found: &mut Found) {
    let applied = &this.seen.migrations;
    let last = applied.keys().next_back();
    for migration in this.migrations {
        match applied.get(&migration.name) {
            Some(checksum) if *checksum == migration.checksum => {}
            Some(checksum) => found.refuse(|| {
                format!(
                    "the migration `{}` was applied with the checksum {checksum} and has {} now; put it back as it was, and write another one",
                    migration.name, migration.checksum
                )
            }),
            None => {
                if let Some(last) = last.filter(|last| **last > migration.name) {
                    found.refuse(|| {
                        format!(
                            "the migration `{}` comes before `{last}`, which was applied; give it a name that comes after",
                            migration.name
                        )
                    });
                }
                let fields = vec![field("/checksum", Value::Null, json!(migration.checksum))];
                let task = Task::Migrate(migration.clone());
                found.step("citus_migration", format!("migration {}", migration.name), Change::Run, fields, task);
            }
        }
    }
    let known: BTreeSet<&str> = this.migrations.iter().map(|migration| &*migration.name).collect();
    if this.work.migrations.is_some() {
        for name in applied.keys().filter(|name| !known.contains(name.as_str())) {
            found.notes.push(format!("the migration `{name}` was applied and is not in the repository any more"));
        }
    }
}

fn schemas(this: &Compared<'_>, found: &mut Found) {
    for name in this.work.schemas.iter().filter(|name| !this.seen.schemas.contains(*name)) {
        let is_there = this.seen.known_schemas.contains(name);
        let (change, task) = match is_there {
            true => (Change::Update, Task::DistributeSchema(name.clone())),
            false => (Change::Create, Task::MakeSchema(name.clone())),
        };
        let fields = vec![field("/distributed", if is_there { json!(false) } else { Value::Null }, json!(true))];
        found.step("citus_schema", format!("schema {name}"), change, fields, task);
    }
}

/// Adds the removal of undeclared nodes, which earlier moves have emptied.
fn removals(this: &Compared<'_>, found: &mut Found) {
    let catalog = &this.seen.catalog;
    let unmovable: BTreeSet<&str> = (catalog.tables.iter())
        .filter(|table| !table.is_movable() && !table.is_reference() && !table.is_local())
        .map(|table| table.name.as_str())
        .collect();
    let unmovable_table = |group: i32| {
        let shards = catalog.shards.iter().filter(|shard| unmovable.contains(shard.table.as_str()));
        let on = |shard: i64| {
            catalog.placements.iter().any(|placement| placement.shard == shard && placement.group == group)
        };
        shards.into_iter().find(|shard| on(shard.id)).map(|shard| shard.table.clone())
    };
    for row in undeclared(this) {
        if let Some(table) = unmovable_table(row.group) {
            found.refuse(|| {
                format!(
                    "`{table}` is distributed by range or by appending, which is not moved from here, and is on `{}`",
                    row.name
                )
            });
        }
        let Ok(address) = row.name.parse() else { continue };
        if !row.is_active && holds_shards(this, row) {
            found.refuse(|| {
                    format!("`{}` is not declared and inactive, and shards are on it: activate it so that they can be moved, or declare it", row.name)
                });
        }
        // The property is set by an earlier step and is not part of this approval.
        found.step("citus_node", format!("{NODE}{}", row.name), Change::Destroy, vec![], Task::Remove(address));
    }
}

/// Adds notes on unexpected states that no step can change.
fn asides(this: &Compared<'_>, found: &mut Found) {
    let seen = this.seen;
    for (job, state, what) in &seen.jobs {
        found.notes.push(match state.as_str() {
            "failed" | "failing" => format!("the background job {job} of Citus failed: {what}"),
            _ => format!("a background job of Citus is {state}: {job}, {what}"),
        });
    }
    let is_old = |(_, since): (i64, i64)| this.now - since >= LEFT_OVER_SECONDS_MAX;
    if this.memory.left_over.is_some_and(is_old) {
        let fields = vec![field("/cleanedUp", json!(false), json!(true))];
        found.step("citus_left_overs", "left-overs of moves".into(), Change::Update, fields, Task::CleanUp);
    } else if seen.left_over > 0 {
        found.notes.push(format!("{} left-overs of moves wait for Citus to clean them up", seen.left_over));
    }
    let declared: BTreeSet<String> = this.work.tables.iter().map(|table| whole_name(&table.name)).collect();
    let in_schema = |name: &str| {
        let schema = name.split('.').next().unwrap_or_default();
        this.work.schemas.iter().any(|declared| declared == schema)
    };
    let others = seen.catalog.tables.iter().filter(|row| !row.is_local());
    let others: Vec<&str> =
        (others.map(|row| row.name.as_str())).filter(|name| !declared.contains(*name) && !in_schema(name)).collect();
    if !others.is_empty() && !this.work.tables.is_empty() {
        let shown: Vec<String> = others.iter().take(5).map(|name| format!("`{name}`")).collect();
        let more = if others.len() > 5 { format!(" and {} more", others.len() - 5) } else { String::new() };
        found.notes.push(format!("distributed and not declared: {}{more}", shown.join(", ")));
    }
    let coordinator = seen.catalog.nodes.iter().any(|node| node.group == 0);
    if !coordinator && this.work.nodes.is_some() {
        found.notes.push("the coordinator is not among its own nodes: `SELECT citus_set_coordinator_host('HOST')` names it to the workers".into());
    }
}

/// Returns the differences as drift.
pub fn of(observation: &Observation) -> Vec<Drift> {
    let drift = |change: &ResourceChange| Drift {
        resource: change.resource.clone(),
        drift: match change.change {
            Change::Create => DriftKind::Missing,
            Change::Destroy => DriftKind::Extra,
            _ => DriftKind::Changed,
        },
        revertible: true,
        fields: (change.fields.iter())
            .map(|field| DriftField {
                path: field.path.clone(),
                desired: field.after.clone(),
                observed: field.before.clone(),
            })
            .collect(),
        changed_by: None,
        changed_at: None,
        is_output: false,
    };
    observation.changes.iter().map(drift).collect()
}
