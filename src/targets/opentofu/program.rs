//! Runs one `tofu` process: an argument vector as input, JSON lines as output.
//!
//! Owns the start, the time limit, the output and the termination of a process.
//! *Invariant:* never joins arguments to a command line, never passes on the daemon's environment beyond the
//! allow-list, and reads a limited amount of output. A process over its time limit is stopped as tofu requires: one
//! SIGINT, a wait, then SIGKILL.
//! *Output files:* a process prints into files instead of pipes. A pipe breaks when its reader stops; tofu would then
//! die in the middle of its work and leave its provider processes running. A process without effects prints into
//! unnamed files, which are removed with their last user.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read as _, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use chrono::{DateTime, Utc};

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;
use tokio::process::{Child, Command};

use super::Tofu;
use crate::{
    adapters::supervisor::Busy,
    model::{InstanceId, Redactor, Retry},
    ports::{Diagnostic, Job, Progress, TargetError, TargetErrorKind},
};

/// The longest JSON line that is read: diagnostics and progress messages are far shorter.
const LINE_BYTES_MAX: usize = 4 << 20;
/// The largest output of `show -json` and `output -json`: a plan of 10,000 resources has about 10 MB.
const ANSWER_BYTES_MAX: u64 = 512 << 20;
/// The number of bytes stored from the end of stderr.
const STDERR_BYTES_MAX: u64 = 16 << 10;
/// The maximum number of stored diagnostics.
const DIAGNOSTICS_MAX: usize = 50;
/// The time that an interrupted process gets to write its state.
const STOP_GRACE: Duration = Duration::from_secs(60);

/// Message types that tofu prints only after it has the state lock, if it takes the lock.
const UNDER_THE_LOCK: [&str; 9] = [
    "planned_change",
    "refresh_start",
    "refresh_complete",
    "resource_drift",
    "change_summary",
    "apply_start",
    "apply_progress",
    "apply_complete",
    "apply_errored",
];

/// The output of one process.
#[derive(Default, Debug)]
pub(super) struct ProcessResult {
    pub(super) code: Option<i32>,
    pub(super) errors: Vec<Diagnostic>,
    pub(super) warnings: Vec<String>,
    /// Whether the resources differ from the state, by a `resource_drift` message.
    pub(super) drift: bool,
    /// The time of the first message that implies the state lock.
    pub(super) locked_at: Option<DateTime<Utc>>,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: String,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    sort: Option<String>,
    #[serde(rename = "@message")]
    message: Option<String>,
    #[serde(rename = "@timestamp")]
    at: Option<DateTime<Utc>>,
    diagnostic: Option<RawDiagnostic>,
}

#[derive(Deserialize)]
struct RawDiagnostic {
    severity: String,
    summary: String,
    #[serde(default)]
    detail: String,
    address: Option<String>,
    range: Option<Range>,
}

#[derive(Deserialize)]
struct Range {
    filename: String,
    start: Start,
}

#[derive(Deserialize)]
struct Start {
    line: u64,
}

/// The treatment of a process's output.
pub(super) enum Read {
    /// JSON lines; diagnostics are collected.
    Lines,
    /// One JSON document, stored whole.
    Answer,
}

