//! `d | (grid index of 9 bits and signs of 7, u16)[32] | scales[16] of 4 bits`,
//! value = d (scale + ½) / 4 × grid × sign, groups of 16.

use super::f16_at;
use super::grid::{IQ2_XS, even_signs, write_signed};

pub(super) fn decode(block: &[u8; 74], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    let (codes, scales) = block[2..].split_at(64);
    let codes = codes.as_chunks::<2>().0;
    for (i, (&code, out)) in codes.iter().zip(out.as_chunks_mut().0).enumerate() {
        let code = u16::from_le_bytes(code);
        let scale = scales[i / 4] >> (i % 4 / 2 * 4) & 15;
        let scale = d * (0.5 + f32::from(scale)) * 0.25;
        write_signed(scale, IQ2_XS.eight((code & 511).into()), even_signs((code >> 9).into()), out);
    }
}
