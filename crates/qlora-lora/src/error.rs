//! What can be wrong with an adapter.

/// An adapter that does not fit its model, or a configuration that makes no sense.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoraError {
    /// A number outside of its range.
    #[error("lora.{key} is {value}: expected {expected}")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// A regular expression that does not compile.
    #[error("lora.targets `{pattern}` is not a regular expression: {reason}")]
    BadPattern {
        /// The expression.
        pattern: String,
        /// Why not.
        reason: String,
    },
    /// No layer of the model matches.
    #[error("lora.targets {targets} matches no layer of this model; its linear layers are {available}")]
    NoTarget {
        /// What was asked for.
        targets: String,
        /// What there is.
        available: String,
    },
    /// Factors that do not fit the layer.
    #[error("adapter of `{layer}`: {factor} is {found:?}, the layer needs {expected:?}")]
    ShapeMismatch {
        /// Path of the layer.
        layer: String,
        /// `lora_A` or `lora_B`.
        factor: &'static str,
        /// Shape in the adapter.
        found: [usize; 2],
        /// Shape that fits.
        expected: [usize; 2],
    },
    /// An adapter for a layer that the model does not have.
    #[error(
        "the adapter has factors for `{layer}`, which this model does not have; was it trained for another model?"
    )]
    UnknownLayer {
        /// Path of the layer.
        layer: String,
    },
}
