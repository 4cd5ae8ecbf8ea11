//! The first process of a container: starts the daemon, starts it again when it dies, buries what it left behind.
//!
//! Supervisors outlive the daemon as children of this one, and it ends only when the last of them has. Asked to stop, it
//! asks the daemon, which ends what is under way in its own way.
//! *Race:* the daemon dies while it is asked to stop: it is not started again.

use std::{ffi::OsString, os::unix::process::CommandExt, process::Command, time::Duration};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, set_child_subreaper, wait};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};

/// How long after its death a daemon is started again: growing, so that one that can't start leaves the machine alone.
const AGAIN_MIN: Duration = Duration::from_millis(100);
/// The longest wait.
const AGAIN_MAX: Duration = Duration::from_secs(30);
/// A daemon that lived this long was well.
const WELL_AFTER: Duration = Duration::from_secs(60);

/// Keeps a daemon running until it is asked to stop; the code that this process is to end with.
///
/// # Errors
/// When signals can't be heard, or the daemon can't be started at all.
pub async fn first(arguments: &[OsString]) -> std::io::Result<u8> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut child = signal(SignalKind::child())?;
    set_child_subreaper(Pid::from_raw(1))?;
    let mut daemon = Some(start(arguments)?);
    let (mut stopping, mut again_in, mut started) = (false, AGAIN_MIN, Instant::now());
    let mut again_at: Option<Instant> = None;
    let mut code = 0;
    loop {
        let mut left = false;
        for (pid, status) in buried(&mut left)? {
            if daemon == Some(pid) {
                daemon = None;
                code = status.exit_status().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
                if code == 0 {
                    stopping = true;
                } else {
                    again_in = if started.elapsed() > WELL_AFTER { AGAIN_MIN } else { (again_in * 2).min(AGAIN_MAX) };
                    again_at = Some(Instant::now() + again_in);
                }
            }
        }
        if stopping && !left {
            return Ok(code);
        }
        tokio::select! {
            _ = child.recv() => {}
            _ = term.recv() => stopping = asked(daemon),
            _ = int.recv() => stopping = asked(daemon),
            () = tokio::time::sleep_until(again_at.unwrap_or(started)), if again_at.is_some() && !stopping => {
                again_at = None;
                started = Instant::now();
                match start(arguments) {
                    Ok(pid) => daemon = Some(pid),
                    // What was begun depends on this process: it stays, and tries again.
                    Err(_) => again_at = Some(Instant::now() + AGAIN_MAX),
                }
            }
        }
    }
}

fn asked(daemon: Option<Pid>) -> bool {
    if let Some(pid) = daemon {
        let _already_gone = kill_process(pid, Signal::TERM);
    }
    true
}

fn start(arguments: &[OsString]) -> std::io::Result<Pid> {
    let child = Command::new("/proc/self/exe").arg0("evenkeel").args(arguments).process_group(0).spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| std::io::Error::other("a process without a number"))
}

/// The children that ended since this was asked last; and whether others live.
fn buried(left: &mut bool) -> std::io::Result<Vec<(Pid, WaitStatus)>> {
    let mut ended = vec![];
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => ended.push((pid, status)),
            Ok(None) => {
                *left = true;
                return Ok(ended);
            }
            Err(rustix::io::Errno::CHILD) => return Ok(ended),
            Err(error) => return Err(error.into()),
        }
    }
}
