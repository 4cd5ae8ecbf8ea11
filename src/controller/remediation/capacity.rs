//! Proposes more nodes by a pull request that raises a variable, with the measured figures.
//!
//! A pull request is opened once for each value, whether or not it was merged.
//! *Invariant:* the value never exceeds the maximum of the rule. A request authorises nothing without its merge.
//! *Race:* the daemon dies between the push and the pull request: the next request opens the pull request.

use std::sync::Arc;

use serde_json::Value;

use crate::{
    controller::{
        context::Error,
        records::{CapacityExceeded, CapacityRequest},
        remediation::{Remediations, adopt::Edits},
    },
    domain::{declaration::schema::Component, message::capacity::Raise},
    model::InstanceId,
    targets,
};

/// The prefix of the branches of capacity requests. They are planned like branches of users.
const BRANCH: &str = "evenkeel-capacity";

/// Returns the numeric value of a variable in a declaration.
fn number(spec: &Component, variable: &str) -> Option<u64> {
    targets::kinds().of(&spec.target)?.variable(&spec.target.declared, variable)?.as_u64()
}

impl Remediations {
    /// Proposes more nodes for the capacity rules that a cluster exceeds, where the value was not proposed before.
    ///
    /// # Errors
    /// When the forge, the repository or the store fails.
    pub(crate) async fn propose_capacity(self: &Arc<Self>, cluster: &InstanceId) -> Result<(), Error> {
        let (Some(head), Some(forge)) = (self.source.head(), self.context.forge.clone()) else { return Ok(()) };
        let Some(exceeded) = self.context.store.collection::<CapacityExceeded>().get(cluster).await? else {
            return Ok(());
        };
        let head = &head;
        for rule in &exceeded.0 {
            let id = InstanceId::new(&cluster.environment, &rule.component);
            let current = head.instance(&id).and_then(|instance| number(instance.spec.as_deref()?, &rule.variable));
            let applied = self.context.store.applied(&id).await?;
            let is_applied = applied.is_some_and(|record| number(&record.spec, &rule.variable) == current);
            if !is_applied && current.is_some() {
                // An earlier request is not complete yet.
                continue;
            }
            let (Some(instance), Some(current)) = (head.instance(&id), current) else {
                tracing::warn!(kind = "capacity-no-number", instance = %cluster, of = %id, variable = rule.variable, "more capacity is needed, and the variable has no number");
                continue;
            };
            let value = (current + rule.by).min(rule.max);
            let key = format!("{id}/{}", rule.variable);
            let existing: Option<CapacityRequest> =
                self.context.store.collection::<CapacityRequest>().get(&key).await?;
            if value <= current || existing.is_some_and(|existing| existing.value == value && existing.pull.is_some()) {
                continue;
            }
            let mut edits = Edits::new();
            let requested = Value::from(value);
            if let Err(reason) = self.set_variable(head, instance, (&rule.variable, &requested), &mut edits) {
                tracing::warn!(kind = "capacity-not-declared", instance = %id, why = reason, "more capacity is needed, and the declaration can't be edited");
                continue;
            }
            let raise = Raise {
                target: cluster,
                figures: &rule.message,
                id: &id,
                variable: &rule.variable,
                from: current,
                to: value,
                max: rule.max,
            };
            let (title, body) = (raise.title(), raise.body());
            let branch = format!("{BRANCH}/{}-{}-{}-{value}", id.environment, id.component, rule.variable);
            self.source.use_git_token().await?;
            let branch_head = self.context.repository.fetch(&format!("refs/heads/{branch}")).await?;
            let files = edits.into_iter().map(|(path, text)| (path, Some(text))).collect();
            self.context
                .store
                .collection::<CapacityRequest>()
                .put(&key, self.context.now(), &CapacityRequest { value, pull: None })
                .await?;
            self.context.repository.push(&branch, &head.revision, branch_head.as_ref(), files, &title).await?;
            let pull = forge.ensure_pull(&branch, &self.context.settings.branch, &title, &body).await?;
            self.context
                .store
                .collection::<CapacityRequest>()
                .put(&key, self.context.now(), &CapacityRequest { value, pull: Some(pull) })
                .await?;
            self.context
                .store
                .audit(self.context.now(), "evenkeel", "capacity", &format!("pull/{}", pull.0), &title)
                .await?;
            tracing::info!(kind = "capacity-proposed", instance = %id, pull = pull.0, value, "more capacity is proposed");
        }
        Ok(())
    }
}
