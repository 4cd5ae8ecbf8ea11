//! Defines extractors for requests: the caller and the format of the response.

use super::{
    Shared,
    state::{Answer, Refusal},
};
use crate::forge::settings::User;
use axum::{
    Json,
    extract::FromRequestParts,
    http::{HeaderMap, request::Parts},
};
use base64::Engine;
use chrono::Utc;
use serde_json::Value;

/// An authenticated user.
pub(super) struct Caller(pub(super) User);

impl FromRequestParts<Shared> for Caller {
    type Rejection = Refusal;
    async fn from_request_parts(parts: &mut Parts, shared: &Shared) -> Result<Self, Refusal> {
        match authenticate(shared, &parts.headers).await {
            Some(user) => Ok(Self(user)),
            None => Err(Refusal(401, "Bad credentials".into())),
        }
    }
}

impl Caller {
    pub(super) fn writes(&self) -> Answer<()> {
        match self.0.permission.as_str() {
            "write" | "maintain" | "admin" => Ok(()),
            _ => Err(Refusal(403, "Must have push access to the repository".into())),
        }
    }
}

pub(super) type Body = Answer<Json<Value>>;

/// Returns the user of a token.
pub(super) async fn authenticate(shared: &Shared, headers: &HeaderMap) -> Option<User> {
    let header = headers.get("authorization")?.to_str().ok()?;
    let (scheme, rest) = header.split_once(' ')?;
    let token = if scheme.eq_ignore_ascii_case("basic") {
        let decoded = base64::engine::general_purpose::STANDARD.decode(rest.trim()).ok()?;
        String::from_utf8(decoded).ok()?.split_once(':')?.1.to_owned()
    } else {
        rest.trim().to_owned()
    };
    let state = shared.lock().await;
    let holds = state.installation_tokens.get(&token).is_some_and(|until| *until > Utc::now());
    let app = state.settings.app.as_ref().filter(|_| holds).map(|app| User {
        login: format!("{}[bot]", app.slug),
        token: token.clone(),
        permission: "write".into(),
    });
    app.or_else(|| state.settings.users.iter().find(|user| user.token == token).cloned())
}
