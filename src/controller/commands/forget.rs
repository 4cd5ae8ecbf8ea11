//! `/forget`: drops the records of orphans and leaves what they made in place (R1.9).

use crate::domain::declaration::schema::Verb;
use crate::domain::message::Refusal;
use crate::domain::message::answer::Answer;
use std::{collections::BTreeSet, sync::Arc};

use crate::{
    controller::{commands::Commands, context::Error, source::Head},
    domain::authorization::Principal,
    model::InstanceId,
};

impl Commands {
    /// `/forget`: what is applied stays in the world, and nobody here looks after it any more.
    pub(super) async fn forget(
        self: &Arc<Self>,
        head: &Arc<Head>,
        meant: &BTreeSet<InstanceId>,
        who: &Principal,
    ) -> Result<String, Error> {
        self.planner.only_orphans(head, meant).await?;
        if let Some(run) = self.context.store.open_runs().await?.iter().find(|run| meant.iter().any(|id| run.holds(id)))
        {
            return Err(Error::Refused(Refusal::RunInProgress { verb: Verb::Forget, run: run.id, id: None }));
        }
        for id in meant {
            self.planner.let_go(id).await?;
            self.context
                .store
                .audit(
                    self.context.now(),
                    &who.name(),
                    "forget",
                    &id.to_string(),
                    "forgotten; its resources still exist",
                )
                .await?;
        }
        Ok(Answer::Forgotten(meant.clone()).to_string())
    }
}
