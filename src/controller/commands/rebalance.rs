//! `/rebalance`: moves shards now.

use crate::domain::declaration::schema::Verb;
use crate::domain::message::Refusal;
use crate::domain::message::answer::Answer;
use crate::domain::message::run::RunCause;
use std::{collections::BTreeSet, sync::Arc};

use crate::{
    controller::{
        commands::Commands, context::Error, planning::environments, runs::RebalanceAuthorization, source::Head,
    },
    domain::authorization::Principal,
    model::{InstanceId, PullNumber, RunId},
};

impl Commands {
    /// `/rebalance`: makes the moves now.
    pub(super) async fn rebalance(
        self: &Arc<Self>,
        head: &Arc<Head>,
        meant: &BTreeSet<InstanceId>,
        who: &Principal,
        pull: Option<PullNumber>,
    ) -> Result<(String, Vec<RunId>), Error> {
        let clusters = self.runs.clusters(meant).await?;
        if clusters.is_empty() {
            return Err(Error::Refused(Refusal::NoCluster));
        }
        for environment in environments(&clusters) {
            if let Some(suspension) = self.source.suspensions(Some(head)).await?.environment(&environment) {
                return Err(Error::Refused(Refusal::Suspended { verb: Verb::Rebalance, suspension }));
            }
        }
        let mut runs = vec![];
        for environment in environments(&clusters) {
            let word = RebalanceAuthorization {
                because: RunCause::Command(Verb::Rebalance, who.mention()),
                principal: who.name(),
                command_id: who.command_id().map(str::to_owned),
                pull,
                until: None,
                by_schedule: false,
            };
            runs.push(self.runs.start_rebalance(head, &environment, &clusters, word).await?);
        }
        Ok((Answer::Rebalances(runs.clone(), clusters).to_string(), runs))
    }
}
