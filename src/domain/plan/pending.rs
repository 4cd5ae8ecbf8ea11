//! Compares head with the applied records, and finds dependents of instances (R1.4, R1.9, R1.10).

use std::collections::{BTreeMap, BTreeSet};

use super::Applied;
use crate::{
    domain::declaration::Instance,
    model::{ComponentName, InstanceId},
    ports::RecordedOutput,
};

/// Splits the key of a recorded input, `COMPONENT.outputs.NAME`, into the upstream and the name of its output.
pub fn input_source<'k>(id: &InstanceId, key: &'k str) -> Option<(InstanceId, &'k str)> {
    let (component, name) = key.split_once(".outputs.")?;
    Some((InstanceId::new(&id.environment, &component.parse::<ComponentName>().ok()?), name))
}

/// Returns the upstreams of an instance's recorded inputs.
pub fn sources(id: &InstanceId, inputs: &BTreeMap<String, RecordedOutput>) -> BTreeSet<InstanceId> {
    inputs.keys().filter_map(|key| Some(input_source(id, key)?.0)).collect()
}

/// Returns whether the digest or the inputs at head differ from the applied ones (R1.4).
pub fn is_pending(instance: &Instance, applied: &BTreeMap<InstanceId, Applied>) -> bool {
    let Some(record) = applied.get(&instance.id) else { return true };
    if Some(record.digest) != instance.digest {
        return true;
    }
    record.inputs.iter().any(|(key, value)| {
        let Some((upstream, name)) = input_source(&instance.id, key) else { return false };
        applied.get(&upstream).and_then(|upstream| upstream.outputs.get(name)).is_some_and(|output| output != value)
    })
}

/// Returns the former name of a renamed instance while its records still have that name (R1.10).
pub fn former_name<'i>(instance: &'i Instance, applied: &BTreeMap<InstanceId, Applied>) -> Option<&'i InstanceId> {
    let old = instance.renamed_from.as_ref()?;
    (applied.contains_key(old) && !applied.contains_key(&instance.id)).then_some(old)
}

/// Returns the applied instances that use outputs of an instance or depend on it.
pub fn dependents(id: &InstanceId, applied: &BTreeMap<InstanceId, Applied>) -> BTreeSet<InstanceId> {
    let uses = |record: &Applied| {
        let outputs = format!("{}.outputs.", id.component);
        record.inputs.keys().any(|key| key.starts_with(&outputs)) || record.spec.depends_on.contains(&id.component)
    };
    let others = applied.iter().filter(|(other, _)| other.environment == id.environment && *other != id);
    others.filter(|(_, record)| uses(record)).map(|(other, _)| other.clone()).collect()
}
