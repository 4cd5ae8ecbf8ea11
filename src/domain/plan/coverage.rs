//! Decides whether an approved plan covers a new plan (R2.4).
//!
//! *Invariant:* a covered plan makes no change that the approved plan did not show.

use crate::model::{Action, Change, Field, ResourceChange};

/// The first part of a new plan that was not approved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gap {
    /// The change of a resource is not in the approved plan.
    Unplanned {
        /// The resource.
        resource: String,
        /// Its change.
        change: Change,
    },
    /// The resource has another change in the approved plan.
    OtherChange {
        /// The resource.
        resource: String,
        /// The new change.
        change: Change,
        /// The approved change.
        approved: Change,
    },
    /// The field is not in the approved plan.
    UnplannedField {
        /// The resource.
        resource: String,
        /// The JSON pointer of the field.
        path: String,
    },
    /// The field has another present value than the approved plan showed.
    OtherBefore {
        /// The resource.
        resource: String,
        /// The JSON pointer of the field.
        path: String,
    },
    /// The field would get another value than the approved plan showed.
    OtherAfter {
        /// The resource.
        resource: String,
        /// The JSON pointer of the field.
        path: String,
    },
}

/// Checks that an approved plan covers a new one.
///
/// # Errors
/// The first change of the new plan that is not covered.
pub fn covers(approved: &[Action], fresh: &[Action]) -> Result<(), Gap> {
    for action in fresh {
        if approved.iter().any(|known| known.digest == action.digest) {
            continue;
        }
        for resource in &action.resources {
            let same = || {
                let same = approved.iter().filter(|known| known.r#do == action.r#do).flat_map(|known| &known.resources);
                same.filter(|known| known.resource == resource.resource)
            };
            // The approved plan may have two changes of one resource. The same kind of change is compared first.
            let known = same().find(|known| known.change == resource.change).or_else(|| same().next());
            match known {
                // An interrupted replacement: the resource is deleted and not yet created.
                Some(known)
                    if !action.effect.atomic
                        && known.change == Change::Replace
                        && resource.change == Change::Create => {}
                Some(known) => covers_resource(known, resource)?,
                // Outputs follow from resources. Approved resources therefore cover the change of outputs.
                None if resource.r#type == "output"
                    && (brings_outputs(action) || approved.iter().any(brings_outputs)) => {}
                None => {
                    return Err(Gap::Unplanned { resource: resource.resource.clone(), change: resource.change });
                }
            }
        }
    }
    Ok(())
}

/// Returns whether an action changes resources, and therefore outputs; also resources that an interrupted run changed
/// already.
fn brings_outputs(action: &Action) -> bool {
    action.resources.iter().any(|resource| resource.r#type != "output")
}

fn covers_resource(approved: &ResourceChange, fresh: &ResourceChange) -> Result<(), Gap> {
    if approved.change != fresh.change {
        return Err(Gap::OtherChange {
            resource: fresh.resource.clone(),
            change: fresh.change,
            approved: approved.change,
        });
    }
    for field in &fresh.fields {
        match approved.fields.iter().find(|known| known.path == field.path) {
            Some(known) => {
                covers_field(&fresh.resource, known, field)?;
            }
            // The approved plan had an unknown value here, and the new plan knows a part of it.
            None if approved.fields.iter().any(|known| known.unknown && inside(&field.path, &known.path)) => {}
            None if field.unknown => {}
            None => {
                return Err(Gap::UnplannedField { resource: fresh.resource.clone(), path: field.path.clone() });
            }
        }
    }
    Ok(())
}

fn inside(path: &str, outer: &str) -> bool {
    path.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'))
}

fn covers_field(resource: &str, approved: &Field, fresh: &Field) -> Result<(), Gap> {
    let (resource, path) = (resource.to_owned(), fresh.path.clone());
    let before = |field: &Field| {
        field.sealed.as_ref().map_or_else(|| field.before.clone(), |(before, _)| Some(before.clone().into()))
    };
    let after = |field: &Field| {
        field.sealed.as_ref().map_or_else(|| field.after.clone(), |(_, after)| Some(after.clone().into()))
    };
    if before(approved) != before(fresh) && !approved.unknown {
        return Err(Gap::OtherBefore { resource, path });
    }
    if approved.unknown || fresh.unknown || after(approved) == after(fresh) {
        Ok(())
    } else {
        Err(Gap::OtherAfter { resource, path })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::{Digest, Overwrite};

    fn action(change: &str, fields: &[(&str, serde_json::Value, serde_json::Value)]) -> Action {
        let fields = fields
            .iter()
            .map(|(path, before, after)| {
                let unknown = *after == json!("?");
                Field {
                    path: (*path).into(),
                    before: Some(before.clone()),
                    after: Some(after.clone()),
                    sensitive: false,
                    unknown,
                    sealed: None,
                }
            })
            .collect();
        let resource = ResourceChange {
            resource: "a.b".into(),
            r#type: "a".into(),
            change: serde_json::from_value(json!(change)).unwrap(),
            reverts_drift: false,
            protected: false,
            fields,
        };
        Action {
            digest: Digest::of_json(&json!(serde_json::to_string(&resource).unwrap())),
            r#do: "tofu.apply".into(),
            precondition: Overwrite::default(),
            effect: crate::model::Effect::ATOMIC,
            resources: vec![resource],
        }
    }

    #[test]
    fn r2_4_only_shown_changes_are_covered() {
        let approved = [action("update", &[("/x", json!(1), json!(2)), ("/id", json!("i"), json!("?"))])];
        let check = |fresh: Action| covers(&approved, &[fresh]).map_err(|gap| gap.to_string());
        assert_eq!(check(action("update", &[("/x", json!(1), json!(2))])), Ok(()));
        assert_eq!(check(action("update", &[("/x", json!(1), json!(2)), ("/id", json!("i"), json!("j"))])), Ok(()));
        insta::assert_snapshot!(check(action("update", &[("/x", json!(1), json!(3))])).unwrap_err(), @"`a.b` /x would get another value than the plan showed");
        insta::assert_snapshot!(check(action("update", &[("/x", json!(9), json!(2))])).unwrap_err(), @"`a.b` /x holds another value now than the plan showed");
        insta::assert_snapshot!(check(action("replace", &[("/x", json!(1), json!(2))])).unwrap_err(), @"`a.b` would be replaced and not changed");
        insta::assert_snapshot!(check(action("update", &[("/y", json!(1), json!(2))])).unwrap_err(), @"`a.b` /y would be changed, and was not in the plan");
        assert_eq!(covers(&approved, &[]), Ok(()));
        assert!(covers(&[], &approved).is_err());
    }

    #[test]
    fn r2_4_an_interrupted_replacement_may_create_the_resource() {
        let action_of = |r#do: &str, change: &str| Action {
            r#do: r#do.into(),
            effect: crate::model::Effect { atomic: r#do == "tofu.apply", ..Default::default() },
            ..action(change, &[("/x", json!(change), json!(2))])
        };
        assert_eq!(
            covers(&[action_of("kubernetes.apply", "replace")], &[action_of("kubernetes.apply", "create")]),
            Ok(())
        );
        assert!(
            covers(&[action_of("kubernetes.apply", "update")], &[action_of("kubernetes.apply", "create")]).is_err()
        );
        assert!(covers(&[action_of("tofu.apply", "replace")], &[action_of("tofu.apply", "create")]).is_err());
    }
}
