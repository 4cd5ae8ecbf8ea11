//! Renders the forge's records with every field that GitHub documents.
//!
//! Features that this forge does not have (stars, wikis, milestones) appear as zero, false or null.

use serde_json::{Map, Value, json};

use super::state::{Answer, Comment, Review, State, Status};

/// The address fields of a repository, with their paths below its own address.
const REPOSITORY_URLS: [(&str, &str); 37] = [
    ("archive_url", "/{archive_format}{/ref}"),
    ("assignees_url", "/assignees{/user}"),
    ("blobs_url", "/git/blobs{/sha}"),
    ("branches_url", "/branches{/branch}"),
    ("collaborators_url", "/collaborators{/collaborator}"),
    ("comments_url", "/comments{/number}"),
    ("commits_url", "/commits{/sha}"),
    ("compare_url", "/compare/{base}...{head}"),
    ("contents_url", "/contents/{+path}"),
    ("contributors_url", "/contributors"),
    ("deployments_url", "/deployments"),
    ("downloads_url", "/downloads"),
    ("events_url", "/events"),
    ("forks_url", "/forks"),
    ("git_commits_url", "/git/commits{/sha}"),
    ("git_refs_url", "/git/refs{/sha}"),
    ("git_tags_url", "/git/tags{/sha}"),
    ("hooks_url", "/hooks"),
    ("issue_comment_url", "/issues/comments{/number}"),
    ("issue_events_url", "/issues/events{/number}"),
    ("issues_url", "/issues{/number}"),
    ("keys_url", "/keys{/key_id}"),
    ("labels_url", "/labels{/name}"),
    ("languages_url", "/languages"),
    ("merges_url", "/merges"),
    ("milestones_url", "/milestones{/number}"),
    ("notifications_url", "/notifications{?since,all,participating}"),
    ("pulls_url", "/pulls{/number}"),
    ("releases_url", "/releases{/id}"),
    ("stargazers_url", "/stargazers"),
    ("statuses_url", "/statuses/{sha}"),
    ("subscribers_url", "/subscribers"),
    ("subscription_url", "/subscription"),
    ("tags_url", "/tags"),
    ("teams_url", "/teams"),
    ("trees_url", "/git/trees{/sha}"),
    ("url", ""),
];

/// The address fields of a user, with their paths below its own address.
const USER_URLS: [(&str, &str); 10] = [
    ("events_url", "/events{/privacy}"),
    ("followers_url", "/followers"),
    ("following_url", "/following{/other_user}"),
    ("gists_url", "/gists{/gist_id}"),
    ("organizations_url", "/orgs"),
    ("received_events_url", "/received_events"),
    ("repos_url", "/repos"),
    ("starred_url", "/starred{/owner}{/repo}"),
    ("subscriptions_url", "/subscriptions"),
    ("url", ""),
];

fn with_urls(mut object: Value, base: &str, urls: &[(&str, &str)]) -> Value {
    if let Value::Object(map) = &mut object {
        map.extend(urls.iter().map(|(name, rest)| ((*name).to_owned(), format!("{base}{rest}").into())));
    }
    object
}

fn links(urls: &[(&str, &str)]) -> Value {
    urls.iter().map(|(name, url)| ((*name).to_owned(), json!({"href": url}))).collect::<Map<_, _>>().into()
}

/// Merges objects; one `json!` call is limited in its number of fields.
fn merged(parts: impl IntoIterator<Item = Value>) -> Value {
    let fields = parts.into_iter().filter_map(|part| if let Value::Object(map) = part { Some(map) } else { None });
    Value::Object(fields.flatten().collect())
}

/// The reactions that users may choose.
fn reactions(url: &str) -> Value {
    json!({"url": format!("{url}/reactions"), "total_count": 0, "+1": 0, "-1": 0, "laugh": 0, "hooray": 0, "confused": 0, "heart": 0, "rocket": 0, "eyes": 0})
}

impl State {
    /// Returns an address below the repository in the API.
    pub(super) fn api(&self, rest: &str) -> String {
        format!("{}/repos/{}/{}{rest}", self.url(), self.settings.owner, self.settings.repository)
    }

    /// Returns an address below the repository for browsers.
    fn page(&self, rest: &str) -> String {
        format!("{}/{}/{}{rest}", self.url(), self.settings.owner, self.settings.repository)
    }

