//! Comments in, answers out; and the same commands from the command line (R6).
//!
//! Decides who may (R3), what a command means where it stands, and which plan it binds to (R6.4). Every refusal is one
//! sentence that says why and what to do, and is never a success (R6.10).
//! *Race:* a comment is delivered twice: it is received once, by its id. *Race:* a command while its pull request is
//! planned: it is refused until the plan stands, because there is nothing yet that it could mean.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Daemon, Error, Head, Wake,
    decide::{Stalled, pull_subject},
    orphans::to_destroy,
    pulls::Seen,
};
use crate::{
    domain::{
        authorization::{self, Principal},
        command::{self, Command},
        declaration::{Candidate, Selector, schema::Verb},
        message::comment,
        plan::Applied,
    },
    model::{EnvironmentName, InstanceId},
    ports::Comment,
};

impl Daemon {
    /// When the store was made: older comments are history.
    pub(super) async fn birth(&self) -> Result<chrono::DateTime<chrono::Utc>, Error> {
        let bytes = self.store().meta("born", || self.now().to_rfc3339().into_bytes()).await?;
        Ok(String::from_utf8_lossy(&bytes).parse().unwrap_or_else(|_| self.now()))
    }

    /// Reads the comments that were not read yet.
    pub(super) async fn read_comments(self: &Arc<Self>, head: &Arc<Head>, seen: &Seen) -> Result<(), Error> {
        let Some(forge) = &self.hands.forge else { return Ok(()) };
        let own = forge.own_login().await?;
        let birth = self.birth().await?;
        for written in forge.list_comments(seen.pull.number).await? {
            if written.author.eq_ignore_ascii_case(&own) {
                continue;
            }
            let id = format!("comment/{}", written.id);
            // What was received and not handled was cut off by a crash or an error, and is read again.
            let again = !self.store().receive(&id, self.now(), &written.author).await?;
            if again && self.store().is_handled(&id).await? {
                continue;
            }
            self.read_comment(head, seen, &written, birth, again).await?;
            self.store().handled(&id, self.now()).await?;
        }
        Ok(())
    }

    async fn read_comment(
        self: &Arc<Self>,
        head: &Arc<Head>,
        seen: &Seen,
        written: &Comment,
        birth: chrono::DateTime<chrono::Utc>,
        again: bool,
    ) -> Result<(), Error> {
        let commands = command::parse(&written.body);
        if commands.is_empty() {
            return Ok(());
        }
        let seen = &self.as_it_is_now(seen).await?;
        // What was merged before it was said counts, whether or not its event has come.
        let newest = self.head_with(head, seen).await?;
        let head = &newest;
        if written.created_at < birth {
            if seen.pull.open {
                self.answer(seen, written, "This comment is older than what Evenkeel remembers, so it was not obeyed; say it again if it still holds.").await?;
            }
            return Ok(());
        }
        if written.updated_at > written.created_at {
            return self
                .answer(
                    seen,
                    written,
                    "This comment was edited before it was read, so it was not obeyed; say it again in a new one.",
                )
                .await;
        }
        let before_merge = self.was_before_merge(seen, written).await?;
        let mut answers = vec![];
        for (at, command) in commands.into_iter().enumerate() {
            let word = format!("comment/{}/{at}", written.id);
            let begun = if again { self.begun_by(written, &word, &command).await? } else { None };
            let says = match command {
                Err(command::Unclear(says)) => says,
                Ok(command) if before_merge && command.verb == Verb::Apply => {
                    "Nothing was applied: this was said before the merge and read after it; say `/apply` again.".into()
                }
                Ok(command) => match self.obey(head, seen, written, &command, &word).await {
                    Ok(says) => says,
                    // What it refuses now, it obeyed before it died.
                    Err(Error::Refused(_)) if begun.is_some() => begun.unwrap_or_default(),
                    Err(Error::Refused(says)) => {
                        self.store()
                            .audit(
                                self.now(),
                                &format!("user:{}", written.author),
                                "refused",
                                &format!("pull/{}", seen.pull.number.0),
                                &says,
                            )
                            .await?;
                        says
                    }
                    Err(error) => return Err(error),
                },
            };
            if !says.is_empty() {
                answers.push(says);
            }
        }
        if !answers.is_empty() {
            self.answer(seen, written, &answers.join("\n\n")).await?;
        }
        Ok(())
    }

    /// What a command did that was cut off before it was answered, in a sentence; nothing where it did nothing.
    async fn begun_by(
        &self,
        written: &Comment,
        word: &str,
        command: &Result<Command, command::Unclear>,
    ) -> Result<Option<String>, Error> {
        let Ok(command) = command else { return Ok(None) };
        let runs = self.store().runs_by_word(word).await?;
        if !runs.is_empty() {
            return Ok(Some(comment::begun(&runs)));
        }
        let (who, verb) = (format!("user:{}", written.author), command.verb.word());
        let done = self.store().audited(&format!("comment/{}", written.id), &who, &verb).await?;
        Ok((!done.is_empty()).then(|| format!("`/{verb}` was obeyed: {}.", comment::names(done.into_iter()))))
    }

