//! Drift that somebody said no to (R4.5): by closing its pull request, by cutting its action, or by a word.
//!
//! Decides how long a no holds: until the observation is another one, or its time is over. What is snoozed is still
//! drift, and is shown with who said so.

use std::collections::BTreeMap;

use chrono::{DateTime, Duration, Utc};
use serde::{Deserialize, Serialize};

use super::{Daemon, Error, pass};
use crate::{
    desired::schema::{Direction, Remediation, RemediationAction},
    model::{Action, Digest, InstanceId},
    plan::Observed,
};

/// How long a no holds where nobody says.
pub(super) const SNOOZE: Duration = Duration::days(30);

/// A no to the drift of one instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snooze {
    /// The action that would revert it: another observation has another one.
    pub action: Digest,
    /// Until when it holds.
    pub until: DateTime<Utc>,
    /// Who said so, as far as that is known.
    pub by: String,
    /// By what: "closed #12".
    pub because: String,
}

impl Snooze {
    /// Whether it is about what is observed, and not over.
    pub(super) fn holds(&self, observed: &Observed, now: DateTime<Utc>) -> bool {
        self.until > now && pass::revert(observed).is_some_and(|action| action.digest == self.action)
    }
}

impl Daemon {
    /// Every no that was said, over or not.
    pub(super) async fn snoozes(&self) -> Result<BTreeMap<InstanceId, Snooze>, Error> {
        let all: Vec<(String, Snooze)> = self.store().list("snooze").await?;
        Ok(all.into_iter().filter_map(|(id, snooze)| Some((id.parse().ok()?, snooze))).collect())
    }

    pub(super) async fn snooze(&self, id: &InstanceId, snooze: &Snooze) -> Result<(), Error> {
        let now = self.now();
        self.store().put("snooze", &id.to_string(), now, snooze).await?;
        self.store().audit(now, &snooze.by, "snooze", &id.to_string(), &snooze.because).await?;
        tracing::info!(instance = %id, until = %snooze.until, because = snooze.because, "drift snoozed");
        Ok(())
    }

    /// Forgets a no to drift that is not what is observed any more, healed or another one.
    pub(super) async fn end_snooze(&self, id: &InstanceId, observed: &Observed) -> Result<(), Error> {
        let known: Option<Snooze> = self.store().get("snooze", &id.to_string()).await?;
        if known.is_some_and(|snooze| pass::revert(observed).is_none_or(|action| action.digest != snooze.action)) {
            self.store().remove("snooze", &id.to_string()).await?;
        }
        Ok(())
    }

    /// Whether actions undo drift that somebody said no to: a merge alone is no authority for that (R3.7).
    pub(super) async fn undoes_snoozed(&self, id: &InstanceId, actions: &[Action]) -> Result<Option<String>, Error> {
        let (Some(snooze), Some(observed)) = (self.snoozes().await?.remove(id), self.store().observed(id).await?)
        else {
            return Ok(None);
        };
        let drifted = |resource: &str| observed.drift.iter().any(|drift| drift.resource == resource);
        let undone = actions.iter().flat_map(|action| &action.resources).find(|change| drifted(&change.resource));
        Ok(undone.filter(|_| snooze.holds(&observed, self.now())).map(|change| {
            format!(
                "it would undo the drift of `{}`, which is snoozed ({}); look at the plan and say `/apply` if that is meant",
                change.resource, snooze.because
            )
        }))
    }

    /// Snoozes the drift whose actions were cut from a remediation before it was merged.
    pub(super) async fn snooze_cuts(&self, name: &str, remediation: &Remediation, by: &str) -> Result<(), Error> {
        let written: Option<Remediation> = self.store().get("written", name).await?;
        let written = written.filter(|written| written.direction == Direction::Revert);
        for RemediationAction { instance: id, digest: action, .. } in written.into_iter().flat_map(|one| one.actions) {
            if !remediation.actions.iter().any(|left| left.instance == id) {
                let because = format!("cut from the remediation `{name}`");
                let snooze = Snooze { action, until: self.now() + SNOOZE, by: by.to_owned(), because };
                self.snooze(&id, &snooze).await?;
            }
        }
        Ok(())
    }
}
