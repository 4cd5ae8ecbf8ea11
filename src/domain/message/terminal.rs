//! Formats problems with their source line for a terminal.

use crate::model::Problem;

/// Whether colours are used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Colour {
    /// Colours are used.
    Yes,
    /// No colours: the output is not a terminal, or `NO_COLOR` is set.
    No,
}

impl Colour {
    fn paint(self, code: &str, text: &str) -> String {
        match self {
            Self::Yes => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            Self::No => text.to_owned(),
        }
    }
    /// Formats an error, in red.
    pub fn bad(self, text: &str) -> String {
        self.paint("31;1", text)
    }
    /// Formats a warning or a difference, in yellow.
    pub fn warn(self, text: &str) -> String {
        self.paint("33", text)
    }
    /// Formats a success, in green.
    pub fn good(self, text: &str) -> String {
        self.paint("32", text)
    }
    /// Formats secondary text, in grey.
    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }
}

/// Formats one problem: place, finding, source line, expectation and hint.
pub fn problem(problem: &Problem, colour: Colour) -> String {
    let mut text = format!("{} {problem}\n", colour.bad("Error:"));
    match (&problem.source, problem.line) {
        (Some(source), line) if line > 0 => {
            let number = line.to_string();
            let gutter = " ".repeat(number.len());
            let indent: String =
                source.chars().take(problem.column as usize - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            let length = (problem.length as usize)
                .clamp(1, source.chars().count().saturating_sub(problem.column as usize - 1).max(1));
            let expected = problem.expected.as_deref().unwrap_or_default();
            text.push_str(&format!(
                " {gutter} |\n {number} | {source}\n {gutter} | {indent}{} {expected}\n",
                colour.bad(&"^".repeat(length))
            ));
        }
        _ => {
            if let Some(expected) = &problem.expected {
                text.push_str(&format!("  {expected}\n"));
            }
        }
    }
    if let Some(hint) = &problem.hint {
        text.push_str(&format!("{} {hint}\n", colour.warn("Hint:")));
    }
    text
}