    /// A pull request as it is when something said there is read: it may have been merged since it was looked at.
    async fn as_it_is_now(&self, seen: &Seen) -> Result<Seen, Error> {
        let Some(forge) = self.hands.forge.as_ref().filter(|_| seen.pull.merged_as.is_none()) else {
            return Ok(seen.clone());
        };
        let pull = forge.get_pull(seen.pull.number).await?;
        // What an earlier word asked for stays asked for.
        let known = self.seen(pull.number).await?.unwrap_or_else(|| seen.clone());
        let now = Seen { pull, ..known };
        self.remember(&now).await?;
        Ok(now)
    }

    /// The head, fetched anew where the merge of a pull request is not in it yet.
    async fn head_with(self: &Arc<Self>, head: &Arc<Head>, seen: &Seen) -> Result<Arc<Head>, Error> {
        let Some(merged) = &seen.pull.merged_as else { return Ok(Arc::clone(head)) };
        let head = self.head().unwrap_or_else(|| Arc::clone(head));
        if self.hands.repository.contains(&head.revision, merged).await? {
            return Ok(head);
        }
        self.look_at_git().await?;
        Ok(self.head().unwrap_or(head))
    }

    /// Whether something was said on a pull request before it was merged, and is read only now: it may have meant what
    /// was not merged then.
    async fn was_before_merge(&self, seen: &Seen, written: &Comment) -> Result<bool, Error> {
        let Some(merged) = &seen.pull.merged_as else { return Ok(false) };
        let commit = self.hands.repository.first_parents(None, merged).await?.into_iter().next();
        Ok(commit.is_some_and(|commit| written.created_at < commit.at))
    }

    async fn answer(self: &Arc<Self>, seen: &Seen, to: &Comment, says: &str) -> Result<(), Error> {
        self.say_on(seen.pull.number, &format!("answer to={}", to.id), &comment::answer(to.id, says), None).await
    }

    async fn obey(
        self: &Arc<Self>,
        head: &Arc<Head>,
        seen: &Seen,
        written: &Comment,
        command: &Command,
        word: &str,
    ) -> Result<String, Error> {
        let who = self.person(head, &written.author).await?.by(word.to_owned());
        match command.verb {
            Verb::Help => {
                let mut refused = None;
                for environment in head.desired.environments.keys() {
                    match self.allow(head, &who, Verb::Help, &BTreeSet::from([environment.clone()])).await {
                        Ok(()) => return Ok(command::help()),
                        Err(error) => refused = Some(error),
                    }
                }
                refused.map_or(Ok(()), Err)?;
                Ok(command::help())
            }
            Verb::Plan => self.plan_again(head, seen, &who, command).await,
            Verb::Drift => self.drift_now(head, seen, &who, command).await,
            Verb::Apply => self.apply_pull(head, seen, written, &who, command).await,
            _ => self.obey_word(head, command, &who, Some(seen)).await.map(|said| said.says),
        }
    }

    pub(super) async fn allow(
        self: &Arc<Self>,
        head: &Head,
        who: &Principal,
        verb: Verb,
        environments: &BTreeSet<EnvironmentName>,
    ) -> Result<(), Error> {
        for environment in environments {
            let rights = self.rights(head, environment).await?;
            if authorization::permit(&rights, who, verb).is_none() {
                return Err(Error::Refused(authorization::refusal(&rights, who, verb, environment)));
            }
        }
        Ok(())
    }

    async fn plan_again(
        self: &Arc<Self>,
        head: &Arc<Head>,
        seen: &Seen,
        who: &Principal,
        command: &Command,
    ) -> Result<String, Error> {
        let selected = self.select(head, command.selector.as_ref(), &self.changed_by(seen).await?).await?;
        if selected.is_empty() && command.selector.is_some() {
            return Err(Error::Refused(matched_nothing(head, command.selector.as_ref())));
        }
        let mut asked = environments(&selected);
        if command.selector.is_none() && !seen.environments.is_empty() {
            asked.retain(|environment| seen.environments.contains(environment));
        }
        self.allow(head, who, Verb::Plan, &asked).await?;
        if !seen.pull.open {
            return Err(Error::Refused("This pull request is over; its plan at head is shown when it changes.".into()));
        }
        if let Some(now) = self.seen(seen.pull.number).await? {
            self.remember(&Seen { again: true, ..now }).await?;
        }
        self.queue.wake(Wake::Pull(seen.pull.number), "/plan");
        Ok("Planning again; a plan with another digest is a new comment, and the same one stays.".into())
    }

