//! What can go wrong with a file, each time with its path.

use std::io;
use std::path::{Path, PathBuf};

/// An operation on a file or directory that failed. Every variant names the path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was attempted, as a verb phrase ("open", "rename into place").
        operation: &'static str,
        /// The file or directory it was attempted on.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A path that must end in a file or directory name does not (`/`, `..`, an empty path).
    #[error("{} does not name a file or directory that can be written", path.display())]
    NoFileName {
        /// The path as given.
        path: PathBuf,
    },
    /// A file or directory is larger than what is free on its disk.
    #[error(
        "{} needs {:.1} GB, {:.1} GB are free on its disk; free some, or write to another disk",
        path.display(), *needed as f64 / 1e9, *available as f64 / 1e9
    )]
    NoSpace {
        /// What was to be written.
        path: PathBuf,
        /// Bytes that it takes.
        needed: u64,
        /// Bytes that are free.
        available: u64,
    },
    /// The target of a directory write exists and is not a directory.
    #[error("{} exists and is not a directory; move it away or choose another name", path.display())]
    NotADirectory {
        /// The path in the way.
        path: PathBuf,
    },
    /// A value could not be turned into JSON.
    #[error("cannot write {} as JSON: {source}", path.display())]
    ToJson {
        /// The file that was to be written.
        path: PathBuf,
        /// What the serializer said.
        source: serde_json::Error,
    },
    /// A file that must hold JSON does not, or holds other keys than expected.
    #[error("{} is not the JSON expected here: {source}; restore it or write it again", path.display())]
    FromJson {
        /// The file that was read.
        path: PathBuf,
        /// What the parser said, with line and column.
        source: serde_json::Error,
    },
    /// The header of a safetensors file lies about the file or can't be read.
    #[error(
        "{} is not a valid safetensors file: {reason}; it is truncated or damaged: fetch or write it again",
        path.display()
    )]
    InvalidSafetensors {
        /// The file.
        path: PathBuf,
        /// Which rule of the format it breaks.
        reason: String,
    },
    /// A tensor that was asked for is in none of the files.
    #[error("{} has no tensor `{name}`{}", path.display(), similar_names(similar))]
    TensorNotFound {
        /// The file or checkpoint directory.
        path: PathBuf,
        /// The name that was asked for.
        name: String,
        /// Up to three names that the file does have and that end alike.
        similar: Vec<String>,
    },
    /// A tensor is stored in a type that can't be read as `f32`.
    #[error("{}: tensor `{name}` is stored as {dtype}; F32, F16 or BF16 was expected", path.display())]
    UnsupportedDtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The type it is stored in.
        dtype: safetensors::Dtype,
    },
    /// A directory holds no checkpoint under the names looked for.
    #[error(
        "{} holds neither model.safetensors nor model.safetensors.index.json; \
         give the directory of a safetensors checkpoint, or one .safetensors file",
        path.display()
    )]
    NoCheckpoint {
        /// The directory.
        path: PathBuf,
    },
    /// The index of a sharded checkpoint contradicts the shards or names something outside its directory.
    #[error("{}: {reason}", path.display())]
    InvalidIndex {
        /// The index file.
        path: PathBuf,
        /// What is wrong, and with which shard or tensor.
        reason: String,
    },
    /// The tensors given to a writer can't be one safetensors file.
    #[error("cannot write {}: tensor `{name}` {reason}", path.display())]
    InvalidTensor {
        /// The file that was to be written.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Error {
    /// For `map_err`: attaches what was attempted, and on which path, to an error of the operating system.
    pub fn io(operation: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { operation, path: path.as_ref().to_path_buf(), source }
    }
}

fn similar_names(similar: &[String]) -> String {
    if similar.is_empty() { String::new() } else { format!("; it has `{}`", similar.join("`, `")) }
}
