//! `d | upper two bits of 8 scales | lower four bits of 8 scales | codes[128]`,
//! value = d (scale − 32) codebook(code), groups of 32.

use super::iq4_nl::{decode_codes, weigh_values};
use super::rounding::{inverse_or_zero, to_f16};
use super::{f16_at, nibbles};
use crate::search::codebook::{self, nearest_codes};
use crate::search::{Encoder, Lanes, Rows, nearest};

pub(super) fn decode(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    let upper = u16::from_le_bytes([block[2], block[3]]);
    let (lower, codes) = (&block[4..8], &block[8..]);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let low = lower[group / 2] >> (group % 2 * 4) & 15;
        let scale = u16::from(low) | (upper >> (group * 2) & 3) << 4;
        decode_codes(d * (i32::from(scale) - 32) as f32, &codes[group * 16..][..16], out);
    }
}

pub(super) struct Iq4Xs;

impl Encoder for Iq4Xs {
    #[inline(always)]
    fn encode<V: Lanes>(rows: Rows<'_>, out: &mut [u8]) {
        let columns = rows.columns;
        let mut weights = vec![0.0; columns];
        let mut scales = vec![0.0; columns / 32];
        let out_rows = out.as_chunks_mut::<136>().0.chunks_exact_mut(columns / 256);
        for (row, blocks) in rows.values.chunks_exact(columns).zip(out_rows) {
            let parts = row.as_chunks::<256>().0.iter().zip(weights.as_chunks_mut::<256>().0);
            for (i, (values, weights)) in parts.enumerate() {
                let importance = rows.importance.map(|importance| &importance[i * 256..][..256]);
                weigh_values(values, importance, weights);
            }
            codebook::fit::<V>(row.as_chunks().0, weights.as_chunks().0, &mut scales);
            let parts = row.as_chunks::<256>().0.iter().zip(scales.as_chunks::<8>().0);
            for ((values, scales), block) in parts.zip(blocks) {
                finish(values, scales, block);
            }
        }
    }
}

/// The scale of largest magnitude becomes -32, the others the nearest of 64 levels. The codes are nearest for the
/// scales before d is rounded to f16, as ggml has it.
#[inline(always)]
fn finish(values: &[f32; 256], scales: &[f32; 8], block: &mut [u8; 136]) {
    let (mut magnitude, mut extreme) = (0.0, 0.0);
    for &scale in scales {
        if scale.abs() > magnitude {
            (magnitude, extreme) = (scale.abs(), scale);
        }
    }
    let d = -extreme / 32.0;
    let inverse = inverse_or_zero(d);
    let mut upper = 0_u16;
    block[..2].copy_from_slice(&to_f16(d).1);
    block[4..8].fill(0);
    for (group, values) in values.as_chunks::<32>().0.iter().enumerate() {
        let level = nearest(inverse * scales[group]).clamp(-32, 31);
        let codes = nearest_codes(inverse_or_zero(d * level as f32), values);
        nibbles::pack(&codes, &mut block[8 + group * 16..][..16]);
        let level = (level + 32) as u8;
        block[4 + group / 2] |= (level & 15) << (group % 2 * 4);
        upper |= u16::from(level >> 4) << (group * 2);
    }
    block[2..4].copy_from_slice(&upper.to_le_bytes());
}
