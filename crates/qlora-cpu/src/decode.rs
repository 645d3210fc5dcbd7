//! Weights back to `f32`, any span of any format: the plain way, and the one for ragged edges.

use crate::weight::{Nf4View, Weight, WeightData};
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

/// Decodes a whole matrix, row-major.
///
/// # Panics
///
/// When `out` has not `rows · cols` elements.
pub fn dequantize(w: &Weight<'_>, out: &mut [f32]) {
    /// Elements a task decodes: long enough to pay for the task, short enough to balance.
    const SPAN: usize = 1 << 16;
    assert_eq!(out.len(), w.rows() * w.cols(), "dequantize: output");
    if out.len() <= SPAN {
        return decode_span(w.data(), 0, out);
    }
    out.par_chunks_mut(SPAN).enumerate().for_each(|(i, span)| decode_span(w.data(), i * SPAN, span));
}

/// Decodes the elements from flat index `start` on.
pub(crate) fn decode_span(data: &WeightData<'_>, start: usize, out: &mut [f32]) {
    let end = start + out.len();
    match data {
        WeightData::F32(values) => out.copy_from_slice(&values[start..end]),
        WeightData::Bf16(values) => {
            for (o, v) in out.iter_mut().zip(&values[start..end]) {
                *o = f32::from_bits(u32::from(v.to_bits()) << 16);
            }
        }
        WeightData::F16(values) => values[start..end].convert_to_f32_slice(out),
        WeightData::Nf4(view) => decode_nf4(view, start, out),
    }
}

fn decode_nf4(view: &Nf4View<'_>, mut at: usize, mut out: &mut [f32]) {
    while !out.is_empty() {
        let block = at / view.block_size;
        let len = out.len().min((block + 1) * view.block_size - at);
        let (span, rest) = out.split_at_mut(len);
        let scale = view.absmax.get(block);
        // 16 products instead of one an element; the lookups then stay in a cache line.
        let levels = view.codebook.map(|level| level * scale);
        decode_codes(view.codes, at, &levels, span);
        at += len;
        out = rest;
    }
}

/// Codes from element `at` on, which may start and end in the middle of a byte.
fn decode_codes(codes: &[u8], mut at: usize, levels: &[f32; 16], mut out: &mut [f32]) {
    if at % 2 == 1 {
        let (first, rest) = out.split_first_mut().expect("a span is not empty");
        *first = levels[usize::from(codes[at / 2] & 15)];
        (at, out) = (at + 1, rest);
    }
    let bytes = &codes[at / 2..];
    let mut pairs = out.chunks_exact_mut(2);
    let mut used = 0;
    for (pair, &byte) in (&mut pairs).zip(bytes) {
        pair[0] = levels[usize::from(byte >> 4)];
        pair[1] = levels[usize::from(byte & 15)];
        used += 1;
    }
    if let [last] = pairs.into_remainder() {
        *last = levels[usize::from(bytes[used] >> 4)];
    }
}

/// `value` rounded to bf16, to nearest even; NaN stays NaN.
#[inline(always)]
pub(crate) fn round_bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    if value.is_nan() {
        return value;
    }
    f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
}
