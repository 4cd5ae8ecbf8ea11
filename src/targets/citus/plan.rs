//! Converts changes of a cluster to actions: one for each move or statement (R2.2). Pure.

use crate::{
    domain::plan::action_digest,
    model::{Action, Change, Effect, InstanceId, ResourceChange},
    ports::Observation,
};

/// The type of a move that a declaration requires: a pin, or a drained node.
pub const MOVE: &str = "citus_move";
/// The type of a move for balance alone; the operation of its action is `citus.rebalance`.
pub const REBALANCE: &str = "citus_rebalance";

/// The type of a change of a table.
pub const TABLE: &str = "citus_table";

/// Returns the effect of a change.
fn effect(change: &ResourceChange) -> Effect {
    Effect {
        atomic: false,
        rewrites_data: change.r#type == TABLE && change.change == Change::Replace,
        relocates: change.r#type == MOVE || change.r#type == REBALANCE,
        deferrable: change.r#type == REBALANCE,
    }
}

/// Returns the actions of an instance, in the order of execution.
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