    /// What a selector means among the instances of head.
    pub(super) async fn select(
        &self,
        head: &Head,
        selector: Option<&Selector>,
        changed: &BTreeSet<InstanceId>,
    ) -> Result<BTreeSet<InstanceId>, Error> {
        let observed = self.store().all_observed().await?;
        let applied = self.store().all_applied().await?;
        let mut pending: BTreeSet<InstanceId> = BTreeSet::new();
        for environment in head.desired.environments.keys() {
            pending.extend(self.pending(head, environment).await?);
        }
        // Those of an environment that is no longer declared as well.
        pending.extend(to_destroy(head, &applied));
        let selects = |instance: &crate::domain::declaration::Instance| {
            let candidate = Candidate {
                id: &instance.id,
                kind: instance.kind,
                labels: &instance.labels,
                changed: changed.contains(&instance.id),
                drifted: observed.get(&instance.id).is_some_and(|o| !o.drift.is_empty()),
                pending: pending.contains(&instance.id),
            };
            selector.is_none_or(|selector| selector.selects(&candidate))
        };
        let mut selected: BTreeSet<InstanceId> = head
            .desired
            .instances
            .values()
            .filter(|instance| selects(instance))
            .map(|instance| instance.id.clone())
            .collect();
        for id in pending.iter().filter(|id| head.instance(id).is_none()) {
            let is_changed = changed.contains(id);
            let selects = |selector: &Selector| selector.selects(&undeclared(id, applied.get(id), is_changed, true));
            if selector.is_none_or(selects) {
                selected.insert(id.clone());
            }
        }
        Ok(selected)
    }

    async fn drift_now(
        self: &Arc<Self>,
        head: &Arc<Head>,
        seen: &Seen,
        who: &Principal,
        command: &Command,
    ) -> Result<String, Error> {
        let changed = self.changed_by(seen).await?;
        let mut selected = self.select(head, command.selector.as_ref(), &changed).await?;
        if command.selector.is_none() && !seen.environments.is_empty() {
            selected.retain(|id| seen.environments.contains(&id.environment));
        }
        if selected.is_empty() {
            return Err(Error::Refused(matched_nothing(head, command.selector.as_ref())));
        }
        self.allow(head, who, Verb::Drift, &environments(&selected)).await?;
        self.look_at_all(&selected).await?;
        let mut rows = vec![];
        for status in self.status().await?.instances.into_iter().filter(|status| selected.contains(&status.id)) {
            rows.push((status.id.clone(), status.verdict, status.says()));
        }
        Ok(comment::drift(&rows))
    }

    /// The instances that a pull request changes, as planned last.
    pub(super) async fn changed_by(&self, seen: &Seen) -> Result<BTreeSet<InstanceId>, Error> {
        let mut changed = BTreeSet::new();
        for environment in &seen.environments {
            if let Some((plan, _)) = self.store().last_plan(&pull_subject(seen.pull.number, environment), None).await? {
                changed.extend(plan.instances.into_iter().map(|instance| instance.id));
            }
        }
        Ok(changed)
    }

    /// The instances that a selector means, for the API.
    pub async fn selected(&self, selector: Option<&Selector>) -> Result<BTreeSet<InstanceId>, Error> {
        let head = self.head().ok_or_else(|| Error::Refused(self.no_head()))?;
        let selected = self.select(&head, selector, &BTreeSet::new()).await?;
        if selected.is_empty() { Err(Error::Refused(matched_nothing(&head, selector))) } else { Ok(selected) }
    }

    pub(super) fn no_head(&self) -> String {
        match self.head_problem() {
            Some(why) => format!("the state repo can't be read: {why}"),
            None => "the state repo has not been read yet; try again in a moment".into(),
        }
    }

    /// The instances whose last run failed.
    pub(super) async fn stalled(&self) -> Result<BTreeMap<InstanceId, Stalled>, Error> {
        let all: Vec<(String, Stalled)> = self.store().list("stalled").await?;
        Ok(all.into_iter().filter_map(|(id, stalled)| Some((id.parse().ok()?, stalled))).collect())
    }
}

/// What a selector is asked about where nothing is declared.
pub(super) fn undeclared<'i>(
    id: &'i InstanceId,
    applied: Option<&Applied>,
    changed: bool,
    pending: bool,
) -> Candidate<'i> {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    let kind = applied.map_or("", |applied| applied.spec.kind());
    Candidate { id, kind, labels: &NONE, changed, drifted: false, pending }
}

pub(super) fn environments(ids: &BTreeSet<InstanceId>) -> BTreeSet<EnvironmentName> {
    ids.iter().map(|id| id.environment.clone()).collect()
}

pub(super) fn matched_nothing(head: &Head, selector: Option<&Selector>) -> String {
    if head.desired.environments.is_empty() {
        return "Nothing is declared yet: there is no environment on the branch.".into();
    }
    match selector {
        Some(Selector::Drifted) => return "Nothing has drifted.".into(),
        Some(Selector::Pending) => return "Nothing is pending.".into(),
        Some(Selector::Changed) => return "`changed` means what a pull request changes, and here is none.".into(),
        _ => {}
    }
    let names: Vec<String> = head.desired.environments.keys().map(|name| format!("`{name}`")).collect();
    match selector {
        Some(selector) => {
            format!("`{}` matches no instance; the environments are {}.", selector.short(), names.join(", "))
        }
        None => "There is no instance to look at.".into(),
    }
}
