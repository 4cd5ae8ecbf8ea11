//! Reverts drift that the declaration authorises to revert (`drift.mode: revert`, R3.1).
//!
//! *Invariant:* an automatic revert never destroys, replaces, or changes a protected resource; such drift is proposed. A
//! field that drifts for the third time within an hour is proposed as well, because another writer sets it.
//! *Race:* the daemon dies between the record of a revert and its run: the record contains the time of the observation, so
//! that the drift counts once.

use std::sync::Arc;

use chrono::{DateTime, Duration, Utc};

use crate::{
    controller::{context::Error, records::RevertHistory, remediation::Remediations, runs::Authorised, source::Head},
    domain::{
        declaration::schema::DriftMode,
        journal::{Approved, RunKind},
        message::run::RunCause,
        remediation::{self, Drifted},
    },
    model::{Action, Change, EnvironmentName, InstanceId},
};

/// The time for which a revert counts towards [`REVERTS_MAX`].
const REVERTS_WITHIN: Duration = Duration::hours(1);

/// The number of automatic reverts of a field within [`REVERTS_WITHIN`].
const REVERTS_MAX: usize = 2;

fn fields(actions: &[Action]) -> impl Iterator<Item = String> + '_ {
    let named = |resource: &crate::model::ResourceChange| {
        let name = resource.resource.clone();
        let resource_itself = resource.fields.is_empty().then(|| name.clone());
        let field_names: Vec<String> = resource.fields.iter().map(|field| format!("{name} {}", field.path)).collect();
        resource_itself.into_iter().chain(field_names)
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
        let is_harmless = |change: Change| matches!(change, Change::Create | Change::Update);
        let mut resources = actions.iter().flat_map(|action| &action.resources).filter(|r| r.r#type != "output");
        let harmless = resources.all(|r| is_harmless(r.change) && !r.protected);
        let reverted: RevertHistory =
            self.context.store.collection::<RevertHistory>().get(id).await?.unwrap_or_default();
        let observed_at = self.context.store.observed(id).await?.map(|observed| observed.at);
        // The record of this observation belongs to the revert that is about to start.
        let is_recent = |at: &&DateTime<Utc>| **at > self.context.now() - REVERTS_WITHIN && Some(**at) != observed_at;
        let is_too_frequent = |field: String| {
            reverted.0.get(&field).is_some_and(|times| times.iter().filter(is_recent).count() >= REVERTS_MAX)
        };
        let too_frequent = fields(actions).any(is_too_frequent);
        Ok(if harmless && !too_frequent { DriftMode::Revert } else { DriftMode::Propose })
    }

    /// Starts the runs that revert drift without a command.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) async fn start_automatic_reverts(
        self: &Arc<Self>,
        head: &Arc<Head>,
        environment: &EnvironmentName,
        drifted: Vec<Drifted>,
    ) -> Result<(), Error> {
        for group in remediation::groups(environment, drifted) {
            for drift in &group.drifted {
                self.record_revert(&drift.id, &drift.actions).await?;
            }
            let approved = group
                .drifted
                .iter()
                .map(|drift| (drift.id.clone(), Approved::Actions { actions: drift.actions.clone() }))
                .collect();
            let authorised = Authorised {
                environment: environment.clone(),
                instances: group.drifted.iter().map(|drift| drift.id.clone()).collect(),
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
        reverted.0.values_mut().for_each(|times| times.retain(|at| *at > now - REVERTS_WITHIN));
        reverted.0.retain(|_, times| !times.is_empty());
        // By the time of the observation, so that one drift counts once, also where the daemon died before it created the run.
        let observed_at = self.context.store.observed(id).await?.map_or(now, |observed| observed.at);
        for field in fields(actions) {
            let times = reverted.0.entry(field).or_default();
            if !times.contains(&observed_at) {
                times.push(observed_at);
            }
        }
        Ok(self.context.store.collection::<RevertHistory>().put(id, now, &reverted).await?)
    }
}
