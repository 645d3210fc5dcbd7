use std::ops::{Add, Div, Mul, Sub};

/// The most lanes that a vector has.
pub(crate) const MAX_LANES: usize = 16;

/// Adding this to an f32 below 2^22 in magnitude leaves the nearest integer (ties to even) in its lowest bits.
pub(super) const ROUNDING: f32 = 12_582_912.0;

/// Where the integer lies in those bits, and what is zero there.
pub(super) const ROUNDED_BITS: i32 = 0x7f_ffff;
pub(super) const ROUNDED_ZERO: i32 = 0x40_0000;

/// The integer nearest to `value`, ties to even, as ggml finds it: 0 for NaN, and of no meaning at 2^22 and
/// beyond.
#[inline(always)]
pub(crate) fn nearest(value: f32) -> i32 {
    ((value + ROUNDING).to_bits() as i32 & ROUNDED_BITS) - ROUNDED_ZERO
}

/// `value` without its fraction as a C compiler for x86-64 converts it: `i32::MIN` where an i32 does not reach.
#[inline(always)]
pub(crate) fn truncated(value: f32) -> i32 {
    if value.abs() < 2_147_483_648.0 { value as i32 } else { i32::MIN }
}

/// f32 values that are computed on together, each as if it were alone: IEEE single precision, nothing fused.
///
/// Implementations are for one instruction set each; their methods must be inlined into a function that enables
/// it, see [`Isa`](super::Isa).
pub(crate) trait Lanes:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// How many values: at most [`MAX_LANES`].
    const COUNT: usize;
    /// One truth value for each lane.
    type Mask: Copy;

    fn splat(value: f32) -> Self;
    /// The first [`COUNT`](Self::COUNT) of `values`.
    fn load(values: &[f32; MAX_LANES]) -> Self;
    /// Writes the first [`COUNT`](Self::COUNT) of `values`.
    fn store(self, values: &mut [f32; MAX_LANES]);
    fn abs(self) -> Self;
    /// `nearest(self).clamp(lowest, highest)`, as f32.
    fn nearest_within(self, lowest: i32, highest: i32) -> Self;
    /// `self < other`; false for NaN.
    fn lt(self, other: Self) -> Self::Mask;
    /// `self <= other`; false for NaN.
    fn le(self, other: Self) -> Self::Mask;
    fn and(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    fn any(mask: Self::Mask) -> bool;
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self;

    /// The lowest byte of [`truncated`] `(value − minimum) · factor + offset`, of sixteen values whatever the number
    /// of lanes.
    #[inline(always)]
    fn truncated_bytes(values: &[f32; 16], minimum: f32, factor: f32, offset: f32) -> [u8; 16] {
        values.map(|value| truncated((value - minimum) * factor + offset) as u8)
    }
}

/// The reference: one lane.
impl Lanes for f32 {
    const COUNT: usize = 1;
    type Mask = bool;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn load(values: &[f32; MAX_LANES]) -> Self {
        values[0]
    }

    #[inline(always)]
    fn store(self, values: &mut [f32; MAX_LANES]) {
        values[0] = self;
    }

    #[inline(always)]
    fn abs(self) -> Self {
        self.abs()
    }

    #[inline(always)]
    fn nearest_within(self, lowest: i32, highest: i32) -> Self {
        nearest(self).clamp(lowest, highest) as f32
    }

    #[inline(always)]
    fn lt(self, other: Self) -> bool {
        self < other
    }

    #[inline(always)]
    fn le(self, other: Self) -> bool {
        self <= other
    }

    #[inline(always)]
    fn and(a: bool, b: bool) -> bool {
        a && b
    }

    #[inline(always)]
    fn any(mask: bool) -> bool {
        mask
    }

    #[inline(always)]
    fn select(mask: bool, yes: Self, no: Self) -> Self {
        if mask { yes } else { no }
    }
}
