//! Implements `evenkeel runs`, `journal` and `audit`, which show the history.

use clap::Args;
use serde_json::{Value, json};

use super::{Done, Failure, Format, Global, client::Client, output};
use crate::domain::{
    journal::{JournalRecord, Run, RunInstance, RunState, Status},
    message::{ago, plain},
};

/// Show runs.
#[derive(Args, Debug)]
pub(crate) struct Runs {
    /// The id of one run
    id: Option<i64>,
    /// The number of runs, newest first
    #[arg(long, default_value_t = 20)]
    limit: u32,
}

/// Show the events of runs, in order.
#[derive(Args, Debug)]
pub(crate) struct Journal {
    /// The id of one run
    #[arg(long, value_name = "ID")]
    run: Option<i64>,
    /// The number of the newest events
    #[arg(long, default_value_t = 100)]
    limit: u32,
}

/// Show the audit log.
#[derive(Args, Debug)]
pub(crate) struct Audit {
    /// `verify` checks the chain of hashes and prints nothing else
    what: Option<String>,
}

/// Renders the state of an instance of a run.
pub(super) fn message(instance: &RunInstance) -> String {
    let colour = output::colour();
    let word = match instance.status {
        Status::New => colour.dim("not started"),
        Status::Planned => colour.dim("planned"),
        Status::Waiting => colour.warn("waits"),
        Status::Running | Status::Effected => "running".into(),
        Status::Applied if instance.changed => colour.good("applied"),
        Status::Applied => colour.good("nothing to do"),
        Status::Failed => colour.bad("failed"),
        Status::Skipped => colour.warn("not tried"),
        // The message already names the run or the principal.
        Status::Superseded | Status::Cancelled => return colour.dim(&plain(&instance.message)),
    };
    if instance.message.is_empty() { word } else { format!("{word}: {}", plain(&instance.message)) }
}

fn state(run: &Run) -> String {
    match &run.state {
        RunState::Open if run.instances.values().any(|i| i.status == Status::Waiting) => "waits".into(),
        RunState::Open => "under way".into(),
        RunState::Ended { .. } if run.instances.values().all(|i| i.status == Status::Applied) => "applied".into(),
        RunState::Ended { .. } => "ended".into(),
    }
}

pub(super) async fn runs(global: &Global, args: &Runs) -> Done {
    let client = Client::new(global)?;
    if let Some(id) = args.id {
        let run: Run = client.get(&format!("/api/v1/runs/{id}")).await?;
        if global.output != Format::Text {
            output::answer(global.output, "runs", &run)?;
            return Ok(0);
        }
        let mut text = format!(
            "Run {} of {} at {}, {}\nAuthorised by {}\n\n",
            run.id,
            run.environment,
            run.revision.short(),
            state(&run),
            plain(&run.because)
        );
        let mut instances: Vec<_> = run.instances.iter().collect();
        instances.sort_by_key(|(id, instance)| (instance.order, (*id).clone()));
        text.push_str(&output::table(
            &instances.iter().map(|(id, i)| vec![i.order.to_string(), id.to_string(), message(i)]).collect::<Vec<_>>(),
        ));
        if let RunState::Ended { message } = &run.state {
            text.push_str(&format!("\n{}\n", plain(message)));
        }
        output::text(&text);
        return Ok(0);
    }
    let runs: Vec<Run> = client.get(&format!("/api/v1/runs?limit={}", args.limit)).await?;
    if global.output != Format::Text {
        output::answer(global.output, "runs", &json!({"runs": runs}))?;
        return Ok(0);
    }
    if runs.is_empty() {
        output::text("No run yet.");
        return Ok(0);
    }
    let now = chrono::Utc::now();
    let rows: Vec<Vec<String>> = runs
        .iter()
        .map(|run| {
            let took = run
                .ended_at
                .map(|ended| format!("{:.1} s", (ended - run.created_at).num_milliseconds() as f64 / 1000.0))
                .unwrap_or_default();
            let done = run.instances.values().filter(|i| i.status == Status::Applied).count();
            vec![
                run.id.to_string(),
                run.environment.to_string(),
                state(run),
                format!("{done}/{}", run.instances.len()),
                took,
                format!("{} ago", ago((now - run.created_at).num_seconds())),
                plain(&run.because),
            ]
        })
        .collect();
    output::text(&output::table(&rows));
    Ok(0)
}

pub(super) async fn journal(global: &Global, args: &Journal) -> Done {
    let run = args.run.map(|run| format!("&run={run}")).unwrap_or_default();
    if let Some(id) = args.run {
        // A run that does not exist must differ from a run without events.
        let _there: Run = Client::new(global)?.get(&format!("/api/v1/runs/{id}")).await?;
    }
    let records: Vec<JournalRecord> =
        Client::new(global)?.get(&format!("/api/v1/journal?limit={}{run}", args.limit)).await?;
    if global.output != Format::Text {
        output::answer(global.output, "journal", &json!({"records": records}))?;
        return Ok(0);
    }
    if records.is_empty() {
        output::text("Nothing happened yet.");
        return Ok(0);
    }
    let rows: Vec<Vec<String>> = records
        .iter()
        .map(|record| {
            vec![
                record.at.format("%Y-%m-%d %H:%M:%S%.3f").to_string(),
                format!("run {}", record.run),
                record.instance.to_string(),
                plain(&record.event.to_string()),
            ]
        })
        .collect();
    output::text(&output::table(&rows));
    Ok(0)
}

pub(super) async fn audit(global: &Global, args: &Audit) -> Done {
    let answer: Value = Client::new(global)?.get("/api/v1/audit").await?;
    let entries = answer["entries"].as_array().cloned().unwrap_or_default();
    if let Some(broken) = answer["broken"].as_i64() {
        return Err(Failure::new(format!(
            "the audit's chain is broken at entry {broken}: it, or one before it, was changed"
        )));
    }
    match (args.what.as_deref(), global.output) {
        (Some("verify"), format) if format != Format::Text => {
            output::answer(format, "audit", &json!({"entries": entries.len(), "broken": null}))?
        }
        (Some("verify"), _) => output::text(&format!("The chain of {} entries is whole.", entries.len())),
        (Some(other), _) => {
            return Err(Failure {
                code: 64,
                ..Failure::new(format!("`{other}` is not known")).hint("`evenkeel audit` or `evenkeel audit verify`")
            });
        }
        (None, Format::Text) => {
            let text = |entry: &Value, name: &str| entry[name].as_str().unwrap_or_default().to_owned();
            let rows: Vec<Vec<String>> = entries
                .iter()
                .map(|e| {
                    vec![text(e, "at"), text(e, "principal"), text(e, "action"), text(e, "subject"), text(e, "detail")]
                })
                .collect();
            output::text(&output::table(&rows));
        }
        (None, format) => output::answer(format, "audit", &json!({"entries": entries, "broken": null}))?,
    }
    Ok(0)
}
