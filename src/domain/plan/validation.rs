//! The independent checker (R2.6): looks at a finished plan as somebody who did not make it.
//!
//! Decides whether a plan may be shown and applied. Never trusts the planner: order, edges, counts and digests are
//! worked out again from the document alone. A fatal note blocks the proposal and the apply.

use std::collections::BTreeMap;

use crate::{
    domain::{
        declaration::schema::Limits,
        plan::{InstancePlan, Plan, Summary, hosts},
    },
    model::{Change, InstanceId},
};

/// Something that the checker says of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Whether it blocks.
    pub fatal: bool,
    /// In a sentence.
    pub message: String,
}

fn fatal(message: String) -> Note {
    Note { fatal: true, message }
}

/// Looks at a plan, with the limits that hold for one run of its environment.
pub fn plan(plan: &Plan, limits: &Limits) -> Vec<Note> {
    let mut notes = vec![];
    let orders: BTreeMap<&InstanceId, usize> =
        plan.instances.iter().map(|instance| (&instance.id, instance.order)).collect();
    if orders.len() != plan.instances.len() {
        notes.push(fatal("an instance stands in the plan twice".into()));
    }
    for instance in &plan.instances {
        instance_notes(instance, &orders, &mut notes);
        if instance.id.environment != plan.environment {
            notes.push(fatal(format!("`{}` stands in a plan of `{}`", instance.id, plan.environment)));
        }
    }
    let counted = plan.instances.iter().fold(Summary::default(), |sum, instance| sum.plus(&instance.summary()));
    if counted != plan.summary {
        notes.push(fatal("the plan's summary does not count its actions".into()));
    }
    let again = Plan::new(
        plan.environment.clone(),
        plan.revision.clone(),
        plan.base.clone(),
        plan.because.clone(),
        plan.instances.clone(),
    );
    if again.digest != plan.digest {
        notes.push(fatal("the plan's digest is not that of its instances".into()));
    }
    notes.extend(within(&counted, limits).into_iter().map(|message| Note { fatal: false, message }));
    notes
}

fn instance_notes(instance: &InstancePlan, orders: &BTreeMap<&InstanceId, usize>, notes: &mut Vec<Note>) {
    for upstream in &instance.after {
        match orders.get(upstream) {
            Some(order) if *order < instance.order => {}
            Some(_) => {
                notes.push(fatal(format!("`{}` would start before `{upstream}`, which it depends on", instance.id)))
            }
            None => notes.push(fatal(format!("`{}` comes after `{upstream}`, which is not in the plan", instance.id))),
        }
    }
    if !instance.actions.is_empty() && instance.digest != Some(InstancePlan::digest_of(&instance.actions)) {
        notes.push(fatal(format!("the digest of `{}` is not that of its actions", instance.id)));
    }
    if let Some(why) = hosts::violation(&instance.carried, &instance.actions) {
        notes.push(fatal(why));
    }
    for action in &instance.actions {
        for resource in &action.resources {
            if resource.protected
                && matches!(resource.change, Change::Destroy | Change::Replace | Change::Forget | Change::Move)
            {
                let would = match resource.change {
                    Change::Destroy => "destroyed",
                    Change::Replace => "replaced",
                    Change::Forget => "forgotten",
                    _ => "moved",
                };
                if action.effect.rewrites_data {
                    notes.push(fatal(format!(
                        "`{}` of `{}` would be rewritten; say `allowRewrite: true` in a pull request of its own first",
                        resource.resource, instance.id
                    )));
                    continue;
                }
                notes.push(fatal(format!(
                    "`{}` of `{}` is protected and would be {would}; lift `protect` in a pull request of its own first",
                    resource.resource, instance.id
                )));
            }
            for field in resource.fields.iter().filter(|field| field.sensitive && field.sealed.is_none()) {
                notes.push(fatal(format!("a secret of `{}` ({}) is not sealed", resource.resource, field.path)));
            }
        }
    }
}

/// By how much a run would pass its limits, each in a sentence.
pub fn within(summary: &Summary, limits: &Limits) -> Vec<String> {
    let mut message = vec![];
    let mut check = |what: &str, name: &str, found: u64, limit: Option<u64>| {
        if let Some(limit) = limit
            && found > limit
        {
            message.push(format!("{found} to {what}, and `limits.{name}` allows {limit} in one run"));
        }
    };
    check("destroy", "destroys", summary.destroy, Some(limits.destroys));
    check("replace", "replaces", summary.replace, Some(limits.replaces));
    check("change", "changes", summary.changes(), limits.changes);
    message
}
