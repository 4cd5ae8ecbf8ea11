//! Logs: to stderr, through the one sink that masks secrets.

use std::io::{self, Write};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::{config::Telemetry, model::Redactor};

/// Writes to stderr what the redactor lets through.
#[derive(Clone)]
pub struct Redacted(Redactor);

impl<'w> MakeWriter<'w> for Redacted {
    type Writer = Line;
    fn make_writer(&'w self) -> Line {
        Line { redactor: self.0.clone(), text: vec![] }
    }
}

/// One event, masked and written when it is complete.
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
        // Nobody is left to tell when stderr is gone.
        drop(io::stderr().lock().write_all(text.as_bytes()));
    }
}

/// Starts logging, once for the process.
pub fn start(telemetry: &Telemetry, redactor: &Redactor) {
    let filter = EnvFilter::try_new(&telemetry.log).unwrap_or_else(|_| EnvFilter::new("info"));
    // What an API server refuses is told where it was asked.
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
    // A second start in one process, as in tests, keeps the first.
    drop(started);
}
