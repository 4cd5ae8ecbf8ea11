//! What is observed and never acted on: by its declaration (`suspend: true`), or by a word (`/suspend`).
//!
//! A word for a whole environment holds for instances that are declared later as well.

use crate::domain::message::Refusal;
use crate::domain::message::answer::Answer;
use std::{collections::BTreeSet, sync::Arc};

use crate::{
    controller::{
        commands::Commands,
        context::Error,
        records::Suspension,
        source::Head,
        work_queue::{Reason, ReconcileRequest},
    },
    domain::{
        authorization::Principal,
        declaration::{Selector, schema::Verb},
    },
    model::{EnvironmentName, InstanceId},
};

fn names(meant: &BTreeSet<InstanceId>, selector: Option<&Selector>) -> BTreeSet<String> {
    match selector {
        Some(Selector::Environment(name)) => BTreeSet::from([name.to_string()]),
        _ => meant.iter().map(ToString::to_string).collect(),
    }
}

fn list(names: &BTreeSet<String>) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

impl Commands {
    /// `/suspend`: of a whole environment where just that is named, of the selected instances else.
    pub(super) async fn suspend(
        self: &Arc<Self>,
        meant: &BTreeSet<InstanceId>,
        selector: Option<&Selector>,
        who: &Principal,
    ) -> Result<String, Error> {
        let names = names(meant, selector);
        for name in &names {
            let said = Suspension { by: who.name(), at: self.context.now() };
            self.context.store.collection::<Suspension>().put(name, self.context.now(), &said).await?;
            self.context
                .store
                .audit(self.context.now(), &who.name(), "suspend", name, "observed, and not acted on")
                .await?;
        }
        Ok(Answer::Suspended(names).to_string())
    }

    /// `/resume`: ends what was said; what is declared has to be changed in its declaration.
    pub(super) async fn resume(
        self: &Arc<Self>,
        head: &Head,
        meant: &BTreeSet<InstanceId>,
        selector: Option<&Selector>,
        who: &Principal,
    ) -> Result<String, Error> {
        let before = self.source.suspensions(Some(head)).await?;
        let mut names = names(meant, selector);
        names.extend(meant.iter().map(ToString::to_string));
        names.retain(|name| before.commanded.contains_key(name));
        let environments: BTreeSet<&EnvironmentName> = meant.iter().map(|id| &id.environment).collect();
        if let Some(name) = environments.iter().find(|name| before.declared.contains(**name)) {
            return Err(Error::Refused(Refusal::SuspendedByDeclaration((*name).clone())));
        }
        if names.is_empty() {
            let whole = environments.iter().find_map(|name| before.by_command(name.as_str()));
            return Err(Error::Refused(whole.map_or(Refusal::NotSuspended, Refusal::ResumeEnvironment)));
        }
        for name in &names {
            // First, so that whoever says it is answered that it was done, whatever comes between.
            self.context.store.audit(self.context.now(), &who.name(), "resume", name, "").await?;
            self.context.store.collection::<Suspension>().remove(name).await?;
        }
        for name in environments {
            self.context.queue.enqueue(ReconcileRequest::Merges(name.clone()), Reason::Command(Verb::Resume));
            self.context.queue.enqueue(ReconcileRequest::Proposals(name.clone()), Reason::Command(Verb::Resume));
        }
        Ok(format!("Resumed {}.", list(&names)))
    }
}
