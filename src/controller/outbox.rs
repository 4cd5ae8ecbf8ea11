//! What is said to the forge, through the outbox and once (R7.2).
//!
//! *Race:* a text is replaced while it is being sent: the newer one stays unsent and follows.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use chrono::Duration;

use super::{Daemon, Error, Wake, decide::pull_subject};
use crate::{
    adapters::store::Outgoing,
    domain::{
        declaration::{Desired, schema::Verb},
        journal::{Run, RunState, Status},
        message::comment::{self, Concerned},
    },
    model::{EnvironmentName, InstanceId, PullNumber, Revision},
    ports::ForgeError,
};

/// How many messages are taken at once.
const BATCH: u32 = 50;
/// How often a message is tried before it is given up; the waits grow to five minutes, so this is most of a day.
const ATTEMPTS_MAX: u32 = 200;

/// How far back what is pending is looked for.
const PENDING_COMMITS_MAX: usize = 50;

impl Daemon {
    /// Says what is due.
    pub(super) async fn send(self: &Arc<Self>) -> Result<(), Error> {
        let Some(forge) = self.hands.forge.clone() else { return Ok(()) };
        loop {
            let batch = self.store().unsaid(self.now(), BATCH).await?;
            if batch.is_empty() {
                return Ok(());
            }
            for (id, attempts, outgoing) in batch {
                if self.stopping() {
                    return Ok(());
                }
                match say(&*forge, &outgoing).await {
                    Ok(()) => self.store().said(id, &outgoing, self.now()).await?,
                    Err(error) => {
                        let wait = match error.retry {
                            crate::model::Retry::After(backoff) if attempts < ATTEMPTS_MAX => {
                                Some(backoff.wait(attempts))
                            }
                            _ => None,
                        };
                        let at = wait.map(|wait| {
                            self.now() + Duration::seconds(i64::try_from(wait.as_seconds()).unwrap_or(300))
                        });
                        let at = at.map(|at| error.not_before.map_or(at, |not_before| at.max(not_before)));
                        tracing::warn!(error = error.to_string(), next = ?at, "could not say something to the forge");
                        self.store().unsayable(id, &outgoing, &error.to_string(), at, self.now()).await?;
                    }
                }
            }
        }
    }

    async fn say(self: &Arc<Self>, name: &str, outgoing: &Outgoing) -> Result<(), Error> {
        if self.hands.forge.is_none() {
            return Ok(());
        }
        self.store().say(name, outgoing, self.now()).await?;
        self.queue.wake(Wake::Outbox, "something to say");
        Ok(())
    }

    /// Says something on a pull request under a marker, in place of what was said under it.
    pub(super) async fn say_on(
        self: &Arc<Self>,
        pull: PullNumber,
        marker: &str,
        body: &str,
        outdates: Option<String>,
    ) -> Result<(), Error> {
        let hidden = comment::marker(marker);
        let body = self.hands.redactor.redact(body);
        let body = if body.trim_end().ends_with(&hidden) { body } else { format!("{}\n{hidden}", body.trim_end()) };
        let outgoing = Outgoing::Comment { pull, marker: hidden, body, outdates };
        self.say(&format!("comment/{}/{marker}", pull.0), &outgoing).await
    }

    /// Sets a status of a commit.
    pub(super) async fn say_status(
        self: &Arc<Self>,
        revision: &Revision,
        context: &str,
        state: &str,
        description: &str,
    ) -> Result<(), Error> {
        let description: String = self.hands.redactor.redact(description).chars().take(140).collect();
        let outgoing = Outgoing::Status {
            revision: revision.clone(),
            context: context.to_owned(),
            state: state.to_owned(),
            description,
        };
        self.say(&format!("status/{revision}/{context}"), &outgoing).await
    }

    /// Says where a run stands, on its pull request.
    pub(super) async fn say_run(self: &Arc<Self>, run: &Run) -> Result<(), Error> {
        let Some(pull) = run.pull else { return Ok(()) };
        self.say_on(pull, &format!("run id={}", run.id), &comment::run(run), None).await
    }

