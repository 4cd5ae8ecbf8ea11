//! Maintains the bare mirror of the state repo: fetch, merge, commit and push.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use chrono::DateTime;
use git2::{FetchOptions, FileMode, Oid, PushOptions, Signature, build::TreeUpdateBuilder};

use super::{Error, RevisionFiles};
use crate::{
    model::Revision,
    ports::{Commit, Files, Merged, Repository, RepositoryError},
};

/// The maximum number of commits that a walk along first parents visits.
const COMMITS_MAX: usize = 1000;

/// The bare mirror of one repository. Clones share the folder.
#[derive(Clone, Debug)]
pub struct Mirror {
    folder: Arc<PathBuf>,
    url: Arc<str>,
}

fn oid(revision: &Revision) -> Oid {
    Oid::from_str(revision.as_str()).expect("a revision is 40 hex digits")
}

fn revision(id: Oid) -> Revision {
    id.to_string().parse().expect("libgit2 prints 40 hex digits")
}

fn inside(attempt: &'static str) -> impl Fn(git2::Error) -> Error {
    move |source| Error::Mirror { attempt, source }
}

impl Mirror {
    /// Opens the mirror of a repository in a folder, and creates the mirror if it does not exist.
    ///
    /// # Errors
    /// When the folder can't be written.
    pub fn open(folder: &Path, url: &str) -> Result<Self, Error> {
        super::register();
        std::fs::create_dir_all(folder).map_err(Error::Io)?;
        if git2::Repository::open_bare(folder).is_err() {
            git2::Repository::init_bare(folder).map_err(inside("make the repository"))?;
        }
        Ok(Self { folder: Arc::new(folder.to_owned()), url: url.into() })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self, &git2::Repository) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let mirror = self.clone();
        let task = tokio::task::spawn_blocking(move || {
            let repository = git2::Repository::open_bare(&*mirror.folder).map_err(inside("open the repository"))?;
            work(&mirror, &repository)
        });
        task.await.map_err(|_| Error::Interrupted)?
    }
}

#[async_trait]
impl Repository for Mirror {
    fn url(&self) -> &str {
        &self.url
    }

    async fn fetch(&self, name: &str) -> Result<Option<Revision>, RepositoryError> {
        let name = name.to_owned();
        self.blocking(move |mirror, repository| {
            let failed = |source| Error::Remote { attempt: "fetch from", url: mirror.url.to_string(), source };
            let mut remote = repository.remote_anonymous(&mirror.url).map_err(failed)?;
            let mut options = FetchOptions::new();
            options.update_fetchhead(false);
            options.download_tags(git2::AutotagOption::None);
            let local = format!("refs/remote/{}", name.trim_start_matches("refs/"));
            match remote.fetch(&[format!("+{name}:{local}")], Some(&mut options), None) {
                Ok(()) => {}
                Err(error)
                    if error.code() == git2::ErrorCode::NotFound && error.class() == git2::ErrorClass::Reference =>
                {
                    return Ok(None);
                }
                Err(error) => return Err(failed(error)),
            }
            // libgit2 keeps the old ref when the remote no longer has it, so the remote's list of refs decides.
            let listed =
                remote.list().map_err(failed)?.iter().find(|head| head.name() == name).map(git2::RemoteHead::oid);
            Ok(listed.map(revision))
        })
        .await
        .map_err(RepositoryError::from)
    }

    async fn files(&self, revision: &Revision) -> Result<Arc<dyn Files>, RepositoryError> {
        let revision = revision.clone();
        self.blocking(move |mirror, repository| {
            let tree = repository.find_commit(oid(&revision)).map_err(inside("find the commit"))?.tree_id();
            let own = git2::Repository::open_bare(&*mirror.folder).map_err(inside("open the repository"))?;
            Ok(Arc::new(RevisionFiles::new(own, tree)) as Arc<dyn Files>)
        })
        .await
        .map_err(RepositoryError::from)
    }

    async fn merge(&self, base: &Revision, head: &Revision) -> Result<Merged, RepositoryError> {
        let (base, head) = (base.clone(), head.clone());
        self.blocking(move |_, repository| {
            let failed = inside("merge");
            let find = |r: &Revision| repository.find_commit(oid(r)).map_err(inside("find the commit"));
            let (base, head) = (find(&base)?, find(&head)?);
            if repository.graph_descendant_of(head.id(), base.id()).map_err(&failed)? || head.id() == base.id() {
                return Ok(Merged::Clean(revision(head.id())));
            }
            let mut index = repository.merge_commits(&base, &head, None).map_err(&failed)?;
            if index.has_conflicts() {
                let mut paths: Vec<String> = index
                    .conflicts()
                    .map_err(&failed)?
                    .flatten()
                    .filter_map(|conflict| conflict.our.or(conflict.their).or(conflict.ancestor))
                    .map(|entry| String::from_utf8_lossy(&entry.path).into_owned())
                    .collect();
                paths.sort();
                paths.dedup();
                return Ok(Merged::Conflict(paths));
            }
            let tree = index.write_tree_to(repository).and_then(|id| repository.find_tree(id)).map_err(&failed)?;
            // Use the times of the parents, so that an equal merge has an equal commit id.
            let author = Signature::new("evenkeel", "evenkeel@localhost", &head.time()).map_err(&failed)?;
            let id = repository
                .commit(None, &author, &author, "merge for planning", &tree, &[&base, &head])
                .map_err(&failed)?;
            Ok(Merged::Clean(revision(id)))
        })
        .await
        .map_err(RepositoryError::from)
    }

