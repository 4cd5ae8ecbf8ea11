//! Validates a complete plan, independently of the planner (R2.6).
//!
//! Decides whether a plan may be shown and applied. A fatal violation blocks the proposal and the apply.
//! *Invariant:* never trusts the planner. Order, edges, counts and digests are computed again from the document alone.

use std::collections::BTreeMap;

use crate::{
    domain::{
        declaration::schema::Limits,
        plan::{HostViolation, InstancePlan, Plan, Summary, hosts},
    },
    model::{Change, EnvironmentName, InstanceId},
};

/// A rule that a plan violates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Two entries are of one instance.
    DuplicateInstance,
    /// An instance belongs to another environment.
    OtherEnvironment(InstanceId, EnvironmentName),
    /// The summary differs from the actions.
    Summary,
    /// The digest of the plan differs from its instances.
    PlanDigest,
    /// The digest of an instance differs from its actions.
    InstanceDigest(InstanceId),
    /// An instance comes before one of its upstreams.
    Order(InstanceId, InstanceId),
    /// An upstream is not in the plan.
    UpstreamMissing(InstanceId, InstanceId),
    /// A host would be removed while a node runs on it.
    Host(HostViolation),
    /// Stored data would be rewritten, and the declaration does not allow it.
    Rewrite {
        /// The resource.
        resource: String,
        /// The instance.
        id: InstanceId,
    },
    /// A protected resource would be destroyed, replaced, forgotten or moved.
    Protected {
        /// The resource.
        resource: String,
        /// The instance.
        id: InstanceId,
        /// Its change.
        change: Change,
    },
    /// A masked value has no HMAC.
    NotSealed {
        /// The resource.
        resource: String,
        /// The JSON pointer of the field.
        path: String,
    },
    /// The plan exceeds a limit of one run; the only violation that does not block the plan itself.
    OverLimit {
        /// The change that is limited.
        verb: &'static str,
        /// The field of `limits`.
        limit: &'static str,
        /// The number of changes in the plan.
        found: u64,
        /// The number of changes that one run may make.
        allowed: u64,
    },
}

impl Violation {
    /// Returns whether the plan itself is invalid, and not only larger than a run may be.
    pub fn is_fatal(&self) -> bool {
        !matches!(self, Self::OverLimit { .. })
    }
}

/// Validates a plan against the limits of one run of its environment.
pub fn plan(plan: &Plan, limits: &Limits) -> Vec<Violation> {
    let mut found = vec![];
    let orders: BTreeMap<&InstanceId, usize> =
        plan.instances.iter().map(|instance| (&instance.id, instance.order)).collect();
    if orders.len() != plan.instances.len() {
        found.push(Violation::DuplicateInstance);
    }
    for instance in &plan.instances {
        check_instance(instance, &orders, &mut found);
        if instance.id.environment != plan.environment {
            found.push(Violation::OtherEnvironment(instance.id.clone(), plan.environment.clone()));
        }
    }
    let counted = plan.instances.iter().fold(Summary::default(), |sum, instance| sum.plus(&instance.summary()));
    if counted != plan.summary {
        found.push(Violation::Summary);
    }
    let again = Plan::new(
        plan.environment.clone(),
        plan.revision.clone(),
        plan.base.clone(),
        plan.because.clone(),
        plan.instances.clone(),
    );
    if again.digest != plan.digest {
        found.push(Violation::PlanDigest);
    }
    found.extend(within(&counted, limits));
    found
}

fn check_instance(instance: &InstancePlan, orders: &BTreeMap<&InstanceId, usize>, found: &mut Vec<Violation>) {
    for upstream in &instance.after {
        match orders.get(upstream) {
            Some(order) if *order < instance.order => {}
            Some(_) => found.push(Violation::Order(instance.id.clone(), upstream.clone())),
            None => found.push(Violation::UpstreamMissing(instance.id.clone(), upstream.clone())),
        }
    }
    if !instance.actions.is_empty() && instance.digest != Some(InstancePlan::digest_of(&instance.actions)) {
        found.push(Violation::InstanceDigest(instance.id.clone()));
    }
    if let Some(violation) = hosts::violation(&instance.carried, &instance.actions) {
        found.push(Violation::Host(violation));
    }
    for action in &instance.actions {
        for resource in &action.resources {
            if resource.protected
                && matches!(resource.change, Change::Destroy | Change::Replace | Change::Forget | Change::Move)
            {
                let (resource, id, change) = (resource.resource.clone(), instance.id.clone(), resource.change);
                found.push(match action.effect.rewrites_data {
                    true => Violation::Rewrite { resource, id },
                    false => Violation::Protected { resource, id, change },
                });
            }
            for field in resource.fields.iter().filter(|field| field.sensitive && field.sealed.is_none()) {
                found.push(Violation::NotSealed { resource: resource.resource.clone(), path: field.path.clone() });
            }
        }
    }
}

/// Returns the limits of one run that a summary exceeds.
pub fn within(summary: &Summary, limits: &Limits) -> Vec<Violation> {
    let counts = [
        ("destroy", "destroys", summary.destroy, Some(limits.destroys)),
        ("replace", "replaces", summary.replace, Some(limits.replaces)),
        ("change", "changes", summary.changes(), limits.changes),
    ];
    let over = counts.into_iter().filter_map(|(verb, limit, found, allowed)| {
        let allowed = allowed.filter(|allowed| found > *allowed)?;
        Some(Violation::OverLimit { verb, limit, found, allowed })
    });
    over.collect()
}
