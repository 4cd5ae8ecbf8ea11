//! Implements the forge port with octocrab, for GitHub, GitHub Enterprise and the embedded forge.
//!
//! Retries reads a few times. Never blindly repeats a write: each write first searches for its marker, so that
//! the caller may try it again. Every request has a time limit, and every list a maximum length. Types of
//! octocrab stay in this module.
//! *Race:* two writers of one comment: only the outbox writes, and a second attempt finds the marker of the
//! first.

mod rate_limit;
mod wire;

use std::{path::PathBuf, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use http_body_util::BodyExt;
use octocrab::{Octocrab, models::AppId};
use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::{
    model::{Backoff, PullNumber, Retry, Revision},
    ports::{Comment, Forge, ForgeError, Pull, Review},
};

/// The maximum wait for a connection, and for the next bytes.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The maximum number of attempts of a read.
const ATTEMPTS_MAX: u32 = 4;
/// The maximum number of pages that are read of a list, with 100 entries each.
const PAGES_MAX: u32 = 30;
const PER_PAGE: u32 = 100;

/// The credentials of the client.
#[derive(Clone)]
pub enum Auth {
    /// A token.
    Token(SecretString),
    /// A GitHub App.
    App {
        /// The id of the App.
        id: u64,
        /// The file of the private key.
        key: PathBuf,
    },
}

/// The client for one repository.
pub struct GitHub {
    base: String,
    owner: String,
    repository: String,
    auth: Auth,
    clients: OnceCell<Clients>,
}

/// The octocrab clients, and the login that the forge reported for their credentials.
struct Clients {
    rest: Octocrab,
    graphql: Octocrab,
    login: String,
}

fn failed(attempt: &str, why: impl ToString) -> ForgeError {
    ForgeError {
        attempt: attempt.to_owned(),
        status: None,
        why: why.to_string(),
        retry: Retry::After(Backoff::REMOTE),
        not_before: None,
    }
}

impl GitHub {
    /// Returns the client of a repository at a base address, such as `https://api.github.com`. Sends no request yet,
    /// so that a daemon can start while its forge is unreachable.
    pub fn new(base: &str, owner: &str, repository: &str, auth: Auth) -> Self {
        Self {
            base: base.trim_end_matches('/').to_owned(),
            owner: owner.to_owned(),
            repository: repository.to_owned(),
            auth,
            clients: OnceCell::new(),
        }
    }

    async fn clients(&self) -> Result<&Clients, ForgeError> {
        self.clients.get_or_try_init(|| self.connect()).await
    }

    /// Authenticates, and asks the forge for the login of the client.
    async fn connect(&self) -> Result<Clients, ForgeError> {
        let attempt = "connect to the forge";
        // GitHub Enterprise serves REST below `/api/v3` and GraphQL beside it.
        let graphql_base = self.base.strip_suffix("/v3").unwrap_or(&self.base);
        let builder = |base: &str| -> Result<_, ForgeError> {
            Ok(Octocrab::builder()
                .base_uri(base)
                .map_err(|error| failed(attempt, error))?
                .set_connect_timeout(Some(TIMEOUT))
                .set_read_timeout(Some(TIMEOUT))
                .set_write_timeout(Some(TIMEOUT)))
        };
        match &self.auth {
            Auth::Token(token) => {
                let with = |base: &str| {
                    builder(base)?.personal_token(token.clone()).build().map_err(|error| failed(attempt, error))
                };
                let rest = with(&self.base)?;
                let user: wire::User =
                    rest.get("/user", None::<&()>).await.map_err(|error| message("ask who we are", &error))?;
                Ok(Clients { rest, graphql: with(graphql_base)?, login: user.login })
            }
            Auth::App { id, key } => {
                let pem = std::fs::read(key).map_err(|error| {
                    failed(attempt, format!("the key `{}` could not be read: {error}", key.display()))
                })?;
                let with = |base: &str| {
                    builder(base)?
                        .app_from_rsa_pem(AppId(*id), &pem)
                        .map_err(|error| failed(attempt, error))?
                        .build()
                        .map_err(|error| failed(attempt, error))
                };
                let app = with(&self.base)?;
                // This request needs the credentials of the App itself; the token of an installation is not sufficient.
                let found: wire::Installation = app
                    .get(self.route("installation"), None::<&()>)
                    .await
                    .map_err(|error| message("find the App's installation on the repository", &error))?;
                let rest = app.installation(found.id.into()).map_err(|error| message(attempt, &error))?;
                let graphql =
                    with(graphql_base)?.installation(found.id.into()).map_err(|error| message(attempt, &error))?;
                Ok(Clients { rest, graphql, login: format!("{}[bot]", found.app_slug) })
            }
        }
    }

    fn route(&self, rest: &str) -> String {
        format!("/repos/{}/{}/{rest}", self.owner, self.repository)
    }

    /// Reads a route, and retries temporary errors.
    async fn read<T: DeserializeOwned>(&self, attempt: &str, route: &str) -> Result<T, ForgeError> {
        let mut tries = 0;
        loop {
            let answer = match self.clients().await {
                Ok(clients) => taken(attempt, clients.rest._get(route).await).await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    tries += 1;
                    let not_yet = error.not_before.map(|at| at - Utc::now());
                    if let Some(wait) = not_yet.filter(|wait| *wait <= rate_limit::WAIT_MAX && tries < ATTEMPTS_MAX) {
                        tokio::time::sleep(wait.to_std().unwrap_or_default()).await;
                        continue;
                    }
                    let limited = not_yet.is_some() || matches!(error.status, Some(401 | 403 | 404));
                    match error.retry {
                        Retry::After(backoff) if tries < ATTEMPTS_MAX && !limited => {
                            tokio::time::sleep(backoff.wait(tries).std() / 8).await
                        }
                        _ => return Err(error),
                    }
                }
            }
        }
    }

    async fn pages<T: DeserializeOwned>(&self, attempt: &str, route: &str, pages: u32) -> Result<Vec<T>, ForgeError> {
        let mut all = vec![];
        let joint = if route.contains('?') { '&' } else { '?' };
        for page in 1..=pages {
            let part: Vec<T> = self.read(attempt, &format!("{route}{joint}per_page={PER_PAGE}&page={page}")).await?;
            let last = part.len() < PER_PAGE as usize;
            all.extend(part);
            if last {
                return Ok(all);
            }
        }
        Ok(all)
    }

    async fn write<B: Serialize + Send + Sync, T: DeserializeOwned>(
        &self,
        attempt: &str,
        method: Method,
        route: &str,
        body: &B,
    ) -> Result<T, ForgeError> {
        let rest = &self.clients().await?.rest;
        let done = match method {
            Method::Post => rest._post(route, Some(body)).await,
            Method::Patch => rest._patch(route, Some(body)).await,
        };
        taken(attempt, done).await
    }
}

