//! `d f32 | i8[256] | i16[16] sums of 16 codes, which decoding does not need`, value = d code.

pub(super) fn decode(block: &[u8; 292], out: &mut [f32; 256]) {
    let d = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    for (out, &byte) in out.iter_mut().zip(&block[4..260]) {
        *out = d * f32::from(byte as i8);
    }
}
