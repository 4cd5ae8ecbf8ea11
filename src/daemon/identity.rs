//! Whether a target is the one that was applied (R1.8): the first observation pins it, and another one stops everything
//! until a person confirms it.
//!
//! A state that was lost, restored from elsewhere, or copied for another instance is another target: a plan there would
//! create everything again, or change what belongs to somebody else.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Daemon, Error};
use crate::{
    model::{InstanceId, Retry},
    port::{Observation, TargetError},
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
    async fn identities(&self) -> Result<BTreeMap<InstanceId, Identity>, Error> {
        let all: Vec<(String, Identity)> = self.store().list("identity").await?;
        Ok(all.into_iter().filter_map(|(id, identity)| Some((id.parse().ok()?, identity))).collect())
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
        let all = self.identities().await?;
        let short = |identity: &str| identity.chars().take(8).collect::<String>();
        let refused = |kind: &'static str, message: String| -> Error {
            TargetError { retry: Retry::WhenInputChanges, ..TargetError::new(kind, message) }.into()
        };
        let now = observation.identity.as_ref();
        if let Some((other, _)) =
            all.iter().find(|(other, known)| *other != id && now.is_some() && known.pinned.as_ref() == now)
        {
            return Err(refused(
                SHARED,
                format!(
                    "the state of `{id}` is that of `{other}`, or a copy of it: both would change the same things; give `{id}` a state of its own, or remove one of them (R1.8)"
                ),
            ));
        }
        let known = all.get(id).cloned().unwrap_or_default();
        match (&known.pinned, now) {
            (Some(pinned), now) if Some(pinned) != now => {
                let found = now.map_or_else(|| "there is none".into(), |now| format!("it is `{}`", short(now)));
                let seen = Identity { seen: Some(SeenInstead { identity: now.cloned() }), ..known.clone() };
                if seen != known {
                    self.store().put("identity", &id.to_string(), self.now(), &seen).await?;
                }
                Err(refused(
                    ANOTHER,
                    format!(
                        "the state of `{id}` is not the one that was applied: its lineage was `{}`, and now {found}; bring the state back, or say `/confirm {id}` if this is right (R1.8)",
                        short(pinned)
                    ),
                ))
            }
            (Some(_), _) if known.seen.is_some() => {
                self.store().put("identity", &id.to_string(), self.now(), &Identity { seen: None, ..known }).await?;
                Ok(())
            }
            (None, Some(now)) if is_applied => {
                let pinned = Identity { pinned: Some(now.clone()), seen: None };
                self.store().put("identity", &id.to_string(), self.now(), &pinned).await?;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Takes the target that was seen for the right one; answers whether there was anything to confirm.
    pub(super) async fn confirm_identity(&self, id: &InstanceId) -> Result<bool, Error> {
        let known: Option<Identity> = self.store().get("identity", &id.to_string()).await?;
        let Some(seen) = known.and_then(|known| known.seen) else { return Ok(false) };
        let pinned = Identity { pinned: seen.identity, seen: None };
        self.store().put("identity", &id.to_string(), self.now(), &pinned).await?;
        Ok(true)
    }
}
