//! Serves the versioned JSON API that `openapi.json` describes.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, Query, State},
    http::StatusCode,
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Caller, Part, Reader, Refusal, Shared};
use crate::{
    adapters::store::AuditEntry,
    controller::{CommandOutcome, InstanceStatus, Status},
    domain::{
        authorization::{Principal, guards::Held},
        command::Command,
        declaration::{
            Selector,
            schema::{Limits, Verb},
        },
        journal::{JournalRecord, Run},
        plan::Plan,
    },
    model::{ComponentName, Duration, RunId},
};

/// The limit of a request body: requests contain only selectors and digests.
const BODY_BYTES_MAX: usize = 64 << 10;
/// The most runs or records in one response.
const LIMIT_MAX: u32 = 1000;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/api/v1/openapi.json", get(|| async { Json(openapi()) }))
        .route("/api/v1/status", get(status))
        .route("/api/v1/instances/{environment}/{component}", get(instance))
        .route("/api/v1/runs", get(runs))
        .route("/api/v1/runs/{id}", get(run))
        .route("/api/v1/journal", get(journal))
        .route("/api/v1/plans", get(plans))
        .route("/api/v1/audit", get(audit))
        .route("/api/v1/graph", get(graph))
        .route("/api/v1/drift", post(drift))
        .route("/api/v1/plan", post(plan))
        .route("/api/v1/apply", post(apply))
        .route("/api/v1/propose", post(propose))
        .route("/api/v1/commands/{verb}", post(command))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

/// The body of `drift`, `plan`, `apply` and `propose`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CommandRequest {
    /// The instances to act on.
    pub selector: Option<String>,
    /// The digests of the plans that the user saw.
    pub digests: Vec<String>,
    /// A merged remediation that waits for authorization.
    pub remediation: Option<ComponentName>,
    /// For `propose`: propose the pending changes instead of the drift.
    pub apply: bool,
    /// For `snooze`: the duration.
    pub lasting: Option<Duration>,
}

/// The response of `apply`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Started {
    /// The runs that the command started.
    pub runs: Vec<RunId>,
}

/// The guards in force for an instance, with the time since which each is in force (R3.4).
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Guards {
    /// The limits for one run of its environment.
    pub limits: Option<Held<Limits>>,
    /// Addresses that no run may destroy, replace, forget or move.
    pub protect: Option<Held<Vec<String>>>,
}

/// The status of one instance with its history.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explained {
    /// The status of the instance.
    pub instance: InstanceStatus,
    /// The reason for the current state, in a sentence with the number of its rule.
    pub why: String,
    /// The head of the branch.
    pub head: Option<crate::model::Revision>,
    /// The instances on which it depends.
    pub upstreams: Vec<crate::model::InstanceId>,
    /// The guards in force.
    pub guards: Guards,
    /// Its inputs, with secrets masked.
    pub inputs: Value,
    /// The newest runs that contained the instance.
    pub runs: Vec<Run>,
    /// The newest journal records of the instance.
    pub journal: Vec<JournalRecord>,
}

fn selector(ask: &CommandRequest) -> Result<Option<Selector>, Refusal> {
    let parse = |text: &String| {
        text.parse::<Selector>().map_err(|error| Refusal(StatusCode::BAD_REQUEST, "selector", error.to_string()))
    };
    ask.selector.as_ref().map(parse).transpose()
}

async fn status(State(door): State<Shared>, _: Reader) -> Result<Json<Status>, Refusal> {
    Ok(Json(door.daemon.status.read().await?))
}

async fn instance(
    State(door): State<Shared>,
    _: Reader,
    Path((environment, component)): Path<(String, String)>,
) -> Result<Json<Explained>, Refusal> {
    let status = door.daemon.status.read().await?;
    let name = format!("{environment}/{component}");
    let known: Vec<String> = status.instances.iter().map(|instance| instance.id.to_string()).collect();
    let Some(instance) = status.instances.into_iter().find(|instance| instance.id.to_string() == name) else {
        let hint = crate::domain::declaration::validate::nearest(&name, known.iter().map(String::as_str))
            .map(|near| format!("; did you mean `{near}`?"))
            .unwrap_or_default();
        return Err(Refusal(StatusCode::NOT_FOUND, "no-instance", format!("there is no instance `{name}`{hint}")));
    };
    let store = &door.daemon.context.store;
    let id = instance.id.clone();
    let applied = store.applied(&id).await?;
    let runs: Vec<Run> =
        store.runs(LIMIT_MAX).await?.into_iter().filter(|run| run.instances.contains_key(&id)).take(5).collect();
    let mut journal = vec![];
    for run in runs.iter().take(2).rev() {
        journal
            .extend(store.journal(Some(run.id), LIMIT_MAX).await?.into_iter().filter(|record| record.instance == id));
    }
    let head = door.daemon.source.head();
    let upstreams = head
        .as_ref()
        .and_then(|head| head.instance(&id))
        .map(|i| i.upstreams.iter().cloned().collect())
        .unwrap_or_default();
    let mut guards = Guards::default();
    if let Some(head) = &head {
        let current = door.daemon.source.guards(head).await?;
        guards.limits = current.limits.get(&id.environment).cloned();
        guards.protect = current.protect.get(&id).cloned();
    }
    Ok(Json(Explained {
        why: door.daemon.status.explain(&instance).await?.to_string(),
        instance,
        head: status.revision,
        upstreams,
        guards,
        inputs: json!(applied.map(|applied| applied.inputs).unwrap_or_default()),
        runs,
        journal,
    }))
}

