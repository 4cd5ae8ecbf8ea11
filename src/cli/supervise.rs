//! Implements `evenkeel supervise`: the init process of a container, or the supervisor of one program.

use std::{ffi::OsString, path::PathBuf};

use clap::Args;

use super::{Done, output};
use crate::adapters::supervisor;

/// Run the daemon as the init process of a container: restart it when it dies, and let its programs finish.
#[derive(Args, Debug)]
pub(crate) struct Supervise {
    /// Execute the order in a spool; used by the daemon itself
    #[arg(long, hide = true, value_name = "FOLDER")]
    order: Option<PathBuf>,
    /// The command line of the daemon
    #[arg(last = true, default_value = "serve", value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(super) async fn run(args: Supervise) -> Done {
    if let Some(folder) = args.order {
        return Ok(supervisor::supervise(&folder).await?);
    }
    output::note("evenkeel supervises the daemon: it is started again when it dies; SIGTERM ends it");
    Ok(supervisor::first(&args.command).await?)
}
