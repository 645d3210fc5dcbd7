//! `d | m | codes[16]`, value = d code + m: 4 bits, f16 scale and minimum for 32 values.

use super::rounding::{inverse_or_zero, range, to_f16, truncated_bytes};
use super::searched32::{self, Searched32};
use super::{f16_at, nibbles};
use crate::search::Lanes;

const LEVELS: u8 = 15;

pub(super) fn decode(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    for (i, &byte) in block[4..].iter().enumerate() {
        out[i] = f32::from(byte & 15) * d + m;
        out[i + 16] = f32::from(byte >> 4) * d + m;
    }
}

pub(super) struct Q4_1;

impl Searched32 for Q4_1 {
    type Block = [u8; 20];

    /// Code 0 is the minimum, code 15 the maximum.
    #[inline(always)]
    fn encode_block<V: Lanes>(values: &[f32; 32], block: &mut Self::Block) {
        let (min, max) = range(values);
        let d = (max - min) / f32::from(LEVELS);
        let inverse = inverse_or_zero(d);
        let codes = truncated_bytes::<V>(values, min, inverse, 0.5);
        let codes = codes.map(|code| (code as i8).min(LEVELS as i8) as u8);
        write(d, min, &codes, block);
    }

    #[inline(always)]
    fn encode_weighted<V: Lanes>(row: &[f32], importance: &[f32], blocks: &mut [Self::Block]) {
        searched32::affine_weighted::<V, _>(LEVELS, row, importance, blocks, write);
    }
}

#[inline(always)]
fn write(d: f32, m: f32, codes: &[u8; 32], block: &mut [u8; 20]) {
    block[..2].copy_from_slice(&to_f16(d).1);
    block[2..4].copy_from_slice(&to_f16(m).1);
    nibbles::pack(codes, &mut block[4..]);
}
