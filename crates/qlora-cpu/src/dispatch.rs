//! One kernel body, compiled once for each instruction set, picked at run time.

use crate::Isa;

/// Defines `fn name(isa, args..)`, which runs `body::<V>(args..)` with the vectors of `isa`.
///
/// `body` is generic over [`Vector`](crate::vector::Vector) and `#[inline(always)]`, so that it is compiled
/// inside a function that has the instructions enabled.
macro_rules! per_isa {
    ($(#[$meta:meta])* $vis:vis fn $name:ident = $body:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?) => {
        $(#[$meta])*
        $vis fn $name(isa: $crate::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                $body::<$crate::vector::Avx512>($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                $body::<$crate::vector::Avx2>($($arg),*)
            }

            match isa {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: an `Isa` in use was found on this processor.
                $crate::Isa::Avx512 | $crate::Isa::Avx512Bf16 => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                $crate::Isa::Avx2 => unsafe { avx2($($arg),*) },
                _ => $body::<$crate::vector::Portable>($($arg),*),
            }
        }
    };
}
pub(crate) use per_isa;

/// The instruction set for a call that begins now. Asked once, in the calling thread, and handed down.
pub(crate) fn current_isa() -> Isa {
    #[cfg(test)]
    if let Some(isa) = forced::get() {
        return isa;
    }
    Isa::detect()
}

#[cfg(test)]
pub(crate) use forced::with_isa;

/// Tests go through every instruction set of the machine.
#[cfg(test)]
mod forced {
    use std::cell::Cell;

    use crate::Isa;

    thread_local! {
        static FORCED: Cell<Option<Isa>> = const { Cell::new(None) };
    }

    pub(super) fn get() -> Option<Isa> {
        FORCED.get()
    }

    /// Runs `f` with every call it makes from this thread on `isa`.
    pub(crate) fn with_isa<R>(isa: Isa, f: impl FnOnce() -> R) -> R {
        let before = FORCED.replace(Some(isa));
        let result = f();
        FORCED.set(before);
        result
    }
}
