//! Simulates a forge in memory: pull requests, comments, reviews, statuses, users.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use secrecy::SecretString;

use super::{
    Repository,
    crash_points::{SimulatedProcess, pass},
};
use crate::{
    model::{Backoff, PullNumber, Retry, Revision},
    ports::{self, Comment, CrashPoint, ForgeError, Pull, Review},
};

#[derive(Default)]
struct State {
    pulls: BTreeMap<u64, Pull>,
    comments: BTreeMap<u64, Vec<Comment>>,
    outdated: BTreeSet<u64>,
    reviews: Vec<(u64, Review)>,
    statuses: BTreeMap<(Revision, String), (String, String)>,
    people: BTreeMap<String, String>,
    teams: BTreeMap<String, BTreeSet<String>>,
    next_id: u64,
    out_of_reach: Option<String>,
}

/// The simulated forge. Clones share their state.
#[derive(Clone)]
pub struct Forge {
    state: Arc<Mutex<State>>,
    repository: Repository,
    clock: Arc<dyn ports::Clock>,
    life: Option<Arc<SimulatedProcess>>,
}

/// The login under which the daemon writes.
const OWN_LOGIN: &str = "evenkeel";

fn gone(number: PullNumber) -> ForgeError {
    ForgeError {
        attempt: "read a pull request".into(),
        status: Some(404),
        why: format!("there is no {number}"),
        retry: Retry::WhenInputChanges,
        not_before: None,
    }
}

impl Forge {
    /// Creates a forge over a repository, with users by login and permission, and teams by `organisation/team`.
    pub fn new(
        repository: Repository,
        clock: Arc<dyn ports::Clock>,
        people: &[(&str, &str)],
        teams: &[(&str, &[&str])],
    ) -> Self {
        let forge = Self { state: Arc::default(), repository, clock, life: None };
        let mut state = forge.state.lock();
        state.people =
            people.iter().map(|(login, permission)| ((*login).to_owned(), (*permission).to_owned())).collect();
        state.teams = teams
            .iter()
            .map(|(team, members)| ((*team).to_owned(), members.iter().map(|m| (*m).to_owned()).collect()))
            .collect();
        drop(state);
        forge
    }

    /// Returns a handle of the same forge for a daemon process.
    pub fn in_life(&self, life: Arc<SimulatedProcess>) -> Self {
        Self { life: Some(life), ..self.clone() }
    }

    /// Makes every request fail with this error, or none.
    pub fn put_out_of_reach(&self, why: Option<String>) {
        self.state.lock().out_of_reach = why;
    }

