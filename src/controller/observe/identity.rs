//! Pins the identity of the target of each instance, and compares each observation with it (R1.8).
//!
//! The first observation of an applied instance pins the identity. Another identity stops the instance until a principal
//! confirms it. A state that was lost, restored from elsewhere, or copied for another instance has another identity: a plan
//! there would create every resource again, or change resources of another owner.
//!
//! *Owns:* the identities, and their owners.
//! *Invariant:* no effect begins on a target with another identity than the pinned one.
//! *Race:* two environments at one cluster begin at the same time: the store accepts the first pin, and refuses the second.

use std::sync::Arc;

use crate::{
    controller::{
        context::Error,
        observe::Observer,
        records::{Identity, IdentityOwner, OtherIdentity},
    },
    domain::message::{Refusal, observation::NotObservable},
    model::{InstanceId, Retry},
    ports::{Observation, TargetError, TargetErrorKind},
};

impl Observer {
    async fn identity(&self, id: &InstanceId) -> Result<Identity, Error> {
        Ok(self.context.store.collection::<Identity>().get(id).await?.unwrap_or_default())
    }

    /// Stores a pinned identity and its owner.
    async fn pin(&self, id: &InstanceId, pinned: Option<String>) -> Result<(), Error> {
        let now = self.context.now();
        if let Some(old) = self.identity(id).await?.pinned.filter(|old| Some(old) != pinned.as_ref()) {
            self.remove_owner(&old, id).await?;
        }
        if let Some(pinned) = &pinned {
            self.record_owner(pinned, id).await?;
        }
        Ok(self.context.store.collection::<Identity>().put(id, now, &Identity { pinned, seen: None }).await?)
    }

    /// Records the owner of an identity. The first owner of a shared cluster stays the owner.
    async fn record_owner(&self, pinned: &String, id: &InstanceId) -> Result<(), Error> {
        let owners = self.context.store.collection::<IdentityOwner>();
        if owners.get(pinned).await?.is_none() {
            owners.put(pinned, self.context.now(), &IdentityOwner(id.clone())).await?;
        }
        Ok(())
    }

    async fn remove_owner(&self, pinned: &str, id: &InstanceId) -> Result<(), Error> {
        if self
            .context
            .store
            .collection::<IdentityOwner>()
            .get(&pinned.to_owned())
            .await?
            .is_some_and(|owner| owner.0 == *id)
        {
            self.context.store.collection::<IdentityOwner>().remove(&pinned.to_owned()).await?;
        }
        Ok(())
    }

