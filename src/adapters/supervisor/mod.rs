//! The process that outlives the daemon: a program with an effect runs under it, its words and its end stand on disk.
//!
//! Decides nothing about the effect. Each instance has one *spool*, a folder with what was ordered, who does it, what it
//! says and how it ended. *Invariant:* the spool's lock is the standard input of the supervisor, of the program and of
//! everything that the program starts, handed over without a gap: while it is held somebody lives, and once it is free
//! nobody ever will. Never puts an environment, which may hold credentials, on disk.
//! *Race:* the daemon dies between order and start: nobody holds the lock, and nothing was begun. *Race:* the daemon dies
//! later: the next one reads the same spool. *Race:* the supervisor is killed too: the end is missing, and the next
//! daemon looks at the world. *Race:* a daemon that lost its lease orders something: the supervisor reads the token in
//! the store just before it starts the program, and refuses.

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

/// How often an end is looked for by whoever did not start the program.
const POLL_EVERY: Duration = Duration::from_millis(50);
/// How long a supervisor takes at most from its start to saying who it is.
const BEGIN_LIMIT: Duration = Duration::from_secs(10);

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Order {
    /// `apply`, `plan`.
    pub what: String,
    /// Under which run and token, where it has an effect.
    pub fence: Option<Fence>,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Where it runs.
    pub folder: PathBuf,
    /// How many seconds it may take.
    pub seconds: u64,
}

/// What has to hold just before the program starts: the token in the store is still this one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fence {
    /// The store's file.
    pub store: PathBuf,
    /// The environment.
    pub environment: String,
    /// The run.
    pub run: i64,
    /// The token.
    pub token: i64,
}

/// Who does it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Begun {
    /// The supervisor.
    pub supervisor: Who,
    /// The program.
    pub program: Who,
    /// When the program was started.
    pub at: DateTime<Utc>,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "camelCase")]
pub enum End {
    /// By itself.
    Exited {
        /// With this code.
        code: i32,
    },
    /// The program could not be started.
    NotStarted {
        /// The error of the operating system.
        #[serde(rename = "says")]
        message: String,
    },
    /// It was not to be started any more.
    Refused {
        /// In a sentence.
        #[serde(rename = "says")]
        message: String,
    },
    /// By a signal.
    Killed {
        /// "was killed by signal 9".
        #[serde(rename = "says")]
        message: String,
    },
    /// It took too long.
    Stopped {
        /// "was stopped: it took longer than 60 s".
        #[serde(rename = "says")]
        message: String,
    },
}

/// How a spool stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Standing {
    /// Nothing was ordered here, or what was is not to be read.
    Nothing,
    /// Somebody works on it.
    Alive(Order),
    /// It ended.
    Ended(Order, End),
    /// It was begun or was about to be, did not end, and nobody is left.
    Died(Order, Option<Begun>),
}

/// The folder of one instance's supervised program.
#[derive(Clone, Debug)]
pub struct Spool(PathBuf);

impl Spool {
    /// The spool in a folder, which need not be there.
    pub fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// What the program prints.
    pub fn output(&self) -> PathBuf {
        self.0.join("out")
    }
    /// What it complains about.
    pub fn complaints(&self) -> PathBuf {
        self.0.join("err")
    }
    /// A file for the program alone, which goes when it ends.
    pub fn input(&self) -> PathBuf {
        self.0.join("input")
    }

    /// Takes the lock, if nobody works here.
    fn lock(&self) -> io::Result<Option<File>> {
        locked(&self.0.join("lock"))
    }

    /// Orders something and starts a supervisor for it; waits until nobody else works here. What stood here is gone, and the
    /// input is moved to where the program alone has it.
    ///
    /// # Errors
    /// When the folder can't be written, the supervisor can't be started, or the fence does not hold any more.
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

    /// Keeps what tells of a program that was killed: it may have left a lock behind. What was kept before stays: whoever
    /// waited for that lock and was killed as well never had it.
    fn keep_died(&self) -> io::Result<()> {
        let died = self.0.join("died");
        let was_killed = !self.0.join("end.json").exists() && self.0.join("begun.json").exists();
        if !was_killed || died.join("begun.json").exists() {
            return Ok(());
        }
        private_folder(&died)?;
        // What says that it is whole comes last, so that this may be cut off and done again.
        for name in ["out", "order.json", "begun.json"] {
            match std::fs::rename(self.0.join(name), died.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// What was ordered and begun here before, and was killed; with what it printed.
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

    /// Forgets what was killed before: it left nothing behind, or nothing any more.
    ///
    /// # Errors
    /// When the folder can't be written.
    pub fn forget_died(&self) -> io::Result<()> {
        match std::fs::remove_dir_all(self.0.join("died")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// How it stands here.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn look(&self) -> io::Result<Standing> {
        if !self.0.exists() {
            return Ok(Standing::Nothing);
        }
        // Held to the end, so that nothing is ordered meanwhile; without it only what lives is told of.
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

    /// Waits until nobody works here.
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

    /// Asks what runs here to end as soon as it safely can; answers whether anything runs.
    ///
    /// # Errors
    /// When the folder can't be read, or the supervisor does not say who it is.
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
                    // Its supervisor was killed alone; it hears us all the same.
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

/// A folder for its owner alone.
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

/// A file that is locked for whoever has it open, if nobody else has locked it.
fn locked(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Writes a document whole or not at all.
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

/// A file that a program which only looks takes as its input, so that no other works beside it: not this daemon's, and
/// not one that a daemon before left behind.
pub struct Busy(PathBuf);

impl Busy {
    /// The file, which need not be there.
    pub fn new(file: PathBuf) -> Self {
        Self(file)
    }

    /// Locks it; waits while an earlier program has it, and ends that when it takes too long: it only looks.
    ///
    /// # Errors
    /// When the file can't be made.
    pub async fn lock(&self, limit: Duration) -> io::Result<Stdio> {
        let since = std::time::Instant::now();
        loop {
            if let Some(file) = locked(&self.0)? {
                return Ok(file.into());
            }
            // Until it says who it is, it is only waited for.
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

    /// Says which program has it.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn of(&self, pid: Option<u32>) -> io::Result<()> {
        let who = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Who::of);
        who.map_or(Ok(()), |who| std::fs::write(&self.0, serde_json::to_vec(&who)?))
    }
}
