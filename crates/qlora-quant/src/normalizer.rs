//! Division of a block by its largest magnitude, the way bitsandbytes rounds it.

/// x ↦ x · (1 / absmax), the reciprocal rounded first, as the CUDA kernels of bitsandbytes do it.
///
/// Two cases where that formula alone gives NaN: a block of zeros maps to zeros, and a block whose
/// absmax is so small that its reciprocal overflows is first multiplied by 2⁶⁴, which is exact.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Normalizer {
    lift: f32,
    reciprocal: f32,
}

impl Normalizer {
    #[inline(always)]
    pub(crate) fn new(absmax: f32) -> Self {
        const LIFT: f32 = 18_446_744_073_709_551_616.0;
        let reciprocal = 1.0 / absmax;
        if reciprocal.is_finite() {
            Self { lift: 1.0, reciprocal }
        } else if absmax == 0.0 {
            Self { lift: 1.0, reciprocal: 0.0 }
        } else {
            Self { lift: LIFT, reciprocal: 1.0 / (absmax * LIFT) }
        }
    }

    /// The two factors of [`Normalizer::apply`], to be multiplied in this order.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn factors(self) -> (f32, f32) {
        (self.lift, self.reciprocal)
    }

    #[inline(always)]
    pub(crate) fn apply(self, x: f32) -> f32 {
        x * self.lift * self.reciprocal
    }
}

/// Bits of the largest magnitude of a block: as integers, magnitudes keep their order and every
/// infinity and NaN is above [`INFINITY_BITS`], so one pass finds the absmax and checks the values.
#[inline(always)]
pub(crate) fn absmax_bits(values: &[f32]) -> i32 {
    values.iter().fold(0, |max, value| max.max((value.to_bits() & 0x7fff_ffff) as i32))
}

/// The least result of [`absmax_bits`] that is not the bits of a finite number.
pub(crate) const INFINITY_BITS: i32 = 0x7f80_0000;
