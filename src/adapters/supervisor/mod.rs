//! Supervises programs with effects in a process that outlives the daemon.
//!
//! Decides nothing about the effect. Each instance has one *spool*: a folder with the order, the identities of
//! the processes, the output of the program and the way in which it ended. *Invariant:* the lock of the spool is
//! the standard input of the supervisor, of the program and of every process that the program starts, and passes
//! to each of them without a gap. While the lock is taken, one of these processes runs; once the lock is free,
//! none of them runs or ever will. The environment of the program may contain credentials and is never written to
//! disk.
//! *Race:* the daemon dies between order and start: the lock is free, and nothing has begun. *Race:* the daemon
//! dies later: the next one reads the same spool. *Race:* the supervisor is killed too: `end.json` is missing,
//! and the next daemon observes the target. *Race:* a daemon that lost its lease writes an order: the supervisor
//! reads the token from the store just before it starts the program, and refuses.

mod init;
mod process;
mod process_identity;

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io,
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use chrono::{DateTime, Utc};
use rustix::{
    fs::{FlockOperation, flock},
    process::{Pid, Signal, kill_process, kill_process_group},
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use init::first;
pub use process::supervise;
pub use process_identity::Who;

/// The interval at which a process that did not start the program polls for its end.
const POLL_EVERY: Duration = Duration::from_millis(50);
/// The time limit from the start of a supervisor until it records its identity.
const BEGIN_LIMIT: Duration = Duration::from_secs(10);

/// The program to run, with its limits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Order {
    /// The operation: `apply` or `plan`.
    pub what: String,
    /// The run and its token, if the program has an effect.
    pub fence: Option<Fence>,
    /// The program.
    pub program: PathBuf,
    /// The arguments.
    pub arguments: Vec<String>,
    /// The working directory.
    pub folder: PathBuf,
    /// The time limit in seconds.
    pub seconds: u64,
}

/// The precondition of the start: the store still has this token for the environment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fence {
    /// The store's file.
    pub store: PathBuf,
    /// The name of the environment.
    pub environment: String,
    /// The id of the run.
    pub run: i64,
    /// The fencing token.
    pub token: i64,
}

/// The processes that execute an order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Begun {
    /// The supervisor.
    pub supervisor: Who,
    /// The program.
    pub program: Who,
    /// The start time of the program.
    pub at: DateTime<Utc>,
}

/// The way in which a program ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "camelCase")]
pub enum End {
    /// The program exited by itself.
    Exited {
        /// The exit code.
        code: i32,
    },
    /// The program could not be started.
    NotStarted {
        /// The error of the operating system.
        #[serde(rename = "says")]
        message: String,
    },
    /// The supervisor refused to start the program.
    Refused {
        /// The reason, in a sentence.
        #[serde(rename = "says")]
        message: String,
    },
    /// A signal killed the program.
    Killed {
        /// The text, such as "was killed by signal 9".
        #[serde(rename = "says")]
        message: String,
    },
    /// The program exceeded its time limit.
    Stopped {
        /// The text, such as "was stopped: it took longer than 60 s".
        #[serde(rename = "says")]
        message: String,
    },
}

/// The state of a spool.
#[derive(Clone, Debug, PartialEq)]
pub enum Standing {
    /// The spool has no order, or its order is not readable.
    Nothing,
    /// A supervisor or its program is running.
    Alive(Order),
    /// The program ended.
    Ended(Order, End),
    /// The supervisor and the program died without a recorded end. The program may not have been started.
    Died(Order, Option<Begun>),
}

/// The folder of one instance's supervised program.
#[derive(Clone, Debug)]
pub struct Spool(PathBuf);

impl Spool {
    /// Returns the spool in a folder, which may not exist yet.
    pub fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// The file with the standard output of the program.
    pub fn output(&self) -> PathBuf {
        self.0.join("out")
    }
    /// The file with the standard error of the program.
    pub fn complaints(&self) -> PathBuf {
        self.0.join("err")
    }
    /// A file for the program alone, deleted when the program ends.
    pub fn input(&self) -> PathBuf {
        self.0.join("input")
    }

