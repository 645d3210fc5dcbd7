//! `d | lower 8 bits of grid indices[32] | (upper 3 bits × 4, scale of 3 bits, sign of the shift, u16)[8]`,
//! value = d (2 scale + 1) (grid ± ⅛), groups of 32.

use super::f16_at;
use super::grid::IQ1;

/// What all values of a group are shifted by, up or down.
pub(super) const SHIFT: f32 = 0.125;

pub(super) fn decode(block: &[u8; 50], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    let (lower, upper) = block[2..].split_at(32);
    let groups = lower.as_chunks::<4>().0.iter().zip(upper.as_chunks().0);
    for ((lower, &upper), out) in groups.zip(out.as_chunks_mut::<32>().0) {
        let upper = u16::from_le_bytes(upper);
        let scale = d * f32::from(2 * (upper >> 12 & 7) + 1);
        let shift = if upper & 0x8000 == 0 { SHIFT } else { -SHIFT };
        for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let index = usize::from(lower[i]) | usize::from(upper >> (3 * i) & 7) << 8;
            for (out, value) in out.iter_mut().zip(IQ1.eight(index)) {
                *out = scale * (value + shift);
            }
        }
    }
}
