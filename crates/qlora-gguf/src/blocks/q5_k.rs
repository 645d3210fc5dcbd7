//! `d | dmin | (scale, min)[8] of 6 bits | fifth bits[32] | codes[128] of 4 bits`,
//! value = d scale code − dmin min, groups of 32.
//!
//! The codes lie as those of `Q4_K`; bit `g` of byte `i` of the fifth bits belongs to value `i` of group `g`.

use super::f16_at;
use super::k_groups::{self, scale_and_min};
use super::q4_k::pack_nibbles;
use crate::search::affine::{AffineSearch, Deviation};
use crate::search::{Encoder, Lanes, Rows};

pub(super) fn decode(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    let (packed, fifth, codes) = (&block[4..16], &block[16..48], &block[48..]);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(packed, group);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        let shift = group % 2 * 4;
        for ((out, &byte), &fifth) in out.iter_mut().zip(&codes[group / 2 * 32..][..32]).zip(fifth) {
            let code = byte >> shift & 15 | (fifth >> group & 1) << 4;
            *out = scale * f32::from(code) - min;
        }
    }
}

pub(super) struct Q5K;

impl Encoder for Q5K {
    #[inline(always)]
    fn encode<V: Lanes>(rows: Rows<'_>, out: &mut [u8]) {
        let plain =
            AffineSearch { levels: 31, first: -0.5, step: 0.1, steps: 15, deviation: Deviation::Squared };
        let out = out.as_chunks_mut::<176>().0;
        k_groups::encode::<V>(rows, &plain, |index, block| {
            let (head, rest) = out[index].split_at_mut(16);
            head.copy_from_slice(&block.head);
            let (fifth, bytes) = rest.split_at_mut(32);
            for (i, fifth) in fifth.iter_mut().enumerate() {
                *fifth = 0;
                for group in 0..8 {
                    *fifth |= block.codes[group * 32 + i] >> 4 << group;
                }
            }
            pack_nibbles(&block.codes, bytes);
        });
    }
}
