//! Whether a target is the one that was applied (R1.8): the first observation pins it, and another one stops everything
//! until a person confirms it.
//!
//! A state that was lost, restored from elsewhere, or copied for another instance is another target: a plan there would
//! create everything again, or change what belongs to somebody else.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Daemon, Error};
use crate::{
    model::{InstanceId, Retry},
    ports::{Observation, TargetError},
};

/// The target is another one than before.
pub(super) const ANOTHER: &str = "identity";
/// The target belongs to another instance.
const SHARED: &str = "identity-shared";

/// Which target an instance has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Identity {
    /// The one that it is known to have.
    pinned: Option<String>,
    /// Another one that was seen in its place.
    #[serde(default)]
    seen: Option<SeenInstead>,
}

/// What was seen in the place of what is pinned.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct SeenInstead {
    /// Absent where there is none at all.
    identity: Option<String>,
}

impl Daemon {
    async fn identity(&self, id: &InstanceId) -> Result<Identity, Error> {
        Ok(self.store().get("identity", &id.to_string()).await?.unwrap_or_default())
    }

    /// Keeps what is pinned, and whose it is.
    async fn pin(&self, id: &InstanceId, pinned: Option<String>) -> Result<(), Error> {
        let now = self.now();
        if let Some(old) = self.identity(id).await?.pinned.filter(|old| Some(old) != pinned.as_ref()) {
            self.unname(&old, id).await?;
        }
        if let Some(pinned) = &pinned {
            // Of a cluster there are many; the first keeps the name.
            if self.store().get::<InstanceId>("identity-of", pinned).await?.is_none() {
                self.store().put("identity-of", pinned, now, id).await?;
            }
        }
        let name = id.to_string();
        Ok(self.store().put("identity", &name, now, &Identity { pinned, seen: None }).await?)
    }

    async fn unname(&self, pinned: &str, id: &InstanceId) -> Result<(), Error> {
        if self.store().get::<InstanceId>("identity-of", pinned).await?.as_ref() == Some(id) {
            self.store().remove("identity-of", pinned).await?;
        }
        Ok(())
    }

    /// Lets go of the target of an instance.
    pub(super) async fn let_go_identity(&self, id: &InstanceId) -> Result<(), Error> {
        match self.identity(id).await?.pinned {
            Some(pinned) => self.unname(&pinned, id).await,
            None => Ok(()),
        }
    }

    /// Compares the target that was observed with the one that is pinned, and pins it where none is and it is ours.
    ///
    /// # Errors
    /// When it is another one, or belongs to another instance; in a sentence that says what to do.
    pub(super) async fn identify(
        self: &Arc<Self>,
        id: &InstanceId,
        observation: &Observation,
        is_applied: bool,
    ) -> Result<(), Error> {
        self.identify_for(id, observation, is_applied, true).await
    }

    /// The same, where a pull request only asks and nothing of it may be remembered.
    pub(super) async fn identify_for(
        self: &Arc<Self>,
        id: &InstanceId,
        observation: &Observation,
        is_applied: bool,
        remembers: bool,
    ) -> Result<(), Error> {
        let short = |identity: &str| identity.chars().take(8).collect::<String>();
        let refused = |kind: &'static str, message: String| -> Error {
            TargetError { retry: Retry::WhenInputChanges, ..TargetError::new(kind, message) }.into()
        };
        let now = observation.identity.as_ref();
        let holder: Option<InstanceId> = match (now, &observation.shared_with) {
            (Some(now), None) => self.store().get("identity-of", now).await?,
            (Some(now), Some(shared)) => self.of_another_environment(id, now, shared).await?,
            (None, _) => None,
        };
        if let (Some(other), Some(_)) = (&holder, &observation.shared_with) {
            let (mine, theirs) = (&id.environment, &other.environment);
            return Err(refused(
                SHARED,
                format!(
                    "the cluster of `{id}` is that of `{theirs}` (`{other}`), and one cluster belongs to one environment; if both are meant to use it, say `sharedWith: [{theirs}]` for the connection of `{mine}` in the configuration (R1.8)"
                ),
            ));
        }
        if let Some(other) = holder.filter(|other| other != id) {
            return Err(refused(
                SHARED,
                format!(
                    "the state of `{id}` is that of `{other}`, or a copy of it: both would change the same things; give `{id}` a state of its own, or remove one of them (R1.8)"
                ),
            ));
        }
        let known = self.identity(id).await?;
        match (&known.pinned, now) {
            (Some(pinned), now) if Some(pinned) != now => {
                let found = now.map_or_else(|| "there is none".into(), |now| format!("it is `{}`", short(now)));
                let seen = Identity { seen: Some(SeenInstead { identity: now.cloned() }), ..known.clone() };
                if seen != known && remembers {
                    self.store().put("identity", &id.to_string(), self.now(), &seen).await?;
                }
                let what = match &observation.shared_with {
                    None => format!(
                        "the state of `{id}` is not the one that was applied: its lineage was `{}`, and now {found}; bring the state back",
                        short(pinned)
                    ),
                    Some(_) => format!(
                        "the cluster of `{id}` is not the one that was applied to: its uid was `{}`, and now {found}; mend the connection",
                        short(pinned)
                    ),
                };
                Err(refused(ANOTHER, format!("{what}, or say `/confirm {id}` if this is right (R1.8)")))
            }
            (Some(_), _) if known.seen.is_some() && remembers => {
                self.store().put("identity", &id.to_string(), self.now(), &Identity { seen: None, ..known }).await?;
                Ok(())
            }
            (None, Some(now)) if is_applied && remembers => self.pin(id, Some(now.clone())).await,
            _ => Ok(()),
        }
    }

    /// Pins a target of a whole environment before anything is done to it, so that of two environments that were pointed
    /// at one cluster only one begins.
    pub(super) async fn pin_before_effect(&self, id: &InstanceId, observation: &Observation) -> Result<(), Error> {
        let (Some(now), Some(shared)) = (&observation.identity, &observation.shared_with) else { return Ok(()) };
        let _turn = self.identifying.lock().await;
        if self.identity(id).await?.pinned.is_some() {
            return Ok(());
        }
        match self.of_another_environment(id, now, shared).await? {
            Some(other) => Err(Error::Refused(format!(
                "the cluster of `{id}` is that of `{}` (`{other}`); nothing was applied (R1.8)",
                other.environment
            ))),
            None => self.pin(id, Some(now.clone())).await,
        }
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
        let all: Vec<(String, Identity)> = self.store().list("identity").await?;
        Ok(all
            .into_iter()
            .filter(|(_, identity)| identity.pinned.as_deref() == Some(now))
            .filter_map(|(name, _)| name.parse::<InstanceId>().ok())
            .find(|other| {
                other.environment != id.environment && !shared.iter().any(|name| name == other.environment.as_str())
            }))
    }

    /// Takes the target that was seen for the right one; answers whether there was anything to confirm.
    pub(super) async fn confirm_identity(&self, id: &InstanceId) -> Result<bool, Error> {
        let known: Option<Identity> = self.store().get("identity", &id.to_string()).await?;
        let Some(seen) = known.and_then(|known| known.seen) else { return Ok(false) };
        self.pin(id, seen.identity).await?;
        Ok(true)
    }
}
