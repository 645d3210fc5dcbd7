//! `d | codes[16]`, value = d codebook(code): 4 bits, one f16 scale for 32 values.

use super::rounding::{inverse_or_zero, sum_of_squares, to_f16, weigh};
use super::{f16_at, nibbles};
use crate::search::codebook::{self, CODEBOOK, nearest_codes};
use crate::search::{Encoder, Lanes, Rows};

pub(super) fn decode(block: &[u8; 18], out: &mut [f32; 32]) {
    decode_codes(f16_at(block, 0), &block[2..], out);
}

/// 32 values: byte `i` holds value `i` in its lower and value `i + 16` in its upper nibble.
pub(super) fn decode_codes(scale: f32, codes: &[u8], out: &mut [f32; 32]) {
    for (i, &byte) in codes.iter().enumerate() {
        out[i] = scale * CODEBOOK[usize::from(byte & 15)];
        out[i + 16] = scale * CODEBOOK[usize::from(byte >> 4)];
    }
}

/// The weights of the search: x² without importance.
#[inline(always)]
pub(super) fn weigh_values(values: &[f32], importance: Option<&[f32]>, weights: &mut [f32]) {
    match importance {
        Some(importance) => {
            let mean_square = sum_of_squares(values) * (2.0 / values.len() as f32);
            weigh(values, importance, mean_square, weights);
        }
        None => {
            for (weight, &x) in weights.iter_mut().zip(values) {
                *weight = x * x;
            }
        }
    }
}

pub(super) struct Iq4Nl;

impl Encoder for Iq4Nl {
    #[inline(always)]
    fn encode<V: Lanes>(rows: Rows<'_>, out: &mut [u8]) {
        let columns = rows.columns;
        let mut weights = vec![[0.0; 32]; columns / 32];
        let mut scales = vec![0.0; columns / 32];
        let out_rows = out.as_chunks_mut::<18>().0.chunks_exact_mut(columns / 32);
        for (row, blocks) in rows.values.chunks_exact(columns).zip(out_rows) {
            let groups = row.as_chunks::<32>().0;
            for (i, (values, weights)) in groups.iter().zip(&mut weights).enumerate() {
                let importance = rows.importance.map(|importance| &importance[i * 32..][..32]);
                weigh_values(values, importance, weights);
            }
            codebook::fit::<V>(groups, &weights, &mut scales);
            for ((values, &scale), block) in groups.iter().zip(&scales).zip(blocks) {
                block[..2].copy_from_slice(&to_f16(scale).1);
                nibbles::pack(&nearest_codes(inverse_or_zero(scale), values), &mut block[2..]);
            }
        }
    }
}
