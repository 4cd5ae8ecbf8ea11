//! Implements the REST endpoints that the client uses, with GitHub's field names.

use super::{
    Shared,
    state::{Answer, Refusal, Status},
};
use crate::forge::extract::{Body, Caller};
use axum::{
    Json, Router,
    extract::{Path, Query, State as Extract},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, patch, post, put},
};
use chrono::Utc;
use serde::Deserialize;
use serde_json::{Value, json};

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(json!({"message": self.1, "documentation_url": "", "status": self.0.to_string()})))
            .into_response()
    }
}

/// Returns whether this forge serves a repository.
pub(super) async fn is_here(shared: &Shared, owner: &str, repository: &str) -> bool {
    let state = shared.lock().await;
    state.settings.owner.eq_ignore_ascii_case(owner)
        && state.settings.repository.eq_ignore_ascii_case(repository.trim_end_matches(".git"))
}

type Numbered = Path<(String, String, u64)>;

type Named = Path<(String, String, String)>;

pub(super) fn routes() -> Router<Shared> {
    let at = |rest: &str| format!("/repos/{{owner}}/{{repository}}{rest}");
    Router::new()
        .route(
            "/user",
            get(|Extract(shared): Extract<Shared>, caller: Caller| async move {
                Json(shared.lock().await.profile_json(&caller.0.login))
            }),
        )
        .route(
            &at(""),
            get(|Extract(shared): Extract<Shared>, _: Caller| async move {
                Json(shared.lock().await.whole_repository_json())
            }),
        )
        .route(&at("/contents/{*path}"), get(contents))
        .route(&at("/git/ref/heads/{*branch}"), get(git_ref))
        .route(&at("/pulls"), get(list_pulls).post(open_pull))
        .route(&at("/pulls/{number}"), get(get_pull).patch(edit_pull))
        .route(
            &at("/pulls/{number}/files"),
            get(|Extract(s): Extract<Shared>, _: Caller, Path((_, _, n)): Numbered| async move {
                Ok::<_, Refusal>(Json(Value::from(s.lock().await.files(n)?)))
            }),
        )
        .route(
            &at("/pulls/{number}/commits"),
            get(|Extract(s): Extract<Shared>, _: Caller, Path((_, _, n)): Numbered| async move {
                Ok::<_, Refusal>(Json(Value::from(s.lock().await.commits(n)?)))
            }),
        )
        .route(&at("/pulls/{number}/reviews"), get(list_reviews).post(review))
        .route(&at("/pulls/{number}/merge"), put(merge))
        .route(&at("/issues/{number}/comments"), get(list_comments).post(comment))
        .route(&at("/issues/comments/{id}"), patch(edit_comment).get(get_comment))
        .route(&at("/statuses/{sha}"), post(set_status))
        .route(&at("/commits/{sha}/status"), get(combined))
        .route(&at("/commits/{sha}/statuses"), get(statuses))
        .route(&at("/commits/{sha}/check-runs"), get(check_runs))
        .route(&at("/check-runs"), post(check_run))
        .route(&at("/collaborators/{login}/permission"), get(permission))
        .route("/orgs/{organisation}/teams/{team}/memberships/{login}", get(membership))
        .route("/orgs/{organisation}/teams/{team}/members", get(members))
        .route("/graphql", post(super::graphql::answer))
}

#[derive(Deserialize)]
struct Listing {
    state: Option<String>,
    head: Option<String>,
    base: Option<String>,
    page: Option<usize>,
    per_page: Option<usize>,
    r#ref: Option<String>,
}

impl Listing {
    fn part<T>(&self, items: Vec<T>) -> Vec<T> {
        let size = self.per_page.unwrap_or(30).clamp(1, 100);
        items.into_iter().skip((self.page.unwrap_or(1).max(1) - 1) * size).take(size).collect()
    }
}

