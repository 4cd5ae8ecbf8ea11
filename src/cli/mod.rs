//! Implements the command line: one file for each subcommand, and no decisions.
//!
//! Prints results to stdout, and everything else to stderr. Exit codes: 1 failure, else 3 something unknown or
//! stalled, else 2 drift or changes found, else 0; 64 usage.

mod apply;
mod client;
mod command;
mod demo;
mod doctor;
mod drift;
mod explain;
mod forge;
mod graph;
mod init;
mod offline;
mod output;
mod plan;
mod runs;
mod serve;
mod status;
mod supervise;
mod validate;
mod who_can;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

pub use output::Format;

use crate::domain::declaration::schema::Verb;

/// An event-driven GitOps reconciler: one git repository declares the desired state of all targets.
#[derive(Parser, Debug)]
#[command(name = "evenkeel", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// The options of every command.
#[derive(Args, Debug, Clone)]
pub(crate) struct Global {
    /// The configuration; the nearest `evenkeel.yaml` above the working directory if it is not given
    #[arg(long, global = true, value_name = "FILE", env = "EVENKEEL_CONFIG")]
    config: Option<PathBuf>,
    /// The daemon's address; by default the configuration's `listen`, else http://127.0.0.1:7654
    #[arg(long, global = true, value_name = "URL", env = "EVENKEEL_SERVER")]
    server: Option<String>,
    /// The format of results
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the daemon
    Serve(serve::Serve),
    /// Run the daemon as the init process of a container
    Supervise(supervise::Supervise),
    /// Check the declarations of a state repo
    Validate(validate::Validate),
    /// Observe the targets now and show what drifted
    Drift(drift::DriftArgs),
    /// Show the actions that would run now, in order, and what blocks them; changes nothing
    Plan(plan::PlanArgs),
    /// Show the verdict of every instance
    Status(status::StatusArgs),
    /// Show everything about one instance, and why it does not proceed
    Explain(explain::Explain),
    /// Apply the pending changes of the branch
    Apply(apply::Apply),
    /// Observe the targets and open pull requests that revert drift
    Propose(apply::Propose),
    /// Move the shards of a Citus cluster into balance now
    Rebalance(command::Words),
    /// Propose to revert drift to the applied state
    Revert(command::Words),
    /// Propose to declare the observed state
    Adopt(command::Words),
    /// Ignore the present drift for some time
    Snooze(command::Snooze),
    /// Observe only, and change nothing
    Suspend(command::Words),
    /// Resume reconciliation of suspended instances
    Resume(command::Words),
    /// Confirm that a target with a new identity is the right one
    Confirm(command::Words),
    /// Destroy instances that are applied and no longer declared
    Destroy(command::Destroy),
    /// Forget instances that are applied and no longer declared; their resources remain
    Forget(command::Words),
    /// End runs at their next safe point
    Cancel(command::Words),
    /// Release the lock of a target whose owner no longer runs
    Unlock(command::Words),
    /// Show runs
    Runs(runs::Runs),
    /// Show the events of runs, in order
    Journal(runs::Journal),
    /// Show the audit log
    Audit(runs::Audit),
    /// Show instances and their dependencies
    Graph(graph::Graph),
    /// Print the JSON Schemas of the declarations
    Schema(validate::Schema),
    /// Show who may give a command
    WhoCan(who_can::WhoCan),
    /// Write a first state repo for the existing root modules
    Init(init::Init),
    /// Check every program, credential, path and permission that the configuration needs
    Doctor(doctor::Doctor),
    /// Run the embedded forge, to try Evenkeel without GitHub
    Forge(forge::ForgeArgs),
    /// Demonstrate Evenkeel on this machine in about a minute
    Demo(demo::Demo),
}

/// An error that ends a command, with a hint.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    hint: Option<String>,
    code: u8,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, code: 1 }
    }
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl<E: std::error::Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(crate::error_chain(&error))
    }
}

pub(crate) type Done = Result<u8, Failure>;

/// Runs the command that the command line names.
pub fn main() -> ExitCode {
    // Every TLS client of this process uses this provider; a second installation is harmless.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let parsed = Cli::command().try_get_matches().and_then(|matches| {
        let name = matches.subcommand_name().unwrap_or_default().to_owned();
        Cli::from_arg_matches(&matches).map(|cli| (cli, name))
    });
    let (cli, name) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            drop(error.print());
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output::fail(&Failure::from(error), cli.global.output, &name),
    };
    let format = cli.global.output;
    let done = runtime.block_on(run(cli));
    // A blocking call that hangs on a dead network must not keep the process alive.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    match done {
        Ok(code) => ExitCode::from(code),
        Err(failure) => output::fail(&failure, format, &name),
    }
}

async fn run(cli: Cli) -> Done {
    let global = &cli.global;
    match cli.command {
        Command::Serve(args) => serve::run(global, args).await,
        Command::Supervise(args) => supervise::run(args).await,
        Command::Validate(args) => validate::run(global, &args),
        Command::Schema(args) => validate::schema(global, &args),
        Command::Drift(args) => drift::run(global, &args).await,
        Command::Plan(args) => plan::run(global, &args).await,
        Command::Status(args) => status::run(global, &args).await,
        Command::Explain(args) => explain::run(global, &args).await,
        Command::Apply(args) => apply::run(global, &args).await,
        Command::Propose(args) => apply::propose(global, &args).await,
        Command::Revert(args) => command::run(global, Verb::Revert, &args).await,
        Command::Adopt(args) => command::run(global, Verb::Adopt, &args).await,
        Command::Rebalance(args) => command::rebalance(global, &args).await,
        Command::Snooze(args) => command::snooze(global, &args).await,
        Command::Suspend(args) => command::run(global, Verb::Suspend, &args).await,
        Command::Resume(args) => command::run(global, Verb::Resume, &args).await,
        Command::Confirm(args) => command::run(global, Verb::Confirm, &args).await,
        Command::Destroy(args) => command::destroy(global, &args).await,
        Command::Forget(args) => command::run(global, Verb::Forget, &args).await,
        Command::Cancel(args) => command::run(global, Verb::Cancel, &args).await,
        Command::Unlock(args) => command::run(global, Verb::Unlock, &args).await,
        Command::Runs(args) => runs::runs(global, &args).await,
        Command::Journal(args) => runs::journal(global, &args).await,
        Command::Audit(args) => runs::audit(global, &args).await,
        Command::Graph(args) => graph::run(global, &args),
        Command::WhoCan(args) => who_can::run(global, &args),
        Command::Init(args) => init::run(global, &args).await,
        Command::Doctor(args) => doctor::run(global, &args).await,
        Command::Forge(args) => forge::run(args).await,
        Command::Demo(args) => demo::run(args).await,
    }
}