    pub(super) fn user_json(&self, login: &str) -> Value {
        let id = self.settings.users.iter().position(|user| user.login == login).map_or(9999, |at| at as u64 + 1);
        let user = json!({"login": login, "id": id, "node_id": format!("U_{id}"), "type": "User", "site_admin": false, "gravatar_id": "",
            "html_url": format!("{}/{login}", self.url()), "avatar_url": format!("{}/{login}.png", self.url())});
        with_urls(user, &format!("{}/users/{login}", self.url()), &USER_URLS)
    }

    /// Returns the authenticated user, with the fields that only the profile has.
    pub(super) fn profile_json(&self, login: &str) -> Value {
        let mut user = self.user_json(login);
        if let Value::Object(map) = &mut user {
            let none = ["name", "company", "blog", "location", "email", "hireable", "bio"]
                .map(|name| (name.to_owned(), Value::Null));
            let zero =
                ["public_repos", "public_gists", "followers", "following"].map(|name| (name.to_owned(), 0.into()));
            map.extend(none.into_iter().chain(zero));
            map.extend([
                ("user_view_type".to_owned(), "public".into()),
                ("created_at".to_owned(), "2020-01-01T00:00:00Z".into()),
                ("updated_at".to_owned(), "2020-01-01T00:00:00Z".into()),
            ]);
        }
        user
    }

    /// A user with a permission on this repository.
    pub(super) fn collaborator_json(&self, user: &super::settings::User) -> Value {
        let may = |words: &[&str]| words.contains(&user.permission.as_str());
        let mut json = self.user_json(&user.login);
        json["role_name"] = user.permission.as_str().into();
        json["permissions"] = json!({"pull": true, "triage": may(&["triage", "write", "maintain", "admin"]), "push": may(&["write", "maintain", "admin"]), "maintain": may(&["maintain", "admin"]), "admin": may(&["admin"])});
        json
    }

    /// Returns the repository with the fields that appear only in its own response.
    pub(super) fn whole_repository_json(&self) -> Value {
        merged([self.repository_json(), json!({"network_count": 0, "subscribers_count": 0})])
    }

    pub(super) fn repository_json(&self) -> Value {
        let (owner, name) = (&self.settings.owner, &self.settings.repository);
        let open = self.records.pulls.values().filter(|pull| pull.open).count();
        let at = "2020-01-01T00:00:00Z";
        let repository = json!({
            "id": 1, "node_id": "R_1", "name": name, "full_name": format!("{owner}/{name}"), "private": true, "visibility": "private", "fork": false,
            "owner": self.user_json(owner), "description": null, "homepage": null, "language": null, "license": null, "mirror_url": null, "topics": [],
            "default_branch": "main", "master_branch": "main", "html_url": self.page(""), "clone_url": self.page(".git"), "git_url": self.page(".git"), "ssh_url": self.page(".git"), "svn_url": self.page(""),
        });
        let counts = json!({
            "forks": 0, "forks_count": 0, "open_issues": open, "open_issues_count": open, "watchers": 0, "watchers_count": 0, "stargazers_count": 0, "size": 0,
        });
        let sorts = json!({
            "has_issues": true, "has_projects": false, "has_wiki": false, "has_pages": false, "has_downloads": false, "has_discussions": false,
            "archived": false, "disabled": false, "is_template": false, "custom_properties": {}, "web_commit_signoff_required": false, "allow_forking": false, "permissions": {"admin": false, "push": true, "pull": true},
            "created_at": at, "updated_at": at, "pushed_at": at,
        });
        with_urls(merged([repository, counts, sorts]), &self.api(""), &REPOSITORY_URLS)
    }

    /// Returns a pull request with all fields, also the computed ones.
    pub(super) fn pull_json(&self, number: u64) -> Answer<Value> {
        let pull = self.pull(number)?;
        let files = self.files(number).unwrap_or_default();
        let sum = |name: &str| files.iter().filter_map(|file| file[name].as_u64()).sum::<u64>();
        let comments = self.records.comments.iter().filter(|comment| comment.pull == number).count();
        let more = json!({
            "merged": pull.merged_as.is_some(), "merged_by": pull.merged_by.as_ref().map(|login| self.user_json(login)),
            "mergeable": if pull.open { json!(true) } else { Value::Null }, "mergeable_state": if pull.open { "clean" } else { "unknown" }, "rebaseable": null, "maintainer_can_modify": false,
            "comments": comments, "review_comments": 0, "commits": self.commits(number).map_or(0, |commits| commits.len()), "additions": sum("additions"), "deletions": sum("deletions"), "changed_files": files.len(),
        });
        Ok(merged([self.listed_pull_json(number)?, more]))
    }

