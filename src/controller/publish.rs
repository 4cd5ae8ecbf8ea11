//! Proposals, written to their branches.
//!
//! *Flow:* what is about to be pushed is noted; pushed; noted with what stands for it; the pull request is opened; remembered.
//! *Race:* the daemon dies, or the forge's answer is lost, anywhere between: a branch that was pushed is known as ours, and a
//! pull request that was opened is found by what was pushed, also if somebody has merged it by then.

use std::{collections::BTreeSet, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Daemon, Error, Head, Wake, adopt::Edits, propose::Proposal, pulls::Seen, remediation::remediation_path};
use crate::{
    domain::{
        message::comment,
        remediation::{self, Group},
    },
    model::{Digest, EnvironmentName, PullNumber, Revision},
};

/// What is about to be pushed to a branch of ours, so that it is known as ours whatever comes between.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pushing {
    /// The commit that it stands on.
    onto: Revision,
    /// Its subject.
    title: String,
    /// The group and its proposal, once it is pushed; its pull request is not known before it is opened.
    #[serde(default)]
    made: Option<(String, Proposal)>,
}

/// The sort of record of what is about to be pushed, by branch.
const PUSHING: &str = "pushing";

/// How a proposal is written.
pub(super) struct Written {
    pub(super) cuts: BTreeSet<Digest>,
    /// On top of somebody's commits.
    pub(super) onto: Option<Revision>,
    /// The edits of the declarations, where it adopts.
    pub(super) edits: Option<Edits>,
}

impl Daemon {
    /// Writes the branch and the pull request of what is left of a group.
    pub(super) async fn write_proposal(
        self: &Arc<Self>,
        head: &Arc<Head>,
        whole: &Group,
        group: &Group,
        known: Option<&Proposal>,
        written: Written,
    ) -> Result<(), Error> {
        let Some(forge) = self.hands.forge.clone() else { return Ok(()) };
        let (key, now) = (whole.key(), self.now());
        let observed = self.store().all_observed().await?;
        let observed_at =
            group.drifted.iter().filter_map(|one| observed.get(&one.id)).map(|o| o.at).max().unwrap_or(now);
        let name = self.fresh_name(head, whole, known, written.onto.is_some()).await?;
        let remediation = group.remediation("drift", observed_at, now);
        let written_whole = whole.remediation("drift", observed_at, now);
        let text = remediation::write(&name, &remediation).map_err(Error::Refused)?;
        let path = remediation_path(&self.settings.root, &group.environment, &name);
        self.without_secrets(&key, &text)?;
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
        self.use_git_token().await?;
        let branch = whole.branch();
        let there = self.hands.repository.fetch(&format!("refs/heads/{branch}")).await?;
        let expected = written.onto.clone().or_else(|| known.map(|known| known.pushed.clone()));
        if let Some(moved) = there.as_ref().filter(|_| there != expected && known.is_some())
            && !self.is_cut_off(&branch, moved).await?
        {
            return Ok(());
        }
        let base = written.onto.as_ref().unwrap_or(&head.revision);
        let pushing = Pushing { onto: base.clone(), title: title.clone(), made: None };
        self.store().put(PUSHING, &branch, now, &pushing).await?;
        let pushed = self.hands.repository.push(&branch, base, there.as_ref(), files, &title).await?;
        let observed = format!("at {}", observed_at.format("%Y-%m-%d %H:%M UTC"));
        let body = match adopts {
            true => comment::adoption(group, &edited, &observed),
            false => comment::proposal(group, &path, &observed),
        };
        let body = self.hands.redactor.redact(&body);
        let instances = whole.drifted.iter().map(|one| one.id.clone()).collect();
        let actions = group.digests();
        let shared = written.onto.is_some();
        let (digest, pull) = (whole.digest, PullNumber(0));
        let cuts = written.cuts;
        let mut proposal =
            Proposal { pull, digest, name, pushed, instances, actions, cuts, shared, adopts, withdrawn: false };
        // From here on somebody may merge it, whether or not we live to remember that.
        self.keep_written(&proposal.name, &written_whole).await?;
        self.store()
            .put(PUSHING, &branch, now, &Pushing { made: Some((key.clone(), proposal.clone())), ..pushing })
            .await?;
        let pull = forge.ensure_pull(&branch, &self.settings.branch, &title, &body).await?;
        proposal.pull = pull;
        self.store().put("proposal", &key, now, &proposal).await?;
        self.store().remove(PUSHING, &branch).await?;
        self.store().audit(now, "evenkeel", "propose", &format!("pull/{}", pull.0), &title).await?;
        tracing::info!(%key, pull = pull.0, "drift proposed");
        self.queue.wake(Wake::Pull(pull), "proposed");
        Ok(())
    }

