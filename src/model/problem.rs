//! Defines problems of declarations, with their source locations.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// A place in a file. Line and column count from 1. A length of 0 marks no text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Place {
    /// The line.
    pub line: u32,
    /// The column, in characters.
    pub column: u32,
    /// The number of marked characters.
    pub length: u32,
}

/// One problem of a declaration: its place, the finding, the expectation and a hint.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// The file, relative to the root of the declarations.
    pub file: Arc<str>,
    /// The line, from 1.
    pub line: u32,
    /// The column, from 1.
    pub column: u32,
    /// A stable name for the kind of problem, in kebab-case.
    pub kind: String,
    /// The finding, in one line.
    pub message: String,
    /// The expectation, shown under the marked text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// The suggested solution.
    pub hint: Option<String>,
    /// The line of the file, without the line break.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The number of marked characters.
    #[serde(default, skip)]
    pub length: u32,
}

/// The longest part of a source line that is stored, in characters.
const SOURCE_LENGTH_MAX: usize = 160;

impl Problem {
    /// Creates a problem at a place. The methods below add expectation, hint and source line.
    pub fn new(kind: &str, file: &Arc<str>, at: Place, message: impl Into<String>) -> Self {
        Self {
            file: Arc::clone(file),
            line: at.line,
            column: at.column,
            kind: kind.to_owned(),
            message: message.into(),
            expected: None,
            hint: None,
            source: None,
            length: at.length,
        }
    }
    /// Sets the expectation.
    #[must_use]
    pub fn expected(mut self, text: impl Into<String>) -> Self {
        self.expected = Some(text.into());
        self
    }
    /// Sets the hint.
    #[must_use]
    pub fn hint(mut self, text: impl Into<String>) -> Self {
        self.hint = Some(text.into());
        self
    }
    /// Adds the source line of the problem's place.
    #[must_use]
    pub fn quote(mut self, text: &str) -> Self {
        if self.line > 0 && self.source.is_none() {
            self.source = text
                .lines()
                .nth(self.line as usize - 1)
                .filter(|line| (self.column as usize) < SOURCE_LENGTH_MAX || line.chars().count() <= SOURCE_LENGTH_MAX)
                .map(|line| line.chars().filter(|c| !c.is_control() || *c == '\t').take(SOURCE_LENGTH_MAX).collect());
        }
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)
        } else {
            write!(f, "{}: {}", self.file, self.message)
        }
    }
}

/// A collection of problems.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Adds one problem.
    pub fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }
    /// Adds several problems.
    pub fn extend(&mut self, problems: impl IntoIterator<Item = Problem>) {
        self.0.extend(problems);
    }
    /// Returns the problems sorted by file and line, without duplicates.
    #[must_use]
    pub fn finish(mut self) -> Vec<Problem> {
        self.0.sort();
        self.0.dedup();
        self.0
    }
    /// Returns whether there are no problems.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// Returns the number of problems.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}
