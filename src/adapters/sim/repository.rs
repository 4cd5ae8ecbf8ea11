//! Simulates a git repository in memory: commits with whole trees, branches, three-way merges by file.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::crash_points::{SimulatedProcess, pass};
use crate::{
    model::{Retry, Revision},
    ports::{self, CrashPoint, Entry, EntryKind, Files, FilesError, Merged, RepositoryError},
};

type Tree = Arc<BTreeMap<String, Arc<[u8]>>>;

struct Commit {
    parents: Vec<Revision>,
    tree: Tree,
    subject: String,
    author: String,
    at: DateTime<Utc>,
}

#[derive(Default)]
struct State {
    commits: BTreeMap<Revision, Commit>,
    /// Refs such as `refs/heads/main` and `refs/pull/1/head`.
    refs: BTreeMap<String, Revision>,
    out_of_reach: Option<String>,
}

/// The simulated repository. Clones share their state.
#[derive(Clone)]
pub struct Repository {
    state: Arc<Mutex<State>>,
    clock: Arc<dyn ports::Clock>,
    life: Option<Arc<SimulatedProcess>>,
}

fn missing(what: &str) -> RepositoryError {
    RepositoryError { kind: "git-mirror", message: format!("`{what}` is not there"), retry: Retry::WhenInputChanges }
}

fn id(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))[..40].to_owned()
}

impl State {
    fn commit(&self, revision: &Revision) -> Result<&Commit, RepositoryError> {
        self.commits.get(revision).ok_or_else(|| missing(revision.as_str()))
    }

    fn add(&mut self, commit: Commit) -> Revision {
        let mut text = format!("{} {} {} {:?}\n", commit.at, commit.author, commit.subject, commit.parents);
        for (path, content) in &*commit.tree {
            text.push_str(&format!("{path} {}\n", id(content)));
        }
        let revision: Revision = id(text.as_bytes()).parse().expect("40 hex digits are a revision");
        self.commits.insert(revision.clone(), commit);
        revision
    }

    fn ancestors(&self, revision: &Revision) -> BTreeSet<Revision> {
        let (mut all, mut open) = (BTreeSet::new(), vec![revision.clone()]);
        while let Some(revision) = open.pop() {
            if all.insert(revision.clone())
                && let Some(commit) = self.commits.get(&revision)
            {
                open.extend(commit.parents.iter().cloned());
            }
        }
        all
    }

    /// Returns the newest commit that both histories contain.
    fn base(&self, ours: &Revision, theirs_head: &Revision) -> Option<Revision> {
        let theirs = self.ancestors(theirs_head);
        let mut open = std::collections::VecDeque::from([ours.clone()]);
        while let Some(revision) = open.pop_front() {
            if theirs.contains(&revision) {
                return Some(revision);
            }
            open.extend(self.commits.get(&revision)?.parents.iter().cloned());
        }
        None
    }

    fn merged_tree(&self, ours: &Revision, theirs: &Revision) -> Result<Result<Tree, Vec<String>>, RepositoryError> {
        let base =
            self.base(ours, theirs).and_then(|base| self.commits.get(&base)).map(|commit| Arc::clone(&commit.tree));
        let base = base.unwrap_or_default();
        let (ours, theirs) = (&self.commit(ours)?.tree, &self.commit(theirs)?.tree);
        let (mut tree, mut conflicts) = (BTreeMap::new(), vec![]);
        let paths: BTreeSet<&String> = base.keys().chain(ours.keys()).chain(theirs.keys()).collect();
        for path in paths {
            let (before, own, other) = (base.get(path), ours.get(path), theirs.get(path));
            let chosen = match (own == before, other == before) {
                (_, true) => own,
                (true, false) => other,
                (false, false) if own == other => own,
                (false, false) => {
                    conflicts.push(path.clone());
                    continue;
                }
            };
            tree.extend(chosen.map(|content| (path.clone(), Arc::clone(content))));
        }
        Ok(if conflicts.is_empty() { Ok(Arc::new(tree)) } else { Err(conflicts) })
    }
}

impl Repository {
    /// Creates a repository with an empty commit on `main`.
    pub fn new(clock: Arc<dyn ports::Clock>) -> Self {
        let repository = Self { state: Arc::default(), clock, life: None };
        let first = Commit {
            parents: vec![],
            tree: Tree::default(),
            subject: "empty".into(),
            author: "nobody".into(),
            at: repository.clock.now(),
        };
        let mut state = repository.state.lock();
        let revision = state.add(first);
        state.refs.insert("refs/heads/main".into(), revision);
        drop(state);
        repository
    }

