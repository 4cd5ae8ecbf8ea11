//! The commands that change what Evenkeel does, and not the world at once; from comments, the command line and the API
//! alike (R6.9).
//!
//! Decides which instances a command means where it stands, and whether who says it may.

use std::{collections::BTreeSet, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    Daemon, Error, Head, Wake,
    conversation::{environments, matched_nothing, undeclared},
    pass,
    pulls::Seen,
    snooze::{SNOOZE, Snooze},
};
use crate::{
    domain::{authorization::Principal, command::Command, declaration::schema::Verb, message::comment, plan::Plan},
    model::{InstanceId, RunId},
};

/// What came of a command.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Said {
    /// In a sentence.
    pub says: String,
    /// What would be done once its digest is named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plans: Vec<Plan>,
    /// The runs that it began.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<RunId>,
}

fn say_what(command: &Command) -> Error {
    Error::Refused(format!("Say what is meant, such as `/{} staging/network`.", command.verb.word()))
}

impl Daemon {
    /// Does what a command says, for the API.
    ///
    /// # Errors
    /// When it is refused, in a sentence.
    pub async fn say_word(self: &Arc<Self>, command: &Command, who: &Principal) -> Result<Said, Error> {
        let head = self.head().ok_or_else(|| Error::Refused(self.no_head()))?;
        self.obey_word(&head, command, who, None).await
    }

    pub(super) async fn obey_word(
        self: &Arc<Self>,
        head: &Arc<Head>,
        command: &Command,
        who: &Principal,
        seen: Option<&Seen>,
    ) -> Result<Said, Error> {
        let meant = self.meant(head, command, seen).await?;
        self.allow(head, who, command.verb, &environments(&meant)).await?;
        let selector = command.selector.as_ref();
        let pull = seen.map(|seen| seen.pull.number);
        let says = match command.verb {
            Verb::Suspend => self.suspend(&meant, selector, who).await?,
            Verb::Resume => self.resume(head, &meant, selector, who).await?,
            Verb::Snooze => self.snooze_now(&meant, command, who).await?,
            Verb::Confirm => self.confirm(&meant, who).await?,
            Verb::Adopt | Verb::Revert => self.turn(head, &meant, command.verb, who).await?,
            Verb::Forget => self.forget(head, &meant, who).await?,
            Verb::Cancel => self.cancel(&meant, who).await?,
            Verb::Unlock => self.unlock(head, &meant, who).await?,
            Verb::Rebalance => {
                let (says, runs) = self.rebalance(head, &meant, who, pull).await?;
                return Ok(Said { says, runs, ..Said::default() });
            }
            Verb::Destroy => {
                let digests: Vec<String> = command.digest.iter().cloned().collect();
                let Some(selector) = selector else { return Err(say_what(command)) };
                let (says, plans, runs) = self.destroy(head, &meant, &digests, who, (selector, pull)).await?;
                return Ok(Said { says, plans, runs });
            }
            other => return Err(Error::Refused(format!("`/{}` is not there yet.", other.word()))),
        };
        Ok(Said { says, ..Said::default() })
    }

    /// The instances that a command means: declared or not, and by itself those that its place is about.
    async fn meant(
        self: &Arc<Self>,
        head: &Head,
        command: &Command,
        seen: Option<&Seen>,
    ) -> Result<BTreeSet<InstanceId>, Error> {
        let about = match seen {
            Some(seen) => match self.proposal_of(seen.pull.number).await? {
                Some(proposal) => proposal.instances,
                None => self.changed_by(seen).await?,
            },
            None => BTreeSet::new(),
        };
        let Some(selector) = &command.selector else {
            if about.is_empty() {
                return Err(say_what(command));
            }
            return Ok(about);
        };
        let mut meant = self.select(head, Some(selector), &about).await?;
        let applied = self.store().all_applied().await?;
        let gone = applied.iter().filter(|(id, _)| head.instance(id).is_none());
        let gone =
            gone.filter(|(id, applied)| selector.selects(&undeclared(id, Some(applied), about.contains(*id), false)));
        meant.extend(gone.map(|(id, _)| id.clone()));
        // What is declared is not meant by what only concerns the rest, where the rest is meant as well.
        if matches!(command.verb, Verb::Destroy | Verb::Forget) && meant.iter().any(|id| head.instance(id).is_none()) {
            meant.retain(|id| head.instance(id).is_none());
        }
        if meant.is_empty() { Err(Error::Refused(matched_nothing(head, Some(selector)))) } else { Ok(meant) }
    }

    /// `/snooze`: leaves the drift that is observed alone.
    async fn snooze_now(
        self: &Arc<Self>,
        meant: &BTreeSet<InstanceId>,
        command: &Command,
        who: &Principal,
    ) -> Result<String, Error> {
        let lasting = command.lasting.and_then(|lasting| chrono::Duration::from_std(lasting.std()).ok());
        let until = self.now() + lasting.unwrap_or(SNOOZE);
        let observed = self.store().all_observed().await?;
        let mut snoozed = vec![];
        for id in meant {
            let actions: BTreeSet<_> =
                observed.get(id).map(pass::revert).unwrap_or_default().iter().map(|action| action.digest).collect();
            if actions.is_empty() {
                continue;
            }
            let snooze = Snooze { actions, until, by: who.name(), because: "`/snooze`".into() };
            self.snooze(id, snooze).await?;
            snoozed.push(id.to_string());
        }
        if snoozed.is_empty() {
            return Err(Error::Refused("Nothing was snoozed: none of what you mean has drifted.".into()));
        }
        for environment in environments(meant) {
            self.queue.wake(Wake::Propose(environment), "/snooze");
        }
        Ok(format!(
            "Snoozed until {}, or until something else is observed: {}.",
            until.format("%Y-%m-%d %H:%M UTC"),
            comment::names(snoozed.into_iter())
        ))
    }

    /// `/confirm`: another target than the one that was applied is the right one (R1.8).
    async fn confirm(self: &Arc<Self>, meant: &BTreeSet<InstanceId>, who: &Principal) -> Result<String, Error> {
        let mut confirmed = vec![];
        for id in meant {
            if self.confirm_identity(id).await? {
                self.store()
                    .audit(self.now(), &who.name(), "confirm", &id.to_string(), "another target is the right one")
                    .await?;
                self.queue.wake(Wake::Instance(id.clone()), "/confirm");
                self.queue.wake(Wake::Decide(id.environment.clone()), "/confirm");
                confirmed.push(id.to_string());
            }
        }
        if confirmed.is_empty() {
            return Err(Error::Refused("There is nothing to confirm: no other target than before was seen.".into()));
        }
        Ok(format!("Confirmed: {}.", comment::names(confirmed.into_iter())))
    }
}
