//! What happens when a GPU's runtime fails.

use std::sync::Once;

use super::explain_panic;

/// From now on a panic on any thread ends the program, with the message of [`explain_panic`] where memory ran out and with
/// that of the hook before otherwise.
///
/// The runtimes of GPUs panic on threads of their own. Whoever waits for a result gets zeros then, and training would go on
/// with them. [`on_device`](super::on_device) does this for a GPU; a program that opens one itself calls it, or has a panic
/// hook of its own.
pub fn end_on_failure() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            match panic.payload_as_str().and_then(explain_panic) {
                Some(explained) => eprintln!("error: {explained}"),
                None => before(panic),
            }
            std::process::exit(1);
        }));
    });
}
