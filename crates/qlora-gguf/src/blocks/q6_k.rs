//! `codes[128] of 4 bits | upper bits[64] of 2 bits | scales i8[16] | d`, value = d scale (code − 32), groups of
//! 16.
//!
//! 128 values are four runs of 32. Their lower bits take 64 bytes, two runs at each nibble; their upper bits 32
//! bytes, one run at each bit position.

use super::rounding::{requantize, to_f16};
use super::{f16_at, quarters};
use crate::search::symmetric::{self, SymmetricFit};
use crate::search::{Encoder, Lanes, Rows, ZERO_GROUP, nearest};

/// Codes are −32 to 31.
const BOUND: u8 = 32;

pub(super) fn decode(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, upper, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = f16_at(block, 208);
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(scales[group] as i8);
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

pub(super) struct Q6K;

impl Encoder for Q6K {
    #[inline(always)]
    fn encode<V: Lanes>(rows: Rows<'_>, out: &mut [u8]) {
        let columns = rows.columns;
        let mut weights = vec![0.0; columns];
        if let Some(importance) = rows.importance {
            weights.copy_from_slice(importance);
        }
        let mut fits = vec![SymmetricFit::default(); columns / 16];
        let out_rows = out.as_chunks_mut::<210>().0.chunks_exact_mut(columns / 256);
        for (row, blocks) in rows.values.chunks_exact(columns).zip(out_rows) {
            if rows.importance.is_none() {
                for (weight, &x) in weights.iter_mut().zip(row) {
                    *weight = x * x;
                }
            }
            symmetric::fit::<V, 16>(BOUND, row.as_chunks().0, weights.as_chunks().0, &mut fits);
            let blocks = fits.as_chunks::<16>().0.iter().zip(blocks);
            for (values, (fits, block)) in row.as_chunks::<256>().0.iter().zip(blocks) {
                finish(values, fits, block);
            }
        }
    }
}

#[inline(always)]
fn finish(values: &[f32; 256], fits: &[SymmetricFit; 16], block: &mut [u8; 210]) {
    // The scale of largest magnitude becomes -128.
    let (mut magnitude, mut extreme) = (0.0, 0.0);
    for fit in fits {
        if fit.scale.abs() > magnitude {
            (magnitude, extreme) = (fit.scale.abs(), fit.scale);
        }
    }
    if magnitude < ZERO_GROUP {
        return block.fill(0);
    }
    let inverse = -128.0 / extreme;
    let (d, d_bytes) = to_f16(1.0 / inverse);
    let mut codes = [0; 256];
    let groups = values.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<16>().0);
    for (group, (values, codes)) in groups.enumerate() {
        let quantized = nearest(inverse * fits[group].scale).min(127) as i8;
        block[192 + group] = quantized as u8;
        let scale = d * f32::from(quantized);
        if scale == 0.0 {
            // What the search had, though nothing reads it.
            for (code, &x) in codes.iter_mut().zip(values) {
                *code = fits[group].code(x, BOUND);
            }
            continue;
        }
        requantize(values, 0.0, scale, (-i32::from(BOUND), i32::from(BOUND) - 1), codes);
    }
    let (low, rest) = block.split_at_mut(128);
    for (codes, low) in codes.as_chunks::<128>().0.iter().zip(low.as_chunks_mut::<64>().0) {
        for (i, low) in low.iter_mut().enumerate() {
            *low = codes[i] & 15 | codes[i + 64] << 4;
        }
    }
    quarters::pack(&codes.map(|code| code >> 4), &mut rest[..64]);
    block[208..].copy_from_slice(&d_bytes);
}
