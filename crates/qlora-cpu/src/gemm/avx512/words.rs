//! What a word of a packed operand is: one `f32`, or two bf16.

use super::source::Source;
use crate::gemm::accumulator::{Accumulator, Avx512, Avx512Dot};
use std::arch::x86_64::*;

/// # Safety
///
/// Of every method: as [`Source`].
pub(super) trait Words {
    type Sum: Accumulator + From<__m512i>;
    /// Elements in a word.
    const PACKING: usize;
    /// Elements in 16 words.
    const ELEMENTS: usize = 16 * Self::PACKING;
    /// Registers of 64 elements.
    const REGISTERS: usize = 4 / Self::PACKING;

    /// 16 words of a row.
    unsafe fn words<S: Source>(source: S, row: usize, col: usize) -> __m512i;
    /// The words of the last `len < ELEMENTS` elements of a row, then zeros.
    unsafe fn last_words<S: Source>(source: S, row: usize, col: usize, len: usize) -> __m512i;
    /// [`Words::REGISTERS`] registers of words in the order of dot products.
    unsafe fn dot_words<S: Source>(source: S, row: usize, col: usize) -> [Self::Sum; 4];
    /// The words that 32 columns of `PACKING` rows make, or of one row and zeros.
    unsafe fn rows<S: Source>(source: S, row: usize, both: bool, col: usize, len: usize) -> [__m512i; 2];
}

/// `f32`, rounded to bf16 if `ROUND`.
pub(super) struct Floats<const ROUND: bool>;

// SAFETY of the bodies, here and below: as the caller promises.
impl<const ROUND: bool> Words for Floats<ROUND> {
    type Sum = Avx512;
    const PACKING: usize = 1;

    #[inline(always)]
    unsafe fn words<S: Source>(source: S, row: usize, col: usize) -> __m512i {
        unsafe { _mm512_castps_si512(source.floats::<ROUND>(row, col)) }
    }
    #[inline(always)]
    unsafe fn last_words<S: Source>(source: S, row: usize, col: usize, len: usize) -> __m512i {
        unsafe { _mm512_castps_si512(source.last_floats::<ROUND>(row, col, len)) }
    }
    #[inline(always)]
    unsafe fn dot_words<S: Source>(source: S, row: usize, col: usize) -> [Avx512; 4] {
        let [a, b, c, d] = unsafe { source.dot_floats::<ROUND>(row, col) };
        [Avx512(a), Avx512(b), Avx512(c), Avx512(d)]
    }
    #[inline(always)]
    unsafe fn rows<S: Source>(source: S, row: usize, _: bool, col: usize, len: usize) -> [__m512i; 2] {
        unsafe {
            if len == 32 {
                return [Self::words(source, row, col), Self::words(source, row, col + 16)];
            }
            let first = len.min(16);
            [
                if first == 16 {
                    Self::words(source, row, col)
                } else {
                    Self::last_words(source, row, col, first)
                },
                Self::last_words(source, row, col + first, len - first),
            ]
        }
    }
}

/// Pairs of bf16, the first in the low half.
pub(super) struct Pairs;

/// Word `j` of the results: bf16 `j` of the first operand below bf16 `j` of the second.
const INTERLEAVE: [[u16; 32]; 2] = {
    let mut index = [[0; 32]; 2];
    let mut j = 0;
    while j < 32 {
        index[j / 16][j % 16 * 2] = j as u16;
        index[j / 16][j % 16 * 2 + 1] = j as u16 + 32;
        j += 1;
    }
    index
};

impl Words for Pairs {
    type Sum = Avx512Dot;
    const PACKING: usize = 2;

    #[inline(always)]
    unsafe fn words<S: Source>(source: S, row: usize, col: usize) -> __m512i {
        unsafe { source.pairs(row, col) }
    }
    #[inline(always)]
    unsafe fn last_words<S: Source>(source: S, row: usize, col: usize, len: usize) -> __m512i {
        unsafe { source.last_pairs(row, col, len) }
    }
    #[inline(always)]
    unsafe fn dot_words<S: Source>(source: S, row: usize, col: usize) -> [Avx512Dot; 4] {
        unsafe {
            let [a, b] = source.dot_pairs(row, col).map(Avx512Dot::from);
            [a, b, Avx512Dot::zero(), Avx512Dot::zero()]
        }
    }
    #[inline(always)]
    unsafe fn rows<S: Source>(source: S, row: usize, both: bool, col: usize, len: usize) -> [__m512i; 2] {
        unsafe {
            let zero = _mm512_setzero_si512();
            let (a, b) = if len == 32 {
                (source.pairs(row, col), if both { source.pairs(row + 1, col) } else { zero })
            } else {
                let b = if both { source.last_pairs(row + 1, col, len) } else { zero };
                (source.last_pairs(row, col, len), b)
            };
            let index = |half: usize| _mm512_loadu_si512(INTERLEAVE[half].as_ptr().cast());
            [_mm512_permutex2var_epi16(a, index(0), b), _mm512_permutex2var_epi16(a, index(1), b)]
        }
    }
}
