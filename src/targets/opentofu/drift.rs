//! Derives drift from a plan at the applied revision. Pure.
//!
//! Every change of the plan is drift (R1.4). A difference from the last apply that no apply would change is
//! *adopt-only*: it is reported, and counts as drift only for a strict component.

use crate::targets::opentofu::fields::fields;
use crate::targets::opentofu::plan_json::PlanJson;
use crate::{
    model::{Change, Drift, DriftField, DriftKind, Field, Redactor, ResourceChange, Seal},
    ports::Observation,
};

/// Returns the drift that an observation at the applied revision shows.
pub fn of(observation: &Observation) -> Vec<Drift> {
    let revertible = observation.changes.iter().filter_map(|resource| {
        let drift = match resource.change {
            Change::Create => DriftKind::Missing,
            Change::Update | Change::Replace | Change::Run | Change::Move => DriftKind::Changed,
            Change::Destroy | Change::Forget => DriftKind::Extra,
        };
        // A changed output is usually a consequence of a changed resource; without one it is drift itself (R1.3).
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
            is_output: resource.r#type == "output",
        })
    });
    revertible.chain(observation.adopt_only.iter().cloned()).collect()
}

/// Returns the changes that a refresh would write into the state; a refresh changes no resource.
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

/// The type of a resource in a refresh.
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

/// Returns the differences from the last apply that the plan does not change.
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
            // Here *before* is the applied value and *after* the observed one.
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
                is_output: false,
            })
        })
        .collect()
}
