//! What a plan at the applied revision says about the world. Pure.
//!
//! Everything that it would change is drift (R1.4). What differs from the last apply and no apply would change is
//! *adopt-only*: it is reported, and counts only where the component is strict.

use crate::targets::opentofu::fields::fields;
use crate::targets::opentofu::plan_json::PlanJson;
use crate::{
    model::{Change, Drift, DriftField, DriftKind, Field, Redactor, ResourceChange, Seal},
    ports::Observation,
};

/// The drift that an observation at the applied revision shows.
pub fn of(observation: &Observation) -> Vec<Drift> {
    let revertible = observation.changes.iter().filter_map(|resource| {
        let drift = match resource.change {
            Change::Create => DriftKind::Missing,
            Change::Update | Change::Replace | Change::Run | Change::Move => DriftKind::Changed,
            Change::Destroy | Change::Forget => DriftKind::Extra,
        };
        // An output follows from its resources; alone it is drift all the same (R1.3).
        if resource.r#type == "output" && observation.changes.iter().any(|other| other.r#type != "output") {
            return None;
        }
        Some(Drift {
            resource: resource.resource.clone(),
            drift,
            revertible: true,
            fields: shown(resource),
            changed_by: None,
            changed_at: None,
        })
    });
    revertible.chain(observation.adopt_only.iter().cloned()).collect()
}

/// What a refresh would write into the state: nothing in the world is changed by it.
pub fn refreshes(adopt_only: &[Drift]) -> Vec<ResourceChange> {
    let field = |field: &DriftField| Field {
        path: field.path.clone(),
        before: field.desired.clone(),
        after: field.observed.clone(),
        sensitive: false,
        unknown: false,
        sealed: None,
    };
    let change = |drift: &Drift| ResourceChange {
        resource: drift.resource.clone(),
        r#type: REFRESHED.into(),
        change: Change::Run,
        reverts_drift: false,
        protected: false,
        fields: drift.fields.iter().map(field).collect(),
    };
    adopt_only.iter().map(change).collect()
}

/// What stands for the type of a resource that is only looked at again.
pub(super) const REFRESHED: &str = "refresh";

fn shown(resource: &ResourceChange) -> Vec<DriftField> {
    let field = |field: &Field| DriftField {
        path: field.path.clone(),
        desired: field.after.clone(),
        observed: field.before.clone(),
    };
    let known: Vec<DriftField> = resource.fields.iter().filter(|field| !field.unknown).map(field).collect();
    if resource.change == Change::Create { vec![] } else { known }
}

/// Differences from the last apply that the plan does not change.
pub(super) fn adopt_only(plan: &PlanJson, changes: &[ResourceChange], seal: &Seal, redactor: &Redactor) -> Vec<Drift> {
    plan.resource_drift
        .iter()
        .filter(|raw| !changes.iter().any(|change| change.resource == raw.address))
        .filter_map(|raw| {
            let drift = match raw.change.actions.first().map(String::as_str) {
                Some("delete") => DriftKind::Missing,
                Some("update") => DriftKind::Changed,
                _ => return None,
            };
            // Here *before* is what was applied and *after* is what was observed.
            let fields = fields(&raw.change, seal, redactor).into_iter().map(|f| DriftField {
                path: f.path,
                desired: f.before,
                observed: f.after,
            });
            Some(Drift {
                resource: raw.address.clone(),
                drift,
                revertible: false,
                fields: fields.collect(),
                changed_by: None,
                changed_at: None,
            })
        })
        .collect()
}