    /// Returns a pull request with the fields of a list entry.
    pub(super) fn listed_pull_json(&self, number: u64) -> Answer<Value> {
        let pull = self.pull(number)?;
        let (url, html) = (self.api(&format!("/pulls/{number}")), self.page(&format!("/pull/{number}")));
        let issue = self.api(&format!("/issues/{number}"));
        let side = |branch: &str, sha: &str| json!({"label": format!("{}:{branch}", self.settings.owner), "ref": branch, "sha": sha, "user": self.user_json(&self.settings.owner), "repo": self.repository_json()});
        let base_head = self.head_of(&pull.base).unwrap_or_default();
        let statuses = self.api(&format!("/statuses/{}", pull.head));
        Ok(json!({
            "id": number, "node_id": format!("PR_{number}"), "number": number, "state": if pull.open { "open" } else { "closed" }, "locked": false, "active_lock_reason": null, "draft": pull.draft,
            "title": pull.title, "body": pull.body, "user": self.user_json(&pull.author), "author_association": "MEMBER",
            "head": side(&pull.branch, &pull.head), "base": side(&pull.base, &base_head),
            "labels": [], "assignee": null, "assignees": [], "milestone": null, "requested_reviewers": [], "requested_teams": [], "auto_merge": null,
            "merged_at": pull.merged_at, "merge_commit_sha": pull.merged_as,
            "created_at": pull.created_at, "updated_at": pull.updated_at, "closed_at": if pull.open { Value::Null } else { json!(pull.updated_at) },
            "url": url, "html_url": html, "diff_url": format!("{html}.diff"), "patch_url": format!("{html}.patch"), "issue_url": issue, "commits_url": format!("{url}/commits"),
            "review_comments_url": format!("{url}/comments"), "review_comment_url": self.api("/pulls/comments{/number}"), "comments_url": format!("{issue}/comments"), "statuses_url": statuses,
            "_links": links(&[("self", &url), ("html", &html), ("issue", &issue), ("comments", &format!("{issue}/comments")), ("review_comments", &format!("{url}/comments")), ("review_comment", &self.api("/pulls/comments{/number}")), ("commits", &format!("{url}/commits")), ("statuses", &statuses)]),
        }))
    }

    /// Returns a pull request in the form of an issue.
    pub(super) fn issue_json(&self, number: u64) -> Answer<Value> {
        let pull = self.pull(number)?;
        let (url, html, as_pull) = (
            self.api(&format!("/issues/{number}")),
            self.page(&format!("/pull/{number}")),
            self.api(&format!("/pulls/{number}")),
        );
        let comments = self.records.comments.iter().filter(|comment| comment.pull == number).count();
        Ok(json!({
            "id": number, "node_id": format!("PR_{number}"), "number": number, "title": pull.title, "body": pull.body, "user": self.user_json(&pull.author), "author_association": "MEMBER",
            "state": if pull.open { "open" } else { "closed" }, "locked": false, "active_lock_reason": null, "labels": [], "assignee": null, "assignees": [], "milestone": null, "comments": comments,
            "created_at": pull.created_at, "updated_at": pull.updated_at, "closed_at": if pull.open { Value::Null } else { json!(pull.updated_at) },
            "url": url, "html_url": html, "repository_url": self.api(""), "labels_url": format!("{url}/labels{{/name}}"), "comments_url": format!("{url}/comments"), "events_url": format!("{url}/events"),
            "reactions": reactions(&url), "timeline_url": format!("{url}/timeline"), "performed_via_github_app": null, "draft": pull.draft,
            "pull_request": {"url": as_pull, "html_url": html, "diff_url": format!("{html}.diff"), "patch_url": format!("{html}.patch"), "merged_at": pull.merged_at},
        }))
    }

    pub(super) fn comment_json(&self, comment: &Comment) -> Value {
        let url = self.api(&format!("/issues/comments/{}", comment.id));
        json!({"id": comment.id, "node_id": format!("IC_{}", comment.id), "body": comment.body, "user": self.user_json(&comment.author), "author_association": "MEMBER",
            "created_at": comment.created_at, "updated_at": comment.updated_at, "performed_via_github_app": null, "reactions": reactions(&url),
            "url": url, "html_url": self.page(&format!("/pull/{}#issuecomment-{}", comment.pull, comment.id)), "issue_url": self.api(&format!("/issues/{}", comment.pull))})
    }

