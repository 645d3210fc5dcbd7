//! `d | fifth bits | codes[16]`, value = d (code − 16): 5 bits, one f16 scale for 32 values.

use super::rounding::to_f16;
use super::searched32::{self, Searched32};
use super::{f16_at, nibbles};
use crate::search::Lanes;

const BOUND: u8 = 16;

pub(super) fn decode(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    let codes = nibbles::unpack_five([block[2], block[3], block[4], block[5]], &block[6..]);
    for (out, code) in out.iter_mut().zip(codes) {
        *out = (i32::from(code) - 16) as f32 * d;
    }
}

pub(super) struct Q5_0;

impl Searched32 for Q5_0 {
    type Block = [u8; 22];

    #[inline(always)]
    fn encode_block<V: Lanes>(values: &[f32; 32], block: &mut Self::Block) {
        let (d, codes) = searched32::symmetric::<V>(BOUND, values);
        write(d, &codes, block);
    }

    #[inline(always)]
    fn encode_weighted<V: Lanes>(row: &[f32], importance: &[f32], blocks: &mut [Self::Block]) {
        searched32::symmetric_weighted::<V, _>(BOUND, row, importance, blocks, write);
    }
}

#[inline(always)]
fn write(d: f32, codes: &[u8; 32], block: &mut [u8; 22]) {
    block[..2].copy_from_slice(&to_f16(d).1);
    block[2..6].copy_from_slice(&nibbles::fifth_bits(codes));
    nibbles::pack(codes, &mut block[6..]);
}
