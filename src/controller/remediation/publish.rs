//! Writes proposals to their branches and opens their pull requests.
//!
//! *Flow:* record the intended push; push; record the pushed revision with the proposal; open the pull request; record the
//! proposal with its number.
//! *Invariant:* a file with a secret is never pushed. A branch that another author moved is never overwritten.
//! *Race:* the daemon dies, or the reply of the forge is lost, between two steps: the recorded push identifies the branch as
//! a branch of this daemon, and the pushed revision identifies the pull request, also after its merge.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    controller::{
        context::Error,
        records::{MergedRemediation, PendingPush, Proposal},
        remediation::{Remediations, adopt::Edits, remediation_path},
        source::Head,
        work_queue::{Reason, ReconcileRequest},
    },
    domain::{
        message::{Refusal, comment},
        remediation::{self, Group},
    },
    model::{Digest, EnvironmentName, PullNumber, Revision},
};

/// The content and the base of a proposal.
pub(super) struct Written {
    pub(crate) cuts: BTreeSet<Digest>,
    /// The commit of another author that the push is based on.
    pub(crate) onto: Option<Revision>,
    /// The edits of the declarations, where the proposal adopts the drift.
    pub(crate) edits: Option<Edits>,
}

impl Remediations {
    /// Pushes the branch and opens the pull request of a group without the removed actions.
    ///
    /// # Errors
    /// When the forge, the repository or the store fails, or the file contains a secret.
    pub(super) async fn write_proposal(
        self: &Arc<Self>,
        head: &Arc<Head>,
        full_group: &Group,
        group: &Group,
        existing: Option<&Proposal>,
        written: Written,
    ) -> Result<(), Error> {
        let Some(forge) = self.context.forge.clone() else { return Ok(()) };
        let (key, now) = (full_group.key(), self.context.now());
        let observed = self.context.store.observed_in(&group.environment).await?;
        let observed_at =
            group.drifted.iter().filter_map(|drift| observed.get(&drift.id)).map(|o| o.at).max().unwrap_or(now);
        let name = self.fresh_name(head, full_group, existing, written.onto.is_some()).await?;
        let remediation = group.remediation("drift", observed_at, now);
        let full_remediation = full_group.remediation("drift", observed_at, now);
        let text =
            remediation::write(&name, &remediation).map_err(|reason| Error::Refused(Refusal::Unwritable { reason }))?;
        let path = remediation_path(&self.context.settings.root, &group.environment, &name);
        self.refuse_secrets(&key, &text)?;
        let spent = self.spent_files(head, &group.environment).await?.into_iter().filter(|spent| *spent != path);
        let mut files: Vec<_> =
            std::iter::once((path.clone(), Some(text))).chain(spent.map(|spent| (spent, None))).collect();
        let adopts = written.edits.is_some();
        let edited: Vec<String> = written.edits.iter().flat_map(|edits| edits.keys().cloned()).collect();
        if let Some(edits) = written.edits {
            files = edits.into_iter().map(|(path, text)| (path, Some(text))).collect();
            files.extend(written.onto.as_ref().map(|_| (path.clone(), None)));
        }
        let title = comment::proposal_title(group, adopts);
        self.source.use_git_token().await?;
        let branch = full_group.branch();
        let branch_head = self.context.repository.fetch(&format!("refs/heads/{branch}")).await?;
        let expected = written.onto.clone().or_else(|| existing.map(|existing| existing.pushed.clone()));
        if let Some(moved) = branch_head.as_ref().filter(|_| branch_head != expected && existing.is_some())
            && !self.is_interrupted_push(&branch, moved).await?
        {
            return Ok(());
        }
        let base = written.onto.as_ref().unwrap_or(&head.revision);
        let pushing = PendingPush { onto: base.clone(), title: title.clone(), pushed: None };
        self.context.store.collection::<PendingPush>().put(&branch, now, &pushing).await?;
        let pushed = self.context.repository.push(&branch, base, branch_head.as_ref(), files, &title).await?;
        let observed = format!("at {}", observed_at.format("%Y-%m-%d %H:%M UTC"));
        let body = match adopts {
            true => comment::adoption(group, &edited, &observed),
            false => comment::proposal(group, &path, &observed),
        };
        let body = self.context.redactor.redact(&body);
        let instances = full_group.drifted.iter().map(|drift| drift.id.clone()).collect();
        let actions = group.digests();
        let shared = written.onto.is_some();
        let (digest, pull) = (full_group.digest, PullNumber(0));
        let cuts = written.cuts;
        let mut proposal =
            Proposal { pull, digest, name, pushed, instances, actions, cuts, shared, adopts, withdrawn: false };
        // A reviewer may merge the pull request before this daemon records its number.
        self.runs.record_proposed(&proposal.name, &full_remediation).await?;
        self.context
            .store
            .collection::<PendingPush>()
            .put(&branch, now, &PendingPush { pushed: Some((key.clone(), proposal.clone())), ..pushing })
            .await?;
        let pull = forge.ensure_pull(&branch, &self.context.settings.branch, &title, &body).await?;
        proposal.pull = pull;
        self.context.store.collection::<Proposal>().put(&key, now, &proposal).await?;
        self.context.store.collection::<PendingPush>().remove(&branch).await?;
        self.context.store.audit(now, "evenkeel", "propose", &format!("pull/{}", pull.0), &title).await?;
        tracing::info!(kind = "drift-proposed", %key, pull = pull.0, "drift proposed");
        self.context.queue.enqueue(ReconcileRequest::PullRequest(pull), Reason::Proposed);
        Ok(())
    }

