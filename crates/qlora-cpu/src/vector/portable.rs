//! Vectors as arrays: what the compiler turns into SSE2 or NEON.

use std::ops::{Add, Div, Mul, Sub};

use super::Vector;

const LANES: usize = 4;

/// Four lanes in an array.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn map2(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Add for Portable {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.map2(other, |a, b| a + b)
    }
}

impl Sub for Portable {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.map2(other, |a, b| a - b)
    }
}

impl Mul for Portable {
    type Output = Self;
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.map2(other, |a, b| a * b)
    }
}

impl Div for Portable {
    type Output = Self;
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.map2(other, |a, b| a / b)
    }
}

/// `2^exponent` for −126..=127, built from the bits.
#[inline(always)]
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

impl Vector for Portable {
    const LANES: usize = LANES;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    fn load_or(from: &[f32], fill: f32) -> Self {
        match from.first_chunk() {
            Some(full) => Self(*full),
            None => Self(std::array::from_fn(|i| from.get(i).copied().unwrap_or(fill))),
        }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        match to.first_chunk_mut() {
            Some(full) => *full = self.0,
            None => to.iter_mut().zip(self.0).for_each(|(to, value)| *to = value),
        }
    }

    #[inline(always)]
    unsafe fn read(from: *const f32) -> Self {
        // SAFETY: the caller vouches for the values; the array has the alignment of f32.
        Self(unsafe { from.cast::<[f32; LANES]>().read() })
    }

    #[inline(always)]
    unsafe fn write(self, to: *mut f32) {
        // SAFETY: the caller vouches for the values; the array has the alignment of f32.
        unsafe { to.cast::<[f32; LANES]>().write(self.0) }
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        // Without the instruction `f32::mul_add` is a call into the C library.
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
            Self(std::array::from_fn(|i| self.0[i].mul_add(factor.0[i], addend.0[i])))
        } else {
            self * factor + addend
        }
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.map2(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.map2(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn round(self) -> Self {
        // Adding 1.5·2²³ leaves no room for a fraction, so the addition itself rounds.
        let shift = Self::splat(12_582_912.0);
        self + shift - shift
    }

    #[inline(always)]
    fn scale(self, exponent: Self) -> Self {
        // In three steps, each of them a normal number: the result may overflow or be subnormal.
        Self(std::array::from_fn(|i| {
            let exponent = exponent.0[i] as i32;
            let third = exponent / 3;
            let step = power_of_two(third);
            self.0[i] * step * step * power_of_two(exponent - 2 * third)
        }))
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        Self(self.0.map(f32::sqrt))
    }

    #[inline(always)]
    fn select_less(self, bound: Self, below: Self, otherwise: Self) -> Self {
        Self(std::array::from_fn(|i| if self.0[i] < bound.0[i] { below.0[i] } else { otherwise.0[i] }))
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        (self.0[0] + self.0[2]) + (self.0[1] + self.0[3])
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}