impl Tofu {
    /// Runs the program on an instance that is ready and has a slot.
    pub(super) async fn run(
        &self,
        job: &Job,
        folder: &Path,
        arguments: &[String],
        apply: bool,
        read: Read,
    ) -> Result<ProcessResult, TargetError> {
        let environment = self.environment(job, folder, apply)?;
        let mut command = Command::new(located(&self.settings.binary));
        command.args(arguments).current_dir(folder).env_clear();
        for (name, value) in &environment {
            command.env(name, value.expose_secret());
        }
        let what = arguments.first().map_or("run", String::as_str).to_owned();
        let disk = |error: std::io::Error| {
            TargetError::new(
                TargetErrorKind::WorkTree,
                format!("could not run `tofu {what}` of `{}`: {error}", job.instance),
            )
        };
        let data = self.data_path(job);
        let (output, complaints) =
            (tempfile::tempfile_in(&data).map_err(disk)?, tempfile::tempfile_in(&data).map_err(disk)?);
        // A process that a killed daemon left behind ends before another one uses the same data.
        let busy = Busy::new(data.join("busy"));
        command.stdin(busy.lock(self.settings.timeout).await.map_err(disk)?);
        command.stdout(output.try_clone().map_err(disk)?).stderr(complaints.try_clone().map_err(disk)?);
        command.process_group(0).kill_on_drop(false);
        tracing::debug!(kind = "tofu-started", instance = %job.instance, what, "tofu starts");
        let started = std::time::Instant::now();
        let child = command.spawn().map_err(|error| self.not_started(&error))?;
        // The command also has the lock that the program inherited.
        drop(command);
        busy.of(child.id()).map_err(disk)?;
        let result = self.wait(child, output, complaints, &read).await;
        let result = result.map_err(|why| {
            TargetError::new(TargetErrorKind::TofuInterrupted, format!("`tofu {what}` of `{}` {why}", job.instance))
        })?;
        tracing::debug!(kind = "tofu-ended", instance = %job.instance, what, code = result.code, ms = started.elapsed().as_millis(), "tofu ended");
        Ok(result)
    }

    pub(super) fn not_started(&self, error: &dyn std::fmt::Display) -> TargetError {
        let message = format!(
            "could not start `{}`: {error}; install OpenTofu 1.10 or set `tofu.binary` (`evenkeel doctor` checks it)",
            self.settings.binary
        );
        TargetError::new(TargetErrorKind::TofuMissing, message)
    }

    pub(super) fn environment(
        &self,
        job: &Job,
        folder: &Path,
        apply: bool,
    ) -> Result<BTreeMap<String, SecretString>, TargetError> {
        let mut environment: BTreeMap<String, SecretString> = BTreeMap::new();
        let mut set = |name: &str, value: String| drop(environment.insert(name.to_owned(), value.into()));
        for name in ["PATH", "HOME"] {
            if let Ok(value) = std::env::var(name) {
                set(name, value);
            }
        }
        if folder.join(".terraform.lock.hcl").exists() {
            set("TF_PLUGIN_CACHE_DIR", self.settings.provider_cache.display().to_string());
        }
        if let Some(path) = &self.settings.cli_config {
            set("TF_CLI_CONFIG_FILE", path.display().to_string());
        }
        set("TF_DATA_DIR", self.data_path(job).display().to_string());
        set("TF_IN_AUTOMATION", "1".into());
        set("TF_INPUT", "0".into());
        set("CHECKPOINT_DISABLE", "1".into());
        if let Some(workspace) = job.target.declared.get("workspace").and_then(Value::as_str) {
            set("TF_WORKSPACE", workspace.to_owned());
        }
        if let Some(connection) = &job.connection {
            let given = (self.settings.credentials)(&job.instance, connection, apply).map_err(|why| TargetError {
                retry: Retry::WhenInputChanges,
                ..TargetError::new(TargetErrorKind::Connection, why)
            })?;
            environment.extend(given);
        }
        Ok(environment)
    }

    async fn wait(
        &self,
        mut child: Child,
        output: File,
        complaints: File,
        read: &Read,
    ) -> Result<ProcessResult, String> {
        let limit = self.settings.timeout;
        let status: ExitStatus = match tokio::time::timeout(limit, child.wait()).await {
            Ok(status) => status.map_err(|error| format!("could not be waited for: {error}"))?,
            Err(_) => {
                stop(&mut child).await;
                return Err(format!("was stopped: it took longer than {} s", limit.as_secs()));
            }
        };
        let unreadable = |error: std::io::Error| format!("could not be read: {error}");
        let mut result = match read {
            Read::Lines => {
                let mut reader = OutputReader::new(self.redactor.clone(), None);
                reader.take(rewound(output).map_err(unreadable)?).map_err(unreadable)?;
                reader.result
            }
            Read::Answer => answer(rewound(output).map_err(unreadable)?)?,
        };
        result.code = status.code();
        result.stderr = self.redactor.redact(&tail(complaints).map_err(unreadable)?);
        if result.code.is_none() {
            return Err(format!("was killed ({status})"));
        }
        Ok(result)
    }
}