async fn contents(
    Extract(shared): Extract<Shared>,
    _: Caller,
    Path((_, _, path)): Named,
    Query(listing): Query<Listing>,
) -> Body {
    let state = shared.lock().await;
    let repository = state.repository()?;
    let name = listing.r#ref.clone().unwrap_or_else(|| "main".into());
    let missing = || Refusal(404, "Not Found".into());
    let commit = repository.revparse_single(&name).map_err(|_| missing())?.peel_to_commit()?;
    let entry = commit.tree()?.get_path(std::path::Path::new(&path)).map_err(|_| missing())?;
    let blob = repository.find_blob(entry.id()).map_err(|_| missing())?;
    Ok(Json(state.content_json(&path, &entry.id().to_string(), blob.content())))
}

async fn git_ref(Extract(shared): Extract<Shared>, _: Caller, Path((_, _, branch)): Named) -> Body {
    let state = shared.lock().await;
    let head = state.head_of(&branch).map_err(|_| Refusal(404, "Not Found".into()))?;
    let (url, commit) = (state.api(&format!("/git/refs/heads/{branch}")), state.api(&format!("/git/commits/{head}")));
    Ok(Json(
        json!({"ref": format!("refs/heads/{branch}"), "node_id": format!("REF_{branch}"), "url": url, "object": {"type": "commit", "sha": head, "url": commit}}),
    ))
}

async fn list_pulls(Extract(shared): Extract<Shared>, _: Caller, Query(listing): Query<Listing>) -> Body {
    let mut state = shared.lock().await;
    state.look("somebody")?;
    let wanted = listing.state.clone().unwrap_or_else(|| "open".into());
    let branch =
        listing.head.as_deref().map(|head| head.rsplit_once(':').map_or(head, |(_, branch)| branch).to_owned());
    let mut pulls: Vec<_> = state
        .records
        .pulls
        .values()
        .filter(|pull| match wanted.as_str() {
            "open" => pull.open,
            "closed" => !pull.open,
            _ => true,
        })
        .filter(|pull| {
            branch.as_ref().is_none_or(|branch| pull.branch == *branch)
                && listing.base.as_ref().is_none_or(|base| pull.base == *base)
        })
        .map(|pull| (pull.updated_at, pull.number))
        .collect();
    pulls.sort_by(|a, b| b.cmp(a));
    let part = listing
        .part(pulls)
        .into_iter()
        .map(|(_, number)| state.listed_pull_json(number))
        .collect::<Answer<Vec<_>>>()?;
    Ok(Json(part.into()))
}

async fn open_pull(
    Extract(shared): Extract<Shared>,
    caller: Caller,
    Path(_): Path<(String, String)>,
    Json(body): Json<Value>,
) -> Answer<(StatusCode, Json<Value>)> {
    caller.writes()?;
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    let mut state = shared.lock().await;
    state.look(&caller.0.login)?;
    let number = state.open_pull(
        &caller.0.login,
        &text("head"),
        &text("base"),
        &text("title"),
        &text("body"),
        body["draft"].as_bool().unwrap_or(false),
    )?;
    Ok((StatusCode::CREATED, Json(state.pull_json(number)?)))
}

async fn get_pull(Extract(shared): Extract<Shared>, _: Caller, Path((_, _, number)): Numbered) -> Body {
    let mut state = shared.lock().await;
    state.look("somebody")?;
    Ok(Json(state.pull_json(number)?))
}

async fn edit_pull(
    Extract(shared): Extract<Shared>,
    caller: Caller,
    Path((_, _, number)): Numbered,
    Json(body): Json<Value>,
) -> Body {
    caller.writes()?;
    let mut state = shared.lock().await;
    state.edit_pull(number, &caller.0.login, &body)?;
    Ok(Json(state.pull_json(number)?))
}

async fn list_reviews(Extract(shared): Extract<Shared>, _: Caller, Path((_, _, number)): Numbered) -> Body {
    let state = shared.lock().await;
    state.pull(number)?;
    Ok(Json(
        state
            .records
            .reviews
            .iter()
            .filter(|review| review.pull == number)
            .map(|review| state.review_json(review))
            .collect(),
    ))
}