    /// Remembers the proposals whose pull requests were opened, and whose opening nobody remembers: we died, or the answer
    /// was lost.
    pub(super) async fn remember_cut_off(self: &Arc<Self>) -> Result<(), Error> {
        let all: Vec<(String, Pushing)> = self.store().list(PUSHING).await?;
        let mut pushed = all.into_iter().filter_map(|(branch, pushing)| Some((branch, pushing.made?))).peekable();
        if pushed.peek().is_none() {
            return Ok(());
        }
        self.refresh_pulls().await?;
        let seen: Vec<(String, Seen)> = self.store().list("pull").await?;
        for (branch, (key, made)) in pushed {
            let Some((_, seen)) = seen.iter().find(|(_, seen)| seen.pull.head == made.pushed) else { continue };
            let proposal = Proposal { pull: seen.pull.number, ..made };
            self.store().put("proposal", &key, self.now(), &proposal).await?;
            self.store().remove(PUSHING, &branch).await?;
        }
        Ok(())
    }

    /// Whether the head of a branch is what we pushed before we died and could not remember it.
    pub(super) async fn is_cut_off(&self, branch: &str, at: &Revision) -> Result<bool, Error> {
        let Some(pushing) = self.store().get::<Pushing>(PUSHING, branch).await? else { return Ok(false) };
        self.use_git_token().await?;
        self.hands.repository.fetch(&format!("refs/heads/{branch}")).await?;
        let commits = self.hands.repository.first_parents(None, at).await?;
        Ok(commits.first().is_some_and(|commit| commit.subject == pushing.title)
            && commits.get(1).is_some_and(|parent| parent.revision == pushing.onto))
    }

    /// Refuses a text with a secret in it: values are masked where they are read, so it stands in a name, and a masked name
    /// means another thing.
    fn without_secrets(&self, key: &str, text: &str) -> Result<(), Error> {
        if self.hands.redactor.redact(text) == text {
            return Ok(());
        }
        Err(Error::Refused(format!("the drift in `{key}` can't be proposed: an address in it contains a secret")))
    }

    /// A name that no remediation on the branch or in the store has, so that the same drift twice on one day is two.
    async fn fresh_name(
        &self,
        head: &Head,
        group: &Group,
        known: Option<&Proposal>,
        same: bool,
    ) -> Result<String, Error> {
        if let Some(known) = known.filter(|_| same) {
            return Ok(known.name.clone());
        }
        let base = group.name(self.now());
        for number in 1.. {
            let name = if number == 1 { base.clone() } else { format!("{base}-{number}") };
            let merged: Option<super::remediation::Merged> =
                self.store().get("remediation", &format!("{}/{name}", group.environment)).await?;
            let on_branch = name.parse().is_ok_and(|name| head.desired.remediations.contains_key(&name));
            if (merged.is_none() && !on_branch) || known.is_some_and(|known| known.name == name) {
                return Ok(name);
            }
        }
        Ok(base)
    }

    /// The files of remediations of an environment that are spent.
    async fn spent_files(&self, head: &Head, environment: &EnvironmentName) -> Result<Vec<String>, Error> {
        let mut files = vec![];
        for (name, (_, file)) in head.desired.remediations.iter().filter(|(_, (r, _))| r.environment == *environment) {
            let merged: Option<super::remediation::Merged> =
                self.store().get("remediation", &format!("{environment}/{name}")).await?;
            if merged.is_some_and(|merged| merged.spent) {
                files.push(format!("{}/{file}", self.settings.root));
            }
        }
        Ok(files)
    }
}
