//! The k-quants: super-blocks of 256 values, split into groups of 16 or 32 whose scales (and minima) are
//! themselves quantized against one or two f16 of the super-block.
//!
//! Codes interleave: a run of bytes holds, at one bit position, consecutive values; the next bit position of the
//! same bytes holds the next run of values.

use super::f16_at;

/// `(scale, min)[16] of 4 bits | codes[64] of 2 bits | d | dmin`, value = d scale code − dmin min, groups of 16.
pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(scales[group] & 15);
        let min = dmin * f32::from(scales[group] >> 4);
        // 128 values lie in 32 bytes, 32 values at each of four bit positions.
        let (half, shift, run) = (group / 8, group % 8 / 2 * 2, group % 2);
        let codes = &codes[half * 32 + run * 16..][..16];
        for (out, &byte) in out.iter_mut().zip(codes) {
            *out = scale * f32::from(byte >> shift & 3) - min;
        }
    }
}

/// `third bits[32] | codes[64] of 2 bits | scales[12] of 6 bits | d`, value = d (scale − 32) (code − 4), groups of
/// 16.
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let (high, codes, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = f16_at(block, 108);
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        // Lower four bits in the nibbles of the first eight bytes, upper two in the last four bytes.
        let low = scales[group % 8] >> (group / 8 * 4) & 15;
        let upper = scales[8 + group % 4] >> (group / 4 * 2) & 3;
        let scale = d * (i32::from(low | upper << 4) - 32) as f32;
        let (half, shift, run) = (group / 8, group % 8 / 2 * 2, group % 2);
        let codes = &codes[half * 32 + run * 16..][..16];
        let high = &high[run * 16..][..16];
        let high_bit = group / 2;
        for ((out, &byte), &high) in out.iter_mut().zip(codes).zip(high) {
            let code = (byte >> shift & 3) | (high >> high_bit & 1) << 2;
            *out = scale * (i32::from(code) - 4) as f32;
        }
    }
}

/// The 6-bit scale and minimum of group `group` of eight, from 12 bytes: the first four groups in the lower six
/// bits of bytes 0..4 (scale) and 4..8 (minimum), the last four in the nibbles of bytes 8..12 (lower: scale) with
/// their upper two bits on top of the first eight bytes.
fn scale_and_min(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let nibbles = packed[group + 4];
        (nibbles & 15 | packed[group - 4] >> 6 << 4, nibbles >> 4 | packed[group] >> 6 << 4)
    }
}

/// `d | dmin | (scale, min)[8] of 6 bits | codes[128] of 4 bits`, value = d scale code − dmin min, groups of 32.
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    let (packed, codes) = (&block[4..16], &block[16..]);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(packed, group);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        let shift = group % 2 * 4;
        for (out, &byte) in out.iter_mut().zip(&codes[group / 2 * 32..][..32]) {
            *out = scale * f32::from(byte >> shift & 15) - min;
        }
    }
}

/// `d | dmin | (scale, min)[8] of 6 bits | fifth bits[32] | codes[128] of 4 bits`,
/// value = d scale code − dmin min, groups of 32.
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    let (packed, fifth, codes) = (&block[4..16], &block[16..48], &block[48..]);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(packed, group);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        let shift = group % 2 * 4;
        for ((out, &byte), &fifth) in out.iter_mut().zip(&codes[group / 2 * 32..][..32]).zip(fifth) {
            let code = byte >> shift & 15 | (fifth >> group & 1) << 4;
            *out = scale * f32::from(code) - min;
        }
    }
}

/// `codes[128] of 4 bits | upper bits[64] of 2 bits | scales i8[16] | d`, value = d scale (code − 32), groups of
/// 16.
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, upper, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = f16_at(block, 208);
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(scales[group] as i8);
        // 128 values: four runs of 32. Their lower bits take 64 bytes, two runs at each nibble; their upper bits
        // 32 bytes, one run at each bit position.
        let (half, run, part) = (group / 8, group % 8 / 2, group % 2 * 16);
        let low = &low[half * 64 + run % 2 * 32 + part..][..16];
        let upper = &upper[half * 32 + part..][..16];
        let (low_shift, upper_shift) = (run / 2 * 4, run * 2);
        for ((out, &low), &upper) in out.iter_mut().zip(low).zip(upper) {
            let code = low >> low_shift & 15 | (upper >> upper_shift & 3) << 4;
            *out = scale * (i32::from(code) - 32) as f32;
        }
    }
}

/// `d f32 | i8[256] | i16[16] sums of 16 codes, which decoding does not need`, value = d code.
pub(super) fn q8_k(block: &[u8; 292], out: &mut [f32; 256]) {
    let d = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    for (out, &byte) in out.iter_mut().zip(&block[4..260]) {
        *out = d * f32::from(byte as i8);
    }
}
