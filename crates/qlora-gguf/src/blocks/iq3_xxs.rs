//! `d | grid index u8[64] | (signs of 7 bits × 4 and scale of 4 bits, u32)[8]`,
//! value = d (scale + ½) / 2 × grid × sign, groups of 32.

use super::f16_at;
use super::grid::{IQ3_XXS, even_signs, write_signed};

pub(super) fn decode(block: &[u8; 98], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    let (points, packed) = block[2..].split_at(64);
    let groups = points.as_chunks::<8>().0.iter().zip(packed.as_chunks().0);
    for ((points, &packed), out) in groups.zip(out.as_chunks_mut::<32>().0) {
        let packed = u32::from_le_bytes(packed);
        let scale = d * (0.5 + (packed >> 28) as f32) * 0.5;
        for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
            let magnitudes = IQ3_XXS.eight(points[2 * i].into(), points[2 * i + 1].into());
            write_signed(scale, magnitudes, even_signs(packed >> (7 * i)), out);
        }
    }
}
