//! 4-bit codes of a fixed, non-linear codebook.

use super::f16_at;

/// The values of the 16 codes, denser around zero.
const CODEBOOK: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];

/// 32 values: byte `i` holds value `i` in its lower and value `i + 16` in its upper nibble.
fn decode(scale: f32, codes: &[u8], out: &mut [f32; 32]) {
    for (i, &byte) in codes.iter().enumerate() {
        out[i] = scale * CODEBOOK[usize::from(byte & 15)];
        out[i + 16] = scale * CODEBOOK[usize::from(byte >> 4)];
    }
}

/// `d | codes[16]`, value = d codebook(code).
pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    decode(f16_at(block, 0), &block[2..], out);
}

/// `d | upper two bits of 8 scales | lower four bits of 8 scales | codes[128]`,
/// value = d (scale − 32) codebook(code), groups of 32.
pub(super) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    let upper = u16::from_le_bytes([block[2], block[3]]);
    let (lower, codes) = (&block[4..8], &block[8..]);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let low = lower[group / 2] >> (group % 2 * 4) & 15;
        let scale = u16::from(low) | (upper >> (group * 2) & 3) << 4;
        decode(d * (i32::from(scale) - 32) as f32, &codes[group * 16..][..16], out);
    }
}
