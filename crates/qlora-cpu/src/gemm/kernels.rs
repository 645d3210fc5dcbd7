//! The few functions that differ between processors and precisions, as a table.

use super::portable;
use super::tile::Tile;
use crate::isa::Isa;
use crate::weight::{Precision, Weight};
use std::ops::Range;

/// What a blocked product is made of, for one processor and precision.
///
/// Operands are packed as 32-bit *words* along the contraction: one `f32`, or two bf16 (the first
/// in the low half).
pub(crate) struct Kernels {
    /// Token rows of a tile.
    pub(crate) rows: usize,
    /// Lanes of a panel.
    pub(crate) lanes: usize,
    /// Elements of the contraction in a word.
    pub(crate) packing: usize,
    /// Up to so many tokens are better served by [`Kernels::add_dots`] than by panels.
    pub(crate) few_tokens: usize,
    pub(super) tile: unsafe fn(rows: usize, tile: &Tile),
    pub(super) pack_rows: Pack,
    pub(super) pack_cols: Pack,
    pub(super) pack_dot_row: unsafe fn(w: &Weight<'_>, row: &[f32], words: &mut [u32]),
    pub(super) add_dots: AddDots,
}

pub(super) type Pack =
    unsafe fn(w: &Weight<'_>, rows: Range<usize>, cols: Range<usize>, words: &mut [u32], stride: usize);
pub(super) type AddDots =
    unsafe fn(w: &Weight<'_>, rows: Range<usize>, x: &[u32], tokens: usize, y: *mut f32, stride: usize);

/// Elements that every row of a matrix–vector product is padded to with zeros.
pub(crate) const DOT_ELEMENTS: usize = 64;
/// What [`Kernels::few_tokens`] may be.
pub(super) const MAX_FEW_TOKENS: usize = 24;

impl Kernels {
    /// The functions for a processor that has `isa`.
    pub(crate) fn get(isa: Isa, precision: Precision) -> &'static Self {
        assert!(isa <= Isa::detect() || Isa::available().contains(&isa), "this processor has no {isa:?}");
        let bf16 = precision == Precision::Bf16;
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 if bf16 => &super::avx512::BF16_DOT,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => {
                [&super::avx512::F32, &super::avx512::ROUNDED][usize::from(bf16)]
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => [&portable::avx2::F32, &portable::avx2::ROUNDED][usize::from(bf16)],
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => [&portable::neon::F32, &portable::neon::ROUNDED][usize::from(bf16)],
            _ => [&portable::scalar::F32, &portable::scalar::ROUNDED][usize::from(bf16)],
        }
    }

    /// Multiplies a tile of `rows` token rows.
    ///
    /// # Safety
    ///
    /// The pointers of `tile` reach what [`Tile`] says, for `rows` rows and `self.lanes` lanes.
    #[inline]
    pub(crate) unsafe fn tile(&self, rows: usize, tile: &Tile) {
        debug_assert!(rows <= self.rows);
        // SAFETY: `get` checked the instructions; the caller answers for the pointers.
        unsafe { (self.tile)(rows, tile) }
    }

    /// Packs `w[rows, cols]` with the columns as contraction: word `s` of row `i` goes to
    /// `words[s · stride + i]`. A last odd column is paired with zero.
    pub(crate) fn pack_rows(
        &self,
        w: &Weight<'_>,
        rows: Range<usize>,
        cols: Range<usize>,
        words: &mut [u32],
        stride: usize,
    ) {
        assert!(rows.end <= w.rows() && cols.end <= w.cols() && rows.len() <= stride);
        assert!(words.len() >= cols.len().div_ceil(self.packing) * stride);
        // SAFETY: `get` checked the instructions, and the slice is long enough.
        unsafe { (self.pack_rows)(w, rows, cols, words, stride) }
    }

    /// Packs `w[rows, cols]` with the rows as contraction: word `s` of column `j` goes to
    /// `words[s · stride + j]`. A last odd row is paired with zero.
    pub(crate) fn pack_cols(
        &self,
        w: &Weight<'_>,
        rows: Range<usize>,
        cols: Range<usize>,
        words: &mut [u32],
        stride: usize,
    ) {
        assert!(rows.end <= w.rows() && cols.end <= w.cols());
        assert!(cols.len() <= self.lanes && stride == self.lanes, "columns are packed a panel at a time");
        assert!(words.len() >= rows.len().div_ceil(self.packing) * stride);
        // SAFETY: as in `pack_rows`.
        unsafe { (self.pack_cols)(w, rows, cols, words, stride) }
    }

    /// Words of a row of `k` elements as [`Kernels::add_dots`] reads it.
    pub(crate) fn dot_words(&self, k: usize) -> usize {
        k.next_multiple_of(DOT_ELEMENTS) / self.packing
    }

    /// A token row as [`Kernels::add_dots`] with this weight wants it: the elements in the order in
    /// which the weight decodes best, padded with zeros to [`Kernels::dot_words`].
    pub(crate) fn pack_dot_row(&self, w: &Weight<'_>, row: &[f32], words: &mut [u32]) {
        assert!(row.len() == w.cols() && words.len() == self.dot_words(row.len()));
        // SAFETY: `get` checked the instructions, and the slice is long enough.
        unsafe { (self.pack_dot_row)(w, row, words) }
    }

    /// `y[t · stride + row] += x[t] · w[row]`, straight from the codes of the weight. A result does
    /// not depend on how many tokens or rows a call has.
    ///
    /// # Safety
    ///
    /// `y` reaches `tokens` rows of `stride` floats, and nobody else uses those of `rows`.
    pub(crate) unsafe fn add_dots(
        &self,
        w: &Weight<'_>,
        rows: Range<usize>,
        x: &[u32],
        tokens: usize,
        y: *mut f32,
        stride: usize,
    ) {
        assert!(rows.end <= w.rows() && tokens <= self.few_tokens);
        assert!(x.len() >= tokens * self.dot_words(w.cols()));
        // SAFETY: `get` checked the instructions, the caller answers for `y`.
        unsafe { (self.add_dots)(w, rows, x, tokens, y, stride) }
    }
}
