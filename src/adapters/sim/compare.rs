//! Compares a module with a state and the simulated world, and returns changes, drift and outputs.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::module::{FieldSpec, Module, OutputSpec};
use crate::adapters::sim::tofu_state::{Fields, TofuState};
use crate::{
    model::{Change, Drift, DriftField, DriftKind, Field, ResourceChange, Seal, change},
    ports::Output,
};

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
    let origins_of = |change: &ResourceChange| {
        let specs = module.resources.get(&change.resource)?;
        let found = change.fields.iter().filter_map(|field| {
            let name = field.path.trim_start_matches('/');
            Some((name.to_owned(), specs.get(name)?.origin.clone()?))
        });
        Some((change.resource.clone(), found.collect()))
    };
    changes.iter().filter_map(origins_of).collect()
}

/// Returns the drift of fields that the module does not set.
pub(super) fn meddled(
    name: &str,
    stored: &Fields,
    live: &Fields,
    specs: &BTreeMap<String, FieldSpec>,
) -> Option<Drift> {
    let keys: BTreeSet<&String> = stored
        .keys()
        .chain(live.keys())
        .filter(|key| specs.get(*key).is_none_or(|spec| spec.value.is_none()))
        .collect();
    let shown = |value: Option<&String>| value.map(|value| Value::from(value.as_str()));
    let fields: Vec<DriftField> = keys
        .into_iter()
        .filter(|key| stored.get(*key) != live.get(*key))
        .map(|key| DriftField {
            path: format!("/{key}"),
            desired: shown(stored.get(key)),
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
        is_output: false,
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

/// Returns the outputs as they would be after an apply, and those that change.
pub(super) fn outputs(
    seal: &Seal,
    module: &Module,
    kept: &TofuState,
    live: &BTreeMap<String, Fields>,
    changes: &[ResourceChange],
) -> (BTreeMap<String, Output>, Vec<ResourceChange>) {
    let (mut outputs, mut found) = (BTreeMap::new(), vec![]);
    for (name, spec) in &module.outputs {
        let OutputSpec { resource, field, secret } = spec;
        let remade = changes
            .iter()
            .any(|change| change.resource == *resource && matches!(change.change, Change::Create | Change::Replace));
        let value = match module.resources.get(resource).and_then(|fields| fields.get(field)) {
            Some(FieldSpec { value: Some(value), .. }) => Some(value.clone()),
            _ if remade => None,
            _ => live.get(resource).and_then(|fields| fields.get(field)).cloned(),
        };
        let before = kept.outputs.get(name);
        if before != value.as_ref() {
            found.push(output_change(seal, name, before, value.as_ref(), *secret));
        }
        outputs.insert(name.clone(), Output { value: value.map(Value::from), sensitive: *secret });
    }
    for (name, before) in kept.outputs.iter().filter(|(name, _)| !module.outputs.contains_key(*name)) {
        let mut gone = output_change(seal, name, Some(before), None, false);
        gone.change = Change::Destroy;
        gone.fields.iter_mut().for_each(|field| (field.after, field.unknown) = (None, false));
        found.push(gone);
    }
    (outputs, found)
}

fn output_change(
    seal: &Seal,
    name: &str,
    before: Option<&String>,
    after: Option<&String>,
    secret: bool,
) -> ResourceChange {
    let shown = |value: &String| if secret { change::MASKED.into() } else { Value::from(value.as_str()) };
    let sealed = |value: Option<&String>| seal.seal(&value.map_or(Value::Null, |value| value.as_str().into()));
    let unknown = after.is_none();
    let field = Field {
        path: String::new(),
        before: before.map(shown),
        after: Some(after.map_or_else(|| change::KNOWN_AFTER_APPLY.into(), shown)),
        sensitive: secret,
        unknown,
        sealed: secret.then(|| (sealed(before), sealed(after))),
    };
    let change = if before.is_some() { Change::Update } else { Change::Create };
    ResourceChange {
        resource: format!("output {name}"),
        r#type: "output".into(),
        change,
        reverts_drift: false,
        protected: false,
        fields: vec![field],
    }
}
