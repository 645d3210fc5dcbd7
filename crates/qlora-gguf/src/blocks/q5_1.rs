//! `d | m | fifth bits | codes[16]`, value = d code + m: 5 bits, f16 scale and minimum for 32 values.

use super::rounding::{inverse_or_zero, range, to_f16, truncated_bytes};
use super::searched32::{self, Searched32};
use super::{f16_at, nibbles};
use crate::search::Lanes;

const LEVELS: u8 = 31;

pub(super) fn decode(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    let codes = nibbles::unpack_five([block[4], block[5], block[6], block[7]], &block[8..]);
    for (out, code) in out.iter_mut().zip(codes) {
        *out = f32::from(code) * d + m;
    }
}

pub(super) struct Q5_1;

impl Searched32 for Q5_1 {
    type Block = [u8; 24];

    /// Code 0 is the minimum, code 31 the maximum.
    #[inline(always)]
    fn encode_block<V: Lanes>(values: &[f32; 32], block: &mut Self::Block) {
        let (min, max) = range(values);
        let d = (max - min) / f32::from(LEVELS);
        let inverse = inverse_or_zero(d);
        let codes = truncated_bytes::<V>(values, min, inverse, 0.5);
        write(d, min, &codes, block);
    }

    #[inline(always)]
    fn encode_weighted<V: Lanes>(row: &[f32], importance: &[f32], blocks: &mut [Self::Block]) {
        searched32::affine_weighted::<V, _>(LEVELS, row, importance, blocks, write);
    }
}

#[inline(always)]
fn write(d: f32, m: f32, codes: &[u8; 32], block: &mut [u8; 24]) {
    block[..2].copy_from_slice(&to_f16(d).1);
    block[2..4].copy_from_slice(&to_f16(m).1);
    block[4..8].copy_from_slice(&nibbles::fifth_bits(codes));
    nibbles::pack(codes, &mut block[8..]);
}
