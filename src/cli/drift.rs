//! Implements `evenkeel drift`, which observes the targets and reports drift.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{Done, Failure, Format, Global, client, client::Client, offline, output, status};
use crate::{
    controller::Status,
    domain::{declaration::Selector, message::counts, plan::Plan},
    model::{Redactor, Verdict},
    server::CommandRequest,
};

/// Observe the targets now and show what drifted.
#[derive(Args, Debug)]
pub(crate) struct DriftArgs {
    /// The instances, such as `staging` or `kind:tofu and not production`; all if it is not given
    selector: Vec<String>,
    /// Compare with the checkout, without the daemon's records
    #[arg(long)]
    offline: bool,
    /// The folder of the declarations, with --offline
    #[arg(long, value_name = "FOLDER")]
    state_repo: Option<PathBuf>,
}

/// Parses a selector from the arguments of the command line.
pub(super) fn selector(words: &[String]) -> Result<Option<Selector>, Failure> {
    if words.is_empty() {
        Ok(None)
    } else {
        // Several plain selectors mean any of them.
        let plain = |word: &String| !matches!(word.as_str(), "and" | "or" | "not") && !word.contains(['(', ')', ' ']);
        let between = if words.iter().all(plain) { " or " } else { " " };
        words
            .join(between)
            .parse()
            .map(Some)
            .map_err(|error: crate::domain::declaration::select::Error| Failure { code: 64, ..Failure::from(error) })
    }
}

pub(super) async fn run(global: &Global, args: &DriftArgs) -> Done {
    let chosen = selector(&args.selector)?;
    let client = Client::new(global)?;
    let config = client::config(global)?;
    if !args.offline && client.answers().await {
        let ask = CommandRequest { selector: chosen.map(|selector| selector.to_string()), ..CommandRequest::default() };
        let found: Status = client.post("/api/v1/drift", &ask).await?;
        status::print(global, &found, "drift")?;
        return Ok(found.verdict.exit_code());
    }
    if let Some(config) = config.as_ref().filter(|config| !args.offline && config.data.join("evenkeel.db").is_file()) {
        output::note("No daemon answers; looking with its store.");
        let _only = offline::only_one(&config.data)?;
        let daemon = offline::daemon(config, Redactor::default()).await?;
        daemon.leader.take_lease().await?;
        daemon.source.refresh().await?;
        let selected = daemon.commands.check_drift_of(chosen.as_ref(), &offline::owner()).await?;
        let mut found = daemon.status.read().await?;
        found.instances.retain(|instance| selected.contains(&instance.id));
        found.verdict = found.instances.iter().map(|instance| instance.verdict).min().unwrap_or(found.verdict);
        status::print(global, &found, "drift")?;
        return Ok(found.verdict.exit_code());
    }
    let (daemon, _folder) = offline::offline(config.as_ref(), args.state_repo.as_deref()).await?;
    let plans = daemon.commands.plan_now(chosen.as_ref(), &offline::owner()).await?;
    against_checkout(global, &plans)
}

/// Compares with the checkout, because there are no applied records, and prints the verdicts.
fn against_checkout(global: &Global, plans: &[Plan]) -> Done {
    let colour = output::colour();
    let verdict = |instance: &crate::domain::plan::InstancePlan| match (
        &instance.problem,
        instance.digest,
        instance.actions.is_empty(),
    ) {
        (Some(_), ..) | (None, None, _) => Verdict::Unknown,
        (None, Some(_), true) => Verdict::InSync,
        (None, Some(_), false) => Verdict::Drifted,
    };
    let instances: Vec<&crate::domain::plan::InstancePlan> = plans.iter().flat_map(|plan| &plan.instances).collect();
    let worst = instances.iter().map(|instance| verdict(instance)).min().unwrap_or(Verdict::Unknown);
    if global.output != Format::Text {
        let rows: Vec<_> = instances.iter().map(|i| json!({"id": i.id, "environment": i.id.environment, "component": i.id.component, "kind": i.kind, "verdict": verdict(i), "applied": null, "pending": i.actions.iter().flat_map(|a| a.resources.clone()).collect::<Vec<_>>(), "drift": [], "reason": i.problem})).collect();
        output::answer(
            global.output,
            "drift",
            &json!({"against": "checkout", "revision": null, "verdict": worst, "instances": rows, "problems": []}),
        )?;
        return Ok(worst.exit_code());
    }
    let mut text = "Against the checkout; no applied record: drift and pending can't be told apart.\n".to_owned();
    let rows: Vec<Vec<String>> = instances
        .iter()
        .map(|instance| {
            let resources: Vec<_> = instance.actions.iter().flat_map(|action| &action.resources).collect();
            let message = instance.problem.clone().unwrap_or_else(|| match instance.waiting_on.first() {
                Some(on) if instance.digest.is_none() => crate::domain::message::comment::waiting(on),
                _ => counts(&resources),
            });
            vec![instance.id.to_string(), status::paint(verdict(instance), colour), instance.kind.clone(), message]
        })
        .collect();
    text.push_str(&output::table(&rows));
    output::text(&text);
    Ok(worst.exit_code())
}
