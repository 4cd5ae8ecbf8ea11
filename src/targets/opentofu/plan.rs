//! The plan JSON of tofu to changes, and changes to an action. Pure.
//!
//! Decides which values may be shown. Reads by allow-list: `variables`, `prior_state`, `planned_values` and
//! `configuration` are never looked at for values; the last one says where they come from. A value that the plan marks sensitive is masked here, before it
//! leaves this folder; what stands for it in a digest is an HMAC (R2.3).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{drift, origin};
use crate::{
    domain::plan::action_digest,
    model::{
        Action, Change, Field, InstanceId, Overwrite, Redactor, ResourceChange, Seal,
        change::{KNOWN_AFTER_APPLY, MASKED},
    },
    ports::{Observation, Output},
};

/// The part of tofu's plan JSON that is read.
#[derive(Deserialize, Default, Debug)]
pub struct PlanJson {
    #[serde(default)]
    format_version: String,
    #[serde(default)]
    resource_changes: Vec<RawResource>,
    #[serde(default)]
    pub(super) resource_drift: Vec<RawResource>,
    #[serde(default)]
    output_changes: BTreeMap<String, RawChange>,
    #[serde(default)]
    prior_state: Option<PriorState>,
    /// Read for where attributes come from, never for values.
    #[serde(default)]
    configuration: Value,
    #[serde(default)]
    errored: bool,
}

#[derive(Deserialize, Default, Debug)]
struct PriorState {
    #[serde(default)]
    values: Option<StateValues>,
}

#[derive(Deserialize, Default, Debug)]
struct StateValues {
    #[serde(default)]
    root_module: Option<Module>,
}

#[derive(Deserialize, Default, Debug)]
struct Module {
    #[serde(default)]
    resources: Vec<StateResource>,
    #[serde(default)]
    child_modules: Vec<Module>,
}

#[derive(Deserialize, Default, Debug)]
struct StateResource {
    #[serde(default)]
    mode: String,
}

impl Module {
    /// Data sources are only read, so they hold nothing.
    fn holds_anything(&self) -> bool {
        self.resources.iter().any(|resource| resource.mode == "managed")
            || self.child_modules.iter().any(Self::holds_anything)
    }
}

#[derive(Deserialize, Debug)]
pub(super) struct RawResource {
    pub(super) address: String,
    #[serde(default)]
    previous_address: Option<String>,
    #[serde(default)]
    mode: String,
    #[serde(rename = "type", default)]
    sort: String,
    #[serde(default)]
    deposed: Option<String>,
    pub(super) change: RawChange,
}

#[derive(Deserialize, Debug, Default)]
pub(super) struct RawChange {
    #[serde(default)]
    pub(super) actions: Vec<String>,
    #[serde(default)]
    pub(super) before: Value,
    #[serde(default)]
    pub(super) after: Value,
    #[serde(default)]
    after_unknown: Value,
    #[serde(default)]
    before_sensitive: Value,
    #[serde(default)]
    after_sensitive: Value,
    #[serde(default)]
    importing: Option<Value>,
}

/// What a plan says, with everything sensitive masked.
///
/// # Errors
/// When the plan has a format that is not known, or says that it is incomplete.
pub fn observation(plan: &PlanJson, seal: &Seal, redactor: &Redactor) -> Result<Observation, String> {
    if !plan.format_version.starts_with("1.") {
        return Err(format!("its format is `{}` and 1.x is expected", plan.format_version));
    }
    if plan.errored {
        return Err("it is incomplete".into());
    }
    // Everything marked is learnt first, because a module may copy a secret into a place that is not marked.
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
    changes.sort_by(|one, two| (one.r#type == "output", &one.resource).cmp(&(two.r#type == "output", &two.resource)));
    // What the state names and the world does not show any more stands in the drift, and not in the state as it was read.
    let holds_anything = !plan.resource_drift.is_empty()
        || plan
            .prior_state
            .as_ref()
            .and_then(|state| state.values.as_ref())
            .and_then(|values| values.root_module.as_ref())
            .is_some_and(Module::holds_anything);
    Ok(Observation {
        adopt_only: drift::adopt_only(plan, &changes, seal, redactor),
        origins: origin::of(&plan.configuration, &changes),
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
        // An action that a later tofu invents is taken for the worst that it could be.
        _ => Some(Change::Replace),
    }
}

/// Learns what is marked in a value.
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

/// Whether a mark (`true`, or a structure with `true` in it) is set anywhere.
fn has_mark(mark: &Value) -> bool {
    match mark {
        Value::Bool(flag) => *flag,
        Value::Array(items) => items.iter().any(has_mark),
        Value::Object(map) => map.values().any(has_mark),
        _ => false,
    }
}

/// The fields that differ, with sensitive values masked and unknown ones marked.
pub(super) fn fields(raw: &RawChange, seal: &Seal, redactor: &Redactor) -> Vec<Field> {
    let mut walk = Walk { seal, redactor, found: vec![] };
    let sides = Sides {
        before: &raw.before,
        after: &raw.after,
        unknown: &raw.after_unknown,
        masked_before: &raw.before_sensitive,
        masked_after: &raw.after_sensitive,
    };
    walk.compare(String::new(), &sides);
    walk.found
}

struct Walk<'a> {
    seal: &'a Seal,
    redactor: &'a Redactor,
    found: Vec<Field>,
}

struct Sides<'a> {
    before: &'a Value,
    after: &'a Value,
    unknown: &'a Value,
    masked_before: &'a Value,
    masked_after: &'a Value,
}

/// The most fields of one resource that are kept; a digest still covers all by the hash of what is left out.
const FIELDS_MAX: usize = 2000;

fn child<'v>(value: &'v Value, key: &str) -> &'v Value {
    const NULL: &Value = &Value::Null;
    match value {
        Value::Object(map) => map.get(key).unwrap_or(NULL),
        Value::Array(items) => key.parse::<usize>().ok().and_then(|at| items.get(at)).unwrap_or(NULL),
        // A mark that holds for the whole holds for each part.
        Value::Bool(true) => value,
        _ => NULL,
    }
}

