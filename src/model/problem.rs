//! What is wrong with a declaration, and where.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// A place in a file. Line and column count from 1; a length of 0 points at no word.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Place {
    /// The line.
    pub line: u32,
    /// The column, in characters.
    pub column: u32,
    /// How many characters are marked.
    pub length: u32,
}

/// One thing that is wrong: where, what was found, what was expected, and what to do.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// The file, relative to the root of the declarations.
    pub file: Arc<str>,
    /// The line, from 1.
    pub line: u32,
    /// The column, from 1.
    pub column: u32,
    /// A stable word for the sort of problem, kebab-case.
    pub kind: String,
    /// The finding, in one line.
    pub message: String,
    /// The expectation, shown under the mark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// The remedy.
    pub hint: Option<String>,
    /// The line of the file, without its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// How many characters are marked.
    #[serde(default, skip)]
    pub length: u32,
}

/// The longest part of a source line that is shown.
const SOURCE_LENGTH_MAX: usize = 160;

impl Problem {
    /// A problem at a place; expected, hint and source line are added by the methods below.
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
    /// Says what was expected.
    #[must_use]
    pub fn expected(mut self, text: impl Into<String>) -> Self {
        self.expected = Some(text.into());
        self
    }
    /// Says what to do.
    #[must_use]
    pub fn hint(mut self, text: impl Into<String>) -> Self {
        self.hint = Some(text.into());
        self
    }
    /// Adds the line of the file that it is about.
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

/// A list of problems, in the order of files and lines, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Adds one.
    pub fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }
    /// Adds several.
    pub fn extend(&mut self, problems: impl IntoIterator<Item = Problem>) {
        self.0.extend(problems);
    }
    /// Sorts them and drops repetitions.
    #[must_use]
    pub fn finish(mut self) -> Vec<Problem> {
        self.0.sort();
        self.0.dedup();
        self.0
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}
