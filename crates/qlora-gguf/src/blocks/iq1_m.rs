//! `lower 8 bits of grid indices[32] | (upper 3 bits, sign of the shift)[32] of 4 bits | (scales of 3 bits × 4,
//! 4 bits of d, u16)[4]`, value = d (2 scale + 1) (grid ± ⅛), groups of 16.

use half::f16;

use super::grid::IQ1;
use super::iq1_s::SHIFT;

pub(super) fn decode(block: &[u8; 56], out: &mut [f32; 256]) {
    let (lower, upper, scales) = (&block[..32], &block[32..48], &block[48..]);
    let scales: [u16; 4] = std::array::from_fn(|i| u16::from_le_bytes([scales[2 * i], scales[2 * i + 1]]));
    let bits = scales.iter().enumerate().fold(0, |bits, (i, scale)| bits | scale >> 12 << (4 * i));
    let d = f16::from_bits(bits).to_f32();
    for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let group = i / 2;
        let scale = d * f32::from(2 * (scales[group / 4] >> (3 * (group % 4)) & 7) + 1);
        let upper = upper[i / 2] >> (i % 2 * 4);
        let shift = if upper & 8 == 0 { SHIFT } else { -SHIFT };
        let index = usize::from(lower[i]) | usize::from(upper & 7) << 8;
        for (out, value) in out.iter_mut().zip(IQ1.eight(index)) {
            *out = scale * (value + shift);
        }
    }
}
