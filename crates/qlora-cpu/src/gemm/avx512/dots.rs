//! Rows of a weight against a few tokens, straight from the codes.

use super::source::{Bf16Source, F32Source, Nf4Dots, Source};
use super::words::Words;
use crate::decode::decode_span;
use crate::gemm::accumulator::Accumulator;
use crate::gemm::kernels::{AddDots, DOT_ELEMENTS};
use crate::scratch;
use crate::weight::{Weight, WeightData};
use std::arch::x86_64::*;
use std::ops::Range;

/// Most tokens that share a decoded register.
const TOKENS: usize = 8;

/// [`crate::gemm::Kernels::pack_dot_row`].
///
/// # Safety
///
/// `words` has room for the row padded to a multiple of [`DOT_ELEMENTS`], and the processor has `W`'s
/// instructions.
#[inline(always)]
pub(super) unsafe fn pack_row<W: Words>(w: &Weight<'_>, row: &[f32], words: &mut [u32]) {
    let evens_first = matches!(w.data(), WeightData::Nf4(view) if Nf4Dots::fits(view, w.cols()));
    let out = words.as_mut_ptr();
    let mut stage = [0f32; DOT_ELEMENTS];
    for (i, chunk) in row.chunks(DOT_ELEMENTS).enumerate() {
        if evens_first {
            let (evens, odds) = stage.split_at_mut(DOT_ELEMENTS / 2);
            for ((pair, even), odd) in chunk.chunks_exact(2).zip(evens).zip(odds) {
                (*even, *odd) = (pair[0], pair[1]);
            }
        } else {
            stage[..chunk.len()].copy_from_slice(chunk);
            stage[chunk.len()..].fill(0.0);
        }
        let source = F32Source::new(&stage, 0);
        for part in (0..DOT_ELEMENTS).step_by(W::ELEMENTS) {
            let at = (i * DOT_ELEMENTS + part) / W::PACKING;
            // SAFETY: as the caller promises.
            unsafe { _mm512_storeu_si512(out.add(at).cast(), W::words(source, 0, part)) };
        }
    }
}

/// [`crate::gemm::Kernels::add_dots`]. `again` is that function, for rows decoded to `f32`.
///
/// # Safety
///
/// The rows exist, `x` has `tokens` packed rows, `y` is the caller's, and the processor has `W`'s
/// instructions.
#[inline(always)]
pub(super) unsafe fn add<W: Words>(
    w: &Weight<'_>,
    rows: Range<usize>,
    x: &[u32],
    tokens: usize,
    y: *mut f32,
    stride: usize,
    again: AddDots,
) {
    // SAFETY: as the caller promises.
    unsafe {
        let operands = Operands { x, tokens, cols: w.cols(), y, stride };
        match w.data() {
            WeightData::F32(values) => shares::<W, _>(F32Source::new(values, w.cols()), rows, &operands),
            WeightData::Bf16(values) => shares::<W, _>(Bf16Source::new(values, w.cols()), rows, &operands),
            WeightData::Nf4(view) if Nf4Dots::fits(view, w.cols()) => {
                shares::<W, _>(Nf4Dots::new(view, w.cols()), rows, &operands);
            }
            WeightData::Nf4(_) | WeightData::F16(_) => scratch::DECODED.with_floats(w.cols(), |decoded| {
                for row in rows {
                    decode_span(w.data(), row * w.cols(), decoded);
                    let w = Weight::new(1, w.cols(), WeightData::F32(decoded));
                    again(&w, 0..1, x, tokens, y.add(row), stride);
                }
            }),
        }
    }
}

/// What is the same for every row.
struct Operands<'a> {
    x: &'a [u32],
    tokens: usize,
    cols: usize,
    y: *mut f32,
    stride: usize,
}

