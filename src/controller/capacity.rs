//! More nodes are asked for by a pull request that raises a variable, with the figures that led to it.
//!
//! Decides when such a pull request is opened: once for each value, whatever became of it, and never over the rule's maximum.
//! *Never:* it is an authority: it is merged, or it is not.
//! *Race:* the daemon dies between the branch and the pull request: the next look opens it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Daemon, Error, Head, adopt::Edits};
use crate::{
    domain::remediation::adopt::Adopted,
    model::{InstanceId, PullNumber},
    ports::MoreCapacity,
};

/// The sort of record that says which values were asked for.
const CAPACITY: &str = "capacity";
/// What its branches begin with: they are planned like anybody's.
const BRANCH: &str = "evenkeel-capacity";

/// A value that was asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Asked {
    value: u64,
    pull: Option<PullNumber>,
}

impl Daemon {
    /// Asks for more nodes, where that was not done for this value before.
    pub(super) async fn ask_for_capacity(
        self: &Arc<Self>,
        head: &Arc<Head>,
        cluster: &InstanceId,
        wanted: &[MoreCapacity],
    ) -> Result<(), Error> {
        let Some(forge) = self.hands.forge.clone() else { return Ok(()) };
        for more in wanted {
            let id = InstanceId::new(&cluster.environment, &more.component);
            let now = head
                .instance(&id)
                .and_then(|instance| instance.spec.as_ref()?.tofu.as_ref()?.variables.get(&more.variable)?.as_u64());
            let applied = self.store().applied(&id).await?;
            let is_applied = applied.is_some_and(|record| {
                let variables = record.spec.tofu.as_ref().map(|tofu| &tofu.variables);
                variables.and_then(|all| all.get(&more.variable)?.as_u64()) == now
            });
            if !is_applied && now.is_some() {
                // What was asked for before is still on its way.
                continue;
            }
            let (Some(instance), Some(now)) = (head.instance(&id), now) else {
                tracing::warn!(instance = %cluster, "more nodes are wanted, and `{}` has no number in `{}`", id, more.variable);
                continue;
            };
            let value = (now + more.by).min(more.max);
            let key = format!("{id}/{}", more.variable);
            let known: Option<Asked> = self.store().get(CAPACITY, &key).await?;
            if value <= now || known.is_some_and(|known| known.value == value && known.pull.is_some()) {
                continue;
            }
            let mut edits = Edits::new();
            let adopted = Adopted { variable: more.variable.clone(), keys: vec![], value: Value::from(value) };
            if let Err(why) = self.edit(head, instance, &adopted, &mut edits) {
                tracing::warn!(instance = %id, why, "more nodes are wanted, and the declaration can't be edited");
                continue;
            }
            let title = format!("Raise {} of {id} to {value}", more.variable);
            let body = format!(
                "`{cluster}` wants more nodes: {}\n\nMerging this raises `{}` of `{id}` from {now} to {value}; the rule allows {} at most. Closing it unmerged is a no to this value.\n",
                more.says, more.variable, more.max
            );
            let branch = format!("{BRANCH}/{}-{}-{}-{value}", id.environment, id.component, more.variable);
            self.use_git_token().await?;
            let there = self.hands.repository.fetch(&format!("refs/heads/{branch}")).await?;
            let files = edits.into_iter().map(|(path, text)| (path, Some(text))).collect();
            self.store().put(CAPACITY, &key, self.now(), &Asked { value, pull: None }).await?;
            self.hands.repository.push(&branch, &head.revision, there.as_ref(), files, &title).await?;
            let pull = forge.ensure_pull(&branch, &self.settings.branch, &title, &body).await?;
            self.store().put(CAPACITY, &key, self.now(), &Asked { value, pull: Some(pull) }).await?;
            self.store().audit(self.now(), "evenkeel", "capacity", &format!("pull/{}", pull.0), &title).await?;
            tracing::info!(instance = %id, pull = pull.0, value, "more nodes are asked for");
        }
        Ok(())
    }
}
