//! Ctrl-C: a clean end first, an immediate one when pressed again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::TrainError;

/// Exit code of a program that Ctrl-C ended, as shells expect it.
const INTERRUPTED: i32 = 130;

/// A wish to end a run: the engine finishes the step it is in, saves a checkpoint and returns.
///
/// Clones share the wish.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    requested: Arc<AtomicBool>,
}

impl Interrupt {
    /// An interrupt that only [`request`](Self::request) sets off.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The interrupt that Ctrl-C sets off. Ctrl-C pressed again ends the process at once with code 130.
    ///
    /// The handler is installed once a process; later calls give the same interrupt. Where Ctrl-C is ignored, as in a
    /// process that a script has put into the background, or handled by someone else, it stays so.
    ///
    /// # Errors
    /// The handler can't be installed.
    pub fn on_ctrl_c() -> Result<Self, TrainError> {
        static INSTALLED: OnceLock<Interrupt> = OnceLock::new();
        if let Some(interrupt) = INSTALLED.get() {
            return Ok(interrupt.clone());
        }
        let interrupt = Self::new();
        let pressed = interrupt.clone();
        let installed = ctrlc::try_set_handler(move || {
            if pressed.requested.swap(true, Ordering::SeqCst) {
                std::process::exit(INTERRUPTED);
            }
        });
        match installed {
            Ok(()) | Err(ctrlc::Error::MultipleHandlers) => {}
            Err(source) => return Err(TrainError::Interrupt { source }),
        }
        Ok(INSTALLED.get_or_init(|| interrupt).clone())
    }

    /// Wishes for the end.
    pub fn request(&self) {
        self.requested.store(true, Ordering::SeqCst);
    }

    /// Whether the end was wished for.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }
}
