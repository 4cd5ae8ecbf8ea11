//! Converts the plan JSON of tofu to changes, and changes to an action. Pure.
//!
//! Decides which values may be shown. Values are read by allow-list: `variables`, `prior_state`, `planned_values` and
//! `configuration` are never read for values. `configuration` is read only for the origins of values.
//! *Invariant:* a value that the plan marks sensitive is masked in this module. A digest contains its HMAC (R2.3).

use super::{drift, origin};
use crate::targets::opentofu::fields::{fields, has_mark};
use crate::targets::opentofu::plan_json::{Module, PlanJson};
use crate::{
    domain::plan::action_digest,
    model::{Action, Change, Effect, Field, InstanceId, Overwrite, Redactor, ResourceChange, Seal},
    ports::{Observation, Output},
};
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};

/// The details of an observation that only this target reads.
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// The serial of the observed state.
    pub serial: Option<u64>,
    /// The variables that attributes are set from, by resource and attribute.
    pub origins: BTreeMap<String, BTreeMap<String, String>>,
}

/// Reads a plan; sensitive values are masked.
///
/// # Errors
/// When the plan has an unknown format or is marked incomplete.
pub fn observation(plan: &PlanJson, seal: &Seal, redactor: &Redactor) -> Result<Observation, String> {
    if !plan.format_version.starts_with("1.") {
        return Err(format!("its format is `{}` and 1.x is expected", plan.format_version));
    }
    if plan.errored {
        return Err("it is incomplete".into());
    }
    // All marked values are registered first, because a module may copy a secret into an unmarked place.
    for raw in plan
        .resource_changes
        .iter()
        .chain(&plan.resource_drift)
        .map(|raw| &raw.change)
        .chain(plan.output_changes.values())
    {
        learn(&raw.before, &raw.before_sensitive, redactor);
        learn(&raw.after, &raw.after_sensitive, redactor);
    }
    let mut changes = resource_changes(plan, seal, redactor);
    let mut outputs = BTreeMap::new();
    for (name, raw) in &plan.output_changes {
        let sensitive = has_mark(&raw.after_sensitive) || has_mark(&raw.before_sensitive);
        let unknown = has_mark(&raw.after_unknown);
        if let Some(change) = change(&raw.actions) {
            let fields = fields(raw, seal, redactor);
            changes.push(ResourceChange {
                resource: format!("output {name}"),
                r#type: "output".into(),
                change,
                reverts_drift: false,
                protected: false,
                fields,
            });
        }
        if raw.actions != ["delete"] {
            outputs.insert(name.clone(), Output { value: (!unknown).then(|| raw.after.clone()), sensitive });
        }
    }
    changes.sort_by(|a, b| (a.r#type == "output", &a.resource).cmp(&(b.r#type == "output", &b.resource)));
    // A resource of the state that no longer exists is in the drift and not in the state as read.
    let holds_anything = !plan.resource_drift.is_empty()
        || plan
            .prior_state
            .as_ref()
            .and_then(|state| state.values.as_ref())
            .and_then(|values| values.root_module.as_ref())
            .is_some_and(Module::holds_anything);
    Ok(Observation {
        adopt_only: drift::adopt_only(plan, &changes, seal, redactor),
        own: Some(Arc::new(Details { serial: None, origins: origin::variables_of(&plan.configuration, &changes) })),
        changes,
        outputs,
        holds_anything,
        ..Observation::default()
    })
}

fn resource_changes(plan: &PlanJson, seal: &Seal, redactor: &Redactor) -> Vec<ResourceChange> {
    let mut changes = vec![];
    for raw in plan.resource_changes.iter().filter(|raw| raw.mode != "data") {
        let moved = raw.previous_address.as_ref().filter(|from| **from != raw.address);
        let change = match change(&raw.change.actions) {
            None if moved.is_some() => Change::Move,
            None if raw.change.importing.is_some() => Change::Run,
            None => continue,
            Some(change) => change,
        };
        let deposed = raw.deposed.as_ref().map(|key| format!(" (deposed {key})")).unwrap_or_default();
        let mut fields = fields(&raw.change, seal, redactor);
        if let Some(from) = moved {
            fields.insert(
                0,
                Field {
                    path: "".into(),
                    before: Some(from.clone().into()),
                    after: Some(raw.address.clone().into()),
                    sensitive: false,
                    unknown: false,
                    sealed: None,
                },
            );
        }
        let resource = format!("{}{deposed}", raw.address);
        changes.push(ResourceChange {
            resource,
            r#type: raw.sort.clone(),
            change,
            reverts_drift: false,
            protected: false,
            fields,
        });
    }
    changes
}

fn change(actions: &[String]) -> Option<Change> {
    let actions: Vec<&str> = actions.iter().map(String::as_str).collect();
    match actions[..] {
        ["create"] => Some(Change::Create),
        ["update"] => Some(Change::Update),
        ["delete"] => Some(Change::Destroy),
        ["delete", "create"] | ["create", "delete"] => Some(Change::Replace),
        ["forget"] => Some(Change::Forget),
        ["no-op"] | ["read"] | [] => None,
        // An unknown action of a later tofu is treated as the most destructive one.
        _ => Some(Change::Replace),
    }
}

/// Registers the marked parts of a value with the redactor.
fn learn(value: &Value, mark: &Value, redactor: &Redactor) {
    match (mark, value) {
        (Value::Bool(true), _) => redactor.learn(value),
        (Value::Object(marks), Value::Object(map)) => {
            marks.iter().for_each(|(key, mark)| map.get(key).into_iter().for_each(|value| learn(value, mark, redactor)))
        }
        (Value::Array(marks), Value::Array(items)) => {
            marks.iter().zip(items).for_each(|(mark, value)| learn(value, mark, redactor))
        }
        _ => {}
    }
}

/// The operation of an action that writes the observed values into the state.
pub const REFRESH: &str = "tofu.refresh";

/// Returns the one action of an instance, or none without changes.
pub fn actions(id: &InstanceId, observation: &Observation) -> Vec<Action> {
    if observation.changes.is_empty() {
        return vec![];
    }
    let resources = observation.changes.clone();
    let refreshes = resources.iter().all(|resource| resource.r#type == drift::REFRESHED);
    vec![Action {
        digest: action_digest(id, "tofu.apply", &resources),
        r#do: if refreshes { REFRESH } else { "tofu.apply" }.into(),
        precondition: Overwrite {
            serial: observation.own::<Details>().and_then(|details| details.serial),
            ..Overwrite::default()
        },
        effect: Effect::ATOMIC,
        resources,
    }]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(plan: Value) -> Observation {
        let plan: PlanJson = serde_json::from_value(plan).unwrap();
        observation(&plan, &Seal::new(vec![7]), &Redactor::default()).unwrap()
    }

    #[test]
    fn r2_3_what_the_plan_marks_is_masked_and_still_told_apart() {
        let plan = |secret: &str| {
            json!({"format_version": "1.2", "resource_changes": [{"address": "a.b", "mode": "managed", "type": "a", "change": {
                "actions": ["update"], "before": {"x": 1, "s": "old-canary"}, "after": {"x": 2, "s": secret},
                "after_unknown": {"id": true}, "before_sensitive": {"s": true}, "after_sensitive": {"s": true}}}]})
        };
        let observed = read(plan("new-canary"));
        let text = serde_json::to_string(&observed.changes).unwrap();
        assert!(!text.contains("canary"), "{text}");
        let id = "dev/a".parse().unwrap();
        let digest = |o: &Observation| actions(&id, o)[0].digest;
        assert_ne!(digest(&observed), digest(&read(plan("other-canary"))));
        let paths: Vec<&str> = observed.changes[0].fields.iter().map(|f| f.path.as_str()).collect();
        assert_eq!(paths, ["/id", "/s", "/x"]);
    }

    #[test]
    fn an_unknown_action_is_taken_for_the_worst() {
        let plan = read(
            json!({"format_version": "1.9", "resource_changes": [{"address": "a.b", "change": {"actions": ["transmogrify"]}}]}),
        );
        assert_eq!(plan.changes[0].change, Change::Replace);
    }

    #[test]
    fn an_unknown_format_is_refused() {
        let plan: PlanJson = serde_json::from_value(json!({"format_version": "2.0"})).unwrap();
        assert!(observation(&plan, &Seal::new(vec![7]), &Redactor::default()).is_err());
    }
}
