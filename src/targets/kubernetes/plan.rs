//! Converts changes of objects to actions, one for each object (R2.2). Pure.

use std::collections::BTreeMap;

use crate::{
    domain::plan::action_digest,
    model::{Action, Change, Effect, InstanceId, Overwrite},
    ports::Observation,
};

/// The operation of an action that applies an object.
pub const APPLY: &str = "kubernetes.apply";
/// The operation of an action that deletes an object.
pub const DELETE: &str = "kubernetes.delete";

/// The details of an observation that only this target reads.
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// The state of each object that its action overwrites.
    pub overwrites: BTreeMap<String, Overwrite>,
}

/// Returns the actions of an instance, in the order of execution.
pub fn actions(id: &InstanceId, observation: &Observation) -> Vec<Action> {
    let overwrites = observation.own::<Details>().map(|details| &details.overwrites);
    observation
        .changes
        .iter()
        .map(|change| {
            let r#do = if change.change == Change::Destroy { DELETE } else { APPLY };
            let resources = vec![change.clone()];
            Action {
                digest: action_digest(id, r#do, &resources),
                r#do: r#do.into(),
                precondition: overwrites.and_then(|known| known.get(&change.resource)).cloned().unwrap_or_default(),
                effect: Effect::NONE,
                resources,
            }
        })
        .collect()
}
