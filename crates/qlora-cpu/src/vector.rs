//! One vector of `f32` lanes, the same code for every instruction set.
//!
//! A kernel is written once as `#[inline(always)] fn body<V: Vector>(..)`; `per_isa!` compiles it for
//! each instruction set and picks one at run time. A vector type other than [`Portable`] is named only by
//! that macro, after its instructions were found: this is what makes the safe methods sound.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::ops::{Add, Div, Mul, Sub};

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use portable::Portable;

/// `LANES` values of `f32` and what the kernels do with them.
pub(crate) trait Vector:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// Values in a vector.
    const LANES: usize;

    /// `value` in every lane.
    fn splat(value: f32) -> Self;

    /// The first `LANES` values of `from`; where it is shorter, the lanes left over are `fill`.
    fn load_or(from: &[f32], fill: f32) -> Self;

    /// Writes the first `LANES` values of `to`, or all of it where it is shorter.
    fn store(self, to: &mut [f32]);

    /// Reads `LANES` values.
    ///
    /// # Safety
    /// `from` is valid for reading `LANES` values; no alignment is asked for.
    unsafe fn read(from: *const f32) -> Self;

    /// Writes `LANES` values.
    ///
    /// # Safety
    /// `to` is valid for writing `LANES` values; no alignment is asked for.
    unsafe fn write(self, to: *mut f32);

    /// `self * factor + addend`, rounded once where the processor can.
    fn mul_add(self, factor: Self, addend: Self) -> Self;

    /// The larger of each pair; `other` where either is NaN.
    fn max(self, other: Self) -> Self;

    /// The smaller of each pair; `other` where either is NaN.
    fn min(self, other: Self) -> Self;

    /// Nearest integers, ties to even. For magnitudes up to 2²².
    fn round(self) -> Self;

    /// `self * 2^exponent`; the exponents are integers in −300..=300.
    fn scale(self, exponent: Self) -> Self;

    /// Square roots.
    fn sqrt(self) -> Self;

    /// `if self < bound { below } else { otherwise }` in each lane.
    fn select_less(self, bound: Self, below: Self, otherwise: Self) -> Self;

    /// Sum of the lanes, always in the same order.
    fn sum(self) -> f32;

    /// Largest lane.
    fn largest(self) -> f32;

    /// Zero in every lane.
    #[inline(always)]
    fn zero() -> Self {
        Self::splat(0.0)
    }

    /// [`Vector::load_or`] with zeros.
    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        Self::load_or(from, 0.0)
    }
}
