//! The stored side of remediations: their actions as proposed, and whether a file was edited beyond cuts (R4.1).

use crate::domain::remediation::Unusable;
use std::collections::BTreeMap;

use crate::{
    controller::{
        context::Error,
        runs::{Runs, driven::Driven},
    },
    domain::{declaration::schema::Remediation, journal::Run, remediation},
    model::{Action, Digest, InstanceId},
};

impl Runs {
    /// The actions that a remediation lets through for an instance, as they were stored when it was proposed.
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

    /// What somebody did to a remediation beyond cutting whole actions; one that we did not write is edited as a whole.
    pub(crate) async fn edited(&self, name: &str, remediation: &Remediation) -> Result<Option<Unusable>, Error> {
        let written: Option<Remediation> = self.context.store.collection::<Remediation>().get(&name.to_owned()).await?;
        Ok(match written {
            Some(written) => remediation::edited(remediation, &written),
            None => Some(Unusable::NotWritten),
        })
    }

    /// The actions of a remediation, as they were stored when it was proposed.
    pub(crate) async fn stored_actions(&self, remediation: &Remediation) -> Result<BTreeMap<Digest, Action>, Error> {
        let mut stored = BTreeMap::new();
        for action in &remediation.actions {
            if let Some(known) = self.context.store.collection::<Action>().get(&action.digest).await? {
                stored.insert(action.digest, known);
            }
        }
        Ok(stored)
    }

    /// Remembers a remediation as we wrote it, whole.
    pub(crate) async fn record_proposed(&self, name: &str, remediation: &Remediation) -> Result<(), Error> {
        Ok(self
            .context
            .store
            .collection::<Remediation>()
            .put(&name.to_owned(), self.context.now(), remediation)
            .await?)
    }
}