/// Goes over the rows again for each share of the tokens: their codes are still in the cache.
#[inline(always)]
unsafe fn shares<W: Words, S: Source>(source: S, rows: Range<usize>, operands: &Operands<'_>) {
    let &Operands { x, tokens, cols, y, stride } = operands;
    let x_stride = cols.next_multiple_of(DOT_ELEMENTS) / W::PACKING;
    // Even shares: 9 tokens are 5 and 4, not 8 and 1.
    let most = tokens.div_ceil(tokens.div_ceil(TOKENS).max(1));
    let mut first = 0;
    while first < tokens {
        let tokens = most.min(tokens - first);
        let share =
            Operands { x: &x[first * x_stride..], tokens, cols, y: y.wrapping_add(first * stride), stride };
        // Several rows at a time keep enough independent sums in flight; the more tokens, the fewer.
        // A share that is smaller than its tile repeats its last token: the codes are what takes time.
        // SAFETY: as the caller promises.
        unsafe {
            match tokens {
                1 => some_rows::<W, S, 4, 1>(source, &rows, &share),
                2 => some_rows::<W, S, 4, 2>(source, &rows, &share),
                3 | 4 => some_rows::<W, S, 2, 4>(source, &rows, &share),
                _ => some_rows::<W, S, 2, TOKENS>(source, &rows, &share),
            }
        }
        first += tokens;
    }
}

#[inline(always)]
unsafe fn some_rows<W: Words, S: Source, const R: usize, const T: usize>(
    source: S,
    rows: &Range<usize>,
    share: &Operands<'_>,
) {
    let mut row = rows.start;
    // SAFETY: as the caller promises.
    unsafe {
        while row + R <= rows.end {
            block::<W, S, R, T>(source, row, share);
            row += R;
        }
        while row < rows.end {
            block::<W, S, 1, T>(source, row, share);
            row += 1;
        }
    }
}

/// `R` rows of the weight against up to `T` tokens. A row and token have one chain of sums whatever `R`
/// and `T` are: the bits of a result do not depend on its company.
#[inline(always)]
unsafe fn block<W: Words, S: Source, const R: usize, const T: usize>(
    source: S,
    row: usize,
    &Operands { x, tokens, cols, y, stride }: &Operands<'_>,
) {
    let x_stride = cols.next_multiple_of(DOT_ELEMENTS) / W::PACKING;
    let mut x_rows = [x.as_ptr(); T];
    for (t, x_row) in x_rows.iter_mut().enumerate() {
        *x_row = x_row.wrapping_add(t.min(tokens - 1) * x_stride);
    }
    // SAFETY: as the caller promises.
    unsafe {
        let mut sums = [[W::Sum::zero(); T]; R];
        let mut col = 0;
        while col + DOT_ELEMENTS <= cols {
            let mut words = [[W::Sum::zero(); 4]; R];
            for (r, words) in words.iter_mut().enumerate() {
                *words = W::dot_words(source, row + r, col);
            }
            for (t, x_row) in x_rows.iter().enumerate() {
                for i in 0..W::REGISTERS {
                    let token = W::Sum::load(x_row.add(col / W::PACKING + 16 * i));
                    for (row_sums, words) in sums.iter_mut().zip(&words) {
                        row_sums[t] = row_sums[t].plus_product(token, words[i]);
                    }
                }
            }
            col += DOT_ELEMENTS;
        }
        while col < cols {
            for (r, row_sums) in sums.iter_mut().enumerate() {
                let words = if col + W::ELEMENTS <= cols {
                    W::words(source, row + r, col)
                } else {
                    W::last_words(source, row + r, col, cols - col)
                };
                let words = W::Sum::from(words);
                for (sum, x_row) in row_sums.iter_mut().zip(x_rows) {
                    *sum = sum.plus_product(W::Sum::load(x_row.add(col / W::PACKING)), words);
                }
            }
            col += W::ELEMENTS;
        }
        for (r, row_sums) in sums.iter().enumerate() {
            for (t, sum) in row_sums.iter().enumerate().take(tokens) {
                *y.add(t * stride + row + r) += sum.sum();
            }
        }
    }
}
