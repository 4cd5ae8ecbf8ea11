//! Provides a PostgreSQL server on a free port of this machine, stopped with the test.

use std::process::{Command, Stdio};

use evenkeel::targets::kubernetes::local::free_port;

/// A running server that trusts local connections.
pub(crate) struct Postgres {
    _folder: tempfile::TempDir,
    data: std::path::PathBuf,
    bin: String,
    options: String,
    pub(crate) port: u16,
}

/// Returns a command that runs as a user other than root, because PostgreSQL refuses root.
fn as_nobody(program: &str) -> Command {
    if std::fs::metadata("/proc/self").map(|me| std::os::unix::fs::MetadataExt::uid(&me)).unwrap_or(1) != 0 {
        return Command::new(program);
    }
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--", program]);
    command
}

impl Postgres {
    pub(crate) fn start() -> Self {
        Self::start_with("")
    }

    /// Starts a server with settings.
    pub(crate) fn start_with(settings: &str) -> Self {
        let output = Command::new("tools/tools").arg("postgres").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let bin = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        std::fs::create_dir(&data).unwrap();
        for place in [folder.path(), &data] {
            drop(Command::new("chown").arg("postgres").arg(place).stderr(Stdio::null()).status());
        }
        let quiet =
            |command: &mut Command| command.current_dir("/").stdout(Stdio::null()).stderr(Stdio::null()).status();
        let made = quiet(as_nobody(&format!("{bin}/initdb")).args(["-A", "trust", "-U", "evenkeel", "-D"]).arg(&data));
        assert!(made.unwrap().success(), "initdb");
        let port = free_port().unwrap();
        let options =
            format!("-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off {settings}");
        let started = quiet(
            as_nobody(&format!("{bin}/pg_ctl"))
                .args(["-w", "-o", &options, "-l"])
                .arg(data.join("log"))
                .arg("-D")
                .arg(&data)
                .arg("start"),
        );
        assert!(started.unwrap().success(), "{}", std::fs::read_to_string(data.join("log")).unwrap_or_default());
        Self { _folder: folder, data, bin, options, port }
    }
}

impl Postgres {
    /// Stops at once, like a lost machine.
    pub(crate) fn halt(&self) {
        let mut stop = as_nobody(&format!("{}/pg_ctl", self.bin));
        stop.args(["-m", "immediate", "-w", "-D"]).arg(&self.data).arg("stop").current_dir("/");
        assert!(stop.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    }

    /// Freezes the server, so that it accepts no connections and answers no queries, or resumes it.
    pub(crate) fn freeze(&self, frozen: bool) {
        let pid = std::fs::read_to_string(self.data.join("postmaster.pid")).unwrap();
        let signal = if frozen { "-STOP" } else { "-CONT" };
        assert!(Command::new("kill").args([signal, pid.lines().next().unwrap()]).status().unwrap().success());
    }

    /// Starts the server again on the same data.
    pub(crate) fn go_on(&self) {
        let mut start = as_nobody(&format!("{}/pg_ctl", self.bin));
        let log = self.data.join("log");
        start.args(["-w", "-o", &self.options, "-l"]).arg(log).arg("-D").arg(&self.data).arg("start").current_dir("/");
        assert!(start.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let mut stop = as_nobody(&format!("{}/pg_ctl", self.bin));
        stop.args(["-m", "immediate", "-D"]).arg(&self.data).arg("stop").current_dir("/");
        drop(stop.stdout(Stdio::null()).stderr(Stdio::null()).status());
    }
}