#[derive(Clone, Copy)]
enum Method {
    Post,
    Patch,
}

/// Converts an error of octocrab.
fn message(attempt: &str, error: &octocrab::Error) -> ForgeError {
    match error {
        octocrab::Error::GitHub { source, .. } => {
            let errors = source.errors.iter().flatten().cloned().collect();
            let refusal = wire::Refusal { message: source.message.clone(), errors };
            refused(attempt, source.status_code.as_u16(), &refusal, None)
        }
        other => failed(attempt, crate::error_chain(other)),
    }
}

type Answer = http::Response<http_body_util::combinators::BoxBody<bytes::Bytes, octocrab::Error>>;

/// Decodes a response, or converts it to an error. The errors of octocrab lack the headers, which contain the end
/// of a rate limit.
async fn taken<T: DeserializeOwned>(attempt: &str, answer: Result<Answer, octocrab::Error>) -> Result<T, ForgeError> {
    let (parts, body) = answer.map_err(|error| message(attempt, &error))?.into_parts();
    let body = body.collect().await.map_err(|error| message(attempt, &error))?.to_bytes();
    if parts.status.is_success() {
        return serde_json::from_slice(&body)
            .map_err(|error| failed(attempt, format!("the forge's answer can't be read: {error}")));
    }
    let error: wire::Refusal = serde_json::from_slice(&body).unwrap_or_default();
    Err(refused(attempt, parts.status.as_u16(), &error, rate_limit::ends(&parts.headers)))
}

