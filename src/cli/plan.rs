//! Implements `evenkeel plan`, which shows the actions that would run now.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{Done, Format, Global, client, client::Client, drift::selector, offline, output};
use crate::{
    domain::{
        message::{comment, counts, diff, layout},
        plan::Plan,
    },
    model::Redactor,
    server::CommandRequest,
};

/// Show the actions that would run now, in order, and what blocks them; changes nothing.
#[derive(Args, Debug)]
pub(crate) struct PlanArgs {
    /// The instances, such as `staging`; all if it is not given
    selector: Vec<String>,
    /// Plan the checkout, without the daemon's records
    #[arg(long)]
    offline: bool,
    /// The folder of the declarations, with --offline
    #[arg(long, value_name = "FOLDER")]
    state_repo: Option<PathBuf>,
}

pub(super) async fn run(global: &Global, args: &PlanArgs) -> Done {
    let chosen = selector(&args.selector)?;
    let client = Client::new(global)?;
    let config = client::config(global)?;
    let (plans, against): (Vec<Plan>, &str) = if !args.offline && client.answers().await {
        let ask = CommandRequest { selector: chosen.map(|selector| selector.to_string()), ..CommandRequest::default() };
        (client.post("/api/v1/plan", &ask).await?, "applied")
    } else if let Some(config) =
        config.as_ref().filter(|config| !args.offline && config.data.join("evenkeel.db").is_file())
    {
        output::note("No daemon answers; planning with its store.");
        let _only = offline::only_one(&config.data)?;
        let daemon = offline::daemon(config, Redactor::default()).await?;
        daemon.leader.take_lease().await?;
        daemon.source.refresh().await?;
        (daemon.commands.plan_now(chosen.as_ref(), &offline::owner()).await?, "applied")
    } else {
        let (daemon, _folder) = offline::offline(config.as_ref(), args.state_repo.as_deref()).await?;
        (daemon.commands.plan_now(chosen.as_ref(), &offline::owner()).await?, "checkout")
    };
    match (global.output, &plans[..]) {
        (Format::Text, _) => {
            if against == "checkout" {
                output::text("Against the checkout; no applied record: drift and pending can't be told apart.");
            }
            output::text(&plans.iter().map(text).collect::<Vec<_>>().join("\n"));
        }
        (format, [one]) => output::document(format, one)?,
        (format, all) => output::answer(format, "plan", &json!({"against": against, "plans": all}))?,
    }
    Ok(exit_code(&plans))
}

pub(super) fn exit_code(plans: &[Plan]) -> u8 {
    if plans.iter().any(|plan| plan.instances.iter().any(|instance| instance.problem.is_some())) {
        3
    } else if plans.iter().any(Plan::has_work) {
        2
    } else {
        0
    }
}

/// Renders a plan for people.
pub(super) fn text(plan: &Plan) -> String {
    let colour = output::colour();
    if !plan.has_work() && plan.instances.iter().all(|instance| instance.problem.is_none()) {
        return format!("{}: nothing to do.\n", plan.environment);
    }
    let mut text = format!("Plan for {} at {}\n\n", plan.environment, plan.revision.short());
    for instance in &plan.instances {
        let resources: Vec<_> = instance.actions.iter().flat_map(|action| &action.resources).collect();
        let what = match (&instance.problem, instance.digest) {
            (Some(problem), _) => colour.bad(&format!("no plan: {problem}")),
            (None, None) => instance.waiting_on.first().map(comment::waiting).unwrap_or_default(),
            _ => counts(&resources),
        };
        text.push_str(&format!("{}. {}   {what}\n", instance.order, instance.id));
        for line in resources.iter().flat_map(|resource| diff(resource)) {
            let painted = match line.chars().next() {
                Some('+') => colour.good(&line),
                Some('-') => colour.bad(&line),
                _ => colour.warn(&line),
            };
            text.push_str(&format!("     {painted}\n"));
        }
        if let Some(plan) = &instance.layout {
            for line in std::iter::once(layout::summary(plan).as_str()).chain(layout::bars(plan).lines()) {
                text.push_str(&format!("     {line}\n"));
            }
        }
        for warning in &instance.warnings {
            text.push_str(&format!("     {}\n", colour.warn(&format!("! {warning}"))));
        }
        for on in instance.waiting_on.iter().filter(|_| instance.digest.is_some()) {
            text.push_str(&format!("     waits for {}\n", comment::waiting(on)));
        }
    }
    let s = &plan.summary;
    text.push_str(&format!(
        "\n{} to change, {} to create, {} to replace, {} to destroy{}. Digest {}.\n",
        s.update,
        s.create,
        s.replace,
        s.destroy,
        if s.moves > 0 { format!(", {} to move ({})", s.moves, layout::size(s.move_bytes)) } else { String::new() },
        plan.digest.short()
    ));
    text
}