    /// Makes every request fail with this error, or none.
    pub fn put_out_of_reach(&self, why: Option<String>) {
        self.state.lock().out_of_reach = why;
    }

    /// Returns the revision of a ref.
    pub fn at(&self, name: &str) -> Option<Revision> {
        self.state.lock().refs.get(name).cloned()
    }

    /// Returns the paths of all files at a ref.
    pub fn paths(&self, name: &str) -> Vec<String> {
        let state = self.state.lock();
        let commit = state.refs.get(name).and_then(|at| state.commits.get(at));
        commit.map(|commit| commit.tree.keys().cloned().collect()).unwrap_or_default()
    }

    /// Returns the text of a file at a ref.
    pub fn text(&self, name: &str, path: &str) -> Option<String> {
        let state = self.state.lock();
        let commit = state.commits.get(state.refs.get(name)?)?;
        commit.tree.get(path).map(|content| String::from_utf8_lossy(content).into_owned())
    }

    /// Commits files on a branch, which starts at `main` if it is new. An absent content removes a file.
    pub fn commit(
        &self,
        branch: &str,
        author: &str,
        subject: &str,
        files: &[(String, Option<String>)],
    ) -> Option<Revision> {
        let mut state = self.state.lock();
        let name = format!("refs/heads/{branch}");
        let parent = state.refs.get(&name).or_else(|| state.refs.get("refs/heads/main"))?.clone();
        let mut tree = (*state.commits.get(&parent)?.tree).clone();
        for (path, content) in files {
            match content {
                Some(text) => drop(tree.insert(path.clone(), text.as_bytes().into())),
                None => drop(tree.remove(path)),
            }
        }
        let commit = Commit {
            parents: vec![parent],
            tree: Arc::new(tree),
            subject: subject.into(),
            author: author.into(),
            at: self.clock.now(),
        };
        let revision = state.add(commit);
        state.refs.insert(name, revision.clone());
        Some(revision)
    }

    /// Sets a ref, such as the head of a pull request.
    pub fn point(&self, name: &str, to: &Revision) {
        self.state.lock().refs.insert(name.to_owned(), to.clone());
    }

    /// Merges a branch into `main` with a merge commit; otherwise returns the conflicting paths.
    pub fn merge_into_main(&self, head: &Revision, author: &str, subject: &str) -> Result<Revision, Vec<String>> {
        let mut state = self.state.lock();
        let Some(main) = state.refs.get("refs/heads/main").cloned() else { return Err(vec![]) };
        let tree = state.merged_tree(&main, head).map_err(|_| vec![])??;
        let commit = Commit {
            parents: vec![main, head.clone()],
            tree,
            subject: subject.into(),
            author: author.into(),
            at: self.clock.now(),
        };
        let revision = state.add(commit);
        state.refs.insert("refs/heads/main".into(), revision.clone());
        Ok(revision)
    }

    fn asked(&self) -> Result<parking_lot::MutexGuard<'_, State>, RepositoryError> {
        let state = self.state.lock();
        match &state.out_of_reach {
            Some(why) => Err(RepositoryError {
                kind: "git-remote",
                message: why.clone(),
                retry: Retry::After(crate::model::Backoff::REMOTE),
            }),
            None => Ok(state),
        }
    }

    /// Returns a handle of the same repository for a daemon process.
    pub fn in_life(&self, life: Arc<SimulatedProcess>) -> Self {
        Self { life: Some(life), ..self.clone() }
    }
}

