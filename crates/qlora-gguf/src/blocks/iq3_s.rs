//! `d | lower 8 bits of grid indices[64] | ninth bits[8] | signs[32] | scales[8] of 4 bits`,
//! value = d (2 scale + 1) × grid × sign, groups of 32.

use super::f16_at;
use super::grid::{IQ3_S, write_signed};

pub(super) fn decode(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    let (lower, ninth, rest) = (&block[2..66], &block[66..74], &block[74..]);
    let (signs, scales) = rest.split_at(32);
    let index = |i: usize| usize::from(lower[i]) | usize::from(ninth[i / 8] >> (i % 8) & 1) << 8;
    for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
        let scale = scales[i / 8] >> (i / 4 % 2 * 4) & 15;
        let scale = d * f32::from(1 + 2 * scale);
        write_signed(scale, IQ3_S.eight(index(2 * i), index(2 * i + 1)), signs[i], out);
    }
}
