//! Implements the GraphQL mutation that the client uses: minimizing a comment.

use axum::{Json, extract::State as Extract};
use serde_json::{Value, json};

use super::Shared;
use crate::forge::extract::{Body, Caller};

/// The one mutation that the client uses.
pub(super) async fn answer(Extract(shared): Extract<Shared>, caller: Caller, Json(body): Json<Value>) -> Body {
    caller.writes()?;
    if !body["query"].as_str().is_some_and(|query| query.contains("minimizeComment")) {
        return Ok(Json(
            json!({"errors": [{"message": "this forge knows `minimizeComment` alone", "type": "undefinedField"}]}),
        ));
    }
    let node = body["variables"]["id"].as_str().unwrap_or_default();
    let mut state = shared.lock().await;
    let id: Option<u64> = node.strip_prefix("IC_").and_then(|id| id.parse().ok());
    match state.records.comments.iter_mut().find(|comment| Some(comment.id) == id) {
        Some(comment) => comment.minimized = true,
        None => {
            return Ok(Json(
                json!({"data": null, "errors": [{"message": format!("Could not resolve to a node with the global id of '{node}'"), "type": "NOT_FOUND"}]}),
            ));
        }
    }
    state.save()?;
    Ok(Json(json!({"data": {"minimizeComment": {"minimizedComment": {"isMinimized": true}}}})))
}
