//! `third bits[32] | codes[64] of 2 bits | scales[12] of 6 bits | d`, value = d (scale − 32) (code − 4), groups of
//! 16.

use super::rounding::{requantize, sum, to_f16, weigh_super_blocks};
use super::{f16_at, quarters};
use crate::search::symmetric::{self, SymmetricFit};
use crate::search::{Encoder, Lanes, Rows, descent, nearest};

/// Codes are −4 to 3.
const BOUND: u8 = 4;
/// Scales are −32 to 31.
const SCALE_BOUND: u8 = 32;

pub(super) fn decode(block: &[u8; 110], out: &mut [f32; 256]) {
    let (high, codes, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = f16_at(block, 108);
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(scale_of(scales, group));
        // 128 values lie in 32 bytes, 32 values at each of four bit positions.
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

/// The scale of a group: the lower four bits are in the nibbles of the first eight bytes, the upper two in the last
/// four bytes.
#[inline(always)]
fn scale_of(packed: &[u8], group: usize) -> i8 {
    let low = packed[group % 8] >> (group / 8 * 4) & 15;
    let upper = packed[8 + group % 4] >> (group / 4 * 2) & 3;
    (low | upper << 4) as i8 - 32
}

/// The inverse of [`scale_of`] for all groups; `scales` are 0 to 63.
#[inline(always)]
fn pack(scales: &[u8; 16]) -> [u8; 12] {
    let mut packed = [0; 12];
    for (group, &scale) in scales.iter().enumerate() {
        packed[group % 8] |= (scale & 15) << (group / 8 * 4);
        packed[8 + group % 4] |= scale >> 4 << (group / 4 * 2);
    }
    packed
}

pub(super) struct Q3K;

impl Encoder for Q3K {
    #[inline(always)]
    fn encode<V: Lanes>(rows: Rows<'_>, out: &mut [u8]) {
        let columns = rows.columns;
        let out_rows = out.as_chunks_mut::<110>().0.chunks_exact_mut(columns / 256);
        for (row, blocks) in rows.values.chunks_exact(columns).zip(out_rows) {
            match rows.importance {
                Some(importance) => encode_weighted::<V>(row, importance, blocks),
                None => encode_plain::<V>(row, blocks),
            }
        }
    }
}

#[inline(always)]
fn encode_plain<V: Lanes>(row: &[f32], blocks: &mut [[u8; 110]]) {
    let mut scales = vec![0.0; row.len() / 16];
    let mut codes = vec![[0; 16]; row.len() / 16];
    descent::fit::<V, 16>(BOUND, row.as_chunks().0, &mut scales, &mut codes);
    let fits = scales.as_chunks::<16>().0.iter().zip(codes.as_chunks::<16>().0);
    for ((values, (scales, codes)), block) in row.as_chunks().0.iter().zip(fits).zip(blocks) {
        // The scale of largest magnitude becomes -32.
        let (mut magnitude, mut extreme) = (0.0, 0.0);
        for &scale in scales {
            if scale.abs() > magnitude {
                (magnitude, extreme) = (scale.abs(), scale);
            }
        }
        let (mut d, mut packed) = (0.0, [0; 12]);
        if extreme != 0.0 {
            let inverse = -f32::from(SCALE_BOUND) / extreme;
            d = 1.0 / inverse;
            // Through a byte, unchecked.
            packed = pack(&scales.map(|scale| ((nearest(inverse * scale) as i8).clamp(-32, 31) + 32) as u8));
        }
        finish(values, d, &packed, codes.as_flattened(), block);
    }
}

#[inline(always)]
fn encode_weighted<V: Lanes>(row: &[f32], importance: &[f32], blocks: &mut [[u8; 110]]) {
    let mut weights = vec![0.0; row.len()];
    weigh_super_blocks(row, importance, 2.0, &mut weights);
    let groups = row.as_chunks::<16>().0;
    let mut fits = vec![SymmetricFit::default(); groups.len()];
    symmetric::fit::<V, 16>(BOUND, groups, weights.as_chunks().0, &mut fits);
    let parts = row.as_chunks::<256>().0.iter().zip(weights.as_chunks::<256>().0);
    for (((values, weights), fits), block) in parts.zip(fits.as_chunks::<16>().0).zip(blocks) {
        let scales = fits.map(|fit| fit.scale);
        let group_weights = std::array::from_fn::<f32, 16, _>(|group| sum(&weights[group * 16..][..16]));
        let mut scale_fit = [SymmetricFit::default()];
        symmetric::fit::<f32, 16>(SCALE_BOUND, &[scales], &[group_weights], &mut scale_fit);
        let packed = pack(&scales.map(|scale| scale_fit[0].code(scale, SCALE_BOUND)));
        let mut codes = [0; 256];
        for (i, (code, &x)) in codes.iter_mut().zip(values).enumerate() {
            *code = fits[i / 16].code(x, BOUND);
        }
        finish(values, scale_fit[0].scale, &packed, &codes, block);
    }
}

/// Rounds the values again with the final scales; a group whose scale is 0 keeps the codes of the search, though
/// nothing reads them.
#[inline(always)]
fn finish(values: &[f32; 256], d: f32, packed: &[u8; 12], searched: &[u8], block: &mut [u8; 110]) {
    let (d, d_bytes) = to_f16(d);
    let mut codes = [0; 256];
    codes.copy_from_slice(searched);
    let groups = values.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<16>().0);
    for (group, (values, codes)) in groups.enumerate() {
        let scale = d * f32::from(scale_of(packed, group));
        if scale != 0.0 {
            requantize(values, 0.0, scale, (-i32::from(BOUND), i32::from(BOUND) - 1), codes);
        }
    }
    let (high, rest) = block.split_at_mut(32);
    for (i, high) in high.iter_mut().enumerate() {
        *high = 0;
        for bit in 0..8 {
            *high |= codes[bit * 32 + i] >> 2 << bit;
        }
    }
    quarters::pack(&codes, &mut rest[..64]);
    rest[64..76].copy_from_slice(packed);
    rest[76..].copy_from_slice(&d_bytes);
}
