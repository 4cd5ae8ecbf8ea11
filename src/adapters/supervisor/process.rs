//! Implements one supervisor: checks the token, runs the ordered program, and records how it ended.
//!
//! Runs in its own session, so that a signal to the daemon's session does not reach it. On SIGTERM or SIGINT, or
//! at the time limit, it interrupts the program once; it kills only a program that then exceeds the grace period.
//! Prints nothing: its output is the output of the program.

use std::{os::unix::process::ExitStatusExt, path::Path, process::Stdio, time::Duration};

use chrono::Utc;
use rustix::process::{Pid, Signal, kill_process_group, set_child_subreaper, setsid};
use tokio::{
    process::{Child, Command},
    signal::unix::{Signal as Signals, SignalKind, signal},
    time::{Instant, sleep_until},
};

use super::{Begun, End, Fence, Order, Spool, Who, keep, kept, remove};

/// The time for a program that exceeded its limit to write its state after the interrupt.
const STOP_GRACE: Duration = Duration::from_secs(60);

/// Executes the order in a spool; returns the exit code of the process.
///
/// # Errors
/// When the spool can't be read or written.
pub async fn supervise(folder: &Path) -> std::io::Result<u8> {
    let mut asked = Asked::new()?;
    let spool = Spool::new(folder.to_owned());
    let Some(order) = kept::<Order>(&folder.join("order.json"))? else { return Ok(1) };
    // Fails if this process already leads a session; then there is no session to leave.
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

/// Returns the reason why the program must not start, in a sentence.
pub(super) async fn refusal(fence: Option<&Fence>) -> Option<String> {
    let fence = fence?;
    match crate::adapters::store::token_in(&fence.store, &fence.environment).await {
        Ok(Some(token)) if token == fence.token => None,
        Ok(_) => Some(format!("another daemon has taken over `{}`; nothing was done", fence.environment)),
        Err(error) => Some(format!("the lease could not be read, so nothing was done: {}", crate::error_chain(&error))),
    }
}

/// The stop signals. Their handlers are installed first, so that no signal kills this process.
struct Asked {
    term: Signals,
    int: Signals,
    /// A closed terminal is not a reason to stop.
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
    // Wait for the program even if the record can't be written: the program already runs.
    let _unwritten = keep(&folder.join("begun.json"), &Begun { supervisor: Who::me(), program, at: Utc::now() });
    let end = wait(&mut child, asked, Duration::from_secs(order.seconds)).await?;
    if let Some(group) = pid.and_then(Pid::from_raw) {
        // Kill the processes that the program left behind.
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
                // tofu exits at a second interrupt without writing its state.
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