#[derive(Deserialize)]
struct Listing {
    limit: Option<u32>,
    run: Option<i64>,
}

async fn runs(
    State(door): State<Shared>,
    _: Reader,
    Part(Query(listing)): Part<Query<Listing>>,
) -> Result<Json<Vec<Run>>, Refusal> {
    Ok(Json(door.daemon.context.store.runs(listing.limit.unwrap_or(50).min(LIMIT_MAX)).await?))
}

async fn run(State(door): State<Shared>, _: Reader, Part(Path(id)): Part<Path<i64>>) -> Result<Json<Run>, Refusal> {
    let found = door.daemon.context.store.run(RunId(id)).await?;
    found.map(Json).ok_or_else(|| Refusal(StatusCode::NOT_FOUND, "no-run", format!("there is no run {id}")))
}

async fn journal(
    State(door): State<Shared>,
    _: Reader,
    Part(Query(listing)): Part<Query<Listing>>,
) -> Result<Json<Vec<JournalRecord>>, Refusal> {
    Ok(Json(
        door.daemon.context.store.journal(listing.run.map(RunId), listing.limit.unwrap_or(200).min(LIMIT_MAX)).await?,
    ))
}

async fn plans(
    State(door): State<Shared>,
    _: Reader,
    Part(Query(listing)): Part<Query<Listing>>,
) -> Result<Json<Vec<Value>>, Refusal> {
    let plans = door.daemon.context.store.plans(listing.limit.unwrap_or(20).min(LIMIT_MAX)).await?;
    Ok(Json(
        plans
            .into_iter()
            .map(|(subject, plan, at)| json!({"subject": subject, "plannedAt": at, "plan": plan}))
            .collect(),
    ))
}

async fn audit(State(door): State<Shared>, _: Reader) -> Result<Json<Value>, Refusal> {
    let (entries, broken): (Vec<AuditEntry>, _) = door.daemon.context.store.audit_entries().await?;
    Ok(Json(json!({"entries": entries, "broken": broken})))
}

async fn graph(State(door): State<Shared>, _: Reader) -> Json<Value> {
    let instances = door.daemon.source.head().map(|head| head.desired.instances.clone()).unwrap_or_default();
    Json(
        instances
            .values()
            .map(|i| json!({"id": i.id, "kind": i.kind, "upstreams": i.upstreams, "after": i.after}))
            .collect(),
    )
}

async fn drift(
    State(door): State<Shared>,
    Caller(who): Caller,
    Part(Json(ask)): Part<Json<CommandRequest>>,
) -> Result<Json<Status>, Refusal> {
    let selected = door.daemon.commands.check_drift_of(selector(&ask)?.as_ref(), &who).await?;
    let mut status = door.daemon.status.read().await?;
    status.instances.retain(|instance| selected.contains(&instance.id));
    status.verdict = status.instances.iter().map(|instance| instance.verdict).min().unwrap_or(status.verdict);
    Ok(Json(status))
}

async fn plan(
    State(door): State<Shared>,
    Caller(who): Caller,
    Part(Json(ask)): Part<Json<CommandRequest>>,
) -> Result<Json<Vec<Plan>>, Refusal> {
    // Fetch first, in case the webhook of a push was lost.
    door.daemon.source.refresh().await?;
    Ok(Json(door.daemon.commands.plan_now(selector(&ask)?.as_ref(), &who).await?))
}

async fn apply(
    State(door): State<Shared>,
    Caller(who): Caller,
    Part(Json(ask)): Part<Json<CommandRequest>>,
) -> Result<Json<Started>, Refusal> {
    let daemon: &Arc<crate::controller::Daemon> = &door.daemon;
    daemon.source.refresh().await?;
    let done = daemon.commands.apply_now(selector(&ask)?.as_ref(), &ask.digests, ask.remediation.as_ref(), &who).await;
    Ok(Json(Started { runs: audited(daemon, &who, done).await? }))
}

