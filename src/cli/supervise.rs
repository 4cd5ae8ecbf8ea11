//! `evenkeel supervise`: the first process of a container, or, ordered by the daemon, the process above one program.

use std::{ffi::OsString, path::PathBuf};

use clap::Args;

use super::{Done, output};
use crate::adapters::supervisor;

/// Run the daemon as the first process of a container: start it again when it dies, and let what it began end.
#[derive(Args, Debug)]
pub(crate) struct Supervise {
    /// Do what was ordered in a spool; for the daemon itself
    #[arg(long, hide = true, value_name = "FOLDER")]
    order: Option<PathBuf>,
    /// What the daemon is started with
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