/// Converts a refused request to an error that states when to retry.
fn refused(attempt: &str, status: u16, refusal: &wire::Refusal, ends: Option<DateTime<Utc>>) -> ForgeError {
    let details: Vec<String> = refusal.errors.iter().take(3).map(Value::to_string).collect();
    let why = format!("the forge answered {status}: {} {}", refusal.message, details.join(" ")).trim().to_owned();
    // An administrator can fix 401, 403 and 404 by granting permissions, so the outbox retries them; 422 never
    // succeeds.
    let retry = if status != 422 { Retry::After(Backoff::REMOTE) } else { Retry::WhenInputChanges };
    let not_before = rate_limit::not_before(status, &refusal.message, ends);
    ForgeError { attempt: attempt.to_owned(), status: Some(status), why, retry, not_before }
}

fn encode(text: &str) -> String {
    text.bytes()
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.' | b'~') {
                char::from(c).to_string()
            } else {
                format!("%{c:02X}")
            }
        })
        .collect()
}

#[async_trait]
impl Forge for GitHub {
    async fn own_login(&self) -> Result<String, ForgeError> {
        Ok(self.clients().await?.login.clone())
    }

    async fn list_pulls(&self) -> Result<Vec<Pull>, ForgeError> {
        let raw: Vec<wire::Pull> =
            self.pages("list pull requests", &self.route("pulls?state=all&sort=updated&direction=desc"), 2).await?;
        raw.into_iter().map(|pull| pull.into_pull().map_err(|why| failed("list pull requests", why))).collect()
    }

    async fn get_pull(&self, number: PullNumber) -> Result<Pull, ForgeError> {
        let raw: wire::Pull = self.read("read a pull request", &self.route(&format!("pulls/{}", number.0))).await?;
        raw.into_pull().map_err(|why| failed("read a pull request", why))
    }

    async fn list_comments(&self, number: PullNumber) -> Result<Vec<Comment>, ForgeError> {
        let raw: Vec<wire::Comment> =
            self.pages("list comments", &self.route(&format!("issues/{}/comments", number.0)), PAGES_MAX).await?;
        Ok(raw.into_iter().map(wire::Comment::into_comment).collect())
    }

    async fn list_reviews(&self, number: PullNumber) -> Result<Vec<Review>, ForgeError> {
        let raw: Vec<wire::Review> =
            self.pages("list reviews", &self.route(&format!("pulls/{}/reviews", number.0)), PAGES_MAX).await?;
        Ok(raw.into_iter().filter_map(wire::Review::into_review).collect())
    }

    async fn ensure_comment(&self, number: PullNumber, marker: &str, body: &str) -> Result<u64, ForgeError> {
        let own = self.own_login().await?;
        let comments = self.list_comments(number).await?;
        let ours =
            comments.iter().rev().find(|c| c.author.eq_ignore_ascii_case(&own) && c.body.trim_end().ends_with(marker));
        if let Some(comment) = ours {
            if comment.body != body {
                let _: wire::Id = self
                    .write(
                        "edit a comment",
                        Method::Patch,
                        &self.route(&format!("issues/comments/{}", comment.id)),
                        &json!({"body": body}),
                    )
                    .await?;
            }
            return Ok(comment.id);
        }
        let made: wire::Id = self
            .write(
                "write a comment",
                Method::Post,
                &self.route(&format!("issues/{}/comments", number.0)),
                &json!({"body": body}),
            )
            .await?;
        Ok(made.id)
    }

    async fn outdate_comments(&self, number: PullNumber, marker: &str, except: u64) -> Result<(), ForgeError> {
        let own = self.own_login().await?;
        for comment in self.list_comments(number).await? {
            if comment.id != except
                && comment.author.eq_ignore_ascii_case(&own)
                && comment.body.trim_end().lines().last().is_some_and(|line| line.contains(marker))
            {
                let query = "mutation($id: ID!) { minimizeComment(input: {subjectId: $id, classifier: OUTDATED}) { minimizedComment { isMinimized } } }";
                let _: Value = self
                    .clients()
                    .await?
                    .graphql
                    .graphql(&json!({"query": query, "variables": {"id": comment.node_id}}))
                    .await
                    .map_err(|error| message("fold a comment away", &error))?;
            }
        }
        Ok(())
    }

