//! Where a row stands.

use crate::{Error, RowProblem};
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// How the rows of a file are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Lines of a text file, as an editor shows them.
    Line,
    /// Rows of a table or elements of a list.
    Row,
    /// Pieces of a document.
    Part,
}

/// The place of a row in its file. Prints as `line 7`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Position {
    /// What is counted.
    pub unit: Unit,
    /// From 1. In JSON it is `line`, whatever the unit.
    #[serde(rename = "line")]
    pub number: usize,
}

impl Position {
    pub(crate) fn line(number: usize) -> Self {
        Self { unit: Unit::Line, number }
    }

    pub(crate) fn row(number: usize) -> Self {
        Self { unit: Unit::Row, number }
    }

    pub(crate) fn part(number: usize) -> Self {
        Self { unit: Unit::Part, number }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            Unit::Line => "line",
            Unit::Row => "row",
            Unit::Part => "part",
        };
        write!(f, "{unit} {}", self.number)
    }
}

/// A row's file and its place there. Prints as `data.jsonl, line 7`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Location {
    /// The file.
    pub path: Arc<PathBuf>,
    /// The place in it.
    pub position: Position,
}

impl Location {
    pub(crate) fn error(&self, problem: RowProblem) -> Error {
        Error::Row { path: self.path.to_path_buf(), line: self.position, problem: Box::new(problem) }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.path.display(), self.position)
    }
}