    /// Records the proposals of an environment whose pull request was opened, where a daemon died or a reply was lost before
    /// the number was recorded.
    ///
    /// # Errors
    /// When the forge or the store fails.
    pub(super) async fn recover_pushes(self: &Arc<Self>, environment: &EnvironmentName) -> Result<(), Error> {
        let Some(forge) = &self.context.forge else { return Ok(()) };
        let pushes = self.context.store.collection::<PendingPush>();
        let prefix = format!("{environment}/");
        let pushed = pushes.all().await?.into_iter().filter_map(|(branch, push)| Some((branch, push.pushed?)));
        let pushed: Vec<_> = pushed.filter(|(_, (key, _))| key.starts_with(&prefix)).collect();
        if pushed.is_empty() {
            return Ok(());
        }
        let pulls = forge.list_pulls().await?;
        for (branch, (key, proposal)) in pushed {
            let Some(pull) = pulls.iter().find(|pull| pull.head == proposal.pushed) else { continue };
            let proposal = Proposal { pull: pull.number, ..proposal };
            self.context.store.collection::<Proposal>().put(&key, self.context.now(), &proposal).await?;
            pushes.remove(&branch).await?;
        }
        Ok(())
    }

    /// Whether the head of a branch is a push that a daemon did not record because it died.
    ///
    /// # Errors
    /// When the repository or the store fails.
    pub(super) async fn is_interrupted_push(&self, branch: &str, at: &Revision) -> Result<bool, Error> {
        let Some(pushing) = self.context.store.collection::<PendingPush>().get(&branch.to_owned()).await? else {
            return Ok(false);
        };
        self.source.use_git_token().await?;
        self.context.repository.fetch(&format!("refs/heads/{branch}")).await?;
        let commits = self.context.repository.first_parents(None, at).await?;
        Ok(commits.first().is_some_and(|commit| commit.subject == pushing.title)
            && commits.get(1).is_some_and(|parent| parent.revision == pushing.onto))
    }

    /// Refuses a file with a secret. Secret values are masked when they are read, so that the secret is in a resource name,
    /// and a masked name would identify another resource.
    fn refuse_secrets(&self, key: &str, text: &str) -> Result<(), Error> {
        if self.context.redactor.redact(text) == text {
            return Ok(());
        }
        Err(Error::Refused(Refusal::SecretInAddress { key: key.to_owned() }))
    }

    /// Returns a name that no remediation on the branch or in the store has, so that repeated drift on one day is another
    /// remediation.
    async fn fresh_name(
        &self,
        head: &Head,
        group: &Group,
        existing: Option<&Proposal>,
        keeps_name: bool,
    ) -> Result<String, Error> {
        if let Some(existing) = existing.filter(|_| keeps_name) {
            return Ok(existing.name.clone());
        }
        let base = group.name(self.context.now());
        for number in 1.. {
            let name = if number == 1 { base.clone() } else { format!("{base}-{number}") };
            let merged: Option<MergedRemediation> = self
                .context
                .store
                .collection::<MergedRemediation>()
                .get(&format!("{}/{name}", group.environment))
                .await?;
            let on_branch = name.parse().is_ok_and(|name| head.desired.remediations.contains_key(&name));
            if (merged.is_none() && !on_branch) || existing.is_some_and(|existing| existing.name == name) {
                return Ok(name);
            }
        }
        Ok(base)
    }

    /// Returns the files of the spent remediations of an environment.
    async fn spent_files(&self, head: &Head, environment: &EnvironmentName) -> Result<Vec<String>, Error> {
        let mut files = vec![];
        for (name, (_, file)) in head.desired.remediations.iter().filter(|(_, (r, _))| r.environment == *environment) {
            let merged: Option<MergedRemediation> =
                self.context.store.collection::<MergedRemediation>().get(&format!("{environment}/{name}")).await?;
            if merged.is_some_and(|merged| merged.spent) {
                files.push(format!("{}/{file}", self.context.settings.root));
            }
        }
        Ok(files)
    }
}
