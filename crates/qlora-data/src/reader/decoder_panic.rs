//! Decoders that panic on damaged files: the panic becomes an error, and a program's panic hook can know that it will.

use std::cell::Cell;
#[cfg(feature = "parquet")]
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic on this thread would be one of a decoder on a damaged file, which becomes an error: nothing for a
/// panic hook to tell of.
#[must_use]
pub fn panic_is_caught() -> bool {
    CAUGHT.get()
}

/// What `decode` returns, or that it panicked.
#[cfg(feature = "parquet")]
pub(super) fn caught<T>(decode: impl FnOnce() -> T) -> Result<T, &'static str> {
    let before = CAUGHT.replace(true);
    let result = catch_unwind(AssertUnwindSafe(decode));
    CAUGHT.set(before);
    result.map_err(|_| "its lengths and contents contradict each other")
}

#[cfg(all(test, feature = "parquet"))]
mod tests {
    use super::*;

    #[test]
    fn a_caught_panic_is_an_error_and_known_to_be_caught() {
        let seen = caught(panic_is_caught);
        assert_eq!(seen, Ok(true));
        assert!(caught(|| panic!("damaged")).is_err());
        assert!(!panic_is_caught());
    }
}