#[async_trait]
impl ports::Repository for Repository {
    fn url(&self) -> &str {
        "memory"
    }
    async fn fetch(&self, name: &str) -> Result<Option<Revision>, RepositoryError> {
        Ok(self.asked()?.refs.get(name).cloned())
    }
    async fn files(&self, revision: &Revision) -> Result<Arc<dyn Files>, RepositoryError> {
        Ok(Arc::new(Content(Arc::clone(&self.state.lock().commit(revision)?.tree))))
    }
    async fn merge(&self, base: &Revision, head: &Revision) -> Result<Merged, RepositoryError> {
        let mut state = self.state.lock();
        Ok(match state.merged_tree(base, head)? {
            Err(paths) => Merged::Conflict(paths),
            Ok(tree) => {
                let commit = Commit {
                    parents: vec![base.clone(), head.clone()],
                    tree,
                    subject: "merge".into(),
                    author: "evenkeel".into(),
                    at: self.clock.now(),
                };
                Merged::Clean(state.add(commit))
            }
        })
    }
    async fn first_parents(
        &self,
        after: Option<&Revision>,
        to: &Revision,
    ) -> Result<Vec<ports::Commit>, RepositoryError> {
        let state = self.state.lock();
        let (mut commits, mut next) = (vec![], Some(to.clone()));
        while let Some(revision) = next.filter(|revision| Some(revision) != after) {
            let commit = state.commit(&revision)?;
            next = commit.parents.first().cloned();
            commits.push(ports::Commit {
                revision,
                subject: commit.subject.clone(),
                author: commit.author.clone(),
                at: commit.at,
            });
        }
        Ok(commits)
    }
    async fn added_by(&self, revision: &Revision, path: &str) -> Result<Option<Revision>, RepositoryError> {
        let state = self.state.lock();
        let mut revision = revision.clone();
        if !state.commit(&revision)?.tree.contains_key(path) {
            return Ok(None);
        }
        while let Some(parent) = state.commit(&revision)?.parents.first().cloned() {
            if !state.commit(&parent)?.tree.contains_key(path) {
                break;
            }
            revision = parent;
        }
        Ok(Some(revision))
    }
    async fn contains(&self, descendant: &Revision, ancestor: &Revision) -> Result<bool, RepositoryError> {
        Ok(self.state.lock().ancestors(descendant).contains(ancestor))
    }
    async fn push(
        &self,
        branch: &str,
        base: &Revision,
        expected: Option<&Revision>,
        files: Vec<(String, Option<String>)>,
        message: &str,
    ) -> Result<Revision, RepositoryError> {
        let what = format!("push {branch}");
        pass(self.life.as_ref(), CrashPoint::BeforeEffect, &what).await;
        let pushed = {
            let name = format!("refs/heads/{branch}");
            let mut state = self.asked()?;
            if state.refs.get(&name) != expected {
                let message = format!("`{branch}` is not where it was expected");
                return Err(RepositoryError {
                    kind: "git-moved",
                    message,
                    retry: Retry::After(crate::model::Backoff::REMOTE),
                });
            }
            let mut tree = (*state.commit(base)?.tree).clone();
            for (path, content) in files {
                match content {
                    Some(text) => drop(tree.insert(path, text.into_bytes().into())),
                    None => drop(tree.remove(&path)),
                }
            }
            let commit = Commit {
                parents: vec![base.clone()],
                tree: Arc::new(tree),
                subject: message.into(),
                author: "evenkeel".into(),
                at: self.clock.now(),
            };
            let revision = state.add(commit);
            state.refs.insert(name, revision.clone());
            revision
        };
        pass(self.life.as_ref(), CrashPoint::AfterEffect, &what).await;
        Ok(pushed)
    }
    async fn delete_branch(&self, branch: &str) -> Result<(), RepositoryError> {
        let what = format!("delete {branch}");
        pass(self.life.as_ref(), CrashPoint::BeforeEffect, &what).await;
        self.asked()?.refs.remove(&format!("refs/heads/{branch}"));
        pass(self.life.as_ref(), CrashPoint::AfterEffect, &what).await;
        Ok(())
    }
}

/// The content of a commit.
struct Content(Tree);

impl Content {
    fn folder_id(&self, prefix: &str) -> String {
        let below = self.0.range(prefix.to_owned()..).take_while(|(path, _)| path.starts_with(prefix));
        let text: String = below.map(|(path, content)| format!("{path} {}\n", id(content))).collect();
        id(text.as_bytes())
    }
}

impl Files for Content {
    fn list(&self, folder: &str) -> Result<Vec<Entry>, FilesError> {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
        for (path, content) in self.0.range(prefix.clone()..).take_while(|(path, _)| path.starts_with(&prefix)) {
            let rest = &path[prefix.len()..];
            let (name, sort, id) = match rest.split_once('/') {
                Some((name, _)) => (name, EntryKind::Folder, self.folder_id(&format!("{prefix}{name}/"))),
                None => (rest, EntryKind::File, id(content)),
            };
            entries.entry(name.to_owned()).or_insert(Entry { name: name.to_owned(), sort, id });
        }
        Ok(entries.into_values().collect())
    }
    fn entry(&self, path: &str) -> Result<Option<Entry>, FilesError> {
        let name = path.rsplit('/').next().unwrap_or(path).to_owned();
        if let Some(content) = self.0.get(path) {
            return Ok(Some(Entry { name, sort: EntryKind::File, id: id(content) }));
        }
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        let is_folder =
            path.is_empty() || self.0.range(prefix.clone()..).next().is_some_and(|(path, _)| path.starts_with(&prefix));
        Ok(is_folder.then(|| Entry { name, sort: EntryKind::Folder, id: self.folder_id(&prefix) }))
    }
    fn read(&self, path: &str) -> Result<Arc<[u8]>, FilesError> {
        self.0.get(path).cloned().ok_or_else(|| FilesError { path: path.to_owned(), why: "it is not there".into() })
    }
}
