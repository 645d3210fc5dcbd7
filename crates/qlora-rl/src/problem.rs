//! What is wrong with an option.

/// An option that is out of range or contradicts another.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{option}: {message}")]
pub struct OptionProblem {
    /// The option's name in configurations.
    pub option: &'static str,
    /// What is wrong, and what to do.
    pub message: String,
}
