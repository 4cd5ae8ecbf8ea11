//! What is observed and never acted on: by its declaration (`suspend: true`), or by a word (`/suspend`).
//!
//! A word for a whole environment holds for instances that are declared later as well.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Daemon, Error, Head, Wake};
use crate::{
    domain::{authorization::Principal, declaration::Selector},
    model::{EnvironmentName, InstanceId},
};

/// A word that suspends.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Suspension {
    by: String,
    at: DateTime<Utc>,
}

/// What is suspended.
#[derive(Default)]
pub(super) struct Suspensions {
    declared: BTreeSet<EnvironmentName>,
    /// By the name of an environment or of an instance.
    said: BTreeMap<String, Suspension>,
}

impl Suspensions {
    fn word(&self, name: &str) -> Option<String> {
        let said = self.said.get(name)?;
        Some(format!(
            "`{name}` is suspended by {} since {}; `/resume {name}` ends that",
            said.by.replace("user:", "@"),
            said.at.format("%Y-%m-%d %H:%M UTC")
        ))
    }

    /// Why an environment is suspended as a whole.
    pub(super) fn environment(&self, name: &EnvironmentName) -> Option<String> {
        let declared = || format!("`{name}` is suspended by its declaration (`suspend: true`)");
        self.declared.contains(name).then(declared).or_else(|| self.word(name.as_str()))
    }

    /// Why an instance is suspended.
    pub(super) fn instance(&self, id: &InstanceId) -> Option<String> {
        self.environment(&id.environment).or_else(|| self.word(&id.to_string()))
    }
}

impl Daemon {
    /// What is suspended at a head.
    pub(super) async fn suspensions(&self, head: Option<&Head>) -> Result<Suspensions, Error> {
        let environments = head.into_iter().flat_map(|head| &head.desired.environments);
        let declared = environments.filter(|(_, environment)| environment.suspend).map(|(name, _)| name.clone());
        let said: Vec<(String, Suspension)> = self.store().list("suspended").await?;
        Ok(Suspensions { declared: declared.collect(), said: said.into_iter().collect() })
    }

    /// `/suspend`: of a whole environment where just that is named, of the selected instances else.
    pub(super) async fn suspend(
        self: &Arc<Self>,
        meant: &BTreeSet<InstanceId>,
        selector: Option<&Selector>,
        who: &Principal,
    ) -> Result<String, Error> {
        let names = names(meant, selector);
        for name in &names {
            let said = Suspension { by: who.name(), at: self.now() };
            self.store().put("suspended", name, self.now(), &said).await?;
            self.store().audit(self.now(), &who.name(), "suspend", name, "observed, and not acted on").await?;
        }
        let them = if names.len() == 1 { "it" } else { "them" };
        Ok(format!("Suspended {}: {them} is observed and not acted on until `/resume`.", list(&names))
            .replace("them is", "they are"))
    }

    /// `/resume`: ends what was said; what is declared has to be changed in its declaration.
    pub(super) async fn resume(
        self: &Arc<Self>,
        head: &Head,
        meant: &BTreeSet<InstanceId>,
        selector: Option<&Selector>,
        who: &Principal,
    ) -> Result<String, Error> {
        let before = self.suspensions(Some(head)).await?;
        let mut names = names(meant, selector);
        names.extend(meant.iter().map(ToString::to_string));
        names.retain(|name| before.said.contains_key(name));
        let environments: BTreeSet<&EnvironmentName> = meant.iter().map(|id| &id.environment).collect();
        if let Some(name) = environments.iter().find(|name| before.declared.contains(**name)) {
            return Err(Error::Refused(format!(
                "`{name}` is suspended by its declaration; remove `suspend: true` from it in a pull request."
            )));
        }
        if names.is_empty() {
            let whole = environments.iter().find_map(|name| before.word(name.as_str()));
            return Err(Error::Refused(match whole {
                Some(why) => format!("Nothing was resumed: {why}."),
                None => "Nothing was resumed: none of what you mean is suspended.".into(),
            }));
        }
        for name in &names {
            // First, so that whoever says it is answered that it was done, whatever comes between.
            self.store().audit(self.now(), &who.name(), "resume", name, "").await?;
            self.store().remove("suspended", name).await?;
        }
        for name in environments {
            self.queue.wake(Wake::Decide(name.clone()), "/resume");
            self.queue.wake(Wake::Propose(name.clone()), "/resume");
        }
        Ok(format!("Resumed {}.", list(&names)))
    }
}

fn names(meant: &BTreeSet<InstanceId>, selector: Option<&Selector>) -> BTreeSet<String> {
    match selector {
        Some(Selector::Environment(name)) => BTreeSet::from([name.to_string()]),
        _ => meant.iter().map(ToString::to_string).collect(),
    }
}

fn list(names: &BTreeSet<String>) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
