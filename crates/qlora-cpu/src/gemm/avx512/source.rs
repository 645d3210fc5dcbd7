//! Consecutive elements of a row in registers, from every format.
//!
//! NF4 is the case that matters. A block's 16 levels times its scale (and, in bf16, rounded) are one
//! register; the codes then only index it: `vpermw` makes 32 bf16, `vpermps` 16 `f32`. Both ignore
//! the index bits above the table's (for `vpermw` the table is there twice), so nibbles need no masking.

use crate::weight::{Absmax, Nf4View};
use half::bf16;
use std::arch::x86_64::*;

/// A matrix whose elements are decoded in registers.
///
/// # Safety
///
/// Of every method: the elements exist, `col` is a multiple of how many a call decodes, and the
/// processor has AVX-512 (for bf16 results with BF16).
pub(super) trait Source: Copy {
    /// 32 elements as bf16.
    unsafe fn pairs(self, row: usize, col: usize) -> __m512i;
    /// The last `len < 32` elements of a row as bf16, then zeros.
    unsafe fn last_pairs(self, row: usize, col: usize, len: usize) -> __m512i;
    /// 16 elements, rounded to bf16 if `ROUND`.
    unsafe fn floats<const ROUND: bool>(self, row: usize, col: usize) -> __m512;
    /// The last `len < 16` elements of a row, then zeros.
    unsafe fn last_floats<const ROUND: bool>(self, row: usize, col: usize, len: usize) -> __m512;

    /// 64 elements as bf16: as stored, or ([`Nf4Dots`]) those with an even index first.
    #[inline(always)]
    unsafe fn dot_pairs(self, row: usize, col: usize) -> [__m512i; 2] {
        // SAFETY: as the caller promises.
        unsafe { [self.pairs(row, col), self.pairs(row, col + 32)] }
    }
    /// 64 elements, in the same order.
    #[inline(always)]
    unsafe fn dot_floats<const ROUND: bool>(self, row: usize, col: usize) -> [__m512; 4] {
        // SAFETY: as the caller promises.
        unsafe {
            [
                self.floats::<ROUND>(row, col),
                self.floats::<ROUND>(row, col + 16),
                self.floats::<ROUND>(row, col + 32),
                self.floats::<ROUND>(row, col + 48),
            ]
        }
    }
}

/// Rounds to bf16, to nearest even. NaN stays NaN: those lanes are left alone.
#[inline(always)]
unsafe fn round(v: __m512) -> __m512 {
    // SAFETY: the caller has AVX-512.
    unsafe {
        let bits = _mm512_castps_si512(v);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
        let kept = _mm512_and_si512(up, _mm512_set1_epi32(!0xffff));
        let number = _mm512_cmp_ps_mask::<_CMP_ORD_Q>(v, v);
        _mm512_castsi512_ps(_mm512_mask_mov_epi32(bits, number, kept))
    }
}

/// `f32` values, `stride` apart from row to row.
#[derive(Clone, Copy)]
pub(super) struct F32Source {
    values: *const f32,
    stride: usize,
}

impl F32Source {
    pub(super) fn new(values: &[f32], stride: usize) -> Self {
        Self { values: values.as_ptr(), stride }
    }
}

