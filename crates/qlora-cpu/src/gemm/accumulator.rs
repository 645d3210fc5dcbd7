//! A register of sums and what may be added to it, so that one tile serves every processor and operand.
//!
//! The element-wise kernels have vectors of their own (`crate::vector`): an accumulator knows only one
//! operation, but its operands may be bf16 pairs.

/// A register of `f32` sums and what may be added to it.
///
/// # Safety
///
/// Every method may use instructions of its family: call them only from code that runs on a
/// processor that has them, inlined into a function that enables them.
pub(super) trait Accumulator: Copy {
    /// Sums in a register.
    const LANES: usize;

    unsafe fn zero() -> Self;
    /// `LANES` words from `at`.
    unsafe fn load(at: *const u32) -> Self;
    /// The one word at `at` in every lane.
    unsafe fn splat(at: *const u32) -> Self;
    unsafe fn store(self, at: *mut f32);
    /// `self + x · w`, where a word of `x` and `w` is an `f32` or a pair of bf16.
    unsafe fn plus_product(self, x: Self, w: Self) -> Self;
    /// The sum over the lanes.
    unsafe fn sum(self) -> f32;
}

/// Four lanes in plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Plain([f32; 4]);

impl Accumulator for Plain {
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; 4])
    }
    #[inline(always)]
    unsafe fn load(at: *const u32) -> Self {
        // SAFETY: the caller owns four words at `at`; any bits are an `f32`.
        Self(unsafe { at.cast::<[f32; 4]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn splat(at: *const u32) -> Self {
        // SAFETY: the caller owns the word.
        Self([unsafe { at.cast::<f32>().read() }; 4])
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller owns four words at `at`.
        unsafe { at.cast::<[f32; 4]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn plus_product(self, x: Self, w: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + x.0[i] * w.0[i]))
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let [a, b, c, d] = self.0;
        (a + c) + (b + d)
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512, Avx512Dot};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Accumulator;
    use std::arch::x86_64::*;

    /// Eight `f32`.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2(__m256);

    // SAFETY of the bodies below: the trait's contract gives both the instructions and the memory.
    impl Accumulator for Avx2 {
        const LANES: usize = 8;

        #[inline(always)]
        unsafe fn zero() -> Self {
            Self(unsafe { _mm256_setzero_ps() })
        }
        #[inline(always)]
        unsafe fn load(at: *const u32) -> Self {
            Self(unsafe { _mm256_loadu_ps(at.cast()) })
        }
        #[inline(always)]
        unsafe fn splat(at: *const u32) -> Self {
            Self(unsafe { _mm256_set1_ps(at.cast::<f32>().read()) })
        }
        #[inline(always)]
        unsafe fn store(self, at: *mut f32) {
            unsafe { _mm256_storeu_ps(at, self.0) }
        }
        #[inline(always)]
        unsafe fn plus_product(self, x: Self, w: Self) -> Self {
            Self(unsafe { _mm256_fmadd_ps(x.0, w.0, self.0) })
        }
        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            unsafe {
                let half = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
                let quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
                _mm_cvtss_f32(_mm_add_ss(quarter, _mm_shuffle_ps::<1>(quarter, quarter)))
            }
        }
    }

    macro_rules! avx512_accumulator {
        ($name:ident, $doc:literal, ($sum:ident, $x:ident, $w:ident) => $product:expr) => {
            #[doc = $doc]
            #[derive(Clone, Copy)]
            pub(in super::super) struct $name(pub(in super::super) __m512);

            impl Accumulator for $name {
                const LANES: usize = 16;

                #[inline(always)]
                unsafe fn zero() -> Self {
                    Self(unsafe { _mm512_setzero_ps() })
                }
                #[inline(always)]
                unsafe fn load(at: *const u32) -> Self {
                    Self(unsafe { _mm512_loadu_ps(at.cast()) })
                }
                #[inline(always)]
                unsafe fn splat(at: *const u32) -> Self {
                    Self(unsafe { _mm512_castsi512_ps(_mm512_set1_epi32(at.cast::<i32>().read())) })
                }
                #[inline(always)]
                unsafe fn store(self, at: *mut f32) {
                    unsafe { _mm512_storeu_ps(at, self.0) }
                }
                #[inline(always)]
                unsafe fn plus_product(self, x: Self, w: Self) -> Self {
                    let ($sum, $x, $w) = (self.0, x.0, w.0);
                    Self(unsafe { $product })
                }
                #[inline(always)]
                unsafe fn sum(self) -> f32 {
                    unsafe { _mm512_reduce_add_ps(self.0) }
                }
            }
        };
    }

    impl From<__m512i> for Avx512 {
        #[inline(always)]
        fn from(words: __m512i) -> Self {
            // SAFETY: both are 64 bytes, and any bits are a number.
            Self(unsafe { std::mem::transmute::<__m512i, __m512>(words) })
        }
    }

    impl From<__m512i> for Avx512Dot {
        #[inline(always)]
        fn from(words: __m512i) -> Self {
            Self(Avx512::from(words).0)
        }
    }

    avx512_accumulator!(Avx512, "Sixteen `f32`.", (sum, x, w) => _mm512_fmadd_ps(x, w, sum));
    avx512_accumulator!(
        Avx512Dot,
        "Sixteen `f32` sums of products of bf16 pairs.",
        (sum, x, w) => _mm512_dpbf16_ps(
            sum,
            std::mem::transmute::<__m512, __m512bh>(x),
            std::mem::transmute::<__m512, __m512bh>(w),
        )
    );
}

#[cfg(target_arch = "aarch64")]
pub(super) use arm::Neon;

#[cfg(target_arch = "aarch64")]
#[allow(unused_unsafe, reason = "NEON is always there: newer compilers call it without `unsafe`")]
mod arm {
    use super::Accumulator;
    use std::arch::aarch64::*;

    /// Four `f32`.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Neon(float32x4_t);

    // SAFETY of the bodies below: NEON is part of AArch64; the trait's contract gives the memory.
    impl Accumulator for Neon {
        const LANES: usize = 4;

        #[inline(always)]
        unsafe fn zero() -> Self {
            Self(unsafe { vdupq_n_f32(0.0) })
        }
        #[inline(always)]
        unsafe fn load(at: *const u32) -> Self {
            Self(unsafe { vld1q_f32(at.cast()) })
        }
        #[inline(always)]
        unsafe fn splat(at: *const u32) -> Self {
            Self(unsafe { vld1q_dup_f32(at.cast()) })
        }
        #[inline(always)]
        unsafe fn store(self, at: *mut f32) {
            unsafe { vst1q_f32(at, self.0) }
        }
        #[inline(always)]
        unsafe fn plus_product(self, x: Self, w: Self) -> Self {
            Self(unsafe { vfmaq_f32(self.0, x.0, w.0) })
        }
        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            unsafe { vaddvq_f32(self.0) }
        }
    }
}
