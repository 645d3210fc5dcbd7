//! One error for programs.

/// What a program returns when something failed: the error of the crate where it failed, whatever it is.
///
/// [`source`](std::error::Error::source) gives the rest of the chain, and
/// [`downcast_ref`](Error::downcast_ref) the error of a crate, for programs that tell kinds apart.
pub struct Error(Box<dyn std::error::Error + Send + Sync>);

/// A result with the [`Error`] of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The error as the type of one crate, if it is of that.
    #[must_use]
    pub fn downcast_ref<T: std::error::Error + 'static>(&self) -> Option<&T> {
        self.0.downcast_ref()
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        Self(Box::new(error))
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The message and its causes, line by line: what `fn main() -> qlora_core::Result<()>` prints.
impl std::fmt::Debug for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, "\n  because: {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails() -> Result<()> {
        Err(qlora_models::ModelError::EmptyPrompt { index: 3 })?;
        Ok(())
    }

    #[test]
    fn an_error_of_a_crate_comes_through() {
        let error = fails().unwrap_err();
        assert_eq!(error.to_string(), "prompt 3 is empty; give at least one token");
        assert!(error.downcast_ref::<qlora_models::ModelError>().is_some());
        assert!(error.downcast_ref::<std::io::Error>().is_none());
    }
}
