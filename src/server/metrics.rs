//! Renders `/metrics` in the OpenMetrics text format of Prometheus, with stable names.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{Reader, Refusal, Shared};
use crate::model::Verdict;

pub(super) fn routes() -> Router<Shared> {
    Router::new().route("/metrics", get(metrics))
}

#[derive(Clone, Hash, PartialEq, Eq, Debug, EncodeLabelSet)]
struct Instances {
    environment: String,
    verdict: String,
}

#[derive(Clone, Hash, PartialEq, Eq, Debug, EncodeLabelSet)]
struct One {
    environment: String,
    component: String,
}

async fn metrics(State(door): State<Shared>, _: Reader) -> Result<impl IntoResponse, Refusal> {
    let status = door.daemon.status.read().await?;
    let mut registry = Registry::with_prefix("evenkeel");
    let verdicts: Family<Instances, Gauge> = Family::default();
    let ages: Family<One, Gauge> = Family::default();
    let all = [
        Verdict::Unknown,
        Verdict::Stalled,
        Verdict::Drifted,
        Verdict::Pending,
        Verdict::Orphaned,
        Verdict::Suspended,
        Verdict::InSync,
    ];
    for instance in &status.instances {
        let environment = instance.environment.to_string();
        for verdict in all {
            let labels = Instances { environment: environment.clone(), verdict: verdict.words().replace(' ', "_") };
            verdicts.get_or_create(&labels).inc_by(i64::from(instance.verdict == verdict));
        }
        if let Some(at) = instance.observed_at {
            ages.get_or_create(&One { environment, component: instance.component.to_string() })
                .set((door.daemon.context.now() - at).num_seconds());
        }
    }
    registry.register("instances", "Instances by environment and verdict", verdicts);
    registry.register("observation_age_seconds", "Seconds since an instance was observed last", ages);
    let mut gauge = |name: &str, help: &str, value: usize| {
        let gauge: Gauge = Gauge::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    };
    let (waiting, running) = door.daemon.context.queue.depth();
    gauge("wakes_waiting", "Hints that wait", waiting);
    gauge("looks_running", "Looks that are under way", running);
    gauge("problems", "Problems in the declarations", status.problems.len());
    let mut counter = |name: &str, help: &str, value: &AtomicU64| {
        let counter: Counter = Counter::default();
        counter.inc_by(value.load(Ordering::Relaxed));
        registry.register(name, help, counter);
    };
    let counters = &door.daemon.context.metrics;
    counter("passes", "Passes", &counters.drift_checks);
    counter("passes_failed", "Passes that could not observe completely", &counters.drift_checks_failed);
    counter("runs_started", "Runs that were authorised", &counters.runs_started);
    counter("runs_ended", "Runs that ended", &counters.runs_ended);
    counter("actions_applied", "Actions that were applied", &counters.actions_applied);
    counter("actions_failed", "Actions that failed", &counters.actions_failed);
    counter("webhooks", "Webhooks that were taken", &counters.webhooks);
    counter("webhooks_refused", "Webhooks that were refused", &counters.webhooks_refused);
    let mut text = String::new();
    encode(&mut text, &registry)
        .map_err(|error| Refusal(StatusCode::INTERNAL_SERVER_ERROR, "metrics", error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text))
}
