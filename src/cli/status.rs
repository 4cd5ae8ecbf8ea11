//! Implements `evenkeel status`, which shows the verdict of every instance.

use clap::Args;
use serde_json::json;

use super::{Done, Format, Global, client::Client, output};
use crate::{
    controller::{InstanceStatus, Status},
    domain::message::{ago, differs, layout, terminal::Colour},
    model::Verdict,
};

/// The maximum length of a reason in a line; `explain` prints the full text.
const SAYS_MAX: usize = 400;

/// Show the verdict of every instance.
#[derive(Args, Debug)]
pub(crate) struct StatusArgs {}

pub(super) async fn run(global: &Global, _: &StatusArgs) -> Done {
    let status: Status = Client::new(global)?.get("/api/v1/status").await?;
    print(global, &status, "status")?;
    Ok(status.verdict.exit_code())
}

pub(super) fn paint(verdict: Verdict, colour: Colour) -> String {
    let words = verdict.words();
    match verdict {
        Verdict::Unknown | Verdict::Stalled => colour.bad(words),
        Verdict::Drifted | Verdict::Pending | Verdict::Orphaned => colour.warn(words),
        Verdict::Suspended => colour.dim(words),
        Verdict::InSync => colour.good(words),
    }
}

/// Prints a status for `status`, `drift` and `serve --once`.
pub(super) fn print(global: &Global, status: &Status, command: &str) -> Result<(), super::Failure> {
    if global.output != Format::Text {
        return output::answer(
            global.output,
            command,
            &json!({"against": "applied", "revision": status.revision, "verdict": status.verdict,
                "instances": status.instances, "problems": status.problems, "reason": status.reason,
            }),
        );
    }
    output::text(&lines(status));
    Ok(())
}

pub(super) fn lines(status: &Status) -> String {
    let colour = output::colour();
    let mut text = String::new();
    if let Some(reason) = &status.reason {
        text.push_str(&format!("{} {reason}\n", colour.bad("Error:")));
    }
    let now = chrono::Utc::now();
    let rows: Vec<Vec<String>> = status.instances.iter().map(|instance| row(instance, colour, now)).collect();
    let table = output::table(&rows);
    for (line, instance) in table.lines().zip(&status.instances) {
        text.push_str(line);
        text.push('\n');
        for drift in &instance.drift {
            if drift.fields.is_empty() {
                text.push_str(&format!(
                    "  {}  {}\n",
                    drift.resource,
                    match drift.drift {
                        crate::model::DriftKind::Missing => "is gone",
                        crate::model::DriftKind::Extra => "should not be there",
                        crate::model::DriftKind::Changed => "differs",
                    }
                ));
            }
            let by = drift.by().map(|by| format!("  changed {by}").replace('`', "")).unwrap_or_default();
            for field in drift.fields.iter().take(20) {
                let how = differs(field.desired.as_ref(), field.observed.as_ref());
                text.push_str(&format!("  {}  {}  {how}{by}\n", drift.resource, field.path));
            }
        }
        if let Some(plan) = instance.layout.as_ref().filter(|_| instance.verdict == Verdict::Drifted) {
            for line in std::iter::once(layout::summary(plan).as_str()).chain(layout::bars(plan).lines()) {
                text.push_str(&format!("  {line}\n"));
            }
        }
    }
    for problem in &status.problems {
        text.push_str(&format!("{} {problem}\n", colour.bad("Error:")));
    }
    text.push_str(&summary(status));
    text
}

fn row(instance: &InstanceStatus, colour: Colour, now: chrono::DateTime<chrono::Utc>) -> Vec<String> {
    let seen = match (instance.duration_ms, instance.observed_at) {
        (Some(0), Some(at)) => format!("{} ago", ago((now - at).num_seconds())),
        (Some(ms), _) if ms < 1000 => format!("{ms} ms"),
        (Some(ms), _) => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        _ => String::new(),
    };
    let whole = instance.message();
    let line = whole.lines().next().unwrap_or_default();
    let mut message: String = line.chars().take(SAYS_MAX).collect();
    if line.chars().count() > SAYS_MAX {
        message.push('…');
    }
    if message.is_empty() && instance.verdict == Verdict::InSync {
        message = format!("at {}", instance.applied.as_ref().map_or("nothing", |revision| revision.short()));
    }
    vec![instance.id.to_string(), paint(instance.verdict, colour), instance.kind.clone(), seen, message]
}

fn summary(status: &Status) -> String {
    if status.revision.is_none() {
        return "The state repo has not been read, so nothing is known.\n".into();
    }
    if status.instances.is_empty() {
        return "No instance is declared.\n".into();
    }
    let count = |verdict: Verdict| status.instances.iter().filter(|instance| instance.verdict == verdict).count();
    let mut parts = vec![format!("{} of {} in sync", count(Verdict::InSync), status.instances.len())];
    for verdict in
        [Verdict::Drifted, Verdict::Pending, Verdict::Unknown, Verdict::Stalled, Verdict::Orphaned, Verdict::Suspended]
    {
        if count(verdict) > 0 {
            parts.push(format!("{} {}", count(verdict), verdict.words()));
        }
    }
    format!("{}.\n", parts.join(", "))
}