    async fn ensure_status(
        &self,
        revision: &Revision,
        context: &str,
        state: &str,
        description: &str,
    ) -> Result<(), ForgeError> {
        let description: String = description.chars().take(140).collect();
        let body = json!({"state": state, "context": context, "description": description});
        let _: Value = self
            .write("set a commit status", Method::Post, &self.route(&format!("statuses/{revision}")), &body)
            .await?;
        Ok(())
    }

    async fn has_own_status(&self, revision: &Revision) -> Result<bool, ForgeError> {
        let own = self.own_login().await?;
        let route = self.route(&format!("commits/{revision}/statuses"));
        let all: Vec<wire::Status> = self.pages("read the statuses of a commit", &route, 1).await?;
        let by_us =
            |status: &wire::Status| status.creator.as_ref().is_some_and(|by| by.login.eq_ignore_ascii_case(&own));
        Ok(all.iter().any(|status| status.context.starts_with("evenkeel/") && by_us(status)))
    }

    async fn ensure_pull(&self, branch: &str, base: &str, title: &str, body: &str) -> Result<PullNumber, ForgeError> {
        let attempt = "open a pull request";
        let route = self.route(&format!("pulls?state=open&head={}:{}", encode(&self.owner), encode(branch)));
        let there: Vec<wire::Pull> = self.pages(attempt, &route, 1).await?;
        if let Some(pull) = there.into_iter().find(|pull| pull.head.r#ref == branch) {
            if pull.title != title || pull.body.as_deref() != Some(body) {
                let _: Value = self
                    .write(
                        attempt,
                        Method::Patch,
                        &self.route(&format!("pulls/{}", pull.number)),
                        &json!({"title": title, "body": body}),
                    )
                    .await?;
            }
            return Ok(PullNumber(pull.number));
        }
        let made: wire::Number = self
            .write(
                attempt,
                Method::Post,
                &self.route("pulls"),
                &json!({"title": title, "body": body, "head": branch, "base": base}),
            )
            .await?;
        Ok(PullNumber(made.number))
    }

    async fn close_pull(&self, number: PullNumber) -> Result<(), ForgeError> {
        if self.get_pull(number).await?.open {
            let _: Value = self
                .write(
                    "close a pull request",
                    Method::Patch,
                    &self.route(&format!("pulls/{}", number.0)),
                    &json!({"state": "closed"}),
                )
                .await?;
        }
        Ok(())
    }

    async fn get_permission(&self, login: &str) -> Result<String, ForgeError> {
        let answer: Result<wire::Permission, ForgeError> = self
            .read("ask what somebody may do", &self.route(&format!("collaborators/{}/permission", encode(login))))
            .await;
        match answer {
            Ok(answer) => Ok(answer.role_name.unwrap_or(answer.permission)),
            Err(error) if error.status == Some(404) => Ok("none".into()),
            Err(error) => Err(error),
        }
    }

    async fn is_member(&self, team: &str, login: &str) -> Result<bool, ForgeError> {
        let (organisation, team) = team.split_once('/').unwrap_or((&self.owner, team));
        let route = format!("/orgs/{}/teams/{}/memberships/{}", encode(organisation), encode(team), encode(login));
        match self.read::<wire::Membership>("ask who is in a team", &route).await {
            Ok(answer) => Ok(answer.state == "active"),
            Err(error) if error.status == Some(404) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn git_token(&self) -> Result<Option<SecretString>, ForgeError> {
        if let Auth::Token(token) = &self.auth {
            return Ok(Some(token.expose_secret().to_owned().into()));
        }
        let buffer = chrono::Duration::minutes(10);
        let token = self
            .clients()
            .await?
            .rest
            .installation_token_with_buffer(buffer)
            .await
            .map_err(|error| message("get a token for git", &error))?;
        Ok(Some(token.expose_secret().to_owned().into()))
    }
}

/// A time of the forge.
type At = DateTime<Utc>;
