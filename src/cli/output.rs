//! Prints results for people and for programs.

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
};

use serde::Serialize;

use super::Failure;
use crate::domain::message::terminal::Colour;

/// The format of results.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Format {
    /// Text for people.
    Text,
    /// One JSON object.
    Json,
    /// The same object as YAML.
    Yaml,
}

/// Returns whether stdout supports colour.
pub(crate) fn colour() -> Colour {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if std::io::stdout().is_terminal() && !plain { Colour::Yes } else { Colour::No }
}

/// Prints text to stdout. A closed pipe ends the command without an error.
pub(crate) fn text(text: &str) {
    let mut out = std::io::stdout().lock();
    drop(out.write_all(text.as_bytes()));
    if !text.ends_with('\n') {
        drop(out.write_all(b"\n"));
    }
    drop(out.flush());
}

/// Prints the response of a command as one object that contains the name of the command.
pub(crate) fn answer<T: Serialize>(format: Format, command: &str, answer: &T) -> Result<(), Failure> {
    let mut fields = serde_json::Map::from_iter([("command".to_owned(), command.into())]);
    match serde_json::to_value(answer)? {
        serde_json::Value::Object(map) => fields.extend(map),
        other => drop(fields.insert("answer".into(), other)),
    }
    document(format, &fields)
}

/// Prints one document in a format other than text.
pub(crate) fn document<T: Serialize>(format: Format, document: &T) -> Result<(), Failure> {
    let printed = match format {
        Format::Yaml => serde_yaml::to_string(document).map_err(|error| Failure::new(error.to_string()))?,
        Format::Json | Format::Text => serde_json::to_string_pretty(document)?,
    };
    text(&printed);
    Ok(())
}

/// Prints a line to stderr.
pub(crate) fn note(line: &str) {
    drop(writeln!(std::io::stderr().lock(), "{line}"));
}

/// Prints an `Error:` line and a `Hint:` line. If stdout has a structured format, also prints the failure there
/// as an object.
pub(crate) fn fail(failure: &Failure, format: Format, command: &str) -> ExitCode {
    if format != Format::Text {
        drop(answer(
            format,
            command,
            &serde_json::json!({"error": {"message": failure.message, "hint": failure.hint}}),
        ));
    }
    note(&format!("Error: {}", failure.message));
    if let Some(hint) = &failure.hint {
        note(&format!("Hint: {hint}"));
    }
    ExitCode::from(failure.code)
}

/// Renders a table. Each column is as wide as its widest cell; the last column is not padded.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| visible(cell)).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut printed = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            line.push_str(cell);
            if column + 1 < row.len() {
                line.push_str(&" ".repeat(widths[column] - visible(cell) + 3));
            }
        }
        printed.push_str(line.trim_end());
        printed.push('\n');
    }
    printed
}

/// Returns the width of a cell in columns, without colour codes.
fn visible(cell: &str) -> usize {
    let mut count = 0;
    let mut escape = false;
    for c in cell.chars() {
        match c {
            '\u{1b}' => escape = true,
            'm' if escape => escape = false,
            _ if escape => {}
            _ => count += 1,
        }
    }
    count
}
