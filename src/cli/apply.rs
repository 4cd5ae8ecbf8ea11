//! Implements `evenkeel apply` and `evenkeel propose`.

use std::{
    collections::BTreeMap,
    io::{BufRead, IsTerminal},
    time::Duration,
};

use clap::Args;
use serde_json::{Value, json};

use super::{Done, Failure, Format, Global, client::Client, drift::selector, output, plan};
use crate::{
    domain::{
        journal::{Run, RunState, Status},
        message::plain,
        plan::Plan,
    },
    model::{ComponentName, InstanceId, RunId},
    server::{CommandRequest, Started},
};

/// The interval at which the command polls a run.
const POLL: Duration = Duration::from_millis(250);

/// Apply the pending changes of the branch.
#[derive(Args, Debug)]
pub(crate) struct Apply {
    /// The instances, such as `staging`
    selector: Vec<String>,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
    /// Show the plan and stop
    #[arg(long)]
    dry_run: bool,
    /// Do not wait for the run to end
    #[arg(long)]
    no_wait: bool,
    /// Run a merged remediation that waits for authorization
    #[arg(long, value_name = "NAME")]
    remediation: Option<ComponentName>,
}

/// Observe the targets and open pull requests that revert drift.
#[derive(Args, Debug)]
pub(crate) struct Propose {
    /// Propose the pending changes instead of the drift
    #[arg(long)]
    apply: bool,
    /// The instances, such as `staging`; all if it is not given
    selector: Vec<String>,
}

pub(super) async fn run(global: &Global, args: &Apply) -> Done {
    let chosen = selector(&args.selector)?;
    if chosen.is_none() && args.remediation.is_none() {
        return Err(Failure {
            code: 64,
            ..Failure::new("what is to be applied has to be named")
                .hint("`evenkeel apply staging`, or `evenkeel apply all`")
        });
    }
    let client = Client::new(global)?;
    let mut ask = CommandRequest {
        selector: chosen.map(|selector| selector.to_string()),
        remediation: args.remediation.clone(),
        ..CommandRequest::default()
    };
    if args.remediation.is_none() {
        let plans: Vec<Plan> = client
            .post("/api/v1/plan", &CommandRequest { selector: ask.selector.clone(), ..CommandRequest::default() })
            .await?;
        if global.output == Format::Text {
            output::note(plans.iter().map(plan::text).collect::<Vec<_>>().join("\n").trim_end());
        }
        let nothing = plans.iter().all(|plan| plan.instances.is_empty());
        if (args.dry_run || nothing) && global.output != Format::Text {
            output::answer(global.output, "apply", &json!({"dryRun": args.dry_run, "plans": plans, "runs": []}))?;
            return Ok(if nothing { 0 } else { plan::exit_code(&plans) });
        }
        if args.dry_run {
            return Ok(plan::exit_code(&plans));
        }
        if nothing {
            output::text("There is nothing to apply: what is on the branch is what is applied.");
            return Ok(0);
        }
        ask.digests = plans.iter().map(|plan| plan.digest.to_string()).collect();
        if !args.yes && !confirmed("Apply this?")? {
            return Err(Failure::new("nothing was applied"));
        }
    }
    let started: Started = client.post("/api/v1/apply", &ask).await?;
    if args.no_wait && global.output != Format::Text {
        output::answer(global.output, "apply", &json!({"runs": started.runs}))?;
        return Ok(0);
    }
    if args.no_wait {
        output::text(
            &started
                .runs
                .iter()
                .map(|run| format!("Run {run} is under way; `evenkeel runs {run}` shows it."))
                .collect::<Vec<_>>()
                .join("\n"),
        );
        return Ok(0);
    }
    follow_all(global, "apply", &started.runs).await
}

/// Shows runs until they end or wait for authorization.
pub(super) async fn follow_all(global: &Global, command: &str, runs: &[RunId]) -> Done {
    let client = Client::new(global)?;
    let (mut code, mut ended) = (0, vec![]);
    for id in runs {
        let run = follow(global, &client, *id).await?;
        let all = run.instances.values().all(|instance| instance.status == Status::Applied);
        code = code.max(match (&run.state, all) {
            (RunState::Ended { .. }, true) => 0,
            (RunState::Ended { .. }, false) => 1,
            (RunState::Open, _) => 2,
        });
        ended.push(run);
    }
    if global.output != Format::Text {
        output::answer(global.output, command, &json!({"runs": ended}))?;
    }
    Ok(code)
}

pub(super) fn confirmed(question: &str) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(
            Failure::new("nothing was done: there is no terminal to ask on").hint("look at the plan and say --yes")
        );
    }
    eprint_flush(&format!("{question} [y/N] "));
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn eprint_flush(text: &str) {
    use std::io::Write;
    let mut out = std::io::stderr().lock();
    drop(out.write_all(text.as_bytes()));
    drop(out.flush());
}

/// Shows a run until it ends or waits for authorization.
async fn follow(global: &Global, client: &Client, id: RunId) -> Result<Run, Failure> {
    let mut shown: BTreeMap<InstanceId, (Status, String)> = BTreeMap::new();
    loop {
        let run: Run = client.get(&format!("/api/v1/runs/{id}")).await?;
        if global.output == Format::Text {
            for (instance, state) in &run.instances {
                let current = (state.status, state.message.clone());
                if shown.get(instance) != Some(&current)
                    && !matches!(state.status, Status::New | Status::Planned | Status::Effected)
                {
                    output::note(&format!("  {instance}   {}", super::runs::message(state)));
                }
                shown.insert(instance.clone(), current);
            }
        }
        // If all instances have ended, the run is about to end.
        let stuck = run.instances.values().any(|i| i.status == Status::Waiting)
            && run.instances.values().all(|i| i.status.ended() || i.status == Status::Waiting);
        match &run.state {
            RunState::Ended { message } => {
                finish(global, &run, message);
                return Ok(run);
            }
            RunState::Open if stuck => {
                finish(global, &run, "It waits; `evenkeel explain` shows the condition.");
                return Ok(run);
            }
            RunState::Open => tokio::time::sleep(POLL).await,
        }
    }
}

fn finish(global: &Global, run: &Run, message: &str) {
    if global.output == Format::Text {
        output::text(&format!("Run {}: {}", run.id, plain(message)));
    }
}

pub(super) async fn propose(global: &Global, args: &Propose) -> Done {
    let chosen = selector(&args.selector)?;
    let ask = CommandRequest {
        selector: chosen.map(|selector| selector.to_string()),
        apply: args.apply,
        ..CommandRequest::default()
    };
    let proposals: Vec<Value> = Client::new(global)?.post("/api/v1/propose", &ask).await?;
    match global.output {
        Format::Text if proposals.is_empty() => output::text("Nothing drifted, so nothing is proposed."),
        Format::Text => {
            for proposal in &proposals {
                output::text(&format!(
                    "#{}   {}   open",
                    proposal["proposal"]["pull"],
                    proposal["root"].as_str().unwrap_or("what is pending")
                ));
            }
        }
        format => output::answer(format, "propose", &json!({"proposals": proposals}))?,
    }
    Ok(if proposals.is_empty() { 0 } else { 2 })
}
