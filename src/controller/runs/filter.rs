//! Stores remediations as proposed, and compares merged files with them (R4.1).

use std::collections::BTreeMap;

use crate::{
    controller::{
        context::Error,
        runs::{Runs, driven::Driven},
    },
    domain::{
        declaration::schema::Remediation,
        journal::Run,
        remediation::{self, Unusable},
    },
    model::{Action, Digest, InstanceId},
};

impl Runs {
    /// Returns the actions of an instance that a remediation selects, as they were stored with the proposal.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(super) async fn proposed_actions(
        &self,
        driven: &Driven,
        run: &Run,
        id: &InstanceId,
    ) -> Result<Vec<Action>, Error> {
        let name = run.kind.remediation().and_then(|name| name.parse().ok());
        let found = name.and_then(|name| driven.head.desired.remediations.get(&name));
        let mut actions = vec![];
        for action in found.iter().flat_map(|(remediation, _)| &remediation.actions).filter(|a| a.instance == *id) {
            actions.extend(self.context.store.collection::<Action>().get(&action.digest).await?);
        }
        Ok(actions)
    }

    /// Returns the reason why a file is not a stored remediation minus whole actions; `None` where it is.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(crate) async fn edited(&self, name: &str, remediation: &Remediation) -> Result<Option<Unusable>, Error> {
        let written: Option<Remediation> = self.context.store.collection::<Remediation>().get(&name.to_owned()).await?;
        Ok(match written {
            Some(written) => remediation::edited(remediation, &written),
            None => Some(Unusable::NotWritten),
        })
    }

    /// Returns the actions of a remediation, as they were stored with the proposal.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(crate) async fn stored_actions(&self, remediation: &Remediation) -> Result<BTreeMap<Digest, Action>, Error> {
        let mut stored = BTreeMap::new();
        for action in &remediation.actions {
            if let Some(stored_action) = self.context.store.collection::<Action>().get(&action.digest).await? {
                stored.insert(action.digest, stored_action);
            }
        }
        Ok(stored)
    }

    /// Stores a remediation as this daemon wrote it, with all its actions.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn record_proposed(&self, name: &str, remediation: &Remediation) -> Result<(), Error> {
        Ok(self
            .context
            .store
            .collection::<Remediation>()
            .put(&name.to_owned(), self.context.now(), remediation)
            .await?)
    }
}
