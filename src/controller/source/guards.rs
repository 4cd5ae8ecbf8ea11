//! Determines the guards in force at head, commit by commit, and records them (R3.4).
//!
//! *Invariant:* a commit that loosens a guard takes effect only as R3.4 permits.
//! *Race:* a push arrives during the evaluation: the next head is evaluated from the recorded revision.

use std::sync::Arc;

use crate::{
    controller::source::{Head, Source, error::Error},
    domain::authorization::guards::InForce,
};

impl Source {
    /// Returns the guards in force at a head of the branch.
    ///
    /// # Errors
    /// When the store or the repository can't be read.
    pub async fn guards(self: &Arc<Self>, head: &Head) -> Result<InForce, Error> {
        let cached = self.in_force.lock().clone();
        if let Some(cached) = cached.filter(|cached| cached.revision.as_ref() == Some(&head.revision)) {
            return Ok(cached);
        }
        let recorded: InForce =
            self.context.store.collection::<InForce>().get(&"in-force".to_owned()).await?.unwrap_or_default();
        let Some(from) = recorded.revision.clone().filter(|from| *from != head.revision) else {
            if recorded.revision.is_some() {
                return Ok(self.cached(recorded));
            }
            let (in_force, _) = recorded.after(None, &head.desired, &head.revision);
            self.context
                .store
                .collection::<InForce>()
                .put(&"in-force".to_owned(), self.context.now(), &in_force)
                .await?;
            return Ok(self.cached(in_force));
        };
        if self.context.repository.contains(&from, &head.revision).await? {
            // An older head, such as the revision of a run: the newer guards apply to it as well.
            return Ok(recorded);
        }
        let mut commits = vec![];
        if self.context.repository.contains(&head.revision, &from).await? {
            commits = self.context.repository.first_parents(Some(&from), &head.revision).await?;
            commits.reverse();
        }
        let mut steps: Vec<_> = commits.into_iter().map(|commit| commit.revision).collect();
        if steps.is_empty() {
            // The branch was rewritten: the difference is one step.
            steps.push(head.revision.clone());
        }
        let (mut in_force, (mut before, _)) = (recorded, self.load(&from).await?);
        for revision in steps {
            let (desired, _) = self.load(&revision).await?;
            let (next, refused) = in_force.after(Some(&before), &desired, &revision);
            for message in refused {
                tracing::warn!(kind = "guard-kept", revision = revision.short(), message, "a guard was not loosened");
            }
            (in_force, before) = (next, desired);
        }
        self.context.store.collection::<InForce>().put(&"in-force".to_owned(), self.context.now(), &in_force).await?;
        Ok(self.cached(in_force))
    }

    /// Caches the guards in force at a head, because every observation needs them.
    fn cached(&self, in_force: InForce) -> InForce {
        *self.in_force.lock() = Some(in_force.clone());
        in_force
    }
}
