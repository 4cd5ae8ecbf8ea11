//! Implements `evenkeel serve`: runs the daemon.

use clap::Args;
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::{Done, Failure, Global, client, offline, output, status};
use crate::{
    config::Config,
    controller::Daemon,
    model::Redactor,
    server::{self, ServerState},
    telemetry,
};

/// Run the daemon.
#[derive(Args, Debug)]
pub(crate) struct Serve {
    /// Reconcile all instances once, run what is due, and exit
    #[arg(long)]
    once: bool,
}

pub(super) async fn run(global: &Global, args: Serve) -> Done {
    let config = client::config(global)?.ok_or_else(|| {
        Failure::new("there is no configuration").hint("write `evenkeel.yaml`, or name one with --config")
    })?;
    let redactor = Redactor::default();
    telemetry::start(&config.telemetry, &redactor);
    let mut alone = offline::Alone::new(&config.data)?;
    let daemon = offline::daemon(&config, redactor).await?;
    let stopper = std::sync::Arc::clone(&daemon);
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        tracing::info!(kind = "stopping", "stopping: no new work starts, and work in progress ends");
        stopper.context.stop();
    });
    // A second daemon on the same data waits until the first process ends or its lease expires.
    if !daemon.leader.wait_for_lease(|| alone.is()).await? {
        return Ok(0);
    }
    if args.once {
        daemon.once().await;
        not_fenced(&daemon)?;
        let all = daemon.status.read().await?;
        status::print(global, &all, "serve")?;
        return Ok(all.verdict.exit_code());
    }
    let (tokens, secret) = (tokens(&config)?, webhook_secret(&config)?);
    let listener = match TcpListener::bind(config.listen).await {
        Err(error) if alone.is() => {
            return Err(Failure::new(format!("could not listen on {}: {error}", config.listen))
                .hint("is another daemon running? `listen` names another address"));
        }
        listener => listener.ok(),
    };
    tokio::spawn(async move {
        while !alone.is() {
            tokio::time::sleep(AGAIN_EVERY).await;
        }
        std::future::pending::<()>().await;
    });
    let door = ServerState { daemon: std::sync::Arc::clone(&daemon), tokens, webhook_secret: secret };
    let (at, url) = (config.listen, config.repository.url.clone());
    let serving = tokio::spawn(async move {
        let listener = match listener {
            Some(listener) => listener,
            // The previous daemon is suspended, and still occupies the address.
            None => loop {
                match TcpListener::bind(at).await {
                    Ok(listener) => break listener,
                    Err(_) => tokio::time::sleep(AGAIN_EVERY).await,
                }
            },
        };
        tracing::info!(kind = "listening", address = %listener.local_addr()?, repository = url, "evenkeel listens");
        server::serve(listener, door).await
    });
    daemon.serve().await;
    not_fenced(&daemon)?;
    // If the daemon never could listen, `serving` does not end.
    if let Ok(Ok(Err(error))) = tokio::time::timeout(AGAIN_EVERY, serving).await {
        output::note(&format!("Error: the API stopped: {error}"));
    }
    daemon.context.store.close().await;
    Ok(0)
}

fn not_fenced(daemon: &Daemon) -> Result<(), Failure> {
    if daemon.leader.is_fenced() {
        return Err(Failure::new("another daemon has taken over, because this one did not renew its lease")
            .hint("it was stopped or very slow; start it again and it waits for its turn"));
    }
    Ok(())
}

/// Returns the tokens of the API by name: the token of this machine, and those of the configuration.
fn tokens(config: &Config) -> Result<Vec<(String, SecretString)>, Failure> {
    let mut tokens = vec![(crate::domain::authorization::LOCAL_TOKEN.to_owned(), server::local_token(&config.data)?)];
    for (name, token) in &config.tokens {
        let text = std::fs::read_to_string(&token.file).map_err(|error| {
            Failure::new(format!("could not read the token `{name}` from `{}`: {error}", token.file.display()))
        })?;
        tokens.push((name.clone(), text.trim().to_owned().into()));
    }
    Ok(tokens)
}

fn webhook_secret(config: &Config) -> Result<Option<SecretString>, Failure> {
    let Some(path) = config.github.as_ref().and_then(|github| github.webhook_secret_file.as_ref()) else {
        return Ok(None);
    };
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::new(format!("could not read `github.webhookSecretFile` `{}`: {error}", path.display()))
    })?;
    if text.trim().is_empty() {
        return Err(Failure::new(format!("`github.webhookSecretFile` `{}` is empty", path.display()))
            .hint("an empty secret would let anybody in"));
    }
    Ok(Some(text.trim().to_owned().into()))
}

/// The interval at which a resource that another process occupies is tried again.
const AGAIN_EVERY: std::time::Duration = std::time::Duration::from_secs(1);

/// Starts a separate daemon for the demo, with its log file in its folder.
pub(in crate::cli) fn start(folder: &std::path::Path) -> Result<tokio::process::Child, Failure> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("daemon.log"))?;
    let program = std::env::current_exe()?;
    let mut command = tokio::process::Command::new(program);
    command
        .arg("serve")
        .arg("--config")
        .arg(folder.join("evenkeel.yaml"))
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(log)
        .kill_on_drop(true);
    Ok(command.spawn()?)
}
