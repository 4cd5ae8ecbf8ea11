//! Drift that is reverted by the declaration's own word (`drift.mode: revert`, R3.1).
//!
//! Never destroys or replaces: that is proposed. *Brake:* what drifts for the third time within an hour is somebody's or
//! something's will; it is no longer reverted, and proposed.

use crate::domain::message::run::RunCause;
use std::sync::Arc;

use chrono::{DateTime, Duration, Utc};

use crate::{
    controller::{context::Error, records::RevertHistory, remediation::Remediations, runs::Authorised, source::Head},
    domain::{
        declaration::schema::DriftMode,
        journal::Approved,
        journal::RunKind,
        remediation::{self, Drifted},
    },
    model::{Action, Change, EnvironmentName, InstanceId},
};

/// How long a revert is remembered.
const MEMORY: Duration = Duration::hours(1);

/// How often a field is reverted within that time.
const REVERTS_MAX: usize = 2;

fn fields(actions: &[Action]) -> impl Iterator<Item = String> + '_ {
    let named = |resource: &crate::model::ResourceChange| {
        let name = resource.resource.clone();
        let whole = resource.fields.is_empty().then(|| name.clone());
        let each: Vec<String> = resource.fields.iter().map(|field| format!("{name} {}", field.path)).collect();
        whole.into_iter().chain(each)
    };
    let resources = actions.iter().flat_map(|action| &action.resources);
    resources.filter(|resource| resource.r#type != "output").flat_map(named)
}

impl Remediations {
    /// Returns the mode for the drift of an instance, from its declaration and its target.
    pub(super) async fn drift_mode_of(
        &self,
        head: &Head,
        id: &InstanceId,
        actions: &[Action],
    ) -> Result<DriftMode, Error> {
        let mode = self.mode(head, id);
        if mode != DriftMode::Revert {
            return Ok(mode);
        }
        let spares = |change: Change| matches!(change, Change::Create | Change::Update);
        let mut resources = actions.iter().flat_map(|action| &action.resources).filter(|r| r.r#type != "output");
        let harmless = resources.all(|r| spares(r.change) && !r.protected);
        let reverted: RevertHistory =
            self.context.store.collection::<RevertHistory>().get(id).await?.unwrap_or_default();
        let tracked = self.context.store.observed(id).await?.map(|observed| observed.at);
        // What is noted of this very drift stands for the revert that is to come.
        let lately = |at: &&DateTime<Utc>| **at > self.context.now() - MEMORY && Some(**at) != tracked;
        let often = |field: String| {
            reverted.0.get(&field).is_some_and(|times| times.iter().filter(lately).count() >= REVERTS_MAX)
        };
        let brakes = fields(actions).any(often);
        Ok(if harmless && !brakes { DriftMode::Revert } else { DriftMode::Propose })
    }

    /// Starts the reverts that need nobody's word.
    pub(super) async fn repair(
        self: &Arc<Self>,
        head: &Arc<Head>,
        environment: &EnvironmentName,
        drifted: Vec<Drifted>,
    ) -> Result<(), Error> {
        for group in remediation::groups(environment, drifted) {
            for one in &group.drifted {
                self.record_revert(&one.id, &one.actions).await?;
            }
            let approved = group
                .drifted
                .iter()
                .map(|one| (one.id.clone(), Approved::Actions { actions: one.actions.clone() }))
                .collect();
            let authorised = Authorised {
                environment: environment.clone(),
                instances: group.drifted.iter().map(|one| one.id.clone()).collect(),
                approved,
                because: RunCause::AutomaticRevert,
                principal: "declaration".into(),
                command_id: None,
                kind: RunKind::Revert,
                pull: None,
            };
            self.runs.create_run(head, authorised).await?;
        }
        Ok(())
    }

    async fn record_revert(&self, id: &InstanceId, actions: &[Action]) -> Result<(), Error> {
        let now = self.context.now();
        let mut reverted: RevertHistory =
            self.context.store.collection::<RevertHistory>().get(id).await?.unwrap_or_default();
        reverted.0.values_mut().for_each(|times| times.retain(|at| *at > now - MEMORY));
        reverted.0.retain(|_, times| !times.is_empty());
        // By when it was tracked, so that one drift counts once, also where the daemon died before it made the run.
        let tracked = self.context.store.observed(id).await?.map_or(now, |observed| observed.at);
        for field in fields(actions) {
            let times = reverted.0.entry(field).or_default();
            if !times.contains(&tracked) {
                times.push(tracked);
            }
        }
        Ok(self.context.store.collection::<RevertHistory>().put(id, now, &reverted).await?)
    }
}