    /// Sets `evenkeel/apply/<environment>` of what a run applied.
    pub(super) async fn say_statuses(self: &Arc<Self>, run: &Run) -> Result<(), Error> {
        let context = format!("evenkeel/apply/{}", run.environment);
        let all = run.instances.values().all(|instance| instance.status == Status::Applied);
        let RunState::Ended { says } = &run.state else { return Ok(()) };
        // What a newer run still has to do is not told by an older one that it took the place of.
        let newer = self.store().runs_after(run.id).await?;
        if newer.iter().any(|newer| newer.environment == run.environment && newer.pull == run.pull) {
            return Ok(());
        }
        let (state, says) = if all {
            ("success", format!("run {}: applied", run.id))
        } else {
            ("failure", format!("run {}: {says}", run.id))
        };
        let mut revisions = vec![run.revision.clone()];
        if let Some(number) = run.pull
            && let Some(seen) = self.seen(number).await?
        {
            revisions.push(seen.pull.head.clone());
            revisions.extend(seen.pull.merged_as);
        }
        revisions.sort();
        revisions.dedup();
        for revision in revisions {
            self.say_status(&revision, &context, state, &says).await?;
        }
        Ok(())
    }

    /// Shows the plan of what waits at head on the newest merged pull request that is part of it (R6.6), unless it shows
    /// the same already.
    pub(super) async fn show_head_plan(
        self: &Arc<Self>,
        head: &super::Head,
        plan: &crate::domain::plan::Plan,
    ) -> Result<(), Error> {
        let environment: &EnvironmentName = &plan.environment;
        for (number, _) in self.merged_pulls(head).await? {
            let subject = pull_subject(number, environment);
            let Some((shown, _)) = self.store().last_plan(&subject, None).await? else {
                // One that could not be planned before it was merged carries the plan now.
                let Some(mut seen) = self.seen(number).await?.filter(|seen| {
                    seen.environments.is_empty() && !seen.pull.branch.starts_with(super::pulls::OWN_BRANCHES)
                }) else {
                    continue;
                };
                seen.environments.insert(environment.clone());
                self.remember(&seen).await?;
                self.store().keep_plan(&subject, plan, self.now()).await?;
                return self.say_plan(number, plan, &[]).await;
            };
            if !shown.instances.iter().any(|i| plan.instance(&i.id).is_some()) {
                continue;
            }
            // One that was kept and not put into the outbox was cut off in between.
            if shown.digest == plan.digest && self.is_plan_said(number, plan).await? {
                return Ok(());
            }
            let concerned = self.pending_set(head, environment, plan).await?;
            self.say_superseded(environment, number, &concerned).await?;
            self.store().keep_plan(&subject, plan, self.now()).await?;
            let note = comment::concerns(&concerned, number);
            return self.say_plan(number, plan, &note.into_iter().collect::<Vec<_>>()).await;
        }
        Ok(())
    }

    /// The pull request that carries the plan of what is pending: the newest that changed any of it (R6.6).
    pub(super) async fn carrier(
        self: &Arc<Self>,
        head: &super::Head,
        environment: &EnvironmentName,
        pending: &BTreeSet<InstanceId>,
    ) -> Result<Option<PullNumber>, Error> {
        for (number, commit) in self.merged_pulls(head).await? {
            let plan = self.store().last_plan(&pull_subject(number, environment), None).await?;
            let Some((plan, _)) = plan else { continue };
            for id in pending.iter().filter(|id| plan.instance(id).is_some()) {
                let applied = self.store().applied(id).await?;
                let is_past = match &applied {
                    Some(applied) => self.hands.repository.contains(&applied.revision, &commit).await?,
                    None => false,
                };
                if !is_past {
                    return Ok(Some(number));
                }
            }
        }
        Ok(None)
    }

