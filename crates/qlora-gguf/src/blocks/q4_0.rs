//! `d | codes[16]`, value = d (code − 8): 4 bits, one f16 scale for 32 values.

use super::rounding::{extreme, inverse_or_zero, to_f16, truncated_bytes, weigh_row};
use super::searched32::Searched32;
use super::{f16_at, nibbles};
use crate::search::Lanes;
use crate::search::symmetric::{self, SymmetricFit};

const BOUND: u8 = 8;

pub(super) fn decode(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    for (i, &byte) in block[2..].iter().enumerate() {
        out[i] = (i32::from(byte & 15) - 8) as f32 * d;
        out[i + 16] = (i32::from(byte >> 4) - 8) as f32 * d;
    }
}

pub(super) struct Q4_0;

impl Searched32 for Q4_0 {
    type Block = [u8; 18];

    /// Code 0 is the value of largest magnitude, whatever its sign.
    #[inline(always)]
    fn encode_block<V: Lanes>(values: &[f32; 32], block: &mut Self::Block) {
        let d = extreme(values) / -f32::from(BOUND);
        let inverse = inverse_or_zero(d);
        let codes = truncated_bytes::<V>(values, 0.0, inverse, 8.5);
        let codes = codes.map(|code| (code as i8).min(2 * BOUND as i8 - 1) as u8);
        write(d, &codes, block);
    }

    #[inline(always)]
    fn encode_weighted<V: Lanes>(row: &[f32], importance: &[f32], blocks: &mut [Self::Block]) {
        let mut weights = vec![0.0; row.len()];
        weigh_row(row, importance, &mut weights);
        let groups = row.as_chunks().0;
        let mut fits = vec![SymmetricFit::default(); groups.len()];
        symmetric::fit::<V, 32>(BOUND, groups, weights.as_chunks().0, &mut fits);
        for ((values, fit), block) in groups.iter().zip(fits).zip(blocks) {
            let mut codes = [0; 32];
            for (code, &x) in codes.iter_mut().zip(values) {
                *code = fit.code(x, BOUND);
            }
            write(fit.scale, &codes, block);
        }
    }
}

#[inline(always)]
fn write(d: f32, codes: &[u8; 32], block: &mut [u8; 18]) {
    block[..2].copy_from_slice(&to_f16(d).1);
    nibbles::pack(codes, &mut block[2..]);
}
