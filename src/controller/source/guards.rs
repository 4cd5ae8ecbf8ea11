//! Which guards are in force at head, judged commit by commit and remembered (R3.4).
//!
//! *Race:* a push while commits are judged: the next head is judged from where this one ended.

use std::sync::Arc;

use crate::{
    controller::{
        context::Error,
        source::{Head, Source},
    },
    domain::authorization::guards::InForce,
};

impl Source {
    /// The guards in force at a head of the branch.
    ///
    /// # Errors
    /// When the store or the repository can't be read.
    pub async fn guards(self: &Arc<Self>, head: &Head) -> Result<InForce, Error> {
        let cached = self.in_force.lock().clone();
        if let Some(cached) = cached.filter(|cached| cached.revision.as_ref() == Some(&head.revision)) {
            return Ok(cached);
        }
        let known: InForce =
            self.context.store.collection::<InForce>().get(&"in-force".to_owned()).await?.unwrap_or_default();
        let Some(from) = known.revision.clone().filter(|from| *from != head.revision) else {
            if known.revision.is_some() {
                return Ok(self.cached(known));
            }
            let (now, _) = known.after(None, &head.desired, &head.revision);
            self.context.store.collection::<InForce>().put(&"in-force".to_owned(), self.context.now(), &now).await?;
            return Ok(self.cached(now));
        };
        if self.context.repository.contains(&from, &head.revision).await? {
            // An older head, such as that of a run: what was judged since then counts for it too.
            return Ok(known);
        }
        let mut commits = vec![];
        if self.context.repository.contains(&head.revision, &from).await? {
            commits = self.context.repository.first_parents(Some(&from), &head.revision).await?;
            commits.reverse();
        }
        let mut steps: Vec<_> = commits.into_iter().map(|commit| commit.revision).collect();
        if steps.is_empty() {
            // The branch was rewritten: all of that is one step.
            steps.push(head.revision.clone());
        }
        let (mut now, (mut before, _)) = (known, self.load(&from).await?);
        for revision in steps {
            let (desired, _) = self.load(&revision).await?;
            let (next, refused) = now.after(Some(&before), &desired, &revision);
            for message in refused {
                tracing::warn!(kind = "guard-kept", revision = revision.short(), message, "a guard was not loosened");
            }
            (now, before) = (next, desired);
        }
        self.context.store.collection::<InForce>().put(&"in-force".to_owned(), self.context.now(), &now).await?;
        Ok(self.cached(now))
    }

    /// Remembers what is in force at a head, since every look asks for it.
    fn cached(&self, now: InForce) -> InForce {
        *self.in_force.lock() = Some(now.clone());
        now
    }
}
