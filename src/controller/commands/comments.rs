//! Executes the commands in comments and replies to them (R6).
//!
//! *Owns:* which comments were received and handled.
//! *Invariant:* a comment that was edited, or that is older than the store, executes no command. A refusal is replied with
//! its reason, and is never reported as a success (R6.10).
//! *Race:* a comment is delivered twice: it is received once, by its ID. *Race:* a command arrives while its pull request is
//! planned: the command is refused until the plan is recorded, because a command refers to a recorded plan (R6.4). *Race:*
//! the daemon dies while it handles a comment: the next sync reads the comment again, and replies to executed commands.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    controller::{commands::Commands, context::Error, records::TrackedPullRequest, source::Head},
    domain::{
        command::{self, Command},
        declaration::schema::Verb,
        message::{Refusal, answer::Answer, comment},
    },
    model::PullNumber,
    ports::Comment,
};

impl Commands {
    /// Syncs one pull request, plans it where that is due, and executes the commands of its new comments.
    ///
    /// # Errors
    /// When the forge, the repository or the store fails; the next sync continues.
    pub(crate) async fn handle_pull_request(self: &Arc<Self>, number: PullNumber) -> Result<(), Error> {
        let Some(synced) = self.pull_requests.sync(number).await? else { return Ok(()) };
        self.read_comments(&synced.head, &synced.tracked).await?;
        self.pull_requests.finish_sync(&synced).await
    }