    fn asked(&self) -> Result<parking_lot::MutexGuard<'_, State>, ForgeError> {
        let state = self.state.lock();
        match &state.out_of_reach {
            Some(why) => Err(ForgeError {
                attempt: "ask the forge".into(),
                status: None,
                why: why.clone(),
                retry: Retry::After(Backoff::REMOTE),
                not_before: None,
            }),
            None => Ok(state),
        }
    }

    /// Updates the heads of open pull requests from their branches; closes those whose branch was deleted.
    pub fn look(&self) {
        let mut state = self.state.lock();
        let now = self.clock.now();
        for pull in state.pulls.values_mut().filter(|pull| pull.open) {
            match self.repository.at(&format!("refs/heads/{}", pull.branch)) {
                Some(head) if head != pull.head => {
                    self.repository.point(&format!("refs/pull/{}/head", pull.number.0), &head);
                    (pull.head, pull.updated_at) = (head, now);
                }
                Some(_) => {}
                None => (pull.open, pull.updated_at) = (false, now),
            }
        }
    }

    /// Opens a pull request from a branch.
    pub fn open(&self, author: &str, branch: &str, title: &str, body: &str, fork: bool) -> Option<PullNumber> {
        let head = self.repository.at(&format!("refs/heads/{branch}"))?;
        let mut state = self.state.lock();
        let number = PullNumber(state.pulls.len() as u64 + 1);
        self.repository.point(&format!("refs/pull/{}/head", number.0), &head);
        let pull = Pull {
            number,
            open: true,
            draft: false,
            title: title.into(),
            body: body.into(),
            author: author.into(),
            base: "main".into(),
            branch: branch.into(),
            head,
            fork,
            merged_as: None,
            merged_by: None,
            updated_at: self.clock.now(),
        };
        state.pulls.insert(number.0, pull);
        Some(number)
    }

    /// Merges a pull request; returns the reason if it can't be merged.
    pub fn merge(&self, number: u64, by: &str) -> Result<(), String> {
        self.look();
        let mut state = self.state.lock();
        let pull = state.pulls.get_mut(&number).filter(|pull| pull.open).ok_or("it is not open")?;
        let merged = self.repository.merge_into_main(&pull.head, by, &format!("Merge #{number}: {}", pull.title));
        let merged = merged.map_err(|paths| format!("conflicts in {}", paths.join(", ")))?;
        (pull.open, pull.merged_as, pull.merged_by, pull.updated_at) =
            (false, Some(merged), Some(by.to_owned()), self.clock.now());
        Ok(())
    }

    /// Closes a pull request unmerged.
    pub fn close(&self, number: u64) {
        if let Some(pull) = self.state.lock().pulls.get_mut(&number) {
            (pull.open, pull.updated_at) = (false, self.clock.now());
        }
    }

    /// Writes a comment.
    pub fn comment(&self, number: u64, author: &str, body: &str) {
        let mut state = self.state.lock();
        state.next_id += 1;
        let (id, now) = (state.next_id, self.clock.now());
        let comment = Comment {
            id,
            node_id: format!("IC_{id}"),
            author: author.into(),
            body: body.into(),
            created_at: now,
            updated_at: now,
        };
        state.comments.entry(number).or_default().push(comment);
        if let Some(pull) = state.pulls.get_mut(&number) {
            pull.updated_at = now;
        }
    }

    /// Reviews the current head of a pull request.
    pub fn review(&self, number: u64, author: &str, approves: bool) {
        self.look();
        let mut state = self.state.lock();
        let Some(head) = state.pulls.get(&number).map(|pull| pull.head.clone()) else { return };
        let at = self.clock.now();
        state.reviews.push((number, Review { author: author.into(), approves, says_something: true, head, at }));
        if let Some(pull) = state.pulls.get_mut(&number) {
            pull.updated_at = at;
        }
    }

    /// Writes a comment under a marker, and replaces the previous comment with that marker.
    fn say(&self, number: PullNumber, marker: &str, body: &str) -> Result<u64, ForgeError> {
        let now = self.clock.now();
        {
            let mut state = self.asked()?;
            let all = state.comments.entry(number.0).or_default();
            if let Some(ours) =
                all.iter_mut().rev().find(|c| c.author == OWN_LOGIN && c.body.trim_end().ends_with(marker))
            {
                if ours.body != body {
                    (ours.body, ours.updated_at) = (body.to_owned(), now);
                }
                return Ok(ours.id);
            }
        }
        self.comment(number.0, OWN_LOGIN, body);
        Ok(self.state.lock().next_id)
    }

    /// Returns all pull requests, by number.
    pub fn pulls(&self) -> Vec<Pull> {
        self.state.lock().pulls.values().cloned().collect()
    }

    /// Returns the comments of a pull request, each with whether it is minimized.
    pub fn comments(&self, number: u64) -> Vec<(Comment, bool)> {
        let state = self.state.lock();
        state
            .comments
            .get(&number)
            .into_iter()
            .flatten()
            .map(|comment| (comment.clone(), state.outdated.contains(&comment.id)))
            .collect()
    }

    /// Returns the statuses of a commit: context, state, description.
    pub fn statuses(&self, revision: &Revision) -> Vec<(String, String, String)> {
        let state = self.state.lock();
        let statuses = state.statuses.iter().filter(|((commit, _), _)| commit == revision);
        statuses.map(|((_, context), (word, message))| (context.clone(), word.clone(), message.clone())).collect()
    }
}

