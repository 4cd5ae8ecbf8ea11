//! Runs that move shards: by somebody's word, or by a Schedule.
//!
//! Decides which instances such a run is about. Which groups move is planned when the run takes its turn, by what is seen
//! then. *Never:* such a run changes anything but where shards are.
//! *Race:* what is declared changes meanwhile: the run is about what is applied, and a newer run of the instance comes first.

use std::{collections::BTreeSet, sync::Arc};

use chrono::{DateTime, Utc};

use super::{Daemon, Error, Head, conversation::environments, decide::Authorised, prepare::Stop, run::Driven};
use crate::{
    domain::{
        authorization::Principal,
        declaration::schema::Limits,
        journal::{Approved, Rebalance, Run},
        message::comment,
    },
    model::{Action, EnvironmentName, InstanceId, PullNumber, RunId, citus::LayoutPlan},
    ports::{ApprovedMove, Job, Work},
    targets::citus,
};

/// By what a rebalance is authorised.
pub(super) struct Word {
    pub(super) because: String,
    pub(super) principal: String,
    pub(super) word: Option<String>,
    pub(super) pull: Option<PullNumber>,
    /// When its window is over.
    pub(super) until: Option<DateTime<Utc>>,
    /// Whether nobody said it.
    pub(super) by_clock: bool,
}

impl Daemon {
    /// `/rebalance`: makes the moves now.
    pub(super) async fn rebalance(
        self: &Arc<Self>,
        head: &Arc<Head>,
        meant: &BTreeSet<InstanceId>,
        who: &Principal,
        pull: Option<PullNumber>,
    ) -> Result<(String, Vec<RunId>), Error> {
        let clusters = self.clusters(meant).await?;
        if clusters.is_empty() {
            let says = "Nothing is rebalanced: none of what you mean is the applied layout of a Citus cluster.";
            return Err(Error::Refused(says.into()));
        }
        for environment in environments(&clusters) {
            if let Some(says) = self.suspensions(Some(head)).await?.environment(&environment) {
                return Err(Error::Refused(format!("Nothing is rebalanced: {says}.")));
            }
        }
        let mut runs = vec![];
        for environment in environments(&clusters) {
            let word = Word {
                because: format!("`/rebalance` of {}", who.name().replace("user:", "@")),
                principal: who.name(),
                word: who.word().map(str::to_owned),
                pull,
                until: None,
                by_clock: false,
            };
            runs.push(self.start_rebalance(head, &environment, &clusters, word).await?);
        }
        let named: Vec<String> = runs.iter().map(ToString::to_string).collect();
        let names = comment::names(clusters.iter().map(ToString::to_string));
        Ok((format!("Run {} rebalances {names}.", named.join(" and ")), runs))
    }

    /// Those of some instances that are the applied layout of a cluster.
    pub(super) async fn clusters(&self, meant: &BTreeSet<InstanceId>) -> Result<BTreeSet<InstanceId>, Error> {
        let applied = self.store().all_applied().await?;
        let is_cluster = |id: &&InstanceId| applied.get(*id).is_some_and(|record| record.spec.citus.is_some());
        Ok(meant.iter().filter(is_cluster).cloned().collect())
    }

    /// Makes the run of one environment.
    pub(super) async fn start_rebalance(
        self: &Arc<Self>,
        head: &Arc<Head>,
        environment: &EnvironmentName,
        clusters: &BTreeSet<InstanceId>,
        word: Word,
    ) -> Result<RunId, Error> {
        let instances: BTreeSet<InstanceId> =
            clusters.iter().filter(|id| id.environment == *environment).cloned().collect();
        let authorised = Authorised {
            environment: environment.clone(),
            approved: instances.iter().map(|id| (id.clone(), Approved::Moves { chosen: None })).collect(),
            instances,
            because: word.because,
            principal: word.principal,
            word: word.word,
            by_merge: false,
            pull: word.pull,
            remediation: None,
            destroys: false,
            by_drift: false,
            rebalance: Some(Rebalance { until: word.until, by_clock: word.by_clock }),
        };
        self.create_run(head, authorised).await
    }

    /// As many moves for the balance as one run may make (R3.3); the rest is for the next. What a rebalance makes is chosen
    /// once, so that a run that is taken up again makes no more.
    pub(super) async fn throttled(
        self: &Arc<Self>,
        driven: &Driven,
        run: &Run,
        id: &InstanceId,
        actions: Vec<Action>,
        layout: Option<&LayoutPlan>,
    ) -> Result<Vec<Action>, Stop> {
        let head = self.head().unwrap_or_else(|| Arc::clone(&driven.head));
        let Limits { moves, move_bytes, .. } = self.guards(&head).await?.limits(&id.environment);
        let bytes = |action: &Action| {
            let name = action.resources.first().map(|resource| &resource.resource);
            let figures = layout.into_iter().flat_map(|layout| &layout.moves).find(|one| Some(&one.resource) == name);
            figures.map_or(0, |figures| figures.bytes)
        };
        let (mut count, mut sum, mut full) = (0, 0, false);
        let fits = |action: &Action| {
            if !action.resources.iter().all(|resource| resource.r#type == citus::plan::REBALANCE) {
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
        if run.rebalance.is_some() && !actions.is_empty() {
            self.store().choose(run.id, id, &Approved::Moves { chosen: Some(actions.clone()) }).await?;
        }
        Ok(actions)
    }

    /// Tells a cluster which moves were approved: sizes change, and what was approved is made as far as it still can be.
    pub(super) async fn with_approved_moves(
        &self,
        driven: &Driven,
        run: &Run,
        id: &InstanceId,
        job: &mut Job,
    ) -> Result<(), Error> {
        let Work::Citus(work) = &mut job.work else { return Ok(()) };
        let actions = match self.store().approved(run.id, id).await? {
            Some(Approved::Actions { actions } | Approved::Moves { chosen: Some(actions) }) => actions,
            Some(Approved::Remediation) => self.remedied(driven, run, id).await?,
            _ => return Ok(()),
        };
        let moves = actions.iter().filter(|action| citus::plan::is_move(action)).flat_map(|action| &action.resources);
        let approved = moves.filter_map(|change| {
            let field = change.fields.iter().find(|field| field.path == "/node")?;
            Some(ApprovedMove {
                resource: change.resource.clone(),
                from: field.before.as_ref()?.as_str()?.to_owned(),
                to: field.after.as_ref()?.as_str()?.to_owned(),
                for_balance: change.r#type == citus::plan::REBALANCE,
            })
        });
        work.approved = approved.collect();
        Ok(())
    }
}
