//! What several encoders share: C's conversions, weights, the second rounding.

use half::f16;

use crate::search::{Lanes, nearest, truncated};

/// `value` rounded, ties away from zero, and converted like [`truncated`].
#[inline(always)]
pub(super) fn rounded_away(value: f32) -> i32 {
    let whole = value.trunc();
    // Exact, and NaN for infinities.
    let up = if (value - whole).abs() >= 0.5 { 1.0_f32.copysign(value) } else { 0.0 };
    truncated(whole + up)
}

/// 1 / `value`, or 0 of 0.
#[inline(always)]
pub(super) fn inverse_or_zero(value: f32) -> f32 {
    if value == 0.0 { 0.0 } else { 1.0 / value }
}

/// The largest magnitude. Of finite numbers it may be looked for in any order: eight at a time.
#[inline(always)]
pub(super) fn largest(values: &[f32; 32]) -> f32 {
    let mut lanes = [0.0_f32; 8];
    for part in values.as_chunks::<8>().0 {
        for (lane, &x) in lanes.iter_mut().zip(part) {
            *lane = if *lane > x.abs() { *lane } else { x.abs() };
        }
    }
    lanes.into_iter().fold(0.0, |a: f32, b| if a > b { a } else { b })
}

/// The value of largest magnitude; of several, the first. Of zeros, +0.
#[inline(always)]
pub(super) fn extreme(values: &[f32; 32]) -> f32 {
    let (min, max) = bounds(values);
    if max > -min {
        max
    } else if max < -min {
        min
    } else if max == 0.0 {
        0.0
    } else {
        first_of(values, |x| x.abs() == max)
    }
}

/// The lowest and the highest value; of zeros, the first.
#[inline(always)]
pub(super) fn range(values: &[f32; 32]) -> (f32, f32) {
    let (min, max) = bounds(values);
    // Zeros of either sign are equal, and which one it is shows in the block.
    let exact = |x: f32| if x == 0.0 { first_of(values, |value| value == 0.0) } else { x };
    (exact(min), exact(max))
}

/// The lowest and the highest value; a zero of any sign.
#[inline(always)]
fn bounds(values: &[f32; 32]) -> (f32, f32) {
    let (mut min, mut max) = ([f32::MAX; 8], [f32::MIN; 8]);
    for part in values.as_chunks::<8>().0 {
        for ((min, max), &x) in min.iter_mut().zip(&mut max).zip(part) {
            *min = if *min < x { *min } else { x };
            *max = if *max > x { *max } else { x };
        }
    }
    // Halves upon halves, which are vectors too.
    for half in [4, 2, 1] {
        for i in 0..half {
            min[i] = if min[i] < min[i + half] { min[i] } else { min[i + half] };
            max[i] = if max[i] > max[i + half] { max[i] } else { max[i + half] };
        }
    }
    (min[0], max[0])
}

/// The lowest byte of `(x − minimum) · factor + offset` without its fraction.
#[inline(always)]
pub(super) fn truncated_bytes<V: Lanes>(
    values: &[f32; 32],
    minimum: f32,
    factor: f32,
    offset: f32,
) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (bytes, values) in bytes.as_chunks_mut::<16>().0.iter_mut().zip(values.as_chunks().0) {
        *bytes = V::truncated_bytes(values, minimum, factor, offset);
    }
    bytes
}

/// The first value that `wanted` accepts; 0 when there is none.
#[inline(always)]
fn first_of(values: &[f32; 32], wanted: impl Fn(f32) -> bool) -> f32 {
    values.iter().copied().find(|&x| wanted(x)).unwrap_or(0.0)
}

/// Σ x², summed from the first to the last.
#[inline(always)]
pub(super) fn sum_of_squares(values: &[f32]) -> f32 {
    let mut sum = 0.0;
    for &value in values {
        sum += value * value;
    }
    sum
}

/// Σ x, summed from the first to the last.
#[inline(always)]
pub(super) fn sum(values: &[f32]) -> f32 {
    let mut sum = 0.0;
    for &value in values {
        sum += value;
    }
    sum
}

/// The weights of a search: importance √(`mean_square` + x²).
#[inline(always)]
pub(super) fn weigh(values: &[f32], importance: &[f32], mean_square: f32, weights: &mut [f32]) {
    for ((weight, &x), &importance) in weights.iter_mut().zip(values).zip(importance) {
        *weight = importance * (mean_square + x * x).sqrt();
    }
}

/// The weights of a row in formats whose blocks stand alone: [`weigh`] with the row's mean of squares.
#[inline(always)]
pub(super) fn weigh_row(row: &[f32], importance: &[f32], weights: &mut [f32]) {
    weigh(row, importance, sum_of_squares(row) / row.len() as f32, weights);
}

/// The weights of a row in formats of super-blocks: [`weigh`] with `factor` times each block's mean of squares.
#[inline(always)]
pub(super) fn weigh_super_blocks(row: &[f32], importance: &[f32], factor: f32, weights: &mut [f32]) {
    let blocks = row.chunks_exact(256).zip(importance.chunks_exact(256));
    for ((block, importance), weights) in blocks.zip(weights.chunks_exact_mut(256)) {
        weigh(block, importance, factor * sum_of_squares(block) / 256.0, weights);
    }
}

/// The codes nearest to (x + `offset`) / `scale` between `lowest` and `highest`, less `lowest`.
#[inline(always)]
pub(super) fn requantize(
    values: &[f32],
    offset: f32,
    scale: f32,
    (lowest, highest): (i32, i32),
    codes: &mut [u8],
) {
    for (code, &x) in codes.iter_mut().zip(values) {
        *code = (nearest((x + offset) / scale).clamp(lowest, highest) - lowest) as u8;
    }
}

/// `value` as f16, what it is then, and its bytes.
#[inline(always)]
pub(super) fn to_f16(value: f32) -> (f32, [u8; 2]) {
    let half = f16::from_f32(value);
    (half.to_f32(), half.to_le_bytes())
}
