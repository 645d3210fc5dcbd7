//! What is wrong with a configuration, collected.

use std::fmt;
use std::path::PathBuf;

/// A configuration that can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The text is not TOML.
    #[error("{}{}: not valid TOML: {reason}", path.display(), line.map(|line| format!(":{line}")).unwrap_or_default())]
    NotToml {
        /// The file.
        path: PathBuf,
        /// The line, from 1, where known.
        line: Option<usize>,
        /// What the parser expected.
        reason: String,
    },
    /// Keys that are unknown, missing, out of range, contradictory or not supported: all of them.
    #[error("{}", list(path, problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// At least one, in the order of the file's sections.
        problems: Vec<Problem>,
    },
}

/// One problem of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where the key is.
    pub place: Place,
    /// The key with its section (`train.steps`).
    pub key: String,
    /// What is wrong, and what to write instead.
    pub message: String,
}

/// Where a key was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the file, at this line, from 1.
    Line(usize),
    /// In an override on the command line.
    Override,
    /// Nowhere: it is missing.
    Absent,
}

fn list(path: &std::path::Path, problems: &[Problem]) -> String {
    let lines: Vec<String> = problems
        .iter()
        .map(|problem| match problem.place {
            Place::Line(line) => format!("{}:{line}: {problem}", path.display()),
            Place::Override => format!("--set {problem}"),
            Place::Absent => format!("{}: {problem}", path.display()),
        })
        .collect();
    lines.join("\n")
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}
