//! `d | bits[128]`, value = d where the bit is set, else −d.

use super::f16_at;

pub(super) fn decode(block: &[u8; 18], out: &mut [f32; 128]) {
    let d = f16_at(block, 0);
    for (i, out) in out.iter_mut().enumerate() {
        *out = if block[2 + i / 8] >> (i % 8) & 1 == 1 { d } else { -d };
    }
}
