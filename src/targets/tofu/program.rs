//! One `tofu` process: argument vector in, JSON lines out.
//!
//! Never joins arguments to a text, never passes on the daemon's environment beyond the allow-list, never reads more
//! than a bound, and stops a process that takes too long the way tofu wants it: one SIGINT, a wait, then SIGKILL.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader},
    process::{Child, Command},
};

use super::Tofu;
use crate::{
    model::{Redactor, Retry},
    port::{Diagnostic, Job, Progress, TargetError},
};

/// The longest JSON line that is read: a diagnostic or a progress message is far below it.
const LINE_BYTES_MAX: usize = 4 << 20;
/// The largest answer of `show -json` and `output -json`: a plan over 10,000 resources is about 10 MB.
const ANSWER_BYTES_MAX: u64 = 512 << 20;
/// How much of stderr is kept, its end.
const STDERR_BYTES_MAX: usize = 16 << 10;
/// The most diagnostics that are kept.
const DIAGNOSTICS_MAX: usize = 50;
/// How long a process that was asked to stop may take to write its state.
const STOP_GRACE: Duration = Duration::from_secs(60);

/// What one process said.
#[derive(Default, Debug)]
pub(super) struct Said {
    pub(super) code: Option<i32>,
    pub(super) errors: Vec<Diagnostic>,
    pub(super) warnings: Vec<String>,
    /// Whether the world differs from the state, by a `resource_drift` message.
    pub(super) drift: bool,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: String,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    sort: Option<String>,
    #[serde(rename = "@message")]
    message: Option<String>,
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

/// What is done with what a process prints.
pub(super) enum Read {
    /// JSON lines: diagnostics are collected, progress is told.
    Lines(Option<Progress>),
    /// One JSON answer, kept whole.
    Answer,
}

impl Tofu {
    /// Runs the program on an instance that is ready and holds a slot.
    pub(super) async fn run(
        &self,
        job: &Job,
        folder: &Path,
        arguments: &[String],
        apply: bool,
        read: Read,
    ) -> Result<Said, TargetError> {
        let mut environment = self.environment(job, apply)?;
        if folder.join(".terraform.lock.hcl").exists() {
            environment.insert("TF_PLUGIN_CACHE_DIR".into(), self.settings.provider_cache.display().to_string().into());
        }
        let mut command = Command::new(located(&self.settings.binary));
        command.args(arguments).current_dir(folder).env_clear();
        for (name, value) in &environment {
            command.env(name, value.expose_secret());
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(false);
        tracing::debug!(instance = %job.instance, arguments = ?arguments.first(), "tofu starts");
        let started = std::time::Instant::now();
        let child = command.spawn().map_err(|error| self.not_started(&error))?;
        let what = arguments.first().map_or("run", String::as_str).to_owned();
        let said = self.listen(child, read).await.map_err(|why| {
            let message = format!("`tofu {what}` of `{}` {why}", job.instance);
            TargetError { effect_may_have_begun: what == "apply", ..TargetError::new("tofu-interrupted", message) }
        })?;
        tracing::debug!(instance = %job.instance, what, code = said.code, ms = started.elapsed().as_millis(), "tofu ended");
        Ok(said)
    }

    fn not_started(&self, error: &std::io::Error) -> TargetError {
        let message = format!(
            "could not start `{}`: {error}; install OpenTofu 1.10 or set `tofu.binary` (`evenkeel doctor` checks it)",
            self.settings.binary
        );
        TargetError::new("tofu-missing", message)
    }

    fn environment(&self, job: &Job, apply: bool) -> Result<BTreeMap<String, SecretString>, TargetError> {
        let mut environment: BTreeMap<String, SecretString> = BTreeMap::new();
        let mut set = |name: &str, value: String| drop(environment.insert(name.to_owned(), value.into()));
        for name in ["PATH", "HOME"] {
            if let Ok(value) = std::env::var(name) {
                set(name, value);
            }
        }
        if let Some(path) = &self.settings.cli_config {
            set("TF_CLI_CONFIG_FILE", path.display().to_string());
        }
        set("TF_DATA_DIR", self.data_path(job).display().to_string());
        set("TF_IN_AUTOMATION", "1".into());
        set("TF_INPUT", "0".into());
        set("CHECKPOINT_DISABLE", "1".into());
        let crate::port::Work::Tofu(work) = &job.work;
        set("TF_WORKSPACE", work.workspace.clone());
        if let Some(connection) = &job.connection {
            let given = (self.settings.credentials)(&job.instance, connection, apply)
                .map_err(|why| TargetError { retry: Retry::WhenInputChanges, ..TargetError::new("connection", why) })?;
            environment.extend(given);
        }
        Ok(environment)
    }

    async fn listen(&self, mut child: Child, read: Read) -> Result<Said, String> {
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = child.stderr.take().expect("stderr is piped");
        let redactor = self.redactor.clone();
        let output = async {
            match read {
                Read::Lines(progress) => lines(stdout, &redactor, progress).await,
                Read::Answer => answer(stdout).await,
            }
        };
        let work = async { tokio::join!(output, tail(stderr)) };
        let limit = self.settings.timeout;
        let (mut said, stderr) = match tokio::time::timeout(limit, work).await {
            Ok((said, stderr)) => (said?, stderr),
            Err(_) => {
                stop(&mut child).await;
                return Err(format!("was stopped: it took longer than {} s", limit.as_secs()));
            }
        };
        let status: ExitStatus = match tokio::time::timeout(limit, child.wait()).await {
            Ok(status) => status.map_err(|error| format!("could not be waited for: {error}"))?,
            Err(_) => {
                stop(&mut child).await;
                return Err("closed its output and did not end".into());
            }
        };
        said.code = status.code();
        said.stderr = self.redactor.redact(&stderr);
        if said.code.is_none() {
            return Err(format!("was killed ({status})"));
        }
        Ok(said)
    }
}

/// Asks once, waits, and only then insists.
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

async fn lines(
    stdout: impl AsyncRead + Unpin,
    redactor: &Redactor,
    progress: Option<Progress>,
) -> Result<Said, String> {
    let mut said = Said::default();
    let mut reader = BufReader::new(stdout);
    let mut line = Vec::new();
    loop {
        line.clear();
        let count = (&mut reader)
            .take(LINE_BYTES_MAX as u64)
            .read_until(b'\n', &mut line)
            .await
            .map_err(|error| format!("could not be read: {error}"))?;
        if count == 0 {
            return Ok(said);
        }
        let Ok(line) = serde_json::from_slice::<Line>(&line) else { continue };
        match (line.sort.as_deref(), line.diagnostic) {
            (Some("diagnostic"), Some(raw)) => {
                let diagnostic = Diagnostic {
                    summary: redactor.redact(&raw.summary),
                    detail: redactor.redact(&raw.detail),
                    address: raw.address,
                    place: raw.range.map(|range| format!("{}:{}", range.filename, range.start.line)),
                };
                if raw.severity == "error" && said.errors.len() < DIAGNOSTICS_MAX {
                    said.errors.push(diagnostic);
                } else if raw.severity == "warning" && said.warnings.len() < DIAGNOSTICS_MAX {
                    said.warnings.push(diagnostic.summary);
                }
            }
            (Some("resource_drift"), _) => said.drift = true,
            (Some("apply_start" | "apply_complete" | "apply_errored" | "apply_progress"), _) => {
                if let (Some(progress), Some(message)) = (&progress, line.message) {
                    progress(redactor.redact(&message));
                }
            }
            _ => {}
        }
    }
}

async fn answer(stdout: impl AsyncRead + Unpin) -> Result<Said, String> {
    let mut said = Said::default();
    stdout
        .take(ANSWER_BYTES_MAX + 1)
        .read_to_end(&mut said.stdout)
        .await
        .map_err(|error| format!("could not be read: {error}"))?;
    if said.stdout.len() as u64 > ANSWER_BYTES_MAX {
        return Err(format!("printed more than {ANSWER_BYTES_MAX} bytes"));
    }
    Ok(said)
}

async fn tail(mut stderr: impl AsyncRead + Unpin) -> String {
    let mut kept = Vec::new();
    let mut buffer = vec![0; 8 << 10];
    while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..count]);
        if kept.len() > STDERR_BYTES_MAX {
            kept.drain(..kept.len() - STDERR_BYTES_MAX);
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// What a process that failed says, as one error.
pub(super) fn failure(job: &Job, what: &str, said: Said) -> TargetError {
    let lock = said.errors.iter().find(|d| d.summary.contains("acquiring the state lock"));
    if let Some(lock) = lock {
        let part = |name: &str| {
            lock.detail.lines().find_map(|line| line.trim().strip_prefix(name)).map_or("unknown", str::trim).to_owned()
        };
        let message = format!(
            "the state of `{}` is locked by {} since {} ({}, lock {})",
            job.instance,
            part("Who:"),
            part("Created:"),
            part("Operation:"),
            part("ID:"),
        );
        return TargetError::new("state-locked", message);
    }
    let mut diagnostics = said.errors;
    if diagnostics.is_empty() && !said.stderr.trim().is_empty() {
        let summary =
            said.stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned();
        diagnostics.push(Diagnostic { summary, detail: String::new(), address: None, place: None });
    }
    let code = said.code.unwrap_or(-1);
    let message = if diagnostics.is_empty() {
        format!("`tofu {what}` of `{}` ended with {code}", job.instance)
    } else {
        format!("`tofu {what}` of `{}` failed", job.instance)
    };
    let mut error = TargetError { diagnostics, ..TargetError::new("tofu-failed", message) };
    if error.diagnostics.iter().any(|d| d.place.is_some() && d.address.is_none()) {
        // The module itself is wrong, and another attempt with the same content ends the same.
        error.retry = Retry::WhenInputChanges;
    }
    error
}

/// Where a program stands, so that starting it needs no search in a copy of this process.
fn located(binary: &str) -> PathBuf {
    let found = || {
        std::env::split_paths(&std::env::var_os("PATH")?)
            .map(|folder| folder.join(binary))
            .find(|place| place.is_absolute() && place.is_file())
    };
    if binary.contains('/') { binary.into() } else { found().unwrap_or_else(|| binary.into()) }
}

/// The version of a tofu program, as `1.10.7`.
///
/// # Errors
/// When it can't be started, or does not say its version.
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
