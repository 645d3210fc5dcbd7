//! `d | dmin | (scale, min)[8] of 6 bits | codes[128] of 4 bits`, value = d scale code − dmin min, groups of 32.
//!
//! 64 values lie in 32 bytes, the first 32 in the lower nibbles.

use super::f16_at;
use super::k_groups::{self, scale_and_min};
use crate::search::affine::{AffineSearch, Deviation};
use crate::search::{Encoder, Lanes, Rows};

pub(super) fn decode(block: &[u8; 144], out: &mut [f32; 256]) {
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

pub(super) struct Q4K;

impl Encoder for Q4K {
    #[inline(always)]
    fn encode<V: Lanes>(rows: Rows<'_>, out: &mut [u8]) {
        let plain =
            AffineSearch { levels: 15, first: -1.0, step: 0.1, steps: 20, deviation: Deviation::Squared };
        let out = out.as_chunks_mut::<144>().0;
        k_groups::encode::<V>(rows, &plain, |index, block| {
            let (head, bytes) = out[index].split_at_mut(16);
            head.copy_from_slice(&block.head);
            pack_nibbles(&block.codes, bytes);
        });
    }
}

/// Packs the lower four bits of `codes`.
#[inline(always)]
pub(super) fn pack_nibbles(codes: &[u8; 256], bytes: &mut [u8]) {
    for (codes, bytes) in codes.as_chunks::<64>().0.iter().zip(bytes.as_chunks_mut::<32>().0) {
        let (lower, upper) = codes.split_at(32);
        for ((byte, &lower), &upper) in bytes.iter_mut().zip(lower).zip(upper) {
            *byte = lower & 15 | upper << 4;
        }
    }
}
