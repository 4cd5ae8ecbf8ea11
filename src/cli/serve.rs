//! `evenkeel serve`: the daemon.

use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::{Done, Failure, Global, client, output, status, workbench};
use crate::{
    model::Redactor,
    server::{self, Door},
    telemetry,
};

/// Run the daemon.
#[derive(Args, Debug)]
pub(crate) struct Serve {
    /// Make one full pass over everything, do what is due, and exit
    #[arg(long)]
    once: bool,
}

pub(super) async fn run(global: &Global, args: Serve) -> Done {
    let config = client::config(global)?.ok_or_else(|| {
        Failure::new("there is no configuration").hint("write `evenkeel.yaml`, or name one with --config")
    })?;
    let redactor = Redactor::default();
    telemetry::start(&config.telemetry, &redactor);
    let _only = workbench::only_one(&config.data)?;
    let daemon = workbench::daemon(&config, redactor).await?;
    let stopper = std::sync::Arc::clone(&daemon);
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        tracing::info!("stopping: nothing new is started, and what is under way ends");
        stopper.stop();
    });
    if args.once {
        daemon.once().await;
        let all = daemon.status().await?;
        status::print(global, &all, "serve")?;
        return Ok(all.verdict.exit_code());
    }
    let mut tokens = vec![(crate::authority::LOCAL_TOKEN.to_owned(), server::local_token(&config.data)?)];
    for (name, token) in &config.tokens {
        let text = std::fs::read_to_string(&token.file).map_err(|error| {
            Failure::new(format!("could not read the token `{name}` from `{}`: {error}", token.file.display()))
        })?;
        tokens.push((name.clone(), text.trim().to_owned().into()));
    }
    let secret = match config.github.as_ref().and_then(|github| github.webhook_secret_file.clone()) {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(&path).map_err(|error| {
                Failure::new(format!("could not read `github.webhookSecretFile` `{}`: {error}", path.display()))
            })?;
            if text.trim().is_empty() {
                return Err(Failure::new(format!("`github.webhookSecretFile` `{}` is empty", path.display()))
                    .hint("an empty secret would let anybody in"));
            }
            Some(text.trim().to_owned().into())
        }
    };
    let listener = TcpListener::bind(config.listen).await.map_err(|error| {
        Failure::new(format!("could not listen on {}: {error}", config.listen))
            .hint("is another daemon running? `listen` names another address")
    })?;
    let address = listener.local_addr()?;
    tracing::info!(%address, repository = config.repository.url, "evenkeel listens");
    let door = Door { daemon: std::sync::Arc::clone(&daemon), tokens, webhook_secret: secret };
    let serving = tokio::spawn(server::serve(listener, door));
    daemon.serve().await;
    if let Ok(Err(error)) = serving.await {
        output::note(&format!("Error: the API stopped: {error}"));
    }
    daemon.hands.store.close().await;
    Ok(0)
}

/// Starts a daemon of its own for the demo, whose log stands in its folder.
pub(super) fn start(folder: &std::path::Path) -> Result<tokio::process::Child, Failure> {
    let log = std::fs::File::create(folder.join("daemon.log"))?;
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
