//! Computes the changes of a pull request: files with their patches, and commits.

use chrono::DateTime;
use git2::Oid;
use serde_json::{Value, json};

/// The maximum number of changed files in a list.
const FILES_MAX: usize = 3000;

/// The maximum size of a displayed patch of one file.
const PATCH_BYTES_MAX: usize = 64 << 10;

use super::state::{Answer, State};

impl State {
    /// Returns the changed files of a pull request, with their patches.
    pub(super) fn files(&self, number: u64) -> Answer<Vec<Value>> {
        let pull = self.pull(number)?;
        let repository = self.repository()?;
        let head = repository.find_commit(Oid::from_str(&pull.head)?)?;
        let base = match &pull.merged_as {
            Some(merged) => repository.find_commit(Oid::from_str(merged)?)?.parent_id(0)?,
            None => Oid::from_str(&self.head_of(&pull.base)?)?,
        };
        let from = repository.merge_base(base, head.id()).unwrap_or(base);
        let old = repository.find_commit(from)?.tree()?;
        let mut diff = repository.diff_tree_to_tree(Some(&old), Some(&head.tree()?), None)?;
        diff.find_similar(None)?;
        let mut files = vec![];
        for at in 0..diff.deltas().len().min(FILES_MAX) {
            let Some(mut patch) = git2::Patch::from_diff(&diff, at)? else { continue };
            let (_, additions, deletions) = patch.line_stats()?;
            let delta = patch.delta();
            let name = delta
                .new_file()
                .path()
                .or(delta.old_file().path())
                .map(|path| path.display().to_string())
                .unwrap_or_default();
            let sort = match delta.status() {
                git2::Delta::Added => "added",
                git2::Delta::Deleted => "removed",
                git2::Delta::Renamed => "renamed",
                _ => "modified",
            };
            let sha = delta.new_file().id().to_string();
            let text = patch.to_buf().map(|buffer| String::from_utf8_lossy(&buffer).into_owned()).unwrap_or_default();
            let hunks: String = text
                .lines()
                .skip_while(|line| !line.starts_with("@@"))
                .collect::<Vec<_>>()
                .join("\n")
                .chars()
                .take(PATCH_BYTES_MAX)
                .collect();
            files.push(json!({"sha": sha, "filename": name, "status": sort, "additions": additions, "deletions": deletions, "changes": additions + deletions, "patch": hunks,
                "blob_url": self.api(&format!("/blob/{}/{name}", pull.head)), "raw_url": self.api(&format!("/raw/{}/{name}", pull.head)), "contents_url": self.api(&format!("/contents/{name}?ref={}", pull.head))}));
        }
        Ok(files)
    }

    /// Returns the commits of a pull request, oldest first.
    pub(super) fn commits(&self, number: u64) -> Answer<Vec<Value>> {
        let pull = self.pull(number)?;
        let repository = self.repository()?;
        let mut walk = repository.revwalk()?;
        walk.push(Oid::from_str(&pull.head)?)?;
        let base = match &pull.merged_as {
            Some(merged) => repository.find_commit(Oid::from_str(merged)?)?.parent_id(0)?,
            None => Oid::from_str(&self.head_of(&pull.base)?)?,
        };
        walk.hide(base)?;
        let mut commits = vec![];
        for id in walk.flatten().take(250) {
            let commit = repository.find_commit(id)?;
            let author = commit.author();
            let at = DateTime::from_timestamp(commit.time().seconds(), 0).unwrap_or_default();
            let url = self.api(&format!("/commits/{id}"));
            let parents: Vec<Value> = commit
                .parent_ids()
                .map(|parent| {
                    let url = self.api(&format!("/commits/{parent}"));
                    json!({"sha": parent.to_string(), "url": url, "html_url": url})
                })
                .collect();
            let person = json!({"name": author.name().unwrap_or_default(), "email": author.email().unwrap_or_default(), "date": at});
            commits.push(json!({"sha": id.to_string(), "node_id": format!("C_{id}"), "html_url": url, "url": url, "comments_url": format!("{url}/comments"), "author": null, "committer": null, "parents": parents,
                "commit": {"message": commit.message().unwrap_or_default(), "author": person, "committer": person, "tree": {"sha": commit.tree_id().to_string(), "url": self.api(&format!("/git/trees/{}", commit.tree_id()))}, "url": self.api(&format!("/git/commits/{id}")), "comment_count": 0}}));
        }
        commits.reverse();
        Ok(commits)
    }
}
