//! Operands decoded into their place in a tile or panel.

use super::source::{Bf16Source, F32Source, Nf4Source, Source};
use super::words::Words;
use crate::decode::decode_span;
use crate::gemm::kernels::Pack;
use crate::gemm::tile::MAX_LANES;
use crate::weight::{Weight, WeightData};
use std::arch::x86_64::*;
use std::ops::Range;

/// Elements that are decoded to memory at a time where registers cannot do it.
const STAGE: usize = 64;

/// Calls `$body` with the source of `$w`'s format, or `$otherwise` where a register of elements may
/// straddle blocks or bytes (and for f16, which only plain code reads).
macro_rules! with_source {
    ($w:expr, |$source:ident| $body:expr, otherwise $otherwise:expr) => {
        match $w.data() {
            WeightData::F32(values) => {
                let $source = F32Source::new(values, $w.cols());
                $body
            }
            WeightData::Bf16(values) => {
                let $source = Bf16Source::new(values, $w.cols());
                $body
            }
            WeightData::Nf4(view) if Nf4Source::fits(view, $w.cols()) => {
                let $source = Nf4Source::new(view, $w.cols());
                $body
            }
            WeightData::Nf4(_) | WeightData::F16(_) => $otherwise,
        }
    };
}

/// [`crate::gemm::Kernels::pack_rows`]. `again` is that function, for what was decoded to `f32`.
///
/// # Safety
///
/// The range is inside the matrix, `words` long enough, and the processor has `W`'s instructions.
#[inline(always)]
pub(super) unsafe fn rows<W: Words>(
    w: &Weight<'_>,
    rows: Range<usize>,
    cols: Range<usize>,
    words: &mut [u32],
    stride: usize,
    again: Pack,
) {
    with_source!(
        w,
        // SAFETY: as the caller promises.
        |source| unsafe { strip::<W, _>(source, rows, cols, words.as_mut_ptr(), stride) },
        otherwise for col in cols.clone().step_by(STAGE) {
            let len = STAGE.min(cols.end - col);
            for group in rows.clone().step_by(16) {
                let group = group..rows.end.min(group + 16);
                let mut stage = [0f32; 16 * STAGE];
                for (row, span) in group.clone().zip(stage.chunks_exact_mut(STAGE)) {
                    decode_span(w.data(), row * w.cols() + col, &mut span[..len]);
                }
                let stage = Weight::new(16, STAGE, WeightData::F32(&stage));
                let at = (col - cols.start) / W::PACKING * stride + group.start - rows.start;
                // SAFETY: the stage holds the group, and this is its place.
                unsafe { again(&stage, 0..group.len(), 0..len, &mut words[at..], stride) };
            }
        }
    );
}

/// Packs rows in groups of 16, one transposition of 16 words each.
#[inline(always)]
unsafe fn strip<W: Words, S: Source>(
    source: S,
    rows: Range<usize>,
    cols: Range<usize>,
    words: *mut u32,
    stride: usize,
) {
    for start in rows.clone().step_by(16) {
        let group = start..rows.end.min(start + 16);
        let mask = (0xffff_u32 >> (16 - group.len())) as __mmask16;
        // SAFETY: as the caller promises; only the words of the group and of existing columns are stored.
        unsafe {
            let words = words.add(start - rows.start);
            for col in cols.clone().step_by(W::ELEMENTS) {
                let mut block = [_mm512_setzero_si512(); 16];
                let len = cols.end - col;
                if group.len() == 16 && len >= W::ELEMENTS {
                    for (i, row) in block.iter_mut().enumerate() {
                        *row = W::words(source, start + i, col);
                    }
                } else {
                    for (row, words) in group.clone().zip(block.iter_mut()) {
                        *words = if len >= W::ELEMENTS {
                            W::words(source, row, col)
                        } else {
                            W::last_words(source, row, col, len)
                        };
                    }
                }
                let words = words.add((col - cols.start) / W::PACKING * stride);
                let steps = len.div_ceil(W::PACKING);
                for (s, column) in transpose(block).into_iter().enumerate() {
                    if s < steps {
                        _mm512_mask_storeu_epi32(words.add(s * stride).cast(), mask, column);
                    }
                }
            }
        }
    }
}

/// Transposes a 16×16 matrix of words.
#[inline(always)]
unsafe fn transpose(r: [__m512i; 16]) -> [__m512i; 16] {
    unsafe {
        let mut a = r;
        for i in (0..16).step_by(2) {
            a[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
            a[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
        }
        let mut b = a;
        for i in (0..16).step_by(4) {
            b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
            b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
            b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
            b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
        }
        let mut c = b;
        for i in 0..4 {
            for h in [0, 8] {
                c[h + i] = _mm512_shuffle_i32x4::<0x88>(b[h + i], b[h + i + 4]);
                c[h + i + 4] = _mm512_shuffle_i32x4::<0xdd>(b[h + i], b[h + i + 4]);
            }
        }
        let mut d = c;
        for i in 0..8 {
            d[i] = _mm512_shuffle_i32x4::<0x88>(c[i], c[i + 8]);
            d[i + 8] = _mm512_shuffle_i32x4::<0xdd>(c[i], c[i + 8]);
        }
        d
    }
}

/// [`crate::gemm::Kernels::pack_cols`]. `again` is that function, for what was decoded to `f32`.
///
/// # Safety
///
/// The range is inside the matrix and at most a panel wide, `words` long enough, and the processor has
/// `W`'s instructions.
#[inline(always)]
pub(super) unsafe fn cols<W: Words>(
    w: &Weight<'_>,
    rows: Range<usize>,
    cols: Range<usize>,
    words: &mut [u32],
    again: Pack,
) {
    with_source!(
        w,
        // SAFETY: as the caller promises.
        |source| unsafe { panel::<W, _>(source, rows, cols, words.as_mut_ptr()) },
        otherwise for row in rows.clone().step_by(STAGE) {
            let len = STAGE.min(rows.end - row);
            let mut stage = [0f32; STAGE * MAX_LANES];
            for (i, span) in stage.chunks_exact_mut(MAX_LANES).take(len).enumerate() {
                decode_span(w.data(), (row + i) * w.cols() + cols.start, &mut span[..cols.len()]);
            }
            let stage = Weight::new(STAGE, MAX_LANES, WeightData::F32(&stage));
            let words = &mut words[(row - rows.start) / W::PACKING * MAX_LANES..];
            // SAFETY: the stage holds the rows, and this is their place.
            unsafe { again(&stage, 0..len, 0..MAX_LANES, words, MAX_LANES) };
        }
    );
}

#[inline(always)]
unsafe fn panel<W: Words, S: Source>(source: S, rows: Range<usize>, cols: Range<usize>, words: *mut u32) {
    let mut words = words;
    for row in rows.clone().step_by(W::PACKING) {
        // SAFETY: as the caller promises.
        unsafe {
            let [low, high] = W::rows(source, row, row + 1 < rows.end, cols.start, cols.len());
            _mm512_storeu_si512(words.cast(), low);
            _mm512_storeu_si512(words.add(16).cast(), high);
        }
        words = words.wrapping_add(MAX_LANES);
    }
}
