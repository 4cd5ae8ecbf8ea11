//! Who a process is, so that it can be told whether it still lives: a number alone is given to another one some day.

use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};

/// A process of one boot of one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Who {
    /// The machine.
    pub host: String,
    /// Which boot of it.
    pub boot: String,
    /// The process.
    pub pid: i32,
    /// When it was started, in ticks since the boot.
    pub started: u64,
}

impl Who {
    /// A process of this machine that lives now.
    pub fn of(pid: i32) -> Option<Self> {
        Some(Self { host: host(), boot: boot(), pid, started: started(pid)? })
    }

    /// This process.
    pub fn me() -> Self {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        Self::of(pid).unwrap_or_else(|| Self { host: host(), boot: boot(), pid, started: 0 })
    }

    /// Whether it lives, on this machine.
    pub fn lives(&self) -> bool {
        self.boot == boot() && started(self.pid) == Some(self.started)
    }

    /// Ends what a dead leader of a process group left behind: the providers of a tofu that was killed wait for ever. The
    /// number of a group is given to nobody else while anybody is in it.
    pub(super) fn end_orphans(&self) {
        if self.boot == boot()
            && started(self.pid).is_none()
            && let Some(group) = Pid::from_raw(self.pid)
        {
            let _nobody_left = kill_process_group(group, Signal::KILL);
        }
    }

    /// Whether a name, as it is printed, is that of a process of this machine that lives.
    pub fn names_living(name: &str) -> bool {
        let mut parts = name.rsplitn(3, '/');
        let (started_at, pid, at) = (parts.next(), parts.next(), parts.next());
        let started_at = started_at.and_then(|text| text.parse().ok());
        at.is_some_and(|at| at == host())
            && started_at.is_some()
            && pid.and_then(|pid| pid.parse().ok()).and_then(started) == started_at
    }

    /// Whether it is certain that it does not: it was of this machine, and is gone.
    pub fn is_dead(&self) -> bool {
        self.host == host() && !self.lives()
    }
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.host, self.pid, self.started)
    }
}

/// The name of this machine.
fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// When a process was started, in ticks since the boot; nothing where there is none, or where it only waits to be
/// buried.
fn started(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold anything.
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