    /// Returns the time at which the store was created. Commands in older comments are not executed.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn store_created_at(&self) -> Result<chrono::DateTime<chrono::Utc>, Error> {
        let bytes = self.context.store.meta("born", || self.context.now().to_rfc3339().into_bytes()).await?;
        Ok(String::from_utf8_lossy(&bytes).parse().unwrap_or_else(|_| self.context.now()))
    }

    /// Reads the comments that were not handled yet.
    async fn read_comments(self: &Arc<Self>, head: &Arc<Head>, tracked: &TrackedPullRequest) -> Result<(), Error> {
        let Some(forge) = &self.context.forge else { return Ok(()) };
        let own = forge.own_login().await?;
        let store_created_at = self.store_created_at().await?;
        for written in forge.list_comments(tracked.pull.number).await? {
            if written.author.eq_ignore_ascii_case(&own) {
                continue;
            }
            let id = format!("comment/{}", written.id);
            // A comment that was received and not handled was interrupted by a crash or an error, and is read again.
            let is_retry = !self.context.store.receive(&id, self.context.now(), &written.author).await?;
            if is_retry && self.context.store.is_handled(&id).await? {
                continue;
            }
            self.read_comment(head, tracked, &written, store_created_at, is_retry).await?;
            self.context.store.handled(&id, self.context.now()).await?;
        }
        Ok(())
    }

    async fn read_comment(
        self: &Arc<Self>,
        head: &Arc<Head>,
        tracked: &TrackedPullRequest,
        written: &Comment,
        store_created_at: chrono::DateTime<chrono::Utc>,
        is_retry: bool,
    ) -> Result<(), Error> {
        let commands = command::parse(&written.body);
        if commands.is_empty() {
            return Ok(());
        }
        let tracked = &self.refetch(tracked).await?;
        // A merge before the comment counts, even if its event has not arrived.
        let newest = self.head_with(head, tracked).await?;
        let head = &newest;
        if written.created_at < store_created_at {
            if tracked.pull.open {
                self.reply(tracked, written, &Answer::OlderThanStore.to_string()).await?;
            }
            return Ok(());
        }
        if written.updated_at > written.created_at {
            return self.reply(tracked, written, &Answer::Edited.to_string()).await;
        }
        let before_merge = self.was_before_merge(tracked, written).await?;
        let mut replies = vec![];
        for (at, command) in commands.into_iter().enumerate() {
            let command_id = format!("comment/{}/{at}", written.id);
            let executed =
                if is_retry { self.executed_before_crash(written, &command_id, &command).await? } else { None };
            let message = match command {
                Err(command::Unclear(message)) => message,
                Ok(command) if before_merge && command.verb == Verb::Apply => Refusal::WrittenBeforeMerge.to_string(),
                Ok(command) => match self.execute_comment(head, tracked, written, &command, &command_id).await {
                    Ok(message) => message,
                    // The refusal is caused by the execution before the crash.
                    Err(Error::Refused(_)) if executed.is_some() => executed.unwrap_or_default(),
                    Err(Error::Refused(refusal)) => {
                        let message = refusal.to_string();
                        self.context
                            .store
                            .audit(
                                self.context.now(),
                                &format!("user:{}", written.author),
                                "refused",
                                &format!("pull/{}", tracked.pull.number.0),
                                &message,
                            )
                            .await?;
                        message
                    }
                    Err(error) => return Err(error),
                },
            };
            if !message.is_empty() {
                replies.push(message);
            }
        }
        if !replies.is_empty() {
            self.reply(tracked, written, &replies.join("\n\n")).await?;
        }
        Ok(())
    }

    /// Returns the reply to a command that was executed, and not replied to, before a crash; `None` if it had no effect.
    async fn executed_before_crash(
        &self,
        written: &Comment,
        command_id: &str,
        command: &Result<Command, command::Unclear>,
    ) -> Result<Option<String>, Error> {
        let Ok(command) = command else { return Ok(None) };
        let runs = self.context.store.runs_by_command(command_id).await?;
        if !runs.is_empty() {
            return Ok(Some(comment::begun(&runs)));
        }
        let (principal, verb) = (format!("user:{}", written.author), command.verb.name());
        let done = self.context.store.audited(&format!("comment/{}", written.id), &principal, &verb).await?;
        Ok((!done.is_empty()).then(|| Answer::Executed(verb, done.into_iter().collect()).to_string()))
    }

    /// Fetches a pull request again, because it may have been merged since the beginning of the sync.
    async fn refetch(&self, tracked: &TrackedPullRequest) -> Result<TrackedPullRequest, Error> {
        let Some(forge) = self.context.forge.as_ref().filter(|_| tracked.pull.merged_as.is_none()) else {
            return Ok(tracked.clone());
        };
        let pull = forge.get_pull(tracked.pull.number).await?;
        // The record keeps the `replan` request of an earlier command.
        let recorded = self.source.tracked(pull.number).await?.unwrap_or_else(|| tracked.clone());
        let refetched = TrackedPullRequest { pull, ..recorded };
        self.pull_requests.record(&refetched).await?;
        Ok(refetched)
    }

    /// Returns the head, fetched again where the head does not contain the merge of a pull request.
    async fn head_with(self: &Arc<Self>, head: &Arc<Head>, tracked: &TrackedPullRequest) -> Result<Arc<Head>, Error> {
        let Some(merged) = &tracked.pull.merged_as else { return Ok(Arc::clone(head)) };
        let head = self.source.head().unwrap_or_else(|| Arc::clone(head));
        if self.context.repository.contains(&head.revision, merged).await? {
            return Ok(head);
        }
        self.source.refresh().await?;
        Ok(self.source.head().unwrap_or(head))
    }

    /// Whether a comment was written before its pull request was merged: its command may refer to unmerged declarations.
    async fn was_before_merge(&self, tracked: &TrackedPullRequest, written: &Comment) -> Result<bool, Error> {
        let Some(merged) = &tracked.pull.merged_as else { return Ok(false) };
        let commit = self.context.repository.first_parents(None, merged).await?.into_iter().next();
        Ok(commit.is_some_and(|commit| written.created_at < commit.at))
    }

    /// Queues the reply to a comment.
    async fn reply(self: &Arc<Self>, tracked: &TrackedPullRequest, to: &Comment, message: &str) -> Result<(), Error> {
        let text = comment::answer(to.id, message);
        self.notifier.comment_on(tracked.pull.number, &format!("answer to={}", to.id), &text, None).await?;
        Ok(())
    }

    async fn execute_comment(
        self: &Arc<Self>,
        head: &Arc<Head>,
        tracked: &TrackedPullRequest,
        written: &Comment,
        command: &Command,
        command_id: &str,
    ) -> Result<String, Error> {
        let principal = self.authorization.principal_of(head, &written.author).await?.by(command_id.to_owned());
        match command.verb {
            Verb::Help => {
                let mut refused = None;
                for environment in head.desired.environments.keys() {
                    match self
                        .authorization
                        .allow(head, &principal, Verb::Help, &BTreeSet::from([environment.clone()]))
                        .await
                    {
                        Ok(()) => return Ok(command::help()),
                        Err(error) => refused = Some(error),
                    }
                }
                refused.map_or(Ok(()), Err)?;
                Ok(command::help())
            }
            Verb::Plan => self.replan(head, tracked, &principal, command).await,
            Verb::Drift => self.check_drift(head, tracked, &principal, command).await,
            Verb::Apply => self.apply_pull(head, tracked, written, &principal, command).await,
            _ => self.execute_on(head, command, &principal, Some(tracked)).await.map(|outcome| outcome.message),
        }
    }
}