    /// Releases the identity of the target of an instance.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn release_identity(&self, id: &InstanceId) -> Result<(), Error> {
        match self.identity(id).await?.pinned {
            Some(pinned) => self.remove_owner(&pinned, id).await,
            None => Ok(()),
        }
    }

    /// Compares the observed identity with the pinned identity. Pins the identity of an applied instance without a pin.
    ///
    /// # Errors
    /// When the identity is another one, or belongs to another instance; with the reason and a hint.
    pub(crate) async fn identify(
        self: &Arc<Self>,
        id: &InstanceId,
        observation: &Observation,
        is_applied: bool,
    ) -> Result<(), Error> {
        self.identify_for(id, observation, is_applied, true).await
    }

    /// Like [`Observer::identify`]. With `is_recorded` false, nothing is stored, as for the plan of a pull request.
    ///
    /// # Errors
    /// As [`Observer::identify`].
    pub(crate) async fn identify_for(
        self: &Arc<Self>,
        id: &InstanceId,
        observation: &Observation,
        is_applied: bool,
        is_recorded: bool,
    ) -> Result<(), Error> {
        let refused = |kind: TargetErrorKind, reason: NotObservable| -> Error {
            TargetError { retry: Retry::WhenInputChanges, ..TargetError::new(kind, reason.to_string()) }.into()
        };
        let observed = observation.identity.as_ref();
        let holder: Option<InstanceId> = match (observed, &observation.shared_with) {
            (Some(observed), None) => {
                self.context.store.collection::<IdentityOwner>().get(observed).await?.map(|owner| owner.0)
            }
            (Some(observed), Some(shared)) => self.pinned_elsewhere(id, observed, shared).await?,
            (None, _) => None,
        };
        if let (Some(other), Some(_)) = (&holder, &observation.shared_with) {
            let reason = NotObservable::SharedEnvironment { id: id.clone(), other: other.clone() };
            return Err(refused(TargetErrorKind::IdentityShared, reason));
        }
        if let Some(other) = holder.filter(|other| other != id) {
            let reason = NotObservable::SharedState { id: id.clone(), other };
            return Err(refused(TargetErrorKind::IdentityShared, reason));
        }
        let stored = self.identity(id).await?;
        match (&stored.pinned, observed) {
            (Some(pinned), observed) if Some(pinned) != observed => {
                let seen = Identity { seen: Some(OtherIdentity { identity: observed.cloned() }), ..stored.clone() };
                if seen != stored && is_recorded {
                    self.context.store.collection::<Identity>().put(id, self.context.now(), &seen).await?;
                }
                let reason = NotObservable::OtherIdentity {
                    id: id.clone(),
                    is_shared: observation.shared_with.is_some(),
                    recorded: pinned.clone(),
                    observed: observed.cloned(),
                };
                Err(refused(TargetErrorKind::Identity, reason))
            }
            (Some(_), _) if stored.seen.is_some() && is_recorded => {
                self.context
                    .store
                    .collection::<Identity>()
                    .put(id, self.context.now(), &Identity { seen: None, ..stored })
                    .await?;
                Ok(())
            }
            (None, Some(observed)) if is_applied && is_recorded => self.pin(id, Some(observed.clone())).await,
            _ => Ok(()),
        }
    }

    /// Records which environment owns the identity of a shared target, before the first change of that target. Of two
    /// environments with one cluster only the first one applies.
    ///
    /// # Errors
    /// [`Error::Refused`] if another environment owns the identity; else when the store fails.
    pub(crate) async fn pin_before_effect(&self, id: &InstanceId, observation: &Observation) -> Result<(), Error> {
        let (Some(observed), Some(shared)) = (&observation.identity, &observation.shared_with) else { return Ok(()) };
        if self.identity(id).await?.pinned.is_some() {
            return Ok(());
        }
        // In one transaction, so that the second of two environments at one cluster finds the first.
        let identities = self.context.store.collection::<Identity>();
        let pinned =
            identities.put_among(id, self.context.now(), |all| match other_environment(id, observed, shared, all) {
                Some(other) => Err(other),
                None => Ok(Identity { pinned: Some(observed.clone()), seen: None }),
            });
        if let Err(other) = pinned.await? {
            return Err(Error::Refused(Refusal::ClusterOfAnother { id: id.clone(), owner: other.clone() }));
        }
        self.record_owner(observed, id).await
    }

    /// Returns an instance of another environment that pinned an identity and may not share it.
    async fn pinned_elsewhere(
        &self,
        id: &InstanceId,
        observed: &str,
        shared: &[String],
    ) -> Result<Option<InstanceId>, Error> {
        if self.identity(id).await?.pinned.is_some() {
            return Ok(None);
        }
        Ok(other_environment(id, observed, shared, &self.context.store.collection::<Identity>().all().await?))
    }

    /// Pins the observed identity. Returns whether another identity was observed.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn confirm_identity(&self, id: &InstanceId) -> Result<bool, Error> {
        let stored: Option<Identity> = self.context.store.collection::<Identity>().get(id).await?;
        let Some(seen) = stored.and_then(|stored| stored.seen) else { return Ok(false) };
        self.pin(id, seen.identity).await?;
        Ok(true)
    }
}

/// Returns an instance of another environment that pinned an identity and may not share it.
fn other_environment(
    id: &InstanceId,
    identity: &str,
    shared: &[String],
    all: &[(InstanceId, Identity)],
) -> Option<InstanceId> {
    let is_shared = |other: &InstanceId| shared.iter().any(|name| name == other.environment.as_str());
    all.iter()
        .filter(|(_, other)| other.pinned.as_deref() == Some(identity))
        .map(|(other, _)| other)
        .find(|other| other.environment != id.environment && !is_shared(other))
        .cloned()
}
