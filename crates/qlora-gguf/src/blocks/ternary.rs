//! Formats of the values −d, 0 and d.

use super::f16_at;

/// Powers of three: which of a byte's five digits comes first when it is multiplied.
const POWERS: [u8; 5] = [1, 3, 9, 27, 81];

/// `bytes of five digits[48] | bytes of four digits[4] | d`, value = d (digit − 1).
///
/// A byte is the fraction, of 256, whose digits to the base of three are the values': multiplied with 3ⁿ, it starts
/// with digit n. 32 bytes hold 160 values, digit n those from 32 n on; 16 more hold 80, and the last four 16.
pub(super) fn decode_tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    let d = f16_at(block, 52);
    let (first, rest) = out.split_at_mut(160);
    let (second, third) = rest.split_at_mut(80);
    for (bytes, out) in [(&block[..32], first), (&block[32..48], second), (&block[48..52], third)] {
        for (out, power) in out.chunks_exact_mut(bytes.len()).zip(POWERS) {
            for (out, &byte) in out.iter_mut().zip(bytes) {
                let digit = (u16::from(byte.wrapping_mul(power)) * 3) >> 8;
                *out = (f32::from(digit) - 1.0) * d;
            }
        }
    }
}

/// `codes[64] of 2 bits | d`, value = d (code − 1).
pub(super) fn decode_tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = f16_at(block, 64);
    for (bytes, out) in block[..64].as_chunks::<32>().0.iter().zip(out.as_chunks_mut::<128>().0) {
        for (i, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (out, &byte) in out.iter_mut().zip(bytes) {
                *out = (f32::from(byte >> (2 * i) & 3) - 1.0) * d;
            }
        }
    }
}
