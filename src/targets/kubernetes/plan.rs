//! Changes of objects to actions: one for each object (R2.2). Pure.

use crate::{
    domain::plan::action_digest,
    model::{Action, Change, Effect, InstanceId},
    ports::Observation,
};

/// The operation of an action that applies an object.
pub const APPLY: &str = "kubernetes.apply";
/// The operation of an action that deletes an object.
pub const DELETE: &str = "kubernetes.delete";

/// The actions of an instance, in the order in which they are done.
pub fn actions(id: &InstanceId, observation: &Observation) -> Vec<Action> {
    observation
        .changes
        .iter()
        .map(|change| {
            let r#do = if change.change == Change::Destroy { DELETE } else { APPLY };
            let resources = vec![change.clone()];
            Action {
                digest: action_digest(id, r#do, &resources),
                r#do: r#do.into(),
                precondition: observation.overwrites.get(&change.resource).cloned().unwrap_or_default(),
                effect: Effect::NONE,
                resources,
            }
        })
        .collect()
}
