//! Formats violations of a plan, and the difference between two plans.

use std::fmt;

use crate::{
    domain::plan::{Gap, HostViolation, validation::Violation},
    model::Change,
};

/// Returns the participle of a change, such as `created`.
fn past(change: Change) -> &'static str {
    match change {
        Change::Create => "created",
        Change::Update => "changed",
        Change::Replace => "replaced",
        Change::Destroy => "destroyed",
        Change::Forget => "forgotten",
        Change::Move => "moved",
        Change::Run => "run",
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unplanned { resource, change } => {
                write!(f, "`{resource}` would be {}, and was not in the plan", past(*change))
            }
            Self::OtherChange { resource, change, approved } => {
                write!(f, "`{resource}` would be {} and not {}", past(*change), past(*approved))
            }
            Self::UnplannedField { resource, path } => {
                write!(f, "`{resource}` {path} would be changed, and was not in the plan")
            }
            Self::OtherBefore { resource, path } => {
                write!(f, "`{resource}` {path} holds another value now than the plan showed")
            }
            Self::OtherAfter { resource, path } => {
                write!(f, "`{resource}` {path} would get another value than the plan showed")
            }
        }
    }
}

impl fmt::Display for HostViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostsUndeclared { resource, is_replaced, cluster } => write!(
                f,
                "`{resource}` would be {}, and `nodes` of `{cluster}` does not declare what its nodes run on: declare `runsOn` for each, so that the node is drained first",
                if *is_replaced { "replaced" } else { "destroyed" },
            ),
            Self::NotDrained { node, cluster } => {
                write!(f, "the host of the node `{node}` of `{cluster}` would be removed before the node is drained")
            }
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DuplicateInstance => f.write_str("an instance is in the plan twice"),
            Self::OtherEnvironment(id, environment) => write!(f, "`{id}` is in a plan of `{environment}`"),
            Self::Summary => f.write_str("the summary of the plan does not count its actions"),
            Self::PlanDigest => f.write_str("the digest of the plan is not that of its instances"),
            Self::InstanceDigest(id) => write!(f, "the digest of `{id}` is not that of its actions"),
            Self::Order(id, upstream) => write!(f, "`{id}` would start before `{upstream}`, which it depends on"),
            Self::UpstreamMissing(id, upstream) => {
                write!(f, "`{id}` comes after `{upstream}`, which is not in the plan")
            }
            Self::Host(violation) => write!(f, "{violation}"),
            Self::Rewrite { resource, id } => write!(
                f,
                "`{resource}` of `{id}` would be rewritten; declare `allowRewrite: true` in a pull request of its own first"
            ),
            Self::Protected { resource, id, change } => write!(
                f,
                "`{resource}` of `{id}` is protected and would be {}; lift `protect` in a pull request of its own first",
                past(*change)
            ),
            Self::NotSealed { resource, path } => write!(f, "a secret of `{resource}` ({path}) is not sealed"),
            Self::OverLimit { verb, limit, found, allowed } => {
                write!(f, "{found} to {verb}, and `limits.{limit}` allows {allowed} in one run")
            }
        }
    }
}
