//! Stores pull requests, comments, reviews and statuses in one JSON file beside the repository.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use chrono::{DateTime, Utc};
use git2::{BranchType, Oid, Repository};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::webhooks;
use crate::forge::settings::{Error, Settings, User};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Pull {
    pub(super) number: u64,
    pub(super) title: String,
    pub(super) body: String,
    pub(super) author: String,
    pub(super) branch: String,
    pub(super) base: String,
    pub(super) head: String,
    pub(super) open: bool,
    pub(super) draft: bool,
    pub(super) merged_as: Option<String>,
    pub(super) merged_by: Option<String>,
    pub(super) merged_at: Option<DateTime<Utc>>,
    pub(super) created_at: DateTime<Utc>,
    pub(super) updated_at: DateTime<Utc>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Comment {
    pub(super) id: u64,
    pub(super) pull: u64,
    pub(super) author: String,
    pub(super) body: String,
    pub(super) created_at: DateTime<Utc>,
    pub(super) updated_at: DateTime<Utc>,
    pub(super) minimized: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Review {
    pub(super) id: u64,
    pub(super) pull: u64,
    pub(super) author: String,
    pub(super) state: String,
    pub(super) commit: String,
    pub(super) body: String,
    pub(super) at: DateTime<Utc>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Status {
    pub(super) id: u64,
    pub(super) sha: String,
    pub(super) context: String,
    pub(super) state: String,
    pub(super) description: String,
    pub(super) author: String,
    pub(super) at: DateTime<Utc>,
    /// The further fields of a check run; absent for a status.
    pub(super) check: Option<Value>,
}

#[derive(Default, Serialize, Deserialize)]
pub(super) struct Records {
    next_id: u64,
    next_number: u64,
    pub(super) pulls: BTreeMap<u64, Pull>,
    pub(super) comments: Vec<Comment>,
    pub(super) reviews: Vec<Review>,
    pub(super) statuses: Vec<Status>,
    /// The last seen heads of the branches, to detect pushes.
    branches: BTreeMap<String, String>,
}

pub(super) struct State {
    folder: PathBuf,
    pub(super) settings: Settings,
    pub(super) address: SocketAddr,
    pub(super) records: Records,
    pub(super) page_token: String,
    /// Tokens of the App's installation, with their expiry.
    pub(super) installation_tokens: BTreeMap<String, DateTime<Utc>>,
    sender: webhooks::Sender,
}

/// A refused request, with status and message as of GitHub.
#[derive(Debug)]
pub(super) struct Refusal(pub(super) u16, pub(super) String);

pub(super) type Answer<T> = Result<T, Refusal>;

impl From<git2::Error> for Refusal {
    fn from(error: git2::Error) -> Self {
        Self(422, error.message().to_owned())
    }
}

impl State {
    pub(super) fn open(folder: PathBuf, settings: Settings, address: SocketAddr) -> Result<Self, Error> {
        let failed = |why: String| Error::Folder { path: folder.clone(), why };
        std::fs::create_dir_all(&folder).map_err(|error| failed(error.to_string()))?;
        let place = folder.join("repository.git");
        if Repository::open_bare(&place).is_err() {
            let mut options = git2::RepositoryInitOptions::new();
            options.bare(true).initial_head("main");
            Repository::init_opts(&place, &options).map_err(|error| failed(error.message().to_owned()))?;
        }
        let records = match std::fs::read(folder.join("forge.json")) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| failed(format!("forge.json: {error}")))?,
            Err(_) => Records { next_id: 1000, next_number: 1, ..Records::default() },
        };
        let mut token = [0; 16];
        getrandom::fill(&mut token).map_err(|error| failed(error.to_string()))?;
        let sender = webhooks::Sender::new(settings.webhook.clone());
        let mut state = Self {
            folder,
            settings,
            address,
            records,
            page_token: hex::encode(token),
            installation_tokens: BTreeMap::new(),
            sender,
        };
        if state.records.branches.is_empty() {
            state.records.branches = state.heads();
        }
        Ok(state)
    }

    pub(super) fn repository_path(&self) -> PathBuf {
        self.folder.join("repository.git")
    }

    pub(super) fn repository(&self) -> Answer<Repository> {
        Ok(Repository::open_bare(self.repository_path())?)
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn id(&mut self) -> u64 {
        self.records.next_id += 1;
        self.records.next_id
    }

    pub(super) fn save(&self) -> Answer<()> {
        let failed = |error: std::io::Error| Refusal(500, format!("could not write forge.json: {error}"));
        let text = serde_json::to_vec_pretty(&self.records).map_err(|error| Refusal(500, error.to_string()))?;
        let part = self.folder.join("forge.json.part");
        std::fs::write(&part, text).map_err(failed)?;
        std::fs::rename(part, self.folder.join("forge.json")).map_err(failed)
    }

    pub(super) fn user(&self, login: &str) -> Option<&User> {
        self.settings.users.iter().find(|user| user.login.eq_ignore_ascii_case(login))
    }

    fn heads(&self) -> BTreeMap<String, String> {
        let Ok(repository) = self.repository() else { return BTreeMap::new() };
        let Ok(branches) = repository.branches(Some(BranchType::Local)) else { return BTreeMap::new() };
        branches
            .flatten()
            .filter_map(|(branch, _)| {
                let name = branch.name().ok()??.to_owned();
                Some((name, branch.get().target()?.to_string()))
            })
            .collect()
    }

    pub(super) fn head_of(&self, branch: &str) -> Answer<String> {
        let repository = self.repository()?;
        let found = repository.find_branch(branch, BranchType::Local).ok().and_then(|branch| branch.get().target());
        found
            .map(|id| id.to_string())
            .ok_or_else(|| Refusal(422, format!("Validation Failed: there is no branch `{branch}`")))
    }

    /// Compares the branches with the last seen ones, and emits events for pushes and changed pull requests.
    pub(super) fn look(&mut self, by: &str) -> Answer<()> {
        let heads = self.heads();
        if heads == self.records.branches {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.records.branches, heads.clone());
        let names: std::collections::BTreeSet<&String> = before.keys().chain(heads.keys()).collect();
        for name in names {
            let (old, new) = (before.get(name), heads.get(name));
            if old == new {
                continue;
            }
            self.event("push", self.push_json(name, old, new, by), by);
            let moved: Vec<u64> = self
                .records
                .pulls
                .values()
                .filter(|pull| pull.open && pull.branch == *name)
                .map(|pull| pull.number)
                .collect();
            for number in moved {
                match new {
                    Some(new) => {
                        let new = new.clone();
                        self.point(number, &new)?;
                        self.pull_event(number, "synchronize", by, json!({"before": old, "after": new}));
                    }
                    None => {
                        self.close(number, by)?;
                    }
                }
            }
        }
        self.save()
    }

    fn point(&mut self, number: u64, head: &str) -> Answer<()> {
        let repository = self.repository()?;
        repository.reference(&format!("refs/pull/{number}/head"), Oid::from_str(head)?, true, "pull request")?;
        if let Some(pull) = self.records.pulls.get_mut(&number) {
            pull.head = head.to_owned();
            pull.updated_at = Utc::now();
        }
        Ok(())
    }

    pub(super) fn pull(&self, number: u64) -> Answer<&Pull> {
        self.records.pulls.get(&number).ok_or_else(|| Refusal(404, "Not Found".into()))
    }

    pub(super) fn open_pull(
        &mut self,
        author: &str,
        branch: &str,
        base: &str,
        title: &str,
        body: &str,
        draft: bool,
    ) -> Answer<u64> {
        let branch = branch.rsplit_once(':').map_or(branch, |(_, branch)| branch);
        let head = self.head_of(branch)?;
        let base_head = self.head_of(base)?;
        if self.records.pulls.values().any(|pull| pull.open && pull.branch == branch && pull.base == base) {
            return Err(Refusal(
                422,
                format!("Validation Failed: A pull request already exists for {}:{branch}.", self.settings.owner),
            ));
        }
        if head == base_head {
            return Err(Refusal(422, format!("Validation Failed: No commits between {base} and {branch}")));
        }
        let number = self.records.next_number;
        self.records.next_number += 1;
        let now = Utc::now();
        let pull = Pull {
            number,
            title: title.to_owned(),
            body: body.to_owned(),
            author: author.to_owned(),
            branch: branch.to_owned(),
            base: base.to_owned(),
            head: head.clone(),
            open: true,
            draft,
            merged_as: None,
            merged_by: None,
            merged_at: None,
            created_at: now,
            updated_at: now,
        };
        self.records.pulls.insert(number, pull);
        self.point(number, &head)?;
        self.pull_event(number, "opened", author, json!({}));
        self.save()?;
        Ok(number)
    }

    pub(super) fn edit_pull(&mut self, number: u64, by: &str, change: &Value) -> Answer<()> {
        self.pull(number)?;
        let pull = self.records.pulls.get_mut(&number).ok_or_else(|| Refusal(404, "Not Found".into()))?;
        let mut edited = false;
        if let Some(title) = change["title"].as_str() {
            edited |= pull.title != title;
            pull.title = title.to_owned();
        }
        if let Some(body) = change["body"].as_str() {
            edited |= pull.body != body;
            pull.body = body.to_owned();
        }
        pull.updated_at = Utc::now();
        match change["state"].as_str() {
            Some("closed") if pull.open => self.close(number, by)?,
            Some("open") if !pull.open && pull.merged_as.is_none() => {
                pull.open = true;
                self.pull_event(number, "reopened", by, json!({}));
            }
            _ if edited => self.pull_event(number, "edited", by, json!({"changes": {}})),
            _ => {}
        }
        self.save()
    }

    fn close(&mut self, number: u64, by: &str) -> Answer<()> {
        if let Some(pull) = self.records.pulls.get_mut(&number) {
            pull.open = false;
            pull.updated_at = Utc::now();
        }
        self.pull_event(number, "closed", by, json!({}));
        self.save()
    }

    pub(super) fn comment(&mut self, number: u64, author: &str, body: &str) -> Answer<Comment> {
        if body.chars().count() > 65_536 {
            return Err(Refusal(422, "Validation Failed: body is too long (maximum is 65536 characters)".into()));
        }
        if body.trim().is_empty() {
            return Err(Refusal(422, "Validation Failed: body cannot be blank".into()));
        }
        self.pull(number)?;
        let now = Utc::now();
        let comment = Comment {
            id: self.id(),
            pull: number,
            author: author.to_owned(),
            body: body.to_owned(),
            created_at: now,
            updated_at: now,
            minimized: false,
        };
        self.records.comments.push(comment.clone());
        if let Some(pull) = self.records.pulls.get_mut(&number) {
            pull.updated_at = now;
        }
        let payload =
            json!({"action": "created", "issue": self.issue_json(number)?, "comment": self.comment_json(&comment)});
        self.event("issue_comment", payload, author);
        self.save()?;
        Ok(comment)
    }

    pub(super) fn review(&mut self, number: u64, author: &str, state: &str, body: &str) -> Answer<Review> {
        let pull = self.pull(number)?;
        if state == "APPROVED" && pull.author.eq_ignore_ascii_case(author) {
            return Err(Refusal(422, "Can not approve your own pull request".into()));
        }
        let commit = pull.head.clone();
        let review = Review {
            id: self.id(),
            pull: number,
            author: author.to_owned(),
            state: state.to_owned(),
            commit,
            body: body.to_owned(),
            at: Utc::now(),
        };
        self.records.reviews.push(review.clone());
        // Events have the state in lower case, responses in upper case.
        let mut sent = self.review_json(&review);
        sent["state"] = state.to_lowercase().into();
        let payload = json!({"action": "submitted", "review": sent, "pull_request": self.listed_pull_json(number)?});
        self.event("pull_request_review", payload, author);
        self.save()?;
        Ok(review)
    }

    /// Merges a pull request with a merge commit.
    pub(super) fn merge(&mut self, number: u64, by: &str, expected: Option<&str>) -> Answer<String> {
        self.look(by)?;
        let pull = self.pull(number)?.clone();
        if !pull.open {
            return Err(Refusal(405, "Pull Request is not mergeable".into()));
        }
        if expected.is_some_and(|sha| sha != pull.head) {
            return Err(Refusal(409, "Head branch was modified. Review and try the merge again.".into()));
        }
        let repository = self.repository()?;
        let base = repository.find_commit(Oid::from_str(&self.head_of(&pull.base)?)?)?;
        let head = repository.find_commit(Oid::from_str(&pull.head)?)?;
        let mut index = repository.merge_commits(&base, &head, None)?;
        if index.has_conflicts() {
            return Err(Refusal(405, "Pull Request is not mergeable: there are conflicts".into()));
        }
        let tree = repository.find_tree(index.write_tree_to(&repository)?)?;
        let author = git2::Signature::now(by, &format!("{by}@localhost"))?;
        let message = format!("Merge pull request #{number} from {}\n\n{}", pull.branch, pull.title);
        let merged = repository
            .commit(Some(&format!("refs/heads/{}", pull.base)), &author, &author, &message, &tree, &[&base, &head])?
            .to_string();
        if let Some(pull) = self.records.pulls.get_mut(&number) {
            let now = Utc::now();
            pull.open = false;
            pull.merged_as = Some(merged.clone());
            pull.merged_by = Some(by.to_owned());
            pull.merged_at = Some(now);
            pull.updated_at = now;
        }
        self.pull_event(number, "closed", by, json!({}));
        self.look(by)?;
        self.save()?;
        Ok(merged)
    }

    pub(super) fn event(&self, name: &str, mut payload: Value, by: &str) {
        payload["repository"] = self.repository_json();
        payload["sender"] = self.user_json(by);
        self.sender.send(name, payload);
    }

    fn pull_event(&self, number: u64, action: &str, by: &str, mut more: Value) {
        if let Ok(pull) = self.pull_json(number) {
            more["action"] = action.into();
            more["number"] = number.into();
            more["pull_request"] = pull;
            self.event("pull_request", more, by);
        }
    }

    /// Returns the newest status of each context.
    pub(super) fn statuses_of(&self, sha: &str) -> Vec<&Status> {
        let mut newest: BTreeMap<&str, &Status> = BTreeMap::new();
        for status in self.records.statuses.iter().filter(|status| status.sha == sha) {
            newest.insert(&status.context, status);
        }
        newest.into_values().collect()
    }
}
