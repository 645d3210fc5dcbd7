//! Kernels whose packing is plain Rust: decode a span to `f32`, then put it in its place.
//!
//! They serve processors without AVX-512. Only the innermost loops use vector instructions.

use super::accumulator::{Accumulator, Plain};
use super::kernels::{DOT_ELEMENTS, Kernels, MAX_FEW_TOKENS};
use super::tile::{Tile, dots, tile_of};
use crate::decode::{decode_span, round_bf16};
use crate::scratch;
use crate::weight::Weight;
use std::ops::Range;

/// Columns decoded at a time: with 32 rows of them the staging buffer stays in the first-level cache.
const STAGE: usize = 64;
const MAX_PACK_ROWS: usize = super::tile::MAX_LANES;

#[inline(always)]
fn word<const ROUND: bool>(value: f32) -> u32 {
    if ROUND { round_bf16(value).to_bits() } else { value.to_bits() }
}

fn pack_rows<const ROUND: bool>(
    w: &Weight<'_>,
    rows: Range<usize>,
    cols: Range<usize>,
    words: &mut [u32],
    stride: usize,
) {
    let mut stage = [[0f32; STAGE]; MAX_PACK_ROWS];
    let stage = &mut stage[..rows.len()];
    for col in cols.clone().step_by(STAGE) {
        let len = STAGE.min(cols.end - col);
        for (row, span) in rows.clone().zip(stage.iter_mut()) {
            decode_span(w.data(), row * w.cols() + col, &mut span[..len]);
        }
        let words = &mut words[(col - cols.start) * stride..];
        for (c, words) in (0..len).zip(words.chunks_mut(stride)) {
            for (word_of, span) in words.iter_mut().zip(stage.iter()) {
                *word_of = word::<ROUND>(span[c]);
            }
        }
    }
}

fn pack_cols<const ROUND: bool>(
    w: &Weight<'_>,
    rows: Range<usize>,
    cols: Range<usize>,
    words: &mut [u32],
    stride: usize,
) {
    let mut span = [0f32; super::tile::MAX_LANES];
    let span = &mut span[..cols.len()];
    for (row, words) in rows.zip(words.chunks_mut(stride)) {
        decode_span(w.data(), row * w.cols() + cols.start, span);
        for (word_of, &value) in words.iter_mut().zip(span.iter()) {
            *word_of = word::<ROUND>(value);
        }
    }
}

fn pack_dot_row<const ROUND: bool>(_: &Weight<'_>, row: &[f32], words: &mut [u32]) {
    let (body, padding) = words.split_at_mut(row.len());
    for (word_of, &value) in body.iter_mut().zip(row) {
        *word_of = word::<ROUND>(value);
    }
    padding.fill(0);
}

/// # Safety
///
/// As [`Kernels::add_dots`], and the processor has `A`'s instructions.
#[inline(always)]
unsafe fn add_dots<A: Accumulator, const ROUND: bool>(
    w: &Weight<'_>,
    rows: Range<usize>,
    x: &[u32],
    tokens: usize,
    y: *mut f32,
    stride: usize,
) {
    let padded = w.cols().next_multiple_of(DOT_ELEMENTS);
    scratch::DECODED.with_words(padded, |decoded| {
        decoded[w.cols()..].fill(0);
        let mut sums = [0f32; MAX_FEW_TOKENS];
        let sums = &mut sums[..tokens];
        for row in rows {
            let span = &mut decoded[..w.cols()];
            // SAFETY: `u32` and `f32` have the same size and alignment, and any bits are valid.
            let values =
                unsafe { std::slice::from_raw_parts_mut(span.as_mut_ptr().cast::<f32>(), span.len()) };
            decode_span(w.data(), row * w.cols(), values);
            if ROUND {
                values.iter_mut().for_each(|v| *v = round_bf16(*v));
            }
            // SAFETY: both operands are `padded` words long, a multiple of every lane count.
            unsafe { dots::<A>(decoded.as_ptr(), x.as_ptr(), padded, padded, sums) };
            for (t, &sum) in sums.iter().enumerate() {
                // SAFETY: the caller answers for `y`.
                unsafe { *y.add(t * stride + row) += sum };
            }
        }
    });
}

macro_rules! portable_kernels {
    ($name:ident, $vector:ty, registers $n:literal, rows $rows:literal = [$($m:literal)*] $(, feature $feature:literal)?) => {
        pub(super) mod $name {
            use super::*;

            $(#[target_feature(enable = $feature)])?
            unsafe fn tile(rows: usize, tile: &Tile) {
                // SAFETY: as the caller promises.
                unsafe { tile_of!($vector, $n, rows, tile, [$($m)*]) }
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn add_dots<const ROUND: bool>(
                w: &Weight<'_>,
                rows: Range<usize>,
                x: &[u32],
                tokens: usize,
                y: *mut f32,
                stride: usize,
            ) {
                // SAFETY: as the caller promises.
                unsafe { super::add_dots::<$vector, ROUND>(w, rows, x, tokens, y, stride) }
            }

            const fn kernels<const ROUND: bool>() -> Kernels {
                Kernels {
                    rows: $rows,
                    lanes: <$vector as Accumulator>::LANES * $n,
                    packing: 1,
                    few_tokens: 12,
                    tile,
                    pack_rows: pack_rows::<ROUND>,
                    pack_cols: pack_cols::<ROUND>,
                    pack_dot_row: pack_dot_row::<ROUND>,
                    add_dots: add_dots::<ROUND>,
                }
            }

            pub(in super::super) static F32: Kernels = kernels::<false>();
            pub(in super::super) static ROUNDED: Kernels = kernels::<true>();
        }
    };
}

portable_kernels!(scalar, Plain, registers 2, rows 4 = [1 2 3 4]);
// 12 sums, 2 lanes and a value: 15 of 16 registers.
#[cfg(target_arch = "x86_64")]
portable_kernels!(avx2, super::super::accumulator::Avx2, registers 2, rows 6 = [1 2 3 4 5 6], feature "avx2,fma");
// 24 sums, 4 lanes and a value: 29 of 32 registers.
#[cfg(target_arch = "aarch64")]
portable_kernels!(neon, super::super::accumulator::Neon, registers 4, rows 6 = [1 2 3 4 5 6], feature "neon");