async fn review(
    Extract(shared): Extract<Shared>,
    caller: Caller,
    Path((_, _, number)): Numbered,
    Json(body): Json<Value>,
) -> Body {
    let word = match body["event"].as_str() {
        Some("APPROVE") => "APPROVED",
        Some("REQUEST_CHANGES") => "CHANGES_REQUESTED",
        _ => "COMMENTED",
    };
    let mut state = shared.lock().await;
    let review = state.review(number, &caller.0.login, word, body["body"].as_str().unwrap_or_default())?;
    Ok(Json(state.review_json(&review)))
}

async fn merge(
    Extract(shared): Extract<Shared>,
    caller: Caller,
    Path((_, _, number)): Numbered,
    body: Option<Json<Value>>,
) -> Body {
    caller.writes()?;
    let expected = body.and_then(|Json(body)| body["sha"].as_str().map(str::to_owned));
    let merged = shared.lock().await.merge(number, &caller.0.login, expected.as_deref())?;
    Ok(Json(json!({"sha": merged, "merged": true, "message": "Pull Request successfully merged"})))
}

async fn list_comments(
    Extract(shared): Extract<Shared>,
    _: Caller,
    Path((_, _, number)): Numbered,
    Query(listing): Query<Listing>,
) -> Body {
    let state = shared.lock().await;
    state.pull(number)?;
    let all: Vec<Value> = state
        .records
        .comments
        .iter()
        .filter(|comment| comment.pull == number)
        .map(|comment| state.comment_json(comment))
        .collect();
    Ok(Json(listing.part(all).into()))
}

async fn comment(
    Extract(shared): Extract<Shared>,
    caller: Caller,
    Path((_, _, number)): Numbered,
    Json(body): Json<Value>,
) -> Answer<(StatusCode, Json<Value>)> {
    let mut state = shared.lock().await;
    let comment = state.comment(number, &caller.0.login, body["body"].as_str().unwrap_or_default())?;
    Ok((StatusCode::CREATED, Json(state.comment_json(&comment))))
}

async fn get_comment(Extract(shared): Extract<Shared>, _: Caller, Path((_, _, id)): Numbered) -> Body {
    let state = shared.lock().await;
    let comment = state
        .records
        .comments
        .iter()
        .find(|comment| comment.id == id)
        .ok_or_else(|| Refusal(404, "Not Found".into()))?;
    Ok(Json(state.comment_json(comment)))
}

async fn edit_comment(
    Extract(shared): Extract<Shared>,
    caller: Caller,
    Path((_, _, id)): Numbered,
    Json(body): Json<Value>,
) -> Body {
    let mut state = shared.lock().await;
    let text = body["body"].as_str().unwrap_or_default().to_owned();
    let comment = state
        .records
        .comments
        .iter_mut()
        .find(|comment| comment.id == id)
        .ok_or_else(|| Refusal(404, "Not Found".into()))?;
    if !comment.author.eq_ignore_ascii_case(&caller.0.login) && caller.0.permission != "admin" {
        return Err(Refusal(403, "Must have admin rights to Repository.".into()));
    }
    comment.body = text;
    comment.updated_at = Utc::now();
    let comment = comment.clone();
    state.save()?;
    Ok(Json(state.comment_json(&comment)))
}

async fn set_status(
    Extract(shared): Extract<Shared>,
    caller: Caller,
    Path((_, _, sha)): Named,
    Json(body): Json<Value>,
) -> Answer<(StatusCode, Json<Value>)> {
    caller.writes()?;
    let word = body["state"].as_str().unwrap_or_default().to_owned();
    if !matches!(word.as_str(), "error" | "failure" | "pending" | "success") {
        return Err(Refusal(422, "Validation Failed: state is not included in the list".into()));
    }
    let mut state = shared.lock().await;
    let repository = state.repository()?;
    repository
        .find_commit(git2::Oid::from_str(&sha)?)
        .map_err(|_| Refusal(422, format!("No commit found for SHA: {sha}")))?;
    drop(repository);
    let description = body["description"].as_str().unwrap_or_default().to_owned();
    if description.chars().count() > 140 {
        return Err(Refusal(422, "Validation Failed: description is too long (maximum is 140 characters)".into()));
    }
    let context = body["context"].as_str().unwrap_or("default").to_owned();
    let status = Status {
        id: state.id(),
        sha,
        context,
        state: word,
        description,
        author: caller.0.login,
        at: Utc::now(),
        check: None,
    };
    state.records.statuses.push(status.clone());
    state.save()?;
    Ok((StatusCode::CREATED, Json(state.status_json(&status))))
}

