//! Implements `evenkeel who-can`: the principals that may issue a command, with the granting lines.

use std::{collections::BTreeSet, path::PathBuf};

use clap::Args;
use serde_json::json;

use super::{Done, Failure, Format, Global, output, validate};
use crate::{
    domain::{
        authorization::Rights,
        declaration::{
            schema::{StateRepo, Verb},
            validate::nearest,
        },
        message::{approvals::needed, plain},
    },
    model::EnvironmentName,
};

/// Show the principals that may issue a command.
#[derive(Args, Debug)]
pub(crate) struct WhoCan {
    /// The command, such as `apply`
    command: String,
    /// An environment, or an instance of it
    place: String,
    /// The folder of the declarations; the nearest `state-repo` above the working directory if it is not given
    #[arg(long, value_name = "FOLDER")]
    state_repo: Option<PathBuf>,
}

fn usage(message: String, near: Option<&str>, hint: &str) -> Failure {
    let hint = near.map_or_else(|| hint.to_owned(), |near| format!("did you mean `{near}`?"));
    Failure { code: 64, ..Failure::new(message).hint(hint) }
}

pub(super) fn run(global: &Global, args: &WhoCan) -> Done {
    let word = args.command.trim_start_matches('/');
    let verb: Verb = serde_json::from_value(word.into()).map_err(|_| {
        usage(
            format!("`{word}` is not a command"),
            nearest(word, Verb::names()),
            "`/help` on a pull request lists them",
        )
    })?;
    let desired = validate::load(args.state_repo.as_deref())?;
    let name = args.place.split('/').next().unwrap_or_default();
    let names = || desired.environments.keys().map(EnvironmentName::as_str);
    let environment = desired.environments.keys().find(|known| known.as_str() == name).ok_or_else(|| {
        let hint = format!("the environments are {}", names().collect::<Vec<_>>().join(", "));
        usage(format!("there is no environment `{name}`"), nearest(name, names()), &hint)
    })?;
    if args.place.contains('/') && !desired.instances.keys().any(|id| id.to_string() == args.place) {
        let ids: Vec<String> = desired.instances.keys().map(ToString::to_string).collect();
        let near = nearest(&args.place, ids.iter().map(String::as_str));
        return Err(usage(format!("there is no instance `{}`", args.place), near, "`evenkeel graph` lists them"));
    }
    if !crate::domain::command::VERBS.contains(&verb) {
        return Err(usage(
            format!("`{word}` is not available in this version"),
            None,
            "`/help` on a pull request lists the commands",
        ));
    }
    let state_repo = desired.state_repo.as_deref().ok_or_else(|| {
        Failure::new("the StateRepo can't be read, and without it no principal has a permission")
            .hint("`evenkeel validate` shows what is wrong")
    })?;
    let rights = Rights::of(state_repo, environment);
    let allowed = rights.allowed(verb);
    let needs = rights.approvals(verb);
    if global.output != Format::Text {
        let people: Vec<_> = allowed.iter().map(|to| json!({"to": to, "is": meaning(state_repo, to)})).collect();
        let answer = json!({"verb": word, "environment": environment, "allowed": people, "approvals": needs});
        output::answer(global.output, "who-can", &answer)?;
        return Ok(0);
    }
    if allowed.is_empty() {
        output::text(&format!("No line of the permissions allows {word} in {environment}."));
        output::note("Only whoever can read the daemon's data on its machine (token:local) may.");
        return Ok(0);
    }
    let rows: Vec<Vec<String>> =
        allowed.iter().map(|to| vec![format!("  {to}"), meaning(state_repo, to).unwrap_or_default()]).collect();
    output::text(&format!("In {environment}, {word} is allowed to any of\n{}", output::table(&rows)));
    if let Some(needs) = needs {
        output::text(&plain(&format!("and needs {} on the pull request (R3.6).", needed(needs))));
    }
    output::note("and to whoever can read the daemon's data on its machine (token:local).");
    Ok(0)
}

/// Returns the members of a principal, as far as the declarations name them.
fn meaning(state_repo: &StateRepo, to: &str) -> Option<String> {
    match to.split_once(':')? {
        ("team", name) => {
            let team = state_repo.teams.get(name)?;
            let users: BTreeSet<String> = team.users.iter().map(|user| format!("@{user}")).collect();
            let github = team.github.iter().map(|team| format!("the GitHub team {team}"));
            Some(github.chain(users).collect::<Vec<_>>().join(", "))
        }
        ("permission", word) => Some(format!("whoever has the permission `{word}` or more on the repository")),
        ("token", _) => Some("the API token of that name in the daemon's configuration".into()),
        _ => None,
    }
}
