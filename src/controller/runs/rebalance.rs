//! Runs that move shards: by somebody's word, or by a Schedule.
//!
//! Decides which instances such a run is about. Which groups move is planned when the run takes its turn, by what is tracked
//! then. *Never:* such a run changes anything but where shards are.
//! *Race:* what is declared changes meanwhile: the run is about what is applied, and a newer run of the instance comes first.

use crate::domain::message::run::RunCause;
use std::{collections::BTreeSet, sync::Arc};

use chrono::{DateTime, Utc};

use crate::{
    controller::{
        context::Error,
        runs::{Authorised, Runs, driven::Driven, prepare::Stop},
        source::Head,
    },
    domain::{
        declaration::schema::Limits,
        journal::{Approved, Rebalance, Run, RunKind},
    },
    model::{Action, EnvironmentName, InstanceId, PullNumber, RunId, citus::LayoutPlan},
    ports::Job,
    targets,
};

/// By what a rebalance is authorised.
pub(crate) struct RebalanceAuthorization {
    pub(crate) because: RunCause,
    pub(crate) principal: String,
    pub(crate) command_id: Option<String>,
    pub(crate) pull: Option<PullNumber>,
    /// When its window is over.
    pub(crate) until: Option<DateTime<Utc>>,
    /// Whether nobody said it.
    pub(crate) by_schedule: bool,
}

impl Runs {
    /// The instances among these that are the applied layout of a Citus cluster.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(crate) async fn clusters(&self, instances: &BTreeSet<InstanceId>) -> Result<BTreeSet<InstanceId>, Error> {
        let mut clusters = BTreeSet::new();
        for id in instances {
            if self
                .context
                .store
                .applied(id)
                .await?
                .is_some_and(|record| targets::kind(&record.spec.target).is_ok_and(|kind| kind.relocates()))
            {
                clusters.insert(id.clone());
            }
        }
        Ok(clusters)
    }

    /// Makes the run of one environment.
    pub(crate) async fn start_rebalance(
        self: &Arc<Self>,
        head: &Arc<Head>,
        environment: &EnvironmentName,
        clusters: &BTreeSet<InstanceId>,
        authorization: RebalanceAuthorization,
    ) -> Result<RunId, Error> {
        let instances: BTreeSet<InstanceId> =
            clusters.iter().filter(|id| id.environment == *environment).cloned().collect();
        let authorised = Authorised {
            environment: environment.clone(),
            approved: instances.iter().map(|id| (id.clone(), Approved::Moves { chosen: None })).collect(),
            instances,
            because: authorization.because,
            principal: authorization.principal,
            command_id: authorization.command_id,
            kind: RunKind::Rebalance(Rebalance { until: authorization.until, by_schedule: authorization.by_schedule }),
            pull: authorization.pull,
        };
        self.create_run(head, authorised).await
    }

    /// As many moves for the balance as one run may make (R3.3); the rest is for the next. What a rebalance makes is chosen
    /// once, so that a run that is taken up again makes no more.
    pub(super) async fn throttle(
        self: &Arc<Self>,
        driven: &Driven,
        run: &Run,
        id: &InstanceId,
        actions: Vec<Action>,
        layout: Option<&LayoutPlan>,
    ) -> Result<Vec<Action>, Stop> {
        let head = self.source.head().unwrap_or_else(|| Arc::clone(&driven.head));
        let Limits { moves, move_bytes, .. } = self.source.guards(&head).await?.limits(&id.environment);
        let bytes = |action: &Action| {
            let name = action.resources.first().map(|resource| &resource.resource);
            let figures = layout.into_iter().flat_map(|layout| &layout.moves).find(|one| Some(&one.resource) == name);
            figures.map_or(0, |figures| figures.bytes)
        };
        let (mut count, mut sum, mut full) = (0, 0, false);
        let fits = |action: &Action| {
            if !action.effect.deferrable {
                return true;
            }
            let size = bytes(action);
            // The first that is too much ends it: of two that go together not one alone is made.
            let fits =
                !full && moves.is_none_or(|most| count < most) && move_bytes.is_none_or(|most| sum + size <= most.0);
            full |= !fits;
            if fits {
                (count, sum) = (count + 1, sum + size);
            }
            fits
        };
        let actions: Vec<Action> = actions.into_iter().filter(fits).collect();
        if run.kind.rebalance().is_some() && !actions.is_empty() {
            self.context.store.choose(run.id, id, &Approved::Moves { chosen: Some(actions.clone()) }).await?;
        }
        Ok(actions)
    }

    /// Tells a cluster which moves were approved: sizes change, and what was approved is made as far as it still can be.
    pub(super) async fn restore_approved_moves(
        &self,
        driven: &Driven,
        run: &Run,
        id: &InstanceId,
        job: &mut Job,
    ) -> Result<(), Error> {
        let actions = match self.context.store.approved(run.id, id).await? {
            Some(Approved::Actions { actions } | Approved::Moves { chosen: Some(actions) }) => actions,
            Some(Approved::Remediation) => self.proposed_actions(driven, run, id).await?,
            _ => return Ok(()),
        };
        job.relocation.approved = actions.into_iter().filter(|action| action.effect.relocates).collect();
        Ok(())
    }
}
