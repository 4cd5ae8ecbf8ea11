//! One supervisor: reads its order, looks at the token, starts the program, waits for it, writes how it ended.
//!
//! Runs in a session of its own, so that nothing that ends the daemon's ends it. Asked to stop (SIGTERM, SIGINT) or when
//! the time is over, it interrupts the program once; only a program that then takes too long is killed. Prints nothing:
//! its output is the program's.

use std::{os::unix::process::ExitStatusExt, path::Path, process::Stdio, time::Duration};

use chrono::Utc;
use rustix::process::{Pid, Signal, kill_process_group, set_child_subreaper, setsid};
use tokio::{
    process::{Child, Command},
    signal::unix::{Signal as Signals, SignalKind, signal},
    time::{Instant, sleep_until},
};

use super::{Begun, End, Fence, Order, Spool, Who, keep, kept, remove};

/// How long a program whose time is over may take to write its state after it was interrupted.
const STOP_GRACE: Duration = Duration::from_secs(60);

/// Does what was ordered in a spool; the code that the process is to end with.
///
/// # Errors
/// When the spool can't be read or written.
pub async fn supervise(folder: &Path) -> std::io::Result<u8> {
    let mut asked = Asked::new()?;
    let spool = Spool::new(folder.to_owned());
    let Some(order) = kept::<Order>(&folder.join("order.json"))? else { return Ok(1) };
    // Where it is a session's leader already there is nothing to leave.
    let _leads_one_already = setsid();
    set_child_subreaper(Pid::from_raw(1))?;
    let end = match refusal(order.fence.as_ref()).await {
        Some(message) => End::Refused { message },
        None => run(folder, &order, &mut asked).await?,
    };
    remove(&spool.input())?;
    keep(&folder.join("end.json"), &end)?;
    Ok(0)
}

/// Why the program is not to be started, in a sentence.
pub(super) async fn refusal(fence: Option<&Fence>) -> Option<String> {
    let fence = fence?;
    match crate::adapters::store::token_in(&fence.store, &fence.environment).await {
        Ok(Some(token)) if token == fence.token => None,
        Ok(_) => Some(format!("another daemon has taken over `{}`; nothing was done", fence.environment)),
        Err(error) => Some(format!("the lease could not be read, so nothing was done: {}", crate::error_chain(&error))),
    }
}

/// The signals that ask for an end; heard from the first moment on, so that none ends this process.
struct Asked {
    term: Signals,
    int: Signals,
    /// A closed terminal is no reason to stop.
    _hangup: Signals,
}

impl Asked {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            _hangup: signal(SignalKind::hangup())?,
        })
    }
    async fn heard(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

async fn run(folder: &Path, order: &Order, asked: &mut Asked) -> std::io::Result<End> {
    let mut command = Command::new(&order.program);
    command.args(&order.arguments).current_dir(&order.folder).process_group(0).kill_on_drop(false);
    let mut child = match command.stdin(Stdio::inherit()).spawn() {
        Ok(child) => child,
        Err(error) => return Ok(End::NotStarted { message: error.to_string() }),
    };
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    let program = pid.and_then(Who::of).unwrap_or_else(|| Who { pid: pid.unwrap_or_default(), ..Who::me() });
    // Where it can't be written it is waited for all the same: it lives.
    let _unwritten = keep(&folder.join("begun.json"), &Begun { supervisor: Who::me(), program, at: Utc::now() });
    let end = wait(&mut child, asked, Duration::from_secs(order.seconds)).await?;
    if let Some(group) = pid.and_then(Pid::from_raw) {
        // What it started and left behind goes with it.
        let _nobody_left = kill_process_group(group, Signal::KILL);
    }
    Ok(end)
}

async fn wait(child: &mut Child, asked: &mut Asked, limit: Duration) -> std::io::Result<End> {
    let group = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    let signalled = |with: Signal| {
        if let Some(group) = group {
            let _already_gone = kill_process_group(group, with);
        }
    };
    let mut over = Instant::now() + limit;
    let (mut interrupted, mut too_long) = (false, false);
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            () = asked.heard(), if !interrupted => {
                interrupted = true;
                signalled(Signal::INT);
            }
            () = sleep_until(over) => {
                // A second interrupt would make it leave without writing its state.
                if too_long {
                    signalled(Signal::KILL);
                } else if !interrupted {
                    signalled(Signal::INT);
                }
                (interrupted, too_long, over) = (true, true, Instant::now() + STOP_GRACE);
            }
        }
    };
    Ok(match status.code() {
        _ if too_long => End::Stopped { message: format!("was stopped: it took longer than {} s", limit.as_secs()) },
        Some(code) => End::Exited { code },
        None => End::Killed { message: format!("was killed by signal {}", status.signal().unwrap_or_default()) },
    })
}
