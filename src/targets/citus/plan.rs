//! Changes of a cluster to actions: one for each move or statement (R2.2). Pure.

use crate::{
    domain::plan::action_digest,
    model::{Action, InstanceId},
    ports::Observation,
};

/// The type of a move that a declaration asks for: a pin, a node that is drained.
pub const MOVE: &str = "citus_move";
/// The type of a move that nothing but the balance asks for; what such an action does is `citus.rebalance`.
pub const REBALANCE: &str = "citus_rebalance";

/// Whether an action moves shards.
pub fn is_move(action: &Action) -> bool {
    action.resources.iter().all(|resource| resource.r#type == REBALANCE || resource.r#type == MOVE)
}

/// The actions of an instance, in the order in which they are done.
pub fn actions(id: &InstanceId, observation: &Observation) -> Vec<Action> {
    observation
        .changes
        .iter()
        .map(|change| {
            let r#do = change.r#type.replacen('_', ".", 1);
            let resources = vec![change.clone()];
            let digest = action_digest(id, &r#do, &resources);
            Action { digest, r#do, precondition: Default::default(), resources }
        })
        .collect()
}
