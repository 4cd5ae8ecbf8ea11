//! Changes of a cluster to actions: one for each move or statement (R2.2). Pure.

use crate::{
    domain::plan::action_digest,
    model::{Action, Change, Effect, InstanceId, ResourceChange},
    ports::Observation,
};

/// The type of a move that a declaration asks for: a pin, a node that is drained.
pub const MOVE: &str = "citus_move";
/// The type of a move that nothing but the balance asks for; what such an action does is `citus.rebalance`.
pub const REBALANCE: &str = "citus_rebalance";

/// The type of a change of a table.
pub const TABLE: &str = "citus_table";

/// The properties of the action that makes a change.
fn effect(change: &ResourceChange) -> Effect {
    Effect {
        atomic: false,
        rewrites_data: change.r#type == TABLE && change.change == Change::Replace,
        relocates: change.r#type == MOVE || change.r#type == REBALANCE,
        deferrable: change.r#type == REBALANCE,
    }
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
            Action { digest, r#do, precondition: Default::default(), effect: effect(change), resources }
        })
        .collect()
}
