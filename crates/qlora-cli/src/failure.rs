//! How the program says that it failed.

use std::error::Error;
use std::fmt::Write as _;
use std::io;
use std::process::ExitCode;
use std::sync::OnceLock;

use qlora_core::data::panic_is_caught;
use qlora_core::kernels::device::explain_panic;

use crate::arguments::BackendKind;

/// Why a command ended early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command can't work as asked: exit code 2.
    Usage(Box<dyn Error + Send + Sync>),
    /// Something went wrong: exit code 1.
    Failed(Box<dyn Error + Send + Sync>),
}

impl<E: Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(Box::new(error))
    }
}

impl Failure {
    /// The exit code of everything that is not wrong usage.
    pub(crate) const EXIT_FAILED: u8 = 1;
    const EXIT_USAGE: u8 = 2;

    /// Wrong usage, in words.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into().into())
    }

    /// A failure, in words.
    pub(crate) fn message(message: impl Into<String>) -> Self {
        Self::Failed(message.into().into())
    }

    /// What went wrong, whatever the exit code.
    pub(crate) fn error(&self) -> &(dyn Error + 'static) {
        match self {
            Self::Usage(error) | Self::Failed(error) => error.as_ref(),
        }
    }

    /// Prints the failure with its causes on stderr.
    pub(crate) fn report(self) -> ExitCode {
        let (error, code) = match self {
            Self::Usage(error) => (error, Self::EXIT_USAGE),
            // The reader of our output has gone (`qlora inspect X | head`): that is its right.
            Self::Failed(error) if is_broken_pipe(error.as_ref()) => return ExitCode::SUCCESS,
            Self::Failed(error) => (error, Self::EXIT_FAILED),
        };
        eprintln!("error: {}", with_causes(error.as_ref()));
        code.into()
    }
}

fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// The message, and below it each cause that the message does not tell already.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            let _ = write!(text, "\n  caused by: {message}");
        }
        cause = error.source();
    }
    text
}

/// What computes, once it is known.
static BACKEND: OnceLock<BackendKind> = OnceLock::new();

/// From now on a panic may be one of this backend's.
pub(crate) fn computing_on(backend: BackendKind) {
    BACKEND.get_or_init(|| backend);
}

/// Makes a panic, on whatever thread, a message that says what to do instead of a backtrace.
///
/// On a GPU it ends the program: the runtimes panic on a thread of their own, where memory runs out above all.
pub(crate) fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        if panic_is_caught() {
            return;
        }
        let message = panic.payload_as_str().unwrap_or("no message");
        let place = panic.location().map_or_else(|| "unknown place".to_owned(), ToString::to_string);
        if let Some(backend) = BACKEND.get().filter(|backend| **backend != BackendKind::Cpu) {
            match explain_panic(message) {
                Some(explained) => eprintln!("error: {explained}"),
                None => eprintln!("error: the {} backend failed: {message} ({place})", backend.name()),
            }
            // The thread of the device may be the one that failed: its results would be zeros, and training would
            // go on with them.
            std::process::exit(i32::from(Failure::EXIT_FAILED));
        }
        eprintln!(
            "error: a bug in qlora {}: {message} ({place})\n  please report it with the command that you ran",
            env!("CARGO_PKG_VERSION")
        );
    }));
}

#[cfg(test)]
mod tests {
    use super::with_causes;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    #[test]
    fn a_cause_is_told_once() {
        let inner = Layer { text: "no such file", source: None };
        let told = Layer { text: "cannot open x: no such file", source: Some(Box::new(inner)) };
        let outer = Layer { text: "the model did not load", source: Some(Box::new(told)) };
        assert_eq!(with_causes(&outer), "the model did not load\n  caused by: cannot open x: no such file");
    }
}