fn rewound(mut file: File) -> std::io::Result<File> {
    file.rewind()?;
    Ok(file)
}

/// Sends SIGINT, waits, then sends SIGKILL.
async fn stop(child: &mut Child) {
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
    if let Some(group) = group {
        let _already_gone = rustix::process::kill_process_group(group, rustix::process::Signal::INT);
    }
    if tokio::time::timeout(STOP_GRACE, child.wait()).await.is_err()
        && let Some(group) = group
    {
        let _already_gone = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        drop(child.wait().await);
    }
}

/// The parsed part of the JSON lines that a process has printed.
pub(super) struct OutputReader {
    pub(super) result: ProcessResult,
    redactor: Redactor,
    progress: Option<Progress>,
    /// The beginning of an incomplete line.
    begun: Vec<u8>,
}

impl OutputReader {
    pub(super) fn new(redactor: Redactor, progress: Option<Progress>) -> Self {
        Self { result: ProcessResult::default(), redactor, progress, begun: vec![] }
    }

    /// Reads the output since the last call.
    pub(super) fn take(&mut self, mut output: impl std::io::Read) -> std::io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = output.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            for part in buffer[..count].split_inclusive(|byte| *byte == b'\n') {
                if self.begun.len() + part.len() <= LINE_BYTES_MAX {
                    self.begun.extend_from_slice(part);
                }
                if part.ends_with(b"\n") {
                    let line = std::mem::take(&mut self.begun);
                    self.line(&line);
                }
            }
        }
    }

    fn line(&mut self, line: &[u8]) {
        let Ok(line) = serde_json::from_slice::<Line>(line) else { return };
        let result = &mut self.result;
        match (line.sort.as_deref(), line.diagnostic) {
            (Some("diagnostic"), Some(raw)) => {
                let diagnostic = Diagnostic {
                    summary: self.redactor.redact(&raw.summary),
                    detail: self.redactor.redact(&raw.detail),
                    address: raw.address,
                    place: raw.range.map(|range| format!("{}:{}", range.filename, range.start.line)),
                };
                if raw.severity == "error" && result.errors.len() < DIAGNOSTICS_MAX {
                    result.errors.push(diagnostic);
                } else if raw.severity == "warning" && result.warnings.len() < DIAGNOSTICS_MAX {
                    result.warnings.push(diagnostic.summary);
                }
            }
            (Some(sort), _) if UNDER_THE_LOCK.contains(&sort) => {
                result.locked_at = result.locked_at.or(line.at);
                result.drift |= sort == "resource_drift";
                if let (Some(progress), Some(message), true) =
                    (&self.progress, line.message, sort.starts_with("apply_"))
                {
                    progress(crate::ports::ProgressEvent::Now(self.redactor.redact(&message)));
                }
            }
            _ => {}
        }
    }
}

fn answer(output: File) -> Result<ProcessResult, String> {
    let mut result = ProcessResult::default();
    output
        .take(ANSWER_BYTES_MAX + 1)
        .read_to_end(&mut result.stdout)
        .map_err(|error| format!("could not be read: {error}"))?;
    if result.stdout.len() as u64 > ANSWER_BYTES_MAX {
        return Err(format!("printed more than {ANSWER_BYTES_MAX} bytes"));
    }
    Ok(result)
}

