//! What can be wrong with an adapter directory.

use std::path::PathBuf;

/// An adapter directory that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeftError {
    /// A file cannot be read or written, or is damaged.
    #[error(transparent)]
    File(#[from] qlora_files::Error),
    /// The tokenizer cannot be written.
    #[error(transparent)]
    Text(#[from] qlora_text::Error),
    /// A file can be read, but what it says is wrong or not supported.
    #[error("{}: {source}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: InvalidAdapter,
    },
    /// The weights are a pickle, which runs code when it is loaded.
    #[error(
        "{} is not read, because a pickle can run any code; load the adapter with PEFT and save it again, \
         which writes adapter_model.safetensors",
        path.display()
    )]
    Pickle {
        /// The pickle.
        path: PathBuf,
    },
}

/// A configuration or tensors that make no adapter, or one that is not supported.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidAdapter {
    /// A key that an adapter cannot do without.
    #[error("key `{key}` is missing: expected {expected}")]
    MissingKey {
        /// The key.
        key: &'static str,
        /// What it should hold.
        expected: &'static str,
    },
    /// A value of the wrong type or out of range.
    #[error("key `{key}` is {found}: expected {expected}")]
    Value {
        /// The key.
        key: String,
        /// The value, as JSON, shortened.
        found: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// A feature that changes what the adapter computes.
    #[error("key `{key}` is {found}: {feature} is not supported; {remedy}")]
    Unsupported {
        /// The key.
        key: String,
        /// The value, as JSON, shortened.
        found: String,
        /// What the key turns on.
        feature: &'static str,
        /// What can be done instead.
        remedy: &'static str,
    },
    /// A pattern that is not a regular expression, or uses what only Python's have.
    #[error("key `{key}`: pattern `{pattern}` is not supported: {reason}")]
    Pattern {
        /// The key.
        key: &'static str,
        /// The pattern.
        pattern: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// No tensors at all.
    #[error("it has no tensors; the adapter was saved without its weights")]
    Empty,
    /// A tensor that is no factor of a linear layer.
    #[error("tensor `{tensor}` is {what}, which is not supported; expected names that end in {expected}")]
    UnexpectedTensor {
        /// The tensor.
        tensor: String,
        /// What it looks like.
        what: &'static str,
        /// Endings that are read.
        expected: &'static str,
    },
    /// One factor of a layer without the other.
    #[error("tensor `{missing}` is missing: `{tensor}` cannot be used without it")]
    MissingFactor {
        /// The factor that is there.
        tensor: String,
        /// The one that is not.
        missing: String,
    },
    /// A factor with the wrong number of dimensions or elements.
    #[error("tensor `{tensor}` has shape {shape:?} and {elements} elements: expected {expected}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its elements.
        elements: usize,
        /// What fits.
        expected: &'static str,
    },
    /// A factor whose rank is not the one the configuration gives its layer.
    #[error(
        "tensor `{tensor}` has rank {found}: `r` and `rank_pattern` of adapter_config.json say {expected}"
    )]
    Rank {
        /// The tensor.
        tensor: String,
        /// Its rank.
        found: usize,
        /// The rank of its layer.
        expected: usize,
    },
    /// A factor for a layer that `target_modules` does not name.
    #[error(
        "tensor `{tensor}` belongs to a layer that `target_modules` of adapter_config.json does not name"
    )]
    NotTargeted {
        /// The tensor.
        tensor: String,
    },
    /// A NaN or an infinity.
    #[error("tensor `{tensor}` has {value} at index {index}; the training diverged or the file is damaged")]
    NonFinite {
        /// The tensor.
        tensor: String,
        /// Index of the first such element.
        index: usize,
        /// The element, as text.
        value: String,
    },
}
