//! Executes `/suspend` and `/resume`: suspended instances are observed, and never changed.
//!
//! A suspension of a whole environment includes instances that are declared later.
//! *Invariant:* `/resume` does not end a suspension by declaration (`suspend: true`).

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
        message::{Refusal, answer::Answer},
    },
    model::{EnvironmentName, InstanceId},
};

fn names(selected: &BTreeSet<InstanceId>, selector: Option<&Selector>) -> BTreeSet<String> {
    match selector {
        Some(Selector::Environment(name)) => BTreeSet::from([name.to_string()]),
        _ => selected.iter().map(ToString::to_string).collect(),
    }
}

fn list(names: &BTreeSet<String>) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

impl Commands {
    /// `/suspend`: suspends a whole environment where the selector names an environment, and else the selected instances.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) async fn suspend(
        self: &Arc<Self>,
        selected: &BTreeSet<InstanceId>,
        selector: Option<&Selector>,
        principal: &Principal,
    ) -> Result<String, Error> {
        let names = names(selected, selector);
        for name in &names {
            let suspension = Suspension { by: principal.name(), at: self.context.now() };
            self.context.store.collection::<Suspension>().put(name, self.context.now(), &suspension).await?;
            self.context
                .store
                .audit(self.context.now(), &principal.name(), "suspend", name, "observed, and not acted on")
                .await?;
        }
        Ok(Answer::Suspended(names).to_string())
    }

    /// `/resume`: ends suspensions by command. A suspension by declaration is ended in the declaration.
    ///
    /// # Errors
    /// [`Error::Refused`] where no suspension by command exists; else when the store fails.
    pub(super) async fn resume(
        self: &Arc<Self>,
        head: &Head,
        selected: &BTreeSet<InstanceId>,
        selector: Option<&Selector>,
        principal: &Principal,
    ) -> Result<String, Error> {
        let before = self.source.suspensions(Some(head)).await?;
        let mut names = names(selected, selector);
        names.extend(selected.iter().map(ToString::to_string));
        names.retain(|name| before.commanded.contains_key(name));
        let environments: BTreeSet<&EnvironmentName> = selected.iter().map(|id| &id.environment).collect();
        if let Some(name) = environments.iter().find(|name| before.declared.contains(**name)) {
            return Err(Error::Refused(Refusal::SuspendedByDeclaration((*name).clone())));
        }
        if names.is_empty() {
            let whole = environments.iter().find_map(|name| before.by_command(name.as_str()));
            return Err(Error::Refused(whole.map_or(Refusal::NotSuspended, Refusal::ResumeEnvironment)));
        }
        for name in &names {
            // Before the removal, so that a retry after a crash finds that the command was executed.
            self.context.store.audit(self.context.now(), &principal.name(), "resume", name, "").await?;
            self.context.store.collection::<Suspension>().remove(name).await?;
        }
        for name in environments {
            self.context.queue.enqueue(ReconcileRequest::Merges(name.clone()), Reason::Command(Verb::Resume));
            self.context.queue.enqueue(ReconcileRequest::Proposals(name.clone()), Reason::Command(Verb::Resume));
        }
        Ok(format!("Resumed {}.", list(&names)))
    }
}
