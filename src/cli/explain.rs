//! Implements `evenkeel explain`: everything about one instance, and why it does not proceed.

use clap::Args;

use super::{Done, Format, Global, client::Client, output, runs, status};
use crate::{
    domain::{
        authorization::guards::Held,
        message::{diff, differs, plain},
    },
    server::Explained,
};

/// Show everything about one instance, and why it does not proceed.
#[derive(Args, Debug)]
pub(crate) struct Explain {
    /// The instance, `ENVIRONMENT/COMPONENT`
    instance: crate::model::InstanceId,
}

pub(super) async fn run(global: &Global, args: &Explain) -> Done {
    let found: Explained = Client::new(global)?.get(&format!("/api/v1/instances/{}", args.instance)).await?;
    if global.output != Format::Text {
        output::answer(global.output, "explain", &found)?;
        return Ok(found.instance.verdict.exit_code());
    }
    output::text(&text(&found));
    Ok(found.instance.verdict.exit_code())
}

fn text(found: &Explained) -> String {
    let colour = output::colour();
    let instance = &found.instance;
    let mut text = format!("{} is {}\n{}\n\n", instance.id, status::paint(instance.verdict, colour), plain(&found.why));
    let mut rows = vec![
        vec!["head".into(), found.head.as_ref().map_or("not read".into(), |revision| revision.short().to_owned())],
        vec![
            "applied".into(),
            instance.applied.as_ref().map_or("nothing".into(), |revision| revision.short().to_owned()),
        ],
        vec![
            "observed".into(),
            instance.observed_at.map_or("never".into(), |at| {
                format!("{} in {} ms", at.format("%Y-%m-%d %H:%M:%S UTC"), instance.duration_ms.unwrap_or(0))
            }),
        ],
        vec!["woken by".into(), instance.woken_by.clone().unwrap_or_else(|| "nothing since start".into())],
        vec![
            "depends on".into(),
            if found.upstreams.is_empty() {
                "nothing".into()
            } else {
                found.upstreams.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            },
        ],
    ];
    if let Some(protect) = found.guards.protect.as_ref().filter(|protect| !protect.guard.is_empty()) {
        rows.push(vec!["protects".into(), format!("{} since {}", protect.guard.join(", "), protect.since.short())]);
    }
    if let Some(Held { guard: limits, since }) = &found.guards.limits {
        let changes = limits.changes.map(|changes| format!(", {changes} changes")).unwrap_or_default();
        let message = format!(
            "{} destroys, {} replaces{changes} in one run, since {}",
            limits.destroys,
            limits.replaces,
            since.short()
        );
        rows.push(vec!["limits".into(), message]);
    }
    text.push_str(&output::table(&rows));
    text + &differences(found) + &history(found)
}

/// Renders the differences of the observed state and of head from the applied state.
fn differences(found: &Explained) -> String {
    let instance = &found.instance;
    let mut text = String::new();
    if !instance.drift.is_empty() {
        text.push_str("\nDrift: the world differs from what is applied\n");
        for drift in &instance.drift {
            text.push_str(&format!(
                "  {}{}\n",
                drift.resource,
                if drift.revertible { "" } else { " (no apply would change it)" }
            ));
            for field in &drift.fields {
                let how = differs(field.desired.as_ref(), field.observed.as_ref());
                text.push_str(&format!("    {}  {how}\n", field.path));
            }
        }
    }
    if !instance.pending.is_empty() {
        text.push_str("\nPlan: what head would change\n");
        for line in instance.pending.iter().flat_map(diff) {
            text.push_str(&format!("  {line}\n"));
        }
    }
    for warning in &instance.warnings {
        text.push_str(&format!("\nWarning: {warning}\n"));
    }
    text
}

/// Renders the last runs of the instance.
fn history(found: &Explained) -> String {
    let mut text = String::new();
    if !found.runs.is_empty() {
        text.push_str("\nLast runs\n");
        let rows: Vec<Vec<String>> = found
            .runs
            .iter()
            .map(|run| {
                vec![
                    format!("  {}", run.id),
                    run.created_at.format("%Y-%m-%d %H:%M:%S").to_string(),
                    runs::message(&run.instances[&found.instance.id]),
                ]
            })
            .collect();
        text.push_str(&output::table(&rows));
    }
    if !found.journal.is_empty() {
        text.push_str("\nJournal\n");
        let rows: Vec<Vec<String>> = found
            .journal
            .iter()
            .map(|r| {
                vec![
                    format!("  {}", r.at.format("%H:%M:%S%.3f")),
                    format!("run {}", r.run),
                    plain(&r.event.to_string()),
                ]
            })
            .collect();
        text.push_str(&output::table(&rows));
    }
    text
}
