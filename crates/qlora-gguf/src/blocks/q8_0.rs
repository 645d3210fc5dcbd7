//! `d | i8[32]`, value = d code.

use super::f16_at;
use super::rounding::{inverse_or_zero, largest, rounded_away, to_f16};
use crate::search::{Encoder, Lanes, Rows};

pub(super) fn decode(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    for (out, &byte) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(byte as i8) * d;
    }
}

/// Importance changes nothing: the format has no choice to make.
pub(super) struct Q8_0;

impl Encoder for Q8_0 {
    #[inline(always)]
    fn encode<V: Lanes>(rows: Rows<'_>, out: &mut [u8]) {
        let blocks = out.as_chunks_mut::<34>().0;
        for (values, block) in rows.values.as_chunks::<32>().0.iter().zip(blocks) {
            let d = largest(values) / 127.0;
            let inverse = inverse_or_zero(d);
            block[..2].copy_from_slice(&to_f16(d).1);
            for (code, &x) in block[2..].iter_mut().zip(values) {
                *code = rounded_away(x * inverse) as u8;
            }
        }
    }
}
