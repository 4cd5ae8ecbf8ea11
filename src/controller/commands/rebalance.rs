//! Executes `/rebalance`: creates runs that move shards.
//!
//! *Invariant:* a suspended environment is not rebalanced.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    controller::{
        commands::Commands, context::Error, planning::environments, runs::RebalanceAuthorization, source::Head,
    },
    domain::{
        authorization::Principal,
        declaration::schema::Verb,
        message::{Refusal, answer::Answer, run::RunCause},
    },
    model::{InstanceId, PullNumber, RunId},
};

impl Commands {
    /// `/rebalance`: creates one run for each environment of the selected clusters.
    ///
    /// # Errors
    /// [`Error::Refused`] where no cluster is selected or an environment is suspended; else when the store fails.
    pub(super) async fn rebalance(
        self: &Arc<Self>,
        head: &Arc<Head>,
        selected: &BTreeSet<InstanceId>,
        principal: &Principal,
        pull: Option<PullNumber>,
    ) -> Result<(String, Vec<RunId>), Error> {
        let clusters = self.runs.clusters(selected).await?;
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
            let authorization = RebalanceAuthorization {
                because: RunCause::Command(Verb::Rebalance, principal.mention()),
                principal: principal.name(),
                command_id: principal.command_id().map(str::to_owned),
                pull,
                until: None,
                by_schedule: false,
            };
            runs.push(self.runs.start_rebalance(head, &environment, &clusters, authorization).await?);
        }
        Ok((Answer::Rebalances(runs.clone(), clusters).to_string(), runs))
    }
}
