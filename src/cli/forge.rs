//! Implements `evenkeel forge`: runs the embedded forge.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;

use super::{Done, Failure, output};
use crate::{
    config::Telemetry,
    forge::{Forge, Settings},
    model::Redactor,
    telemetry,
};

/// Run the embedded forge, to try Evenkeel without GitHub.
#[derive(Args, Debug)]
pub(crate) struct ForgeArgs {
    /// The folder for the repository and the records of the forge
    #[arg(long, value_name = "FOLDER", default_value = "forge")]
    folder: PathBuf,
    /// The file that declares owner, repository, users, teams and webhook
    #[arg(long, value_name = "FILE")]
    settings: PathBuf,
    /// The address to listen on; loopback only
    #[arg(long, default_value = "127.0.0.1:7655")]
    listen: SocketAddr,
}

pub(super) async fn run(args: ForgeArgs) -> Done {
    telemetry::start(&Telemetry::default(), &Redactor::default());
    let text = std::fs::read_to_string(&args.settings)
        .map_err(|error| Failure::new(format!("could not read `{}`: {error}", args.settings.display())))?;
    let settings: Settings = serde_saphyr::from_str(&text)
        .map_err(|error| Failure::new(format!("`{}`: {error}", args.settings.display())))?;
    let (owner, name) = (settings.owner.clone(), settings.repository.clone());
    let forge = Forge::start(args.folder, settings, args.listen).await?;
    output::text(&format!("The forge serves http://{0}/ ; git clone http://{0}/{owner}/{name}.git", forge.address));
    tokio::select! {
        () = forge.wait() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    Ok(0)
}
