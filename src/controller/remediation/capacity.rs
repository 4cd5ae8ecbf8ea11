//! More nodes are asked for by a pull request that raises a variable, with the figures that led to it.
//!
//! Decides when such a pull request is opened: once for each value, whatever became of it, and never over the rule's maximum.
//! *Never:* it is an authority: it is merged, or it is not.
//! *Race:* the daemon dies between the branch and the pull request: the next look opens it.

use crate::domain::message::capacity::Raise;
use std::sync::Arc;

use serde_json::Value;

use crate::{
    controller::{
        context::Error,
        records::{CapacityExceeded, CapacityRequest},
        remediation::{Remediations, adopt::Edits},
    },
    domain::declaration::schema::Component,
    model::InstanceId,
    targets,
};

/// The prefix of its branches; they are planned like those of users.
const BRANCH: &str = "evenkeel-capacity";

/// The number that a declaration gives to a variable.
fn number(spec: &Component, variable: &str) -> Option<u64> {
    targets::kinds().of(&spec.target)?.variable(&spec.target.declared, variable)?.as_u64()
}

impl Remediations {
    /// Proposes more nodes for the capacity rules that a cluster exceeds, where the value was not proposed before.
    ///
    /// # Errors
    /// When the forge, the repository or the store does not answer.
    pub(crate) async fn propose_capacity(self: &Arc<Self>, cluster: &InstanceId) -> Result<(), Error> {
        let (Some(head), Some(forge)) = (self.source.head(), self.context.forge.clone()) else { return Ok(()) };
        let Some(exceeded) = self.context.store.collection::<CapacityExceeded>().get(cluster).await? else {
            return Ok(());
        };
        let head = &head;
        for more in &exceeded.0 {
            let id = InstanceId::new(&cluster.environment, &more.component);
            let now = head.instance(&id).and_then(|instance| number(instance.spec.as_deref()?, &more.variable));
            let applied = self.context.store.applied(&id).await?;
            let is_applied = applied.is_some_and(|record| number(&record.spec, &more.variable) == now);
            if !is_applied && now.is_some() {
                // An earlier request is not complete yet.
                continue;
            }
            let (Some(instance), Some(now)) = (head.instance(&id), now) else {
                tracing::warn!(kind = "capacity-no-number", instance = %cluster, of = %id, variable = more.variable, "more capacity is needed, and the variable has no number");
                continue;
            };
            let value = (now + more.by).min(more.max);
            let key = format!("{id}/{}", more.variable);
            let known: Option<CapacityRequest> = self.context.store.collection::<CapacityRequest>().get(&key).await?;
            if value <= now || known.is_some_and(|known| known.value == value && known.pull.is_some()) {
                continue;
            }
            let mut edits = Edits::new();
            let wanted = Value::from(value);
            if let Err(why) = self.set_variable(head, instance, (&more.variable, &wanted), &mut edits) {
                tracing::warn!(kind = "capacity-not-declared", instance = %id, why, "more capacity is needed, and the declaration can't be edited");
                continue;
            }
            let raise = Raise {
                target: cluster,
                figures: &more.message,
                id: &id,
                variable: &more.variable,
                from: now,
                to: value,
                max: more.max,
            };
            let (title, body) = (raise.title(), raise.body());
            let branch = format!("{BRANCH}/{}-{}-{}-{value}", id.environment, id.component, more.variable);
            self.source.use_git_token().await?;
            let there = self.context.repository.fetch(&format!("refs/heads/{branch}")).await?;
            let files = edits.into_iter().map(|(path, text)| (path, Some(text))).collect();
            self.context
                .store
                .collection::<CapacityRequest>()
                .put(&key, self.context.now(), &CapacityRequest { value, pull: None })
                .await?;
            self.context.repository.push(&branch, &head.revision, there.as_ref(), files, &title).await?;
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