    /// Takes the lock if it is free.
    fn lock(&self) -> io::Result<Option<File>> {
        locked(&self.0.join("lock"))
    }

    /// Writes an order and starts a supervisor for it, after all earlier processes of the spool have ended. Replaces
    /// the contents of the spool. Moves `input` into the spool, where only the program uses it.
    ///
    /// # Errors
    /// When the folder can't be written, the supervisor can't be started, or the fence is no longer valid.
    pub async fn begin(
        &self,
        order: &Order,
        input: Option<&Path>,
        supervisor: &Path,
        environment: &BTreeMap<String, SecretString>,
    ) -> io::Result<tokio::process::Child> {
        private_folder(&self.0)?;
        let lock = loop {
            if let Some(lock) = self.lock()? {
                break lock;
            }
            tokio::time::sleep(POLL_EVERY).await;
        };
        if let Some(message) = process::refusal(order.fence.as_ref()).await {
            return Err(io::Error::other(message));
        }
        self.keep_died()?;
        for old in ["begun.json", "end.json", "order.json"] {
            remove(&self.0.join(old))?;
        }
        if let Some(input) = input {
            std::fs::rename(input, self.input())?;
        }
        let fresh = |path: PathBuf| OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path);
        let (output, complaints) = (fresh(self.output())?, fresh(self.complaints())?);
        keep(&self.0.join("order.json"), order)?;
        let mut command = Command::new(supervisor);
        command.arg0("evenkeel").arg("supervise").arg("--order").arg(&self.0).current_dir(&order.folder).env_clear();
        command.envs(environment.iter().map(|(name, value)| (name, value.expose_secret())));
        command.stdin(lock).stdout(output).stderr(complaints);
        tokio::process::Command::from(command).kill_on_drop(false).spawn()
    }

    /// Keeps the process record of a killed program: the program may have left a state lock, which the record identifies. Does not replace
    /// earlier records: a later program that was killed while it waited for that lock never owned it.
    fn keep_died(&self) -> io::Result<()> {
        let died = self.0.join("died");
        let was_killed = !self.0.join("end.json").exists() && self.0.join("begun.json").exists();
        if !was_killed || died.join("begun.json").exists() {
            return Ok(());
        }
        private_folder(&died)?;
        // `begun.json` marks the records as complete and is moved last, so that an interrupted move can be repeated.
        for name in ["out", "order.json", "begun.json"] {
            match std::fs::rename(self.0.join(name), died.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Returns the saved order, process identities and output of a program that was killed.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn died(&self) -> io::Result<Option<(Order, Begun, File)>> {
        let died = self.0.join("died");
        let (order, begun) = (kept(&died.join("order.json"))?, kept(&died.join("begun.json"))?);
        let (Some(order), Some(begun), Ok(output)) = (order, begun, File::open(died.join("out"))) else {
            return Ok(None);
        };
        Ok(Some((order, begun, output)))
    }

    /// Deletes the records of a program that was killed: it left no state lock behind, or the lock was released.
    ///
    /// # Errors
    /// When the folder can't be written.
    pub fn forget_died(&self) -> io::Result<()> {
        match std::fs::remove_dir_all(self.0.join("died")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns the state of the spool.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn look(&self) -> io::Result<Standing> {
        if !self.0.exists() {
            return Ok(Standing::Nothing);
        }
        // Keep the lock until the end of this function, so that no order is written meanwhile. Without the lock, the
        // result is `Alive` or a recorded end.
        let lock = self.lock()?;
        let is_free = lock.is_some();
        if is_free {
            remove(&self.input())?;
        }
        let Some(order) = kept::<Order>(&self.0.join("order.json"))? else { return Ok(Standing::Nothing) };
        if let Some(end) = kept::<End>(&self.0.join("end.json"))? {
            return Ok(Standing::Ended(order, end));
        }
        if !is_free {
            let begun = kept::<Begun>(&self.0.join("begun.json"))?;
            if let Some(begun) = begun.filter(|begun| !begun.supervisor.lives()) {
                begun.program.end_orphans();
            }
            return Ok(Standing::Alive(order));
        }
        Ok(Standing::Died(order, kept::<Begun>(&self.0.join("begun.json"))?))
    }

    /// Waits until all processes of the spool have ended.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub async fn ended(&self) -> io::Result<Standing> {
        loop {
            match self.look()? {
                Standing::Alive(_) => tokio::time::sleep(POLL_EVERY).await,
                standing => return Ok(standing),
            }
        }
    }

    /// Asks the running program to end as soon as it safely can; returns whether one runs.
    ///
    /// # Errors
    /// When the folder can't be read, or the supervisor does not record its identity in time.
    pub async fn interrupt(&self) -> io::Result<bool> {
        let since = std::time::Instant::now();
        loop {
            if !matches!(self.look()?, Standing::Alive(_)) {
                return Ok(false);
            }
            let begun = kept::<Begun>(&self.0.join("begun.json"))?;
            if let Some(begun) = begun {
                let supervisor = Pid::from_raw(begun.supervisor.pid).filter(|_| begun.supervisor.lives());
                let program = Pid::from_raw(begun.program.pid).filter(|_| begun.program.lives());
                match (supervisor, program) {
                    (Some(pid), _) => return kill_process(pid, Signal::TERM).map(|()| true).map_err(Into::into),
                    // Only the supervisor was killed: signal the program directly.
                    (None, Some(pid)) => {
                        return kill_process_group(pid, Signal::INT).map(|()| true).map_err(Into::into);
                    }
                    (None, None) => {}
                }
            }
            if since.elapsed() > BEGIN_LIMIT {
                return Err(io::Error::other(format!("nobody answers for `{}`", self.0.display())));
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    }
}

/// Creates a folder that is accessible to its owner alone.
fn private_folder(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Opens a file and locks it for as long as it is open, if no other process has locked it.
fn locked(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Writes a document atomically.
fn keep<T: Serialize>(path: &Path, document: &T) -> io::Result<()> {
    use io::Write;
    let part = path.with_extension("part");
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&part)?;
    serde_json::to_writer(&mut file, document)?;
    file.flush()?;
    file.sync_all()?;
    std::fs::rename(part, path)
}

fn kept<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match std::fs::read(path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A lock file for programs that only read. Such a program has the file as its standard input, so that no other
/// one runs beside it: neither one of this daemon nor one that an earlier daemon left behind.
pub struct Busy(PathBuf);

impl Busy {
    /// Returns the lock of a file, which may not exist yet.
    pub fn new(file: PathBuf) -> Self {
        Self(file)
    }

    /// Takes the lock. Waits while an earlier program owns it, and kills that program after `limit`, which is safe
    /// because it only reads.
    ///
    /// # Errors
    /// When the file can't be created.
    pub async fn lock(&self, limit: Duration) -> io::Result<Stdio> {
        let since = std::time::Instant::now();
        loop {
            if let Some(file) = locked(&self.0)? {
                return Ok(file.into());
            }
            // Only wait until the owner has recorded its identity.
            if let Ok(Some(who)) = kept::<Who>(&self.0) {
                who.end_orphans();
                if since.elapsed() > limit
                    && who.lives()
                    && let Some(group) = Pid::from_raw(who.pid)
                {
                    let _already_gone = kill_process_group(group, Signal::KILL);
                }
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    }

    /// Records the process that owns the lock.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn of(&self, pid: Option<u32>) -> io::Result<()> {
        let who = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Who::of);
        who.map_or(Ok(()), |who| std::fs::write(&self.0, serde_json::to_vec(&who)?))
    }
}
