//! Ctrl-C and SIGTERM: a clean end first, an immediate one the second time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::TrainError;

/// Exit code of a program that Ctrl-C ended, as shells expect it.
const INTERRUPTED: i32 = 130;
/// As [`INTERRUPTED`], of SIGTERM.
#[cfg(unix)]
const TERMINATED: i32 = 143;

/// What Ctrl-C and SIGTERM set off.
static INSTALLED: OnceLock<Interrupt> = OnceLock::new();

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

    /// The interrupt that Ctrl-C sets off and, on Unix, SIGTERM, by which job schedulers and containers end a process.
    /// Either of them again ends the process at once with code 130 or 143.
    ///
    /// The handlers are installed once a process; later calls give the same interrupt. Where one of the signals is
    /// ignored, as Ctrl-C in a process that a script has put into the background, or handled by someone else, it stays
    /// so.
    ///
    /// # Errors
    /// The handler can't be installed.
    pub fn on_ctrl_c() -> Result<Self, TrainError> {
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
        let interrupt = INSTALLED.get_or_init(|| interrupt).clone();
        #[cfg(unix)]
        on_termination();
        Ok(interrupt)
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

/// Sets off what is [`INSTALLED`] when SIGTERM arrives. The `termination` feature of `ctrlc` would do so for SIGHUP
/// too, and handle no signal at all where one of the three is ignored, as under `nohup`.
#[cfg(unix)]
fn on_termination() {
    extern "C" fn terminate(_signal: libc::c_int) {
        if INSTALLED.get().is_some_and(|wish| wish.requested.swap(true, Ordering::SeqCst)) {
            // SAFETY: `_exit` is async-signal-safe, and runs nothing of this process any more.
            unsafe { libc::_exit(TERMINATED) };
        }
    }
    let handler: extern "C" fn(libc::c_int) = terminate;
    // SAFETY: the handler does nothing but atomic reads and writes, and `_exit`. The structures are numbers, for which
    // zeros are values, and `sigaction` keeps neither pointer.
    unsafe {
        let (mut new, mut old): (libc::sigaction, libc::sigaction) = (std::mem::zeroed(), std::mem::zeroed());
        new.sa_sigaction = handler as libc::sighandler_t;
        new.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGTERM, &raw const new, &raw mut old);
        if old.sa_sigaction != libc::SIG_DFL {
            libc::sigaction(libc::SIGTERM, &raw const old, std::ptr::null_mut());
        }
    }
}