async fn combined(Extract(shared): Extract<Shared>, _: Caller, Path((_, _, sha)): Named) -> Body {
    let state = shared.lock().await;
    let newest = state.statuses_of(&sha);
    let word = if newest.iter().any(|s| s.state == "failure" || s.state == "error") {
        "failure"
    } else if newest.is_empty() || newest.iter().any(|s| s.state == "pending") {
        "pending"
    } else {
        "success"
    };
    let list: Vec<Value> = newest.iter().map(|status| state.status_json(status)).collect();
    Ok(Json(
        json!({"state": word, "sha": sha, "total_count": list.len(), "statuses": list, "repository": state.repository_json(), "commit_url": state.api(&format!("/commits/{sha}")), "url": state.api(&format!("/commits/{sha}/status"))}),
    ))
}

async fn statuses(Extract(shared): Extract<Shared>, _: Caller, Path((_, _, sha)): Named) -> Body {
    let state = shared.lock().await;
    Ok(Json(
        state
            .records
            .statuses
            .iter()
            .rev()
            .filter(|status| status.sha == sha && status.check.is_none())
            .map(|status| state.status_json(status))
            .collect(),
    ))
}

async fn check_runs(Extract(shared): Extract<Shared>, _: Caller, Path((_, _, sha)): Named) -> Body {
    let state = shared.lock().await;
    let runs: Vec<Value> = state
        .records
        .statuses
        .iter()
        .filter(|status| status.sha == sha && status.check.is_some())
        .map(|status| state.check_json(status))
        .collect();
    Ok(Json(json!({"total_count": runs.len(), "check_runs": runs})))
}

async fn check_run(
    Extract(shared): Extract<Shared>,
    caller: Caller,
    Json(body): Json<Value>,
) -> Answer<(StatusCode, Json<Value>)> {
    caller.writes()?;
    let mut state = shared.lock().await;
    let id = state.id();
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    let word = match (body["status"].as_str(), body["conclusion"].as_str()) {
        (_, Some("success" | "neutral" | "skipped")) => "success",
        (_, Some(_)) => "failure",
        _ => "pending",
    };
    let status = Status {
        id,
        sha: text("head_sha"),
        context: text("name"),
        state: word.into(),
        description: body["output"]["title"].as_str().unwrap_or_default().into(),
        author: caller.0.login,
        at: Utc::now(),
        check: Some(body),
    };
    state.records.statuses.push(status.clone());
    state.save()?;
    Ok((StatusCode::CREATED, Json(state.check_json(&status))))
}

async fn permission(Extract(shared): Extract<Shared>, _: Caller, Path((_, _, login)): Named) -> Body {
    let state = shared.lock().await;
    let user = state.user(&login).ok_or_else(|| Refusal(404, format!("{login} is not a user")))?;
    let word = match user.permission.as_str() {
        "maintain" => "write",
        "triage" => "read",
        word => word,
    };
    Ok(Json(json!({"permission": word, "role_name": user.permission, "user": state.collaborator_json(user)})))
}

async fn membership(Extract(shared): Extract<Shared>, _: Caller, Path((_, team, login)): Named) -> Body {
    let state = shared.lock().await;
    let there = state
        .settings
        .teams
        .get(&team)
        .is_some_and(|members| members.iter().any(|member| member.eq_ignore_ascii_case(&login)));
    if there {
        Ok(Json(
            json!({"url": format!("{}/teams/{team}/memberships/{login}", state.url()), "role": "member", "state": "active"}),
        ))
    } else {
        Err(Refusal(404, "Not Found".into()))
    }
}

async fn members(Extract(shared): Extract<Shared>, _: Caller, Path((_, team)): Path<(String, String)>) -> Body {
    let state = shared.lock().await;
    let members = state.settings.teams.get(&team).ok_or_else(|| Refusal(404, "Not Found".into()))?;
    Ok(Json(members.iter().map(|login| state.user_json(login)).collect()))
}
