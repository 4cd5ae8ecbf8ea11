//! A module against a state and the world: what would be changed, what somebody changed, what would be made.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    module::{FieldSpec, Module},
    world::{Fields, TofuState},
};
use crate::model::{Change, Drift, DriftField, DriftKind, Field, ResourceChange, change};

pub(super) fn field(name: &str, before: Option<&String>, spec: &FieldSpec) -> Field {
    Field {
        path: format!("/{name}"),
        before: before.map(|value| value.as_str().into()),
        after: Some(
            spec.value.as_ref().map_or_else(|| change::KNOWN_AFTER_APPLY.into(), |value| value.as_str().into()),
        ),
        sensitive: false,
        unknown: spec.value.is_none(),
        sealed: None,
    }
}

pub(super) fn changed(resource: &str, change: Change, fields: Vec<Field>) -> ResourceChange {
    ResourceChange {
        resource: resource.to_owned(),
        r#type: "thing".into(),
        change,
        reverts_drift: false,
        protected: false,
        fields,
    }
}

pub(super) fn resource_changes(
    module: &Module,
    kept: &TofuState,
    live: &BTreeMap<String, Fields>,
) -> Vec<ResourceChange> {
    let mut changes = vec![];
    let mut push = |resource: &str, change: Change, fields: Vec<Field>| {
        changes.push(changed(resource, change, fields));
    };
    for (name, specs) in &module.resources {
        let there = live.get(name).filter(|_| kept.resources.contains_key(name));
        let Some(there) = there else {
            push(name, Change::Create, specs.iter().map(|(key, spec)| field(key, None, spec)).collect());
            continue;
        };
        let differs = |(key, spec): &(&String, &FieldSpec)| {
            spec.value.as_ref().is_some_and(|value| there.get(*key) != Some(value))
        };
        let different: Vec<(&String, &FieldSpec)> = specs.iter().filter(differs).collect();
        if different.is_empty() {
            continue;
        }
        let replaces = different.iter().any(|(_, spec)| spec.replaces);
        let shown = specs.iter().filter(|(key, spec)| differs(&(key, spec)) || replaces && spec.value.is_none());
        push(
            name,
            if replaces { Change::Replace } else { Change::Update },
            shown.map(|(key, spec)| field(key, there.get(key), spec)).collect(),
        );
    }
    for name in kept.resources.keys().filter(|name| !module.resources.contains_key(*name)) {
        if let Some(there) = live.get(name) {
            let gone = |(key, value): (&String, &String)| Field {
                path: format!("/{key}"),
                before: Some(value.as_str().into()),
                after: None,
                sensitive: false,
                unknown: false,
                sealed: None,
            };
            push(name, Change::Destroy, there.iter().map(gone).collect());
        }
    }
    changes
}

pub(super) fn origins(module: &Module, changes: &[ResourceChange]) -> BTreeMap<String, BTreeMap<String, String>> {
    let of = |change: &ResourceChange| {
        let specs = module.resources.get(&change.resource)?;
        let found = change.fields.iter().filter_map(|field| {
            let name = field.path.trim_start_matches('/');
            Some((name.to_owned(), specs.get(name)?.origin.clone()?))
        });
        Some((change.resource.clone(), found.collect()))
    };
    changes.iter().filter_map(of).collect()
}

/// What somebody changed of a thing that the module does not set.
pub(super) fn meddled(name: &str, kept: &Fields, live: &Fields, specs: &BTreeMap<String, FieldSpec>) -> Option<Drift> {
    let keys: BTreeSet<&String> =
        kept.keys().chain(live.keys()).filter(|key| specs.get(*key).is_none_or(|spec| spec.value.is_none())).collect();
    let shown = |value: Option<&String>| value.map(|value| Value::from(value.as_str()));
    let fields: Vec<DriftField> = keys
        .into_iter()
        .filter(|key| kept.get(*key) != live.get(*key))
        .map(|key| DriftField {
            path: format!("/{key}"),
            desired: shown(kept.get(key)),
            observed: shown(live.get(key)),
        })
        .collect();
    (!fields.is_empty()).then(|| Drift {
        resource: name.to_owned(),
        drift: DriftKind::Changed,
        revertible: false,
        fields,
        changed_by: None,
        changed_at: None,
    })
}

pub(super) fn made_fields(specs: &BTreeMap<String, FieldSpec>, old: &Fields, made: u64, keeps: bool) -> Fields {
    let value = |(key, spec): (&String, &FieldSpec)| {
        let fresh = || format!("id-{made}");
        let value = spec
            .value
            .clone()
            .unwrap_or_else(|| if keeps { old.get(key).cloned().unwrap_or_else(fresh) } else { fresh() });
        (key.clone(), value)
    };
    specs.iter().map(value).collect()
}