// SAFETY of the bodies, here and below: the trait's contract gives both the instructions and the memory.
impl Source for F32Source {
    #[inline(always)]
    unsafe fn pairs(self, row: usize, col: usize) -> __m512i {
        unsafe {
            let (low, high) = (self.floats::<false>(row, col), self.floats::<false>(row, col + 16));
            std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
        }
    }
    #[inline(always)]
    unsafe fn last_pairs(self, row: usize, col: usize, len: usize) -> __m512i {
        unsafe {
            let low = self.last_floats::<false>(row, col, len.min(16));
            let high = self.last_floats::<false>(row, col + len.min(16), len.saturating_sub(16));
            std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
        }
    }
    #[inline(always)]
    unsafe fn floats<const ROUND: bool>(self, row: usize, col: usize) -> __m512 {
        unsafe {
            let v = _mm512_loadu_ps(self.values.add(row * self.stride + col));
            if ROUND { round(v) } else { v }
        }
    }
    #[inline(always)]
    unsafe fn last_floats<const ROUND: bool>(self, row: usize, col: usize, len: usize) -> __m512 {
        unsafe {
            let mask = ((1u32 << len) - 1) as __mmask16;
            let v = _mm512_maskz_loadu_ps(mask, self.values.add(row * self.stride + col));
            if ROUND { round(v) } else { v }
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Bf16Source {
    values: *const i16,
    stride: usize,
}

impl Bf16Source {
    pub(super) fn new(values: &[bf16], stride: usize) -> Self {
        Self { values: values.as_ptr().cast(), stride }
    }
}

impl Source for Bf16Source {
    #[inline(always)]
    unsafe fn pairs(self, row: usize, col: usize) -> __m512i {
        unsafe { _mm512_loadu_si512(self.values.add(row * self.stride + col).cast()) }
    }
    #[inline(always)]
    unsafe fn last_pairs(self, row: usize, col: usize, len: usize) -> __m512i {
        unsafe { _mm512_maskz_loadu_epi16((1 << len) - 1, self.values.add(row * self.stride + col)) }
    }
    #[inline(always)]
    unsafe fn floats<const ROUND: bool>(self, row: usize, col: usize) -> __m512 {
        unsafe {
            let half = _mm256_loadu_si256(self.values.add(row * self.stride + col).cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
        }
    }
    #[inline(always)]
    unsafe fn last_floats<const ROUND: bool>(self, row: usize, col: usize, len: usize) -> __m512 {
        unsafe {
            let mask = ((1u32 << len) - 1) as __mmask16;
            let half = _mm256_maskz_loadu_epi16(mask, self.values.add(row * self.stride + col));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
        }
    }
}

/// NF4 whose rows begin at a block or at least at a multiple of 32 elements in one: no register of
/// codes has two scales, and a row has no last partial register.
#[derive(Clone, Copy)]
pub(super) struct Nf4Source<'a> {
    codes: *const u8,
    codebook: *const f32,
    absmax: Absmax<'a>,
    block_shift: u32,
    cols: usize,
}

impl<'a> Nf4Source<'a> {
    pub(super) fn fits(view: &Nf4View<'_>, cols: usize) -> bool {
        view.block_size.is_power_of_two() && view.block_size >= 32 && cols.is_multiple_of(32)
    }

    /// A source for a matrix that it [fits](Self::fits).
    pub(super) fn new(view: &Nf4View<'a>, cols: usize) -> Self {
        assert!(Self::fits(view, cols));
        Self {
            codes: view.codes.as_ptr(),
            codebook: view.codebook.as_ptr(),
            absmax: view.absmax,
            block_shift: view.block_size.trailing_zeros(),
            cols,
        }
    }

    /// The levels of the block that an element is in.
    #[inline(always)]
    unsafe fn levels(&self, element: usize) -> __m512 {
        unsafe {
            let scale = self.absmax.get(element >> self.block_shift);
            _mm512_mul_ps(_mm512_loadu_ps(self.codebook), _mm512_set1_ps(scale))
        }
    }

    /// The same as bf16, twice.
    #[inline(always)]
    unsafe fn bf16_levels(&self, element: usize) -> __m512i {
        unsafe {
            let levels = _mm512_cvtneps_pbh(self.levels(element));
            _mm512_broadcast_i64x4(std::mem::transmute::<__m256bh, __m256i>(levels))
        }
    }

    #[inline(always)]
    unsafe fn rounded_levels<const ROUND: bool>(&self, element: usize) -> __m512 {
        unsafe {
            let levels = self.levels(element);
            if ROUND { round(levels) } else { levels }
        }
    }
}

impl Source for Nf4Source<'_> {
    #[inline(always)]
    unsafe fn pairs(self, row: usize, col: usize) -> __m512i {
        unsafe {
            let element = row * self.cols + col;
            let bytes = _mm_loadu_si128(self.codes.add(element / 2).cast());
            let high = _mm_srli_epi16::<4>(bytes);
            let nibbles = _mm256_set_m128i(_mm_unpackhi_epi8(high, bytes), _mm_unpacklo_epi8(high, bytes));
            _mm512_permutexvar_epi16(_mm512_cvtepu8_epi16(nibbles), self.bf16_levels(element))
        }
    }
    #[inline(always)]
    unsafe fn last_pairs(self, _: usize, _: usize, _: usize) -> __m512i {
        unreachable!("rows have whole registers")
    }
    #[inline(always)]
    unsafe fn floats<const ROUND: bool>(self, row: usize, col: usize) -> __m512 {
        unsafe {
            let element = row * self.cols + col;
            let bytes = _mm_loadl_epi64(self.codes.add(element / 2).cast());
            let nibbles = _mm_unpacklo_epi8(_mm_srli_epi16::<4>(bytes), bytes);
            _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(nibbles), self.rounded_levels::<ROUND>(element))
        }
    }
    #[inline(always)]
    unsafe fn last_floats<const ROUND: bool>(self, _: usize, _: usize, _: usize) -> __m512 {
        unreachable!("rows have whole registers")
    }
}

/// NF4 whose 64 consecutive elements share a scale. A dot product may take them in any order: the high
/// nibbles first saves interleaving, and the levels serve all of them.
#[derive(Clone, Copy)]
pub(super) struct Nf4Dots<'a>(Nf4Source<'a>);