/// Executes a command; a refusal is recorded in the audit log.
async fn audited<T>(
    daemon: &Arc<crate::controller::Daemon>,
    who: &Principal,
    done: Result<T, crate::controller::Error>,
) -> Result<T, Refusal> {
    if let Err(crate::controller::Error::Refused(message)) = &done {
        daemon.context.store.audit(daemon.context.now(), &who.name(), "refused", "api", &message.to_string()).await?;
    }
    Ok(done?)
}

async fn propose(
    State(door): State<Shared>,
    Caller(who): Caller,
    Part(Json(ask)): Part<Json<CommandRequest>>,
) -> Result<Json<Value>, Refusal> {
    if door.daemon.context.forge.is_none() {
        return Err(Refusal(
            StatusCode::CONFLICT,
            "refused",
            "there is no forge to propose on; configure `github`".into(),
        ));
    }
    if ask.apply {
        door.daemon.source.refresh().await?;
        let pulls = door.daemon.commands.propose_apply(selector(&ask)?.as_ref(), &who).await?;
        return Ok(Json(pulls.iter().map(|pull| json!({"root": null, "proposal": {"pull": pull}})).collect()));
    }
    let selected = door.daemon.commands.check_drift_of(selector(&ask)?.as_ref(), &who).await?;
    door.daemon.commands.propose_drift(&selected).await?;
    let proposals = door.daemon.commands.proposals().await?;
    let concerns = |proposal: &Value| {
        let ids = proposal["instances"].as_array().into_iter().flatten().filter_map(Value::as_str);
        ids.filter_map(|id| id.parse().ok()).any(|id| selected.contains(&id))
    };
    let proposals = proposals.into_iter().filter(|(_, proposal)| concerns(proposal));
    Ok(Json(proposals.map(|(root, proposal)| json!({"root": root, "proposal": proposal})).collect()))
}

async fn command(
    State(door): State<Shared>,
    Caller(who): Caller,
    Path(verb): Path<String>,
    Part(Json(ask)): Part<Json<CommandRequest>>,
) -> Result<Json<CommandOutcome>, Refusal> {
    let known = |verb: &Verb| !matches!(verb, Verb::Plan | Verb::Apply | Verb::Drift | Verb::Help);
    let Some(verb) = serde_json::from_value::<Verb>(verb.as_str().into()).ok().filter(known) else {
        return Err(Refusal(StatusCode::NOT_FOUND, "no-command", format!("there is no command `{verb}`")));
    };
    door.daemon.source.refresh().await?;
    let digest = ask.digests.first().cloned();
    let command = Command { verb, selector: selector(&ask)?, digest, lasting: ask.lasting };
    let done = door.daemon.commands.execute(&command, &who).await;
    Ok(Json(audited(&door.daemon, &who, done).await?))
}

/// Returns the OpenAPI description.
pub fn openapi() -> Value {
    let get = |summary: &str| json!({"get": {"summary": summary, "responses": {"200": {"description": "as JSON"}, "401": {"description": "a token is needed"}}}});
    let ask = json!({"required": true, "content": {"application/json": {"schema": {"type": "object", "additionalProperties": false, "properties": {
        "selector": {"type": ["string", "null"], "description": "such as `staging` or `kind:tofu and not production`"},
        "digests": {"type": "array", "items": {"type": "string"}, "description": "the plans that were shown"},
        "remediation": {"type": ["string", "null"], "description": "a merged remediation that waits"},
        "lasting": {"type": ["string", "null"], "description": "of `snooze`: for how long, such as `14d`"},
        "apply": {"type": "boolean", "description": "of `propose`: what is pending, and not what drifted"}}}}}});
    let post = |summary: &str| json!({"post": {"summary": summary, "security": [{"token": []}], "requestBody": ask, "responses": {"200": {"description": "as JSON"}, "401": {"description": "a token is needed"}, "409": {"description": "refused, in a sentence"}}}});
    json!({
        "openapi": "3.1.0",
        "info": {"title": "Evenkeel", "version": "1", "description": "Reads on loopback are free; everything else needs a bearer token."},
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "paths": {
            "/api/v1/status": get("What is said of every instance"),
            "/api/v1/instances/{environment}/{component}": get("One instance with its history"),
            "/api/v1/runs": get("The newest runs"),
            "/api/v1/runs/{id}": get("One run"),
            "/api/v1/journal": get("The newest records of the journal, or those of `run`"),
            "/api/v1/plans": get("The newest plans that were shown"),
            "/api/v1/audit": get("Who did what"),
            "/api/v1/graph": get("Instances and what they depend on"),
            "/api/v1/drift": post("Look at the world now"),
            "/api/v1/plan": post("Plan what is pending; changes nothing"),
            "/api/v1/apply": post("Apply plans that were shown"),
            "/api/v1/commands/{verb}": post("Another command of a comment: revert, adopt, snooze, suspend, resume, confirm, destroy, forget"),
            "/api/v1/propose": post("Look at the world now and propose to revert what drifted"),
        }
    })
}
