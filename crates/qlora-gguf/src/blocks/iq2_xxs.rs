//! `d | (grid index u8[4] | signs of 7 bits × 4 and scale of 4 bits, u32)[8]`,
//! value = d (scale + ½) / 4 × grid × sign, groups of 32.

use super::f16_at;
use super::grid::{IQ2_XXS, even_signs, write_signed};

pub(super) fn decode(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    let groups = block[2..].as_chunks::<8>().0;
    for (group, out) in groups.iter().zip(out.as_chunks_mut::<32>().0) {
        let packed = u32::from_le_bytes([group[4], group[5], group[6], group[7]]);
        let scale = d * (0.5 + (packed >> 28) as f32) * 0.25;
        for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
            write_signed(scale, IQ2_XXS.eight(group[i].into()), even_signs(packed >> (7 * i)), out);
        }
    }
}
