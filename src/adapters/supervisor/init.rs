//! Runs as the init process of a container: starts the daemon, restarts it, and reaps its children.
//!
//! Supervisors outlive the daemon as children of this process, which exits only after the last of them. On a stop
//! signal, this process forwards the signal to the daemon, and the daemon ends its running work.
//! *Race:* the daemon dies after the stop signal: this process does not start it again.

use std::{ffi::OsString, os::unix::process::CommandExt, process::Command, time::Duration};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, set_child_subreaper, wait};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};

/// The delay between the death of a daemon and its restart. The delay grows, so that a daemon that can't start
/// does not load the machine.
const AGAIN_MIN: Duration = Duration::from_millis(100);
/// The maximum delay.
const AGAIN_MAX: Duration = Duration::from_secs(30);
/// A daemon that ran for this long was healthy, so its restart begins with the minimum delay.
const WELL_AFTER: Duration = Duration::from_secs(60);

/// Keeps a daemon running until a stop signal arrives; returns the exit code of this process.
///
/// # Errors
/// When the signal handlers can't be installed, or the first start of the daemon fails.
pub async fn first(arguments: &[OsString]) -> std::io::Result<u8> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut child = signal(SignalKind::child())?;
    set_child_subreaper(Pid::from_raw(1))?;
    let mut daemon = Some(start(arguments)?);
    let (mut stopping, mut again_in, mut started) = (false, AGAIN_MIN, Instant::now());
    let mut again_at: Option<Instant> = None;
    let mut code = 0;
    loop {
        let mut has_children = false;
        for (pid, status) in buried(&mut has_children)? {
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
        if stopping && !has_children {
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
                    // Running supervisors depend on this process: it continues, and tries again.
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

/// Reaps the children that ended since the last call; sets `has_children` if others still run.
fn buried(has_children: &mut bool) -> std::io::Result<Vec<(Pid, WaitStatus)>> {
    let mut ended = vec![];
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => ended.push((pid, status)),
            Ok(None) => {
                *has_children = true;
                return Ok(ended);
            }
            Err(rustix::io::Errno::CHILD) => return Ok(ended),
            Err(error) => return Err(error.into()),
        }
    }
}