    pub(super) fn review_json(&self, review: &Review) -> Value {
        let (pull, html) = (
            self.api(&format!("/pulls/{}", review.pull)),
            self.page(&format!("/pull/{}#pullrequestreview-{}", review.pull, review.id)),
        );
        json!({"id": review.id, "node_id": format!("PRR_{}", review.id), "user": self.user_json(&review.author), "body": review.body, "state": review.state, "commit_id": review.commit,
            "submitted_at": review.at, "author_association": "MEMBER", "html_url": html, "pull_request_url": pull, "_links": links(&[("html", &html), ("pull_request", &pull)])})
    }

    /// Returns a commit with the fields of a push event.
    fn pushed_json(&self, sha: &str) -> Value {
        let found = self.repository().ok().and_then(|repository| {
            let commit = repository.find_commit(git2::Oid::from_str(sha).ok()?).ok()?;
            let at = chrono::DateTime::from_timestamp(commit.time().seconds(), 0).unwrap_or_default();
            let author = commit.author();
            let person = json!({"name": author.name().unwrap_or_default(), "email": author.email().ok()});
            Some(json!({"id": sha, "tree_id": commit.tree_id().to_string(), "distinct": true, "message": commit.message().unwrap_or_default(), "timestamp": at,
                "url": self.page(&format!("/commit/{sha}")), "author": person, "committer": person, "added": [], "removed": [], "modified": []}))
        });
        found.unwrap_or_default()
    }

    /// Returns the push event of a branch that moved, appeared or was deleted.
    pub(super) fn push_json(&self, branch: &str, old: Option<&String>, new: Option<&String>, by: &str) -> Value {
        let none = "0".repeat(40);
        let (before, after) = (old.unwrap_or(&none), new.unwrap_or(&none));
        let head = new.map(|sha| self.pushed_json(sha)).unwrap_or_default();
        json!({"ref": format!("refs/heads/{branch}"), "before": before, "after": after, "created": old.is_none(), "deleted": new.is_none(), "forced": false, "base_ref": null,
            "compare": self.page(&format!("/compare/{before}...{after}")), "commits": [], "head_commit": head, "pusher": {"name": by, "email": null}})
    }

    pub(super) fn status_json(&self, status: &Status) -> Value {
        json!({"id": status.id, "node_id": format!("SC_{}", status.id), "state": status.state, "context": status.context, "description": status.description, "target_url": null, "required": false,
            "avatar_url": format!("{}/{}.png", self.url(), status.author), "url": self.api(&format!("/statuses/{}", status.sha)), "creator": self.user_json(&status.author), "created_at": status.at, "updated_at": status.at})
    }

    /// Returns a check run with the fields that its creator sent.
    pub(super) fn check_json(&self, status: &Status) -> Value {
        let made = status.check.clone().unwrap_or_default();
        let (url, is_over) = (self.api(&format!("/check-runs/{}", status.id)), made["status"] == "completed");
        let output = |name: &str| made["output"].get(name).cloned().unwrap_or_default();
        json!({"id": status.id, "node_id": format!("CR_{}", status.id), "name": made["name"], "head_sha": status.sha, "external_id": made.get("external_id").cloned().unwrap_or_else(|| "".into()),
            "status": made.get("status").cloned().unwrap_or_else(|| "queued".into()), "conclusion": made.get("conclusion").cloned().unwrap_or_default(),
            "started_at": status.at, "completed_at": if is_over { json!(status.at) } else { Value::Null }, "check_suite": {"id": 1}, "app": null, "pull_requests": [],
            "output": {"title": output("title"), "summary": output("summary"), "text": output("text"), "annotations_count": 0, "annotations_url": format!("{url}/annotations")},
            "url": url, "html_url": self.page(&format!("/runs/{}", status.id)), "details_url": made.get("details_url").cloned().unwrap_or_default()})
    }

    /// Returns a file with each of its addresses.
    pub(super) fn content_json(&self, path: &str, sha: &str, content: &[u8]) -> Value {
        let (url, git, html) = (
            self.api(&format!("/contents/{path}")),
            self.api(&format!("/git/blobs/{sha}")),
            self.page(&format!("/blob/main/{path}")),
        );
        json!({"type": "file", "encoding": "base64", "size": content.len(), "name": path.rsplit('/').next(), "path": path, "sha": sha,
            "content": base64::Engine::encode(&base64::engine::general_purpose::STANDARD, content),
            "url": url, "git_url": git, "html_url": html, "download_url": null, "_links": {"self": url, "git": git, "html": html}})
    }
}
