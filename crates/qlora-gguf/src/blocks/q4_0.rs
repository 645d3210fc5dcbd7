//! `d | codes[16]`, value = d (code − 8): 4 bits, one f16 scale for 32 values.

use super::rounding::to_f16;
use super::searched32::{self, Searched32};
use super::{f16_at, nibbles};
use crate::search::Lanes;

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
fn write(d: f32, codes: &[u8; 32], block: &mut [u8; 18]) {
    block[..2].copy_from_slice(&to_f16(d).1);
    nibbles::pack(codes, &mut block[2..]);
}
