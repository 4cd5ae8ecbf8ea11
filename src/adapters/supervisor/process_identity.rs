//! Identifies processes beyond their pid, because the kernel reuses pids.

use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};

/// The identity of a process: machine, boot, pid and start time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Who {
    /// The name of the machine.
    pub host: String,
    /// The id of the boot.
    pub boot: String,
    /// The pid.
    pub pid: i32,
    /// The start time, in ticks since the boot.
    pub started: u64,
}

impl Who {
    /// Returns the identity of a running process of this machine.
    pub fn of(pid: i32) -> Option<Self> {
        Some(Self { host: host(), boot: boot(), pid, started: started(pid)? })
    }

    /// Returns the identity of this process.
    pub fn me() -> Self {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        Self::of(pid).unwrap_or_else(|| Self { host: host(), boot: boot(), pid, started: 0 })
    }

    /// Returns whether the process runs, on this machine.
    pub fn lives(&self) -> bool {
        self.boot == boot() && started(self.pid) == Some(self.started)
    }

    /// Kills the rest of a process group whose leader has died: the providers of a killed tofu would wait forever.
    /// The kernel does not reuse the number of a group while the group has members.
    pub(super) fn end_orphans(&self) {
        if self.boot == boot()
            && started(self.pid).is_none()
            && let Some(group) = Pid::from_raw(self.pid)
        {
            let _nobody_left = kill_process_group(group, Signal::KILL);
        }
    }

    /// Returns whether a printed identity is that of a running process of this machine.
    pub fn names_living(name: &str) -> bool {
        let mut parts = name.rsplitn(3, '/');
        let (started_at, pid, at) = (parts.next(), parts.next(), parts.next());
        let started_at = started_at.and_then(|text| text.parse().ok());
        at.is_some_and(|at| at == host())
            && started_at.is_some()
            && pid.and_then(|pid| pid.parse().ok()).and_then(started) == started_at
    }

    /// Returns whether the process has certainly ended: it ran on this machine and does not run any more.
    pub fn is_dead(&self) -> bool {
        self.host == host() && !self.lives()
    }
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.host, self.pid, self.started)
    }
}

/// Returns the name of this machine.
fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Returns the start time of a process, in ticks since the boot; `None` if there is no such process, or only a
/// zombie.
fn started(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program is in parentheses and may contain any character.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    (fields.next()? != "Z").then(|| fields.nth(18)?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_another_of_its_number() {
        let me = Who::me();
        assert!(me.lives() && !me.is_dead() && Who::names_living(&me.to_string()));
        assert!(!Who::names_living(&Who { started: 1, ..me.clone() }.to_string()) && !Who::names_living("test"));
        assert!(!Who { started: me.started + 1, ..me.clone() }.lives());
        assert!(!Who { boot: "another".into(), ..me.clone() }.lives());
        let elsewhere = Who { host: "elsewhere".into(), started: 1, ..me };
        assert!(!elsewhere.is_dead(), "nothing is known of another machine");
    }
}
