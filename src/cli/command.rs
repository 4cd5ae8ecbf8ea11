//! Implements the commands that share their form with comments (R6.9): `suspend`, `destroy` etc.

use clap::Args;

use super::{
    Done, Failure, Format, Global,
    apply::{confirmed, follow_all},
    client::Client,
    drift::selector,
    output, plan,
};
use crate::{
    controller::CommandOutcome,
    domain::{declaration::schema::Verb, message::plain},
    model::Duration,
    server::CommandRequest,
};

/// A selector.
#[derive(Args, Debug)]
pub(crate) struct Words {
    /// The instances, such as `staging/network`
    #[arg(required = true)]
    selector: Vec<String>,
}

/// Ignore the present drift for some time.
#[derive(Args, Debug)]
pub(crate) struct Snooze {
    #[command(flatten)]
    words: Words,
    /// The duration, such as `14d`; 30 days if it is not given
    #[arg(long = "for", value_name = "DURATION")]
    lasting: Option<Duration>,
}

/// Destroy instances that are applied and no longer declared.
#[derive(Args, Debug)]
pub(crate) struct Destroy {
    #[command(flatten)]
    words: Words,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
}

async fn ask(global: &Global, verb: Verb, ask: &CommandRequest) -> Result<CommandOutcome, Failure> {
    Client::new(global)?.post(&format!("/api/v1/commands/{}", verb.name()), ask).await
}

fn ask_for(words: &Words) -> Result<CommandRequest, Failure> {
    let selector = selector(&words.selector)?.map(|selector| selector.to_string());
    Ok(CommandRequest { selector, ..CommandRequest::default() })
}

fn tell(global: &Global, verb: Verb, outcome: &CommandOutcome) -> Result<(), Failure> {
    match global.output {
        Format::Text => output::text(&plain(&outcome.message)),
        format => output::answer(format, &verb.name(), &serde_json::to_value(outcome)?)?,
    }
    Ok(())
}

pub(super) async fn run(global: &Global, verb: Verb, words: &Words) -> Done {
    let response = ask(global, verb, &ask_for(words)?).await?;
    tell(global, verb, &response)?;
    Ok(0)
}

pub(super) async fn rebalance(global: &Global, words: &Words) -> Done {
    let response = ask(global, Verb::Rebalance, &ask_for(words)?).await?;
    if global.output == Format::Text {
        tell(global, Verb::Rebalance, &response)?;
    }
    follow_all(global, "rebalance", &response.runs).await
}

pub(super) async fn snooze(global: &Global, args: &Snooze) -> Done {
    let response =
        ask(global, Verb::Snooze, &CommandRequest { lasting: args.lasting, ..ask_for(&args.words)? }).await?;
    tell(global, Verb::Snooze, &response)?;
    Ok(0)
}

pub(super) async fn destroy(global: &Global, args: &Destroy) -> Done {
    let first = ask_for(&args.words)?;
    let shown = ask(global, Verb::Destroy, &first).await?;
    let digests: Vec<String> = shown.plans.iter().map(|plan| plan.digest.to_string()).collect();
    if global.output == Format::Text {
        output::note(shown.plans.iter().map(plan::text).collect::<Vec<_>>().join("\n").trim_end());
    }
    if digests.len() > 1 {
        let message = "that is of more than one environment";
        return Err(Failure { code: 64, ..Failure::new(message).hint("destroy one environment after the other") });
    }
    if !args.yes && !confirmed("Destroy this?")? {
        return Err(Failure::new("nothing was destroyed"));
    }
    let response = ask(global, Verb::Destroy, &CommandRequest { digests, ..first }).await?;
    if global.output == Format::Text {
        tell(global, Verb::Destroy, &response)?;
    }
    follow_all(global, "destroy", &response.runs).await
}
