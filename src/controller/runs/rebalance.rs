//! Creates runs that move shards: by a command, or by a `Schedule`.
//!
//! Selects the instances of such a run. The moves are planned when the instance is prepared, from the observation at that
//! time.
//! *Invariant:* such a run changes only the placement of shards.
//! *Race:* the declaration changes meanwhile: the run uses the applied declaration, and a newer run of the instance
//! supersedes it.

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
        message::run::RunCause,
    },
    model::{Action, EnvironmentName, InstanceId, PullNumber, RunId, layout::LayoutPlan},
    ports::Job,
    targets,
};

/// The authorization of a rebalance.
pub(crate) struct RebalanceAuthorization {
    pub(crate) because: RunCause,
    pub(crate) principal: String,
    pub(crate) command_id: Option<String>,
    pub(crate) pull: Option<PullNumber>,
    /// The end of the window.
    pub(crate) until: Option<DateTime<Utc>>,
    /// Whether a `Schedule` authorises the rebalance, and not a command.
    pub(crate) by_schedule: bool,
}

impl Runs {
    /// Returns the instances whose applied target can relocate data.
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

    /// Creates the rebalance run of one environment.
    ///
    /// # Errors
    /// When the store fails.
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

    /// Returns the moves for the balance that fit into the limits of one run (R3.3); later runs execute the others. The
    /// moves of a rebalance are selected once, so that a resumed run makes no other moves.
    ///
    /// # Errors
    /// When the store or the repository can't be read.
    pub(super) async fn select_within_limits(
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
            let figures = layout
                .into_iter()
                .flat_map(|layout| &layout.moves)
                .find(|shard_move| Some(&shard_move.resource) == name);
            figures.map_or(0, |figures| figures.bytes)
        };
        let (mut count, mut sum, mut full) = (0, 0, false);
        let fits = |action: &Action| {
            if !action.effect.deferrable {
                return true;
            }
            let size = bytes(action);
            // The first move that exceeds a limit ends the selection, so that related moves stay together.
            let fits = !full
                && moves.is_none_or(|limit| count < limit)
                && move_bytes.is_none_or(|limit| sum + size <= limit.0);
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

    /// Adds the approved moves to a job, because sizes change and the target plans the approved moves as far as possible.
    ///
    /// # Errors
    /// When the store can't be read.
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