impl<'a> Nf4Dots<'a> {
    pub(super) fn fits(view: &Nf4View<'_>, cols: usize) -> bool {
        Nf4Source::fits(view, cols) && view.block_size >= 64 && cols.is_multiple_of(64)
    }

    /// A source for a matrix that it [fits](Self::fits).
    pub(super) fn new(view: &Nf4View<'a>, cols: usize) -> Self {
        assert!(Self::fits(view, cols));
        Self(Nf4Source::new(view, cols))
    }
}

impl Source for Nf4Dots<'_> {
    #[inline(always)]
    unsafe fn pairs(self, row: usize, col: usize) -> __m512i {
        unsafe { self.0.pairs(row, col) }
    }
    #[inline(always)]
    unsafe fn last_pairs(self, _: usize, _: usize, _: usize) -> __m512i {
        unreachable!("rows have whole registers")
    }
    #[inline(always)]
    unsafe fn floats<const ROUND: bool>(self, row: usize, col: usize) -> __m512 {
        unsafe { self.0.floats::<ROUND>(row, col) }
    }
    #[inline(always)]
    unsafe fn last_floats<const ROUND: bool>(self, _: usize, _: usize, _: usize) -> __m512 {
        unreachable!("rows have whole registers")
    }
    #[inline(always)]
    unsafe fn dot_pairs(self, row: usize, col: usize) -> [__m512i; 2] {
        unsafe {
            let element = row * self.0.cols + col;
            let levels = self.0.bf16_levels(element);
            let low = _mm512_cvtepu8_epi16(_mm256_loadu_si256(self.0.codes.add(element / 2).cast()));
            let high = _mm512_srli_epi16::<4>(low);
            [_mm512_permutexvar_epi16(high, levels), _mm512_permutexvar_epi16(low, levels)]
        }
    }
    #[inline(always)]
    unsafe fn dot_floats<const ROUND: bool>(self, row: usize, col: usize) -> [__m512; 4] {
        unsafe {
            let element = row * self.0.cols + col;
            let levels = self.0.rounded_levels::<ROUND>(element);
            let codes = self.0.codes.add(element / 2);
            let low = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.cast()));
            let next = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.add(16).cast()));
            [
                _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(low), levels),
                _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(next), levels),
                _mm512_permutexvar_ps(low, levels),
                _mm512_permutexvar_ps(next, levels),
            ]
        }
    }
}