    /// Everything along the branch that changed what a plan is about and is not applied: pull requests, and commits that
    /// came by none; the newest first.
    async fn pending_set(
        self: &Arc<Self>,
        head: &super::Head,
        environment: &EnvironmentName,
        plan: &crate::domain::plan::Plan,
    ) -> Result<Vec<Concerned>, Error> {
        let merged: BTreeMap<Revision, PullNumber> =
            self.merged_pulls(head).await?.into_iter().map(|(number, commit)| (commit, number)).collect();
        let ids: Vec<&InstanceId> = plan.instances.iter().map(|instance| &instance.id).collect();
        let applied = self.store().all_applied().await?;
        let mut concerned = vec![];
        let commits = self.hands.repository.first_parents(None, &head.revision).await?;
        let mut after = Arc::clone(&head.desired);
        for (at, commit) in commits.iter().enumerate().take(PENDING_COMMITS_MAX) {
            let is_past = ids.iter().filter_map(|id| applied.get(*id)).all(|record| record.revision == commit.revision);
            if is_past && ids.iter().any(|id| applied.contains_key(*id)) {
                break;
            }
            let before = match commits.get(at + 1) {
                Some(parent) => self.load(&parent.revision).await?.0,
                None => Arc::default(),
            };
            let digest = |desired: &Desired, id: &InstanceId| desired.instances.get(id).and_then(|i| i.digest);
            if ids.iter().any(|id| digest(&before, id) != digest(&after, id)) {
                let number = merged.get(&commit.revision).copied();
                let shown = match number {
                    Some(number) => self.store().last_plan(&pull_subject(number, environment), None).await?.is_some(),
                    None => false,
                };
                concerned.push(Concerned {
                    pull: number,
                    commit: commit.revision.clone(),
                    subject: commit.subject.clone(),
                    shown,
                });
            }
            after = before;
        }
        Ok(concerned)
    }

    /// Says on older pull requests that their plan is part of a newer one's.
    async fn say_superseded(
        self: &Arc<Self>,
        environment: &EnvironmentName,
        carrier: PullNumber,
        concerned: &[Concerned],
    ) -> Result<(), Error> {
        for older in concerned.iter().filter(|one| one.shown).filter_map(|one| one.pull).filter(|n| *n != carrier) {
            let marker = format!("superseded env={environment}");
            let says = comment::superseded(environment, carrier, &marker);
            self.say_on(older, &marker, &says, Some(format!("evenkeel:plan env={environment} "))).await?;
        }
        Ok(())
    }

    /// What the comment of a plan is about, and its marker. A plan that is what an earlier one was is a new comment all the
    /// same: the earlier one is folded away.
    async fn plan_marker(
        &self,
        number: PullNumber,
        plan: &crate::domain::plan::Plan,
    ) -> Result<(String, String), Error> {
        let destroys = plan.because == comment::DESTROY;
        let topic = format!("{} env={}", if destroys { "destroy" } else { "plan" }, plan.environment);
        let stood = self.store().last_plan(&pull_subject(number, &plan.environment), None).await?;
        let since = stood.filter(|(stood, _)| stood.digest == plan.digest).map(|(_, at)| at.timestamp_millis());
        let marker = format!("{topic} digest={} since={}", plan.digest, since.unwrap_or_default());
        Ok((topic, marker))
    }

    /// Whether the comment of a plan that is kept stands in the outbox, said or not.
    async fn is_plan_said(&self, number: PullNumber, plan: &crate::domain::plan::Plan) -> Result<bool, Error> {
        let (_, marker) = self.plan_marker(number, plan).await?;
        Ok(self.store().is_in_outbox(&format!("comment/{}/{marker}", number.0)).await?)
    }

    /// Says a plan on a pull request; a plan with another digest is a new comment, and the old one is folded away (R6.3).
    pub(super) async fn say_plan(
        self: &Arc<Self>,
        number: PullNumber,
        plan: &crate::domain::plan::Plan,
        notes: &[crate::domain::plan::validation::Note],
    ) -> Result<(), Error> {
        let destroys = plan.because == comment::DESTROY;
        let (topic, marker) = self.plan_marker(number, plan).await?;
        let mut notes = notes.to_vec();
        if let Some(head) = self.head().filter(|_| !destroys) {
            let rights = self.rights(&head, &plan.environment).await?;
            let needs = rights.iter().rev().find_map(|rights| rights.approvals(Verb::Apply)).cloned();
            notes.extend(needs.filter(|_| plan.has_work()).map(|needs| comment::needs(&plan.environment, &needs)));
        }
        let body = comment::plan(plan, &notes, &marker);
        self.say_on(number, &marker, &body, Some(format!("evenkeel:{topic} "))).await
    }
}

async fn say(forge: &dyn crate::ports::Forge, outgoing: &Outgoing) -> Result<(), ForgeError> {
    match outgoing {
        Outgoing::Comment { pull, marker, body, outdates } => {
            let id = forge.ensure_comment(*pull, marker, body).await?;
            if let Some(topic) = outdates {
                forge.outdate_comments(*pull, topic, id).await?;
            }
            Ok(())
        }
        Outgoing::Status { revision, context, state, description } => {
            forge.ensure_status(revision, context, state, description).await
        }
    }
}