/// Returns the end of a process's stderr.
pub(super) fn tail(mut complaints: File) -> std::io::Result<String> {
    let length = complaints.metadata()?.len();
    complaints.seek(SeekFrom::Start(length.saturating_sub(STDERR_BYTES_MAX)))?;
    let mut bytes = vec![];
    complaints.take(STDERR_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A state lock, as OpenTofu reports it.
pub(super) struct Lock {
    pub(super) id: String,
    pub(super) who: String,
    pub(super) created: String,
    pub(super) operation: String,
}

impl Lock {
    /// Returns the lock that blocked a process, if any.
    pub(super) fn reported_in(result: &ProcessResult) -> Option<Self> {
        let found = result.errors.iter().find(|d| d.summary.contains("acquiring the state lock"))?;
        let part = |name: &str| {
            found.detail.lines().find_map(|line| line.trim().strip_prefix(name)).map_or("unknown", str::trim).to_owned()
        };
        Some(Self { id: part("ID:"), who: part("Who:"), created: part("Created:"), operation: part("Operation:") })
    }

    /// Returns the time at which the lock was taken.
    pub(super) fn created_at(&self) -> Option<DateTime<Utc>> {
        let text = self.created.strip_suffix(" UTC")?;
        DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f %z").ok().map(|at| at.to_utc())
    }
}

/// Returns the error of a failed process.
pub(super) fn failure(id: &InstanceId, what: &str, result: ProcessResult) -> TargetError {
    if let Some(Lock { id: lock, who, created, operation }) = Lock::reported_in(&result) {
        let message = format!("the state of `{id}` is locked by {who} since {created} ({operation}, lock {lock})");
        return TargetError::new(TargetErrorKind::StateLocked, message);
    }
    let mut diagnostics = result.errors;
    if diagnostics.is_empty() && !result.stderr.trim().is_empty() {
        let summary =
            result.stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned();
        diagnostics.push(Diagnostic { summary, detail: String::new(), address: None, place: None });
    }
    let code = result.code.unwrap_or(-1);
    let message = if diagnostics.is_empty() {
        format!("`tofu {what}` of `{}` ended with {code}", id)
    } else {
        format!("`tofu {what}` of `{}` failed", id)
    };
    let mut error = TargetError { diagnostics, ..TargetError::new(TargetErrorKind::TofuFailed, message) };
    if error.diagnostics.iter().any(|d| d.place.is_some() && d.address.is_none()) {
        // The module itself is invalid; another attempt with the same content fails in the same way.
        error.retry = Retry::WhenInputChanges;
    }
    error
}

/// Returns the path of a program, so that starting it does not search `PATH` in a fork of this process.
pub(super) fn located(binary: &str) -> PathBuf {
    let found = || {
        std::env::split_paths(&std::env::var_os("PATH")?)
            .map(|folder| folder.join(binary))
            .find(|place| place.is_absolute() && place.is_file())
    };
    if binary.contains('/') { binary.into() } else { found().unwrap_or_else(|| binary.into()) }
}

/// Returns the version of a tofu program, as `1.10.7`.
///
/// # Errors
/// When it can't be started or prints no version.
pub async fn version(binary: &str) -> Result<String, String> {
    let output = Command::new(binary)
        .args(["version", "-json"])
        .env("TF_CLI_CONFIG_FILE", "/dev/null")
        .env("CHECKPOINT_DISABLE", "1")
        .stdin(Stdio::null())
        .output();
    let output = tokio::time::timeout(Duration::from_secs(20), output)
        .await
        .map_err(|_| format!("`{binary} version` did not end"))?;
    let output = output.map_err(|error| format!("could not start `{binary}`: {error}"))?;
    let answer: Value = serde_json::from_slice(&output.stdout)
        .map_err(|_| format!("`{binary} version -json` did not answer in JSON"))?;
    answer["terraform_version"]
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| format!("`{binary}` does not say its version"))
}
