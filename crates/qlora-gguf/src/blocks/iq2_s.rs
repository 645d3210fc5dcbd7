//! `d | lower 8 bits of grid indices[32] | signs[32] | upper 2 bits[8] | scales[16] of 4 bits`,
//! value = d (scale + ½) / 4 × grid × sign, groups of 16.

use super::f16_at;
use super::grid::{IQ2_S, write_signed};

pub(super) fn decode(block: &[u8; 82], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    let (lower, signs, rest) = (&block[2..34], &block[34..66], &block[66..]);
    let (upper, scales) = rest.split_at(8);
    for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
        let upper = usize::from(upper[i / 4] >> (i % 4 * 2) & 3);
        let scale = scales[i / 4] >> (i % 4 / 2 * 4) & 15;
        let scale = d * (0.5 + f32::from(scale)) * 0.25;
        write_signed(scale, IQ2_S.eight(usize::from(lower[i]) | upper << 8), signs[i], out);
    }
}
