//! Compares tables with their declarations. Pure.
//!
//! Decides how a table is distributed, and which tables are colocated: the first table of a colocation is the anchor
//! of the others.
//! *Invariant:* a table is rewritten only if the declaration allows it.

use crate::targets::citus::placement::{Table, whole_name};
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::catalog::TableRow;
use crate::model::Change;
use crate::targets::citus::steps::{Compared, Found, Task, field};

/// Adds steps for tables that are missing or differ from their declarations.
pub(super) fn tables(this: &Compared<'_>, found: &mut Found) {
    let rows: BTreeMap<&str, &TableRow> = this.seen.catalog.tables.iter().map(|row| (&*row.name, row)).collect();
    let mut shards: BTreeMap<&str, u32> = BTreeMap::new();
    for shard in &this.seen.catalog.shards {
        *shards.entry(&shard.table).or_default() += 1;
    }
    // The anchor of each declared colocation: the first table that exists or will exist.
    let mut anchors: BTreeMap<&str, (String, Option<i32>)> = BTreeMap::new();
    for table in this.work.tables.iter().filter(|table| !table.reference) {
        let (Some(colocation), name) = (&table.colocation, whole_name(&table.name)) else { continue };
        let Some(row) = rows.get(&*name).filter(|row| row.method == 'h') else { continue };
        anchors.entry(colocation).or_insert((name, Some(row.colocation)));
    }
    let (mut resized, mut along) = (BTreeSet::new(), vec![]);
    for table in &this.work.tables {
        let name = whole_name(&table.name);
        let anchor = table.colocation.as_deref().and_then(|colocation| anchors.get(colocation)).cloned();
        match rows.get(&*name).filter(|row| !row.is_local()) {
            None => {
                missing(this, found, table, &name, anchor.as_ref());
                if let Some(colocation) = table.colocation.as_deref() {
                    anchors.entry(colocation).or_insert((name, None));
                }
            }
            Some(row) => {
                let count = shards.get(&*name).copied().unwrap_or(0);
                along.extend(differing(this, found, table, row, count, anchor.as_ref(), &mut resized));
            }
        }
    }
    for (other, with) in along {
        let resource = format!("table {other}");
        if !found.steps.iter().any(|step| step.change.resource == resource) {
            let declared = this.work.tables.iter().find(|table| whole_name(&table.name) == other);
            let own = declared.and_then(|table| table.shard_count);
            let own = own.map(|count| field("/shardCount", json!(shards.get(&*other)), json!(count)));
            let fields = vec![own.unwrap_or_else(|| field("/rewrittenWith", Value::Null, json!(with)))];
            found.step("citus_table", resource, Change::Replace, fields, Task::Along(with));
        }
    }
}

fn missing(this: &Compared<'_>, found: &mut Found, table: &Table, name: &str, anchor: Option<&(String, Option<i32>)>) {
    let has_rows = this.seen.known_tables.get(&table.name).copied();
    let may_come = found.steps.iter().any(|step| matches!(step.task, Task::Migrate(_)));
    if has_rows.is_none() && !may_come {
        found.refuse(|| format!("the table `{name}` does not exist; create it in a migration, and it is distributed"));
    }
    let resource = format!("table {name}");
    let Some(column) = &table.distribution_column else {
        let fields = vec![field("/reference", Value::Null, json!(true))];
        return found.step("citus_table", resource, Change::Create, fields, Task::Refer(name.to_owned()));
    };
    let with = match (anchor, &table.colocation) {
        (Some((anchor, _)), _) => anchor.clone(),
        (None, Some(_)) => "none".into(),
        (None, None) => "default".into(),
    };
    let mut fields = vec![field("/distributionColumn", Value::Null, json!(column))];
    if let Some(count) = table.shard_count {
        fields.push(field("/shardCount", Value::Null, json!(count)));
    }
    fields.push(field("/colocatedWith", Value::Null, json!(with)));
    // A colocated table has the shard count of its anchor.
    let shards = table.shard_count.filter(|_| anchor.is_none());
    let has_rows = has_rows.unwrap_or(false);
    let task = Task::Distribute { table: name.to_owned(), column: column.clone(), with, shards, has_rows };
    found.step("citus_table", resource, Change::Create, fields, task);
}