    async fn first_parents(&self, after: Option<&Revision>, to: &Revision) -> Result<Vec<Commit>, RepositoryError> {
        let (after, to) = (after.map(oid), oid(to));
        self.blocking(move |_, repository| {
            let mut commits = vec![];
            let mut next = Some(to);
            while let Some(id) = next {
                if Some(id) == after || commits.len() >= COMMITS_MAX {
                    break;
                }
                let commit = repository.find_commit(id).map_err(inside("find the commit"))?;
                commits.push(Commit {
                    revision: revision(id),
                    subject: commit.summary().ok().flatten().unwrap_or_default().chars().take(120).collect(),
                    author: commit.author().name().unwrap_or_default().chars().take(80).collect(),
                    at: DateTime::from_timestamp(commit.time().seconds(), 0).unwrap_or_default(),
                });
                next = commit.parent_id(0).ok();
            }
            Ok(commits)
        })
        .await
        .map_err(RepositoryError::from)
    }

    async fn added_by(&self, tip: &Revision, path: &str) -> Result<Option<Revision>, RepositoryError> {
        let (mut id, path) = (oid(tip), PathBuf::from(path));
        self.blocking(move |_, repository| {
            let has = |id: Oid| -> Result<bool, Error> {
                let tree =
                    repository.find_commit(id).and_then(|commit| commit.tree()).map_err(inside("find the commit"))?;
                Ok(tree.get_path(&path).is_ok())
            };
            if !has(id)? {
                return Ok(None);
            }
            for _ in 0..COMMITS_MAX {
                let commit = repository.find_commit(id).map_err(inside("find the commit"))?;
                match commit.parent_id(0) {
                    Ok(parent) if has(parent)? => id = parent,
                    _ => break,
                }
            }
            Ok(Some(revision(id)))
        })
        .await
        .map_err(RepositoryError::from)
    }

    async fn contains(&self, descendant: &Revision, ancestor: &Revision) -> Result<bool, RepositoryError> {
        let (descendant, ancestor) = (oid(descendant), oid(ancestor));
        self.blocking(move |_, repository| {
            if repository.find_commit(ancestor).is_err() {
                return Ok(false);
            }
            Ok(descendant == ancestor
                || repository.graph_descendant_of(descendant, ancestor).map_err(inside("compare commits"))?)
        })
        .await
        .map_err(RepositoryError::from)
    }

    async fn push(
        &self,
        branch: &str,
        base: &Revision,
        expected: Option<&Revision>,
        files: Vec<(String, Option<String>)>,
        message: &str,
    ) -> Result<Revision, RepositoryError> {
        let (branch, base, expected, message) = (branch.to_owned(), oid(base), expected.cloned(), message.to_owned());
        self.blocking(move |mirror, repository| {
            let failed = inside("commit");
            let parent = repository.find_commit(base).map_err(&failed)?;
            let mut update = TreeUpdateBuilder::new();
            for (path, content) in &files {
                match content {
                    Some(text) => {
                        let blob = repository.blob(text.as_bytes()).map_err(&failed)?;
                        update.upsert(path.as_str(), blob, FileMode::Blob);
                    }
                    None => drop(update.remove(path.as_str())),
                }
            }
            let tree = parent
                .tree()
                .and_then(|tree| update.create_updated(repository, &tree))
                .and_then(|id| repository.find_tree(id))
                .map_err(&failed)?;
            let author = Signature::now("evenkeel", "evenkeel@localhost").map_err(&failed)?;
            let id = repository.commit(None, &author, &author, &message, &tree, &[&parent]).map_err(&failed)?;
            let refused = |source| Error::Remote { attempt: "push to", url: mirror.url.to_string(), source };
            let local = format!("refs/push/{branch}");
            repository.reference(&local, id, true, "to be pushed").map_err(&failed)?;
            let mut remote = repository.remote_anonymous(&mirror.url).map_err(refused)?;
            remote.connect(git2::Direction::Push).map_err(refused)?;
            let name = format!("refs/heads/{branch}");
            let there = remote
                .list()
                .map_err(refused)?
                .iter()
                .find(|head| head.name() == name)
                .map(|head| revision(head.oid()));
            if there != expected {
                return Err(Error::Moved { branch });
            }
            remote.push(&[format!("+{local}:{name}")], Some(&mut PushOptions::new())).map_err(refused)?;
            Ok(revision(id))
        })
        .await
        .map_err(RepositoryError::from)
    }

    async fn delete_branch(&self, branch: &str) -> Result<(), RepositoryError> {
        let name = format!("refs/heads/{branch}");
        self.blocking(move |mirror, repository| {
            let refused = |source| Error::Remote { attempt: "push to", url: mirror.url.to_string(), source };
            let mut remote = repository.remote_anonymous(&mirror.url).map_err(refused)?;
            remote.connect(git2::Direction::Push).map_err(refused)?;
            if remote.list().map_err(refused)?.iter().any(|head| head.name() == name) {
                remote.push(&[format!(":{name}")], Some(&mut PushOptions::new())).map_err(refused)?;
            }
            Ok(())
        })
        .await
        .map_err(RepositoryError::from)
    }
}
