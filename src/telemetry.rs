//! Writes logs to stderr, through the sink that masks secrets.

use std::io::{self, Write};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::{config::Telemetry, model::Redactor};

/// A writer to stderr that masks secrets with the redactor.
#[derive(Clone)]
pub struct Redacted(Redactor);

impl<'w> MakeWriter<'w> for Redacted {
    type Writer = Line;
    fn make_writer(&'w self) -> Line {
        Line { redactor: self.0.clone(), text: vec![] }
    }
}

/// One event, masked and written once it is complete.
pub struct Line {
    redactor: Redactor,
    text: Vec<u8>,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let text = self.redactor.redact(&String::from_utf8_lossy(&self.text));
        // If stderr is closed, there is no other place to report the error.
        drop(io::stderr().lock().write_all(text.as_bytes()));
    }
}

/// Starts logging, once for the process.
pub fn start(telemetry: &Telemetry, redactor: &Redactor) {
    let filter = EnvFilter::try_new(&telemetry.log).unwrap_or_else(|_| EnvFilter::new("info"));
    // The caller reports errors of an API server, so its client does not log them again.
    let filter = match "kube_client=off".parse() {
        Ok(directive) if !telemetry.log.contains("kube_client") => filter.add_directive(directive),
        _ => filter,
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Redacted(redactor.clone()))
        .with_ansi(false)
        .with_target(false);
    let started = if telemetry.format == "json" { builder.json().try_init() } else { builder.try_init() };
    // A second start in one process, as in tests, keeps the first subscriber.
    drop(started);
}
