//! Which body of an operation runs, and how often each did.

use std::cell::Cell;
use std::sync::OnceLock;

/// The kinds of body that an operation can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Plain tensor operations.
    Reference,
    /// A CubeCL kernel.
    Cube,
    /// A kernel written for this hardware: SIMD on a CPU, CUDA C++ on an NVIDIA GPU.
    Native,
}

thread_local! {
    /// Of a thread, so that a test counts what it called, whatever runs beside it.
    static CALLS: [Cell<usize>; 3] = const { [const { Cell::new(0) }; 3] };
}

/// The tier that `QLORA_KERNELS=reference|cube|native` forces, if any. Read once.
///
/// A tier that a backend does not have falls back to its best one, except `reference`, which all have.
#[must_use]
pub fn forced() -> Option<Tier> {
    static FORCED: OnceLock<Option<Tier>> = OnceLock::new();
    *FORCED.get_or_init(|| match std::env::var("QLORA_KERNELS").ok()?.as_str() {
        "reference" => Some(Tier::Reference),
        "cube" => Some(Tier::Cube),
        "native" => Some(Tier::Native),
        other => {
            eprintln!("warning: QLORA_KERNELS={other} is not one of reference, cube, native: ignored");
            None
        }
    })
}

/// How many operations this thread has run with a body of this tier.
#[must_use]
pub fn calls(tier: Tier) -> usize {
    CALLS.with(|calls| calls[tier as usize].get())
}

#[cfg(any(feature = "flex", feature = "cube"))]
fn count(tier: Tier) {
    CALLS.with(|calls| calls[tier as usize].update(|count| count + 1));
}

/// Whether a native body should run, where the alternative is the reference; counts the call either way.
#[cfg(feature = "flex")]
pub(crate) fn native(possible: bool) -> bool {
    let native = possible && forced() != Some(Tier::Reference);
    count(if native { Tier::Native } else { Tier::Reference });
    native
}

/// Whether a CubeCL kernel should run, where the alternative is the reference; counts the call either way.
#[cfg(feature = "cube")]
pub(crate) fn cube(possible: bool) -> bool {
    let cube = possible && forced() != Some(Tier::Reference);
    count(if cube { Tier::Cube } else { Tier::Reference });
    cube
}

/// Whether a kernel for this very hardware should run instead of a CubeCL one; counts the call if so.
#[cfg(feature = "cuda")]
pub(crate) fn native_over_cube(possible: bool) -> bool {
    let native = possible && !matches!(forced(), Some(Tier::Reference | Tier::Cube));
    if native {
        count(Tier::Native);
    }
    native
}
