//! Drift that somebody said no to (R4.5): by closing its pull request, by cutting its action, or by a word.
//!
//! Decides how long a no holds: until the observation is another one, or its time is over. What is snoozed is still
//! drift, and is shown with who said so.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Duration, Utc};
use serde::{Deserialize, Serialize};

use super::{Daemon, Error, pass};
use crate::{
    domain::{
        declaration::schema::{Direction, Remediation, RemediationAction},
        plan::Observed,
    },
    model::{Action, Digest, InstanceId},
};

/// How long a no holds where nobody says.
pub(super) const SNOOZE: Duration = Duration::days(30);

/// A no to the drift of one instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snooze {
    /// The actions that would revert it: another observation has others.
    pub actions: BTreeSet<Digest>,
    /// Until when it holds.
    pub until: DateTime<Utc>,
    /// Who said so, as far as that is known.
    pub by: String,
    /// By what: "closed #12".
    pub because: String,
}

impl Snooze {
    /// Whether it is about everything that is observed, and not over.
    pub(super) fn holds(&self, observed: &Observed, now: DateTime<Utc>) -> bool {
        let actions = pass::revert(observed);
        !actions.is_empty() && actions.iter().all(|action| self.covers(action, now))
    }
    /// Whether it is about an action, and not over.
    pub(super) fn covers(&self, action: &Action, now: DateTime<Utc>) -> bool {
        self.until > now && self.actions.contains(&action.digest)
    }
}

impl Daemon {
    /// Every no that was said, over or not.
    pub(super) async fn snoozes(&self) -> Result<BTreeMap<InstanceId, Snooze>, Error> {
        let all: Vec<(String, Snooze)> = self.store().list("snooze").await?;
        Ok(all.into_iter().filter_map(|(id, snooze)| Some((id.parse().ok()?, snooze))).collect())
    }

    /// Remembers a no, beside one that was said before.
    pub(super) async fn snooze(&self, id: &InstanceId, mut snooze: Snooze) -> Result<(), Error> {
        let now = self.now();
        let before: Option<Snooze> = self.store().get("snooze", &id.to_string()).await?;
        snooze.actions.extend(before.into_iter().filter(|before| before.until > now).flat_map(|before| before.actions));
        let snooze = &snooze;
        self.store().put("snooze", &id.to_string(), now, snooze).await?;
        self.store().audit(now, &snooze.by, "snooze", &id.to_string(), &snooze.because).await?;
        tracing::info!(instance = %id, until = %snooze.until, because = snooze.because, "drift snoozed");
        Ok(())
    }

    /// Forgets a no to drift that is not what is observed any more, healed or another one.
    pub(super) async fn end_snooze(&self, id: &InstanceId, observed: &Observed) -> Result<(), Error> {
        let known: Option<Snooze> = self.store().get("snooze", &id.to_string()).await?;
        let Some(mut snooze) = known else { return Ok(()) };
        let (now, before) = (pass::revert(observed), snooze.actions.len());
        snooze.actions.retain(|digest| now.iter().any(|action| action.digest == *digest));
        if snooze.actions.is_empty() {
            self.store().remove("snooze", &id.to_string()).await?;
        } else if snooze.actions.len() < before {
            self.store().put("snooze", &id.to_string(), self.now(), &snooze).await?;
        }
        Ok(())
    }

    /// Whether actions undo drift that somebody said no to: a merge alone is no authority for that (R3.7).
    pub(super) async fn undoes_snoozed(&self, id: &InstanceId, actions: &[Action]) -> Result<Option<String>, Error> {
        let (Some(snooze), Some(observed)) = (self.snoozes().await?.remove(id), self.store().observed(id).await?)
        else {
            return Ok(None);
        };
        let snoozed = observed.revert.iter().filter(|action| snooze.covers(action, self.now()));
        let snoozed: Vec<&str> = snoozed.flat_map(|action| &action.resources).map(|r| r.resource.as_str()).collect();
        let undone =
            actions.iter().flat_map(|action| &action.resources).find(|change| snoozed.contains(&&*change.resource));
        Ok(undone.map(|change| {
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
        for RemediationAction { instance: id, digest, .. } in written.into_iter().flat_map(|one| one.actions) {
            if !remediation.actions.iter().any(|left| left.digest == digest) {
                let because = format!("cut from the remediation `{name}`");
                let actions = BTreeSet::from([digest]);
                let snooze = Snooze { actions, until: self.now() + SNOOZE, by: by.to_owned(), because };
                self.snooze(&id, snooze).await?;
            }
        }
        Ok(())
    }
}
