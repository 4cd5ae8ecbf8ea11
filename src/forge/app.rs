//! Implements authentication as a GitHub App: a signed token in exchange for installation tokens.
//!
//! Installation tokens are valid for an hour.

use axum::{
    Json, Router,
    extract::{Path, State as Extract},
    http::{HeaderMap, StatusCode},
    routing::{get, post},
};
use chrono::{Duration, SecondsFormat, Utc};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Shared,
    state::{Answer, Refusal, State},
};
use crate::forge::settings::App;

/// The id of the only installation.
const INSTALLATION: u64 = 1;
/// The maximum number of stored tokens; a client requests one token an hour.
const TOKENS_MAX: usize = 1000;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/app", get(app))
        .route("/repos/{owner}/{repository}/installation", get(installation))
        .route("/app/installations/{id}/access_tokens", post(token))
}

#[derive(Deserialize)]
struct Claims {
    iss: Value,
}

/// Returns the App if the request has an unexpired token that the App's key signed.
fn proved(state: &State, headers: &HeaderMap) -> Answer<App> {
    let refused = |why: &str| Refusal(401, why.to_owned());
    let token = headers
        .get("authorization")
        .and_then(|header| header.to_str().ok()?.strip_prefix("Bearer "))
        .ok_or_else(|| refused("A JSON web token could not be decoded"))?;
    let app = state.settings.app.clone().ok_or_else(|| refused("Integration not found"))?;
    let key = DecodingKey::from_rsa_pem(app.public_key.as_bytes())
        .map_err(|error| Refusal(500, format!("the App's public key can't be read: {error}")))?;
    let claims = jsonwebtoken::decode::<Claims>(token, &key, &Validation::new(Algorithm::RS256))
        .map_err(|_| refused("A JSON web token could not be decoded"))?
        .claims;
    let issuer = claims.iss.as_str().map_or_else(|| claims.iss.to_string(), str::to_owned);
    if issuer == app.id.to_string() { Ok(app) } else { Err(refused("Integration not found")) }
}

const PERMISSIONS: [&str; 4] = ["checks", "contents", "pull_requests", "statuses"];

fn permissions() -> Value {
    let mut all: serde_json::Map<String, Value> =
        PERMISSIONS.iter().map(|name| ((*name).to_owned(), "write".into())).collect();
    all.insert("metadata".into(), "read".into());
    all.into()
}

async fn app(Extract(shared): Extract<Shared>, headers: HeaderMap) -> Answer<Json<Value>> {
    let state = shared.lock().await;
    let app = proved(&state, &headers)?;
    let (url, at) = (format!("{}/apps/{}", state.url(), app.slug), "2020-01-01T00:00:00Z");
    Ok(Json(
        json!({"id": app.id, "slug": app.slug, "node_id": format!("A_{}", app.id), "owner": state.user_json(&state.settings.owner), "name": app.slug, "description": null,
        "external_url": url, "html_url": url, "created_at": at, "updated_at": at, "permissions": permissions(), "events": ["push", "pull_request", "issue_comment"]}),
    ))
}

async fn installation(Extract(shared): Extract<Shared>, headers: HeaderMap) -> Answer<Json<Value>> {
    let state = shared.lock().await;
    let app = proved(&state, &headers)?;
    let (url, at) = (state.url(), "2020-01-01T00:00:00Z");
    Ok(Json(
        json!({"id": INSTALLATION, "app_id": app.id, "app_slug": app.slug, "account": state.user_json(&state.settings.owner), "target_id": 1, "target_type": "Organization", "single_file_name": null,
        "repository_selection": "selected", "access_tokens_url": format!("{url}/app/installations/{INSTALLATION}/access_tokens"), "html_url": format!("{url}/settings/installations/{INSTALLATION}"),
        "repositories_url": format!("{url}/installation/repositories"), "permissions": permissions(), "events": ["push", "pull_request", "issue_comment"], "created_at": at, "updated_at": at,
        "suspended_by": null, "suspended_at": null}),
    ))
}

async fn token(
    Extract(shared): Extract<Shared>,
    headers: HeaderMap,
    Path(id): Path<u64>,
) -> Answer<(StatusCode, Json<Value>)> {
    let mut state = shared.lock().await;
    proved(&state, &headers)?;
    if id != INSTALLATION {
        return Err(Refusal(404, "Not Found".into()));
    }
    let mut random = [0; 18];
    getrandom::fill(&mut random).map_err(|error| Refusal(500, error.to_string()))?;
    let (token, now) = (format!("ghs_{}", hex::encode(random)), Utc::now());
    let until = now + Duration::hours(1);
    state.installation_tokens.retain(|_, until| *until > now);
    if state.installation_tokens.len() >= TOKENS_MAX {
        return Err(Refusal(429, "too many tokens".into()));
    }
    state.installation_tokens.insert(token.clone(), until);
    let until = until.to_rfc3339_opts(SecondsFormat::Secs, true);
    Ok((
        StatusCode::CREATED,
        Json(
            json!({"token": token, "expires_at": until, "permissions": permissions(), "repository_selection": "selected"}),
        ),
    ))
}