/// Adds the differences of a distributed table. Returns the tables that are rewritten with it, each with the cause.
fn differing(
    this: &Compared<'_>,
    found: &mut Found,
    table: &Table,
    row: &TableRow,
    count: u32,
    anchor: Option<&(String, Option<i32>)>,
    resized: &mut BTreeSet<i32>,
) -> Vec<(String, String)> {
    let name = &row.name;
    if table.reference && row.is_reference() {
        return vec![];
    }
    if row.method == 'n' && !row.is_reference() {
        found.refuse(|| format!("`{name}` lies in a distributed schema; its rows can't be distributed as well"));
        return vec![];
    }
    let mut fields = vec![];
    let undistribute = table.reference || row.is_reference();
    let column = table.distribution_column.as_ref().filter(|column| Some(*column) != row.column.as_ref()).cloned();
    if undistribute {
        fields.push(field("/reference", json!(row.is_reference()), json!(table.reference)));
    }
    if let Some(column) = &column {
        fields.push(field("/distributionColumn", json!(row.column), json!(column)));
    }
    let with = anchor
        .filter(|(anchor, id)| !undistribute && anchor != name && *id != Some(row.colocation))
        .map(|(anchor, _)| anchor.clone());
    if let Some(with) = &with {
        fields.push(field("/colocatedWith", json!(beside(this, row)), json!(with)));
    }
    // All tables of a colocation group are resized together.
    let shards = table.shard_count.filter(|wanted| !undistribute && with.is_none() && *wanted != count);
    let shards = shards.filter(|_| resized.insert(row.colocation));
    if let Some(shards) = shards {
        fields.push(field("/shardCount", json!(count), json!(shards)));
    }
    if fields.is_empty() {
        return vec![];
    }
    if !this.work.allow_rewrite {
        let what: Vec<&str> = fields.iter().map(|field| field.path.trim_start_matches('/')).collect();
        found.refuse(|| {
            format!("`{name}` has to be rewritten for another {}, which locks it; say `allowRewrite: true` to mean that, or declare what it is", what.join(" and "))
        });
    }
    let others = if shards.is_some() { rewritten_with(this, found, row, column.is_some()) } else { vec![] };
    let task = Task::Rewrite { table: name.clone(), column, shards, with, undistribute };
    found
        .notes
        .push(format!("`{name}` is rewritten ({}), and writes to it are blocked meanwhile", size_of(this, name)));
    found.step("citus_table", format!("table {name}"), Change::Replace, fields, task);
    others.into_iter().map(|other| (other, name.clone())).collect()
}

/// Returns another declared table of the same colocation group.
fn beside(this: &Compared<'_>, row: &TableRow) -> Option<String> {
    let declared: BTreeSet<String> = this.work.tables.iter().map(|table| whole_name(&table.name)).collect();
    let is_beside = |other: &&TableRow| other.colocation == row.colocation && other.name != row.name;
    let mut others = this.seen.catalog.tables.iter().filter(is_beside);
    others.find(|other| declared.contains(&other.name)).map(|other| other.name.clone())
}

/// Returns the tables that are rewritten when the shard count of a table changes: all tables of its colocation group.
fn rewritten_with(this: &Compared<'_>, found: &mut Found, row: &TableRow, column: bool) -> Vec<String> {
    let name = &row.name;
    let others =
        this.seen.catalog.tables.iter().filter(|other| other.colocation == row.colocation && other.name != *name);
    let together: Vec<&str> = others.map(|other| other.name.as_str()).collect();
    let declared: BTreeSet<String> = this.work.tables.iter().map(|table| whole_name(&table.name)).collect();
    if let Some(other) = together.iter().find(|other| !declared.contains(**other)) {
        found.refuse(|| format!("`{other}` lies with `{name}` and would be rewritten with it; declare it as well"));
    }
    if column && !together.is_empty() {
        found.refuse(|| {
            format!("the column and the shard count of `{name}` can't be changed at once, because others lie with it")
        });
    }
    for other in &together {
        found.notes.push(format!("`{other}` is rewritten with it ({})", size_of(this, other)));
    }
    together.into_iter().map(str::to_owned).collect()
}

fn size_of(this: &Compared<'_>, table: &str) -> String {
    let ids: BTreeSet<i64> =
        this.seen.catalog.shards.iter().filter(|shard| shard.table == table).map(|shard| shard.id).collect();
    let placements = this.seen.catalog.placements.iter();
    crate::domain::message::layout::size(
        placements.filter(|placement| ids.contains(&placement.shard)).map(|placement| placement.bytes).sum(),
    )
}

/// Adds a step if a reference table is not on every node.
pub(super) fn reference_tables(this: &Compared<'_>, found: &mut Found) {
    let catalog = &this.seen.catalog;
    let nodes: BTreeMap<i32, &str> = (catalog.nodes.iter())
        .filter(|node| node.is_primary && node.is_active)
        .map(|node| (node.group, &*node.name))
        .collect();
    let mut without: BTreeSet<&str> = BTreeSet::new();
    for table in catalog.tables.iter().filter(|table| table.is_reference()) {
        for shard in catalog.shards.iter().filter(|shard| shard.table == table.name) {
            let on: BTreeSet<i32> = catalog
                .placements
                .iter()
                .filter(|placement| placement.shard == shard.id)
                .map(|placement| placement.group)
                .collect();
            without.extend(nodes.iter().filter(|(group, _)| !on.contains(group)).map(|(_, name)| *name));
        }
    }
    if !without.is_empty() {
        let fields = vec![field("/missingOn", json!(without), json!([]))];
        found.step("citus_table", "reference tables".into(), Change::Update, fields, Task::Replicate);
    }
}
