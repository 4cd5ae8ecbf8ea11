//! Adopts observed values of a cluster into its declaration (R4.3).
//!
//! Edits columns, shard counts and colocations of tables, and the nodes of pins. The placement of shard groups is
//! declared only by pins, so moves for balance can't be adopted.
//! *Invariant:* comments stay unchanged, because single values are edited.

use crate::targets::citus::placement::whole_name;
use serde_json::Value;

use super::declaration::Citus;
use crate::{
    domain::remediation::edit::{Way, edit_component},
    model::{Change, EnvironmentName, ResourceChange},
};

/// Returns a colocation name for a table: that of the table that it is colocated with, or a new one if that is not
/// declared.
fn colocation(citus: &Citus, table: &str, beside: Option<&Value>) -> Result<Value, String> {
    let named = |name: &String| citus.tables.iter().any(|other| other.colocation.as_ref() == Some(name));
    match beside.and_then(Value::as_str) {
        Some(beside) => {
            let other = citus.tables.iter().find(|other| whole_name(&other.name) == beside);
            let name = other.and_then(|other| other.colocation.clone());
            name.map(Value::from).ok_or_else(|| {
                format!("`{table}` lies with `{beside}`, which has no `colocation`; give both the same one")
            })
        }
        None => {
            let own = table.rsplit('.').next().unwrap_or(table).to_owned();
            if named(&own) {
                return Err(format!("`{table}` lies with nothing else; give it a `colocation` of its own"));
            }
            Ok(own.into())
        }
    }
}

/// Returns the declaration file with the observed values of its cluster.
///
/// # Errors
/// The reason why a value can't be declared.
pub(super) fn edit_cluster(
    text: &str,
    component: &str,
    environment: &EnvironmentName,
    citus: &Citus,
    changes: &[ResourceChange],
) -> Result<String, String> {
    let mut edited = text.to_owned();
    for change in changes {
        let name = &change.resource;
        let observed = |path: &str| change.fields.iter().find(|field| field.path == path);
        let mut set = |way: Vec<Way>, key: &str, value: &Value| -> Result<(), String> {
            edited = edit_component(&edited, component, "citus", environment, &way, key, value)?;
            Ok(())
        };
        match (change.r#type.as_str(), change.change) {
            ("citus_table", Change::Replace) => {
                let table = name.strip_prefix("table ").unwrap_or(name);
                let Some(at) = citus.tables.iter().position(|declared| whole_name(&declared.name) == table) else {
                    return Err(format!("`{name}` is not declared"));
                };
                for field in &change.fields {
                    let key = field.path.trim_start_matches('/');
                    if key == "rewrittenWith" {
                        // The table that triggers the rewrite declares the shard count.
                        continue;
                    }
                    if key == "colocatedWith" {
                        let value = colocation(citus, &citus.tables[at].name, field.before.as_ref())?;
                        set(vec![Way::Key("tables".into()), Way::Item(at)], "colocation", &value)?;
                        continue;
                    }
                    let (true, Some(value)) = (["shardCount", "distributionColumn"].contains(&key), &field.before)
                    else {
                        return Err(format!("`{key}` of `{name}` can't be adopted; change its declaration"));
                    };
                    set(vec![Way::Key("tables".into()), Way::Item(at)], key, value)?;
                }
            }
            // A cleanup has no declaration.
            ("citus_left_overs", _) => {}
            ("citus_move", Change::Move) => {
                let field = observed("/node");
                let (from, to) = (field.and_then(|f| f.before.as_ref()), field.and_then(|f| f.after.as_ref()));
                let pins = &citus.placement.pins;
                let mut matching =
                    (0..pins.len()).filter(|at| to.and_then(Value::as_str) == Some(pins[*at].node.as_str()));
                let (Some(at), None, Some(from)) = (matching.next(), matching.next(), from) else {
                    return Err(format!(
                        "`{name}` is moved by `drain`, or by one of several pins; change the declaration"
                    ));
                };
                set(vec![Way::Key("placement".into()), Way::Key("pins".into()), Way::Item(at)], "node", from)?;
            }
            ("citus_rebalance", _) => {
                return Err(format!(
                    "where `{name}` is, is not declared: allow a wider `placement.skew`, or let it be moved"
                ));
            }
            _ => return Err(format!("`{name}` can't be adopted; change its declaration")),
        }
    }
    if edited == text {
        return Err("nothing of it can be declared".into());
    }
    Ok(edited)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Field;

    #[test]
    fn r4_3_what_was_observed_of_a_cluster_is_declared_and_comments_stay() {
        let text = "apiVersion: evenkeel.dev/v1alpha1\nkind: Component\nmetadata: { name: shards }\nspec:\n  environments: [dev] # one\n  citus:\n    connection: citus\n    tables: # two\n      - { name: tenants, distributionColumn: id, shardCount: 32 } # three\n      # four\n      - name: public.tasks\n        distributionColumn: id\n        shardCount: 32 # five\n    placement:\n      pins:\n        - { table: tenants, tenant: \"7\", node: \"a:5432\" } # six\n";
        let (nodes, _) = crate::domain::declaration::node::read(&"x.yaml".into(), text.as_bytes());
        let citus: Citus = serde_json::from_value(nodes[0].to_json()["spec"]["citus"].clone()).unwrap();
        let change = |resource: &str, r#type: &str, change, path: &str, before: Value, after: Value| ResourceChange {
            resource: resource.into(),
            r#type: r#type.into(),
            change,
            reverts_drift: false,
            protected: false,
            fields: vec![Field {
                path: path.into(),
                before: Some(before),
                after: Some(after),
                sensitive: false,
                unknown: false,
                sealed: None,
            }],
        };
        let edit = |changes: &[ResourceChange]| edit_cluster(text, "shards", &"dev".parse().unwrap(), &citus, changes);
        let wider = change("table public.tasks", "citus_table", Change::Replace, "/shardCount", 64.into(), 32.into());
        let moved = change("shards x on b:5432", "citus_move", Change::Move, "/node", "b:5432".into(), "a:5432".into());
        let edited = edit(&[wider, moved]).unwrap();
        assert_eq!(
            edited,
            text.replace("shardCount: 32 # five", "shardCount: 64 # five").replace("\"a:5432\"", "\"b:5432\"")
        );
        // A table that is colocated with no other gets its own colocation; otherwise it gets the colocation of the
        // other table.
        let apart =
            change("table tenants", "citus_table", Change::Replace, "/colocatedWith", Value::Null, "x.y".into());
        assert!(edit(std::slice::from_ref(&apart)).is_err(), "`tenants` is declared as `public.tenants`");
        let apart = ResourceChange { resource: "table public.tenants".into(), ..apart };
        let edited = edit(std::slice::from_ref(&apart)).unwrap();
        assert!(edited.contains("shardCount: 32, colocation: \"tenants\" }"), "{edited}");
        let mut beside = apart;
        beside.fields[0].before = Some("public.tasks".into());
        assert!(edit(&[beside]).unwrap_err().contains("lies with `public.tasks`, which has no `colocation`"));
        let balance =
            change("shards x on b:5432", "citus_rebalance", Change::Move, "/node", "b:5432".into(), "a:5432".into());
        assert!(edit(&[balance]).unwrap_err().contains("a wider `placement.skew`"));
    }
}