#[async_trait]
impl ports::Forge for Forge {
    async fn own_login(&self) -> Result<String, ForgeError> {
        Ok(OWN_LOGIN.into())
    }
    async fn list_pulls(&self) -> Result<Vec<Pull>, ForgeError> {
        self.look();
        let mut pulls: Vec<Pull> = self.asked()?.pulls.values().cloned().collect();
        pulls.sort_by_key(|pull| (std::cmp::Reverse(pull.updated_at), pull.number));
        Ok(pulls)
    }
    async fn get_pull(&self, number: PullNumber) -> Result<Pull, ForgeError> {
        self.look();
        self.asked()?.pulls.get(&number.0).cloned().ok_or_else(|| gone(number))
    }
    async fn list_comments(&self, number: PullNumber) -> Result<Vec<Comment>, ForgeError> {
        Ok(self.asked()?.comments.get(&number.0).cloned().unwrap_or_default())
    }
    async fn list_reviews(&self, number: PullNumber) -> Result<Vec<Review>, ForgeError> {
        let state = self.asked()?;
        Ok(state.reviews.iter().filter(|(pull, _)| *pull == number.0).map(|(_, review)| review.clone()).collect())
    }
    async fn ensure_comment(&self, number: PullNumber, marker: &str, body: &str) -> Result<u64, ForgeError> {
        let what = format!("comment {number} {marker}");
        pass(self.life.as_ref(), CrashPoint::BeforeEffect, &what).await;
        let id = self.say(number, marker, body)?;
        pass(self.life.as_ref(), CrashPoint::AfterEffect, &what).await;
        Ok(id)
    }
    async fn outdate_comments(&self, number: PullNumber, marker: &str, except: u64) -> Result<(), ForgeError> {
        let mut state = self.asked()?;
        let all = state.comments.get(&number.0).cloned().unwrap_or_default();
        let old = all.iter().filter(|c| {
            c.id != except
                && c.author == OWN_LOGIN
                && c.body.trim_end().lines().last().is_some_and(|line| line.contains(marker))
        });
        state.outdated.extend(old.map(|comment| comment.id));
        Ok(())
    }
    async fn ensure_status(
        &self,
        revision: &Revision,
        context: &str,
        state: &str,
        description: &str,
    ) -> Result<(), ForgeError> {
        let what = format!("status {context} {state}");
        pass(self.life.as_ref(), CrashPoint::BeforeEffect, &what).await;
        self.asked()?
            .statuses
            .insert((revision.clone(), context.to_owned()), (state.to_owned(), description.to_owned()));
        pass(self.life.as_ref(), CrashPoint::AfterEffect, &what).await;
        Ok(())
    }
    async fn has_own_status(&self, revision: &Revision) -> Result<bool, ForgeError> {
        Ok(self.asked()?.statuses.keys().any(|(commit, _)| commit == revision))
    }
    async fn ensure_pull(&self, branch: &str, _base: &str, title: &str, body: &str) -> Result<PullNumber, ForgeError> {
        self.look();
        let what = format!("pull {branch}");
        pass(self.life.as_ref(), CrashPoint::BeforeEffect, &what).await;
        {
            let mut state = self.asked()?;
            let now = self.clock.now();
            if let Some(pull) = state.pulls.values_mut().find(|pull| pull.open && pull.branch == branch) {
                (pull.title, pull.body, pull.updated_at) = (title.into(), body.into(), now);
                return Ok(pull.number);
            }
        }
        let opened = self.open(OWN_LOGIN, branch, title, body, false).ok_or_else(|| gone(PullNumber(0)))?;
        pass(self.life.as_ref(), CrashPoint::AfterEffect, &what).await;
        Ok(opened)
    }
    async fn close_pull(&self, number: PullNumber) -> Result<(), ForgeError> {
        drop(self.asked()?);
        let what = format!("close {number}");
        pass(self.life.as_ref(), CrashPoint::BeforeEffect, &what).await;
        self.close(number.0);
        pass(self.life.as_ref(), CrashPoint::AfterEffect, &what).await;
        Ok(())
    }
    async fn get_permission(&self, login: &str) -> Result<String, ForgeError> {
        Ok(self.asked()?.people.get(login).cloned().unwrap_or_else(|| "none".into()))
    }
    async fn is_member(&self, team: &str, login: &str) -> Result<bool, ForgeError> {
        Ok(self.asked()?.teams.get(team).is_some_and(|members| members.contains(login)))
    }
    async fn git_token(&self) -> Result<Option<SecretString>, ForgeError> {
        Ok(None)
    }
}