impl Walk<'_> {
    fn compare(&mut self, path: String, sides: &Sides<'_>) {
        let whole_masked = sides.masked_before == &Value::Bool(true) || sides.masked_after == &Value::Bool(true);
        let whole_unknown = sides.unknown == &Value::Bool(true);
        let keys: Vec<String> = match (sides.before, sides.after, sides.unknown) {
            _ if whole_masked || whole_unknown => vec![],
            (Value::Object(_) | Value::Null, Value::Object(_), _) | (Value::Object(_), Value::Null, _) => {
                let mut keys: Vec<String> = [sides.before, sides.after, sides.unknown]
                    .iter()
                    .filter_map(|v| v.as_object())
                    .flat_map(|map| map.keys().cloned())
                    .collect();
                keys.sort();
                keys.dedup();
                keys
            }
            (Value::Array(one), Value::Array(two), _) => {
                (0..one.len().max(two.len())).map(|at| at.to_string()).collect()
            }
            _ => vec![],
        };
        if keys.is_empty() || self.found.len() >= FIELDS_MAX {
            return self.leaf(path, sides, whole_masked, whole_unknown);
        }
        for key in keys {
            let inner = Sides {
                before: child(sides.before, &key),
                after: child(sides.after, &key),
                unknown: child(sides.unknown, &key),
                masked_before: child(sides.masked_before, &key),
                masked_after: child(sides.masked_after, &key),
            };
            self.compare(format!("{path}/{}", key.replace('~', "~0").replace('/', "~1")), &inner);
        }
    }

    fn leaf(&mut self, path: String, sides: &Sides<'_>, masked: bool, unknown: bool) {
        let masked = masked
            || has_mark(sides.masked_before)
            || has_mark(sides.masked_after)
            || self.redactor.touches(sides.before)
            || self.redactor.touches(sides.after);
        if sides.before == sides.after && !unknown {
            return;
        }
        let shown = |value: &Value| (!value.is_null()).then(|| if masked { MASKED.into() } else { value.clone() });
        self.found.push(Field {
            path,
            before: shown(sides.before),
            after: if unknown { Some(KNOWN_AFTER_APPLY.into()) } else { shown(sides.after) },
            sensitive: masked,
            unknown,
            sealed: masked.then(|| (self.seal.seal(sides.before), self.seal.seal(sides.after))),
        });
    }
}

/// What an action does that writes what was observed into the state.
pub const REFRESH: &str = "tofu.refresh";

/// The one action of an instance, or nothing where nothing would change.
pub fn actions(id: &InstanceId, observation: &Observation) -> Vec<Action> {
    if observation.changes.is_empty() {
        return vec![];
    }
    let resources = observation.changes.clone();
    let refreshes = resources.iter().all(|resource| resource.r#type == drift::REFRESHED);
    vec![Action {
        digest: action_digest(id, "tofu.apply", &resources),
        r#do: if refreshes { REFRESH } else { "tofu.apply" }.into(),
        precondition: Overwrite { serial: observation.serial, ..Overwrite::default() },
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
        let one = read(plan("new-canary"));
        let text = serde_json::to_string(&one.changes).unwrap();
        assert!(!text.contains("canary"), "{text}");
        let id = "dev/a".parse().unwrap();
        let digest = |o: &Observation| actions(&id, o)[0].digest;
        assert_ne!(digest(&one), digest(&read(plan("other-canary"))));
        let paths: Vec<&str> = one.changes[0].fields.iter().map(|f| f.path.as_str()).collect();
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
