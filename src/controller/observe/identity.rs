//! Whether a target is the one that was applied (R1.8): the first observation pins it, and another one stops everything
//! until a person confirms it.
//!
//! A state that was lost, restored from elsewhere, or copied for another instance is another target: a plan there would
//! create everything again, or change what belongs to somebody else.

use crate::domain::message::Refusal;
use crate::domain::message::observation::NotObservable;
use std::sync::Arc;

use crate::{
    controller::{
        context::Error,
        observe::Observer,
        records::{Identity, IdentityOwner, OtherIdentity},
    },
    model::{InstanceId, Retry},
    ports::{Observation, TargetError, TargetErrorKind},
};

impl Observer {
    async fn identity(&self, id: &InstanceId) -> Result<Identity, Error> {
        Ok(self.context.store.collection::<Identity>().get(id).await?.unwrap_or_default())
    }

    /// Keeps what is pinned, and whose it is.
    async fn pin(&self, id: &InstanceId, pinned: Option<String>) -> Result<(), Error> {
        let now = self.context.now();
        if let Some(old) = self.identity(id).await?.pinned.filter(|old| Some(old) != pinned.as_ref()) {
            self.unname(&old, id).await?;
        }
        if let Some(pinned) = &pinned {
            self.own(pinned, id).await?;
        }
        Ok(self.context.store.collection::<Identity>().put(id, now, &Identity { pinned, seen: None }).await?)
    }

    /// Records whose an identity is. Of a cluster that several instances share, the first stays the owner.
    async fn own(&self, pinned: &String, id: &InstanceId) -> Result<(), Error> {
        let owners = self.context.store.collection::<IdentityOwner>();
        if owners.get(pinned).await?.is_none() {
            owners.put(pinned, self.context.now(), &IdentityOwner(id.clone())).await?;
        }
        Ok(())
    }

    async fn unname(&self, pinned: &str, id: &InstanceId) -> Result<(), Error> {
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

    /// Lets go of the target of an instance.
    pub(crate) async fn release_identity(&self, id: &InstanceId) -> Result<(), Error> {
        match self.identity(id).await?.pinned {
            Some(pinned) => self.unname(&pinned, id).await,
            None => Ok(()),
        }
    }

    /// Compares the target that was observed with the one that is pinned, and pins it where none is and it is ours.
    ///
    /// # Errors
    /// When it is another one, or belongs to another instance; in a sentence that says what to do.
    pub(crate) async fn identify(
        self: &Arc<Self>,
        id: &InstanceId,
        observation: &Observation,
        is_applied: bool,
    ) -> Result<(), Error> {
        self.identify_for(id, observation, is_applied, true).await
    }

    /// The same, where a pull request only asks and nothing of it may be remembered.
    pub(crate) async fn identify_for(
        self: &Arc<Self>,
        id: &InstanceId,
        observation: &Observation,
        is_applied: bool,
        remembers: bool,
    ) -> Result<(), Error> {
        let refused = |kind: TargetErrorKind, reason: NotObservable| -> Error {
            TargetError { retry: Retry::WhenInputChanges, ..TargetError::new(kind, reason.to_string()) }.into()
        };
        let now = observation.identity.as_ref();
        let holder: Option<InstanceId> = match (now, &observation.shared_with) {
            (Some(now), None) => self.context.store.collection::<IdentityOwner>().get(now).await?.map(|owner| owner.0),
            (Some(now), Some(shared)) => self.of_another_environment(id, now, shared).await?,
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
        let known = self.identity(id).await?;
        match (&known.pinned, now) {
            (Some(pinned), now) if Some(pinned) != now => {
                let seen = Identity { seen: Some(OtherIdentity { identity: now.cloned() }), ..known.clone() };
                if seen != known && remembers {
                    self.context.store.collection::<Identity>().put(id, self.context.now(), &seen).await?;
                }
                let reason = NotObservable::OtherIdentity {
                    id: id.clone(),
                    is_shared: observation.shared_with.is_some(),
                    recorded: pinned.clone(),
                    observed: now.cloned(),
                };
                Err(refused(TargetErrorKind::Identity, reason))
            }
            (Some(_), _) if known.seen.is_some() && remembers => {
                self.context
                    .store
                    .collection::<Identity>()
                    .put(id, self.context.now(), &Identity { seen: None, ..known })
                    .await?;
                Ok(())
            }
            (None, Some(now)) if is_applied && remembers => self.pin(id, Some(now.clone())).await,
            _ => Ok(()),
        }
    }

    /// Pins a target of a whole environment before anything is done to it, so that of two environments that were pointed
    /// at one cluster only one begins.
    pub(crate) async fn pin_before_effect(&self, id: &InstanceId, observation: &Observation) -> Result<(), Error> {
        let (Some(now), Some(shared)) = (&observation.identity, &observation.shared_with) else { return Ok(()) };
        if self.identity(id).await?.pinned.is_some() {
            return Ok(());
        }
        // In one transaction: of two environments at one cluster, the second finds the first.
        let identities = self.context.store.collection::<Identity>();
        let pinned =
            identities.put_among(id, self.context.now(), |all| match other_environment(id, now, shared, all) {
                Some(other) => Err(other),
                None => Ok(Identity { pinned: Some(now.clone()), seen: None }),
            });
        if let Err(other) = pinned.await? {
            return Err(Error::Refused(Refusal::ClusterOfAnother { id: id.clone(), owner: other.clone() }));
        }
        self.own(now, id).await
    }

    /// An instance of another environment that has a target, which may not be shared with that.
    async fn of_another_environment(
        &self,
        id: &InstanceId,
        now: &str,
        shared: &[String],
    ) -> Result<Option<InstanceId>, Error> {
        if self.identity(id).await?.pinned.is_some() {
            return Ok(None);
        }
        Ok(other_environment(id, now, shared, &self.context.store.collection::<Identity>().all().await?))
    }

    /// Takes the target that was seen for the right one; answers whether there was anything to confirm.
    pub(crate) async fn confirm_identity(&self, id: &InstanceId) -> Result<bool, Error> {
        let known: Option<Identity> = self.context.store.collection::<Identity>().get(id).await?;
        let Some(seen) = known.and_then(|known| known.seen) else { return Ok(false) };
        self.pin(id, seen.identity).await?;
        Ok(true)
    }
}

/// An instance of another environment that an identity is pinned by, and that may not share it.
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
