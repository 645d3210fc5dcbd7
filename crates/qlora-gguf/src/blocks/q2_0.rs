//! `d | codes[64] of 2 bits`, four consecutive values in a byte, value = d (code − 1).

use super::f16_at;

pub(super) fn decode(block: &[u8; 18], out: &mut [f32; 64]) {
    let d = f16_at(block, 0);
    for (i, out) in out.iter_mut().enumerate() {
        *out = (f32::from(block[2 + i / 4] >> (i % 4 * 2) & 3) - 1.0) * d;
    }
}
