//! AVX-512: weights are decoded in registers, straight into their place in a panel.

mod dots;
mod pack;
mod source;
mod words;

use super::kernels::{Kernels, MAX_FEW_TOKENS};
use super::tile::{MAX_LANES, Tile, tile_of};
use crate::weight::Weight;
use std::ops::Range;
use words::{Floats, Pairs, Words};

macro_rules! avx512_kernels {
    ($name:ident, $module:ident, $words:ty, $feature:literal) => {
        mod $module {
            use super::*;

            #[target_feature(enable = $feature)]
            unsafe fn tile(rows: usize, tile: &Tile) {
                // 24 sums, 2 lanes and a value: 27 of 32 registers.
                // SAFETY: as the caller promises, here and below.
                unsafe {
                    tile_of!(<$words as Words>::Sum, 2, rows, tile, [1 2 3 4 5 6 7 8 9 10 11 12])
                }
            }

            #[target_feature(enable = $feature)]
            unsafe fn pack_rows(
                w: &Weight<'_>,
                rows: Range<usize>,
                cols: Range<usize>,
                words: &mut [u32],
                stride: usize,
            ) {
                unsafe { pack::rows::<$words>(w, rows, cols, words, stride, pack_rows) }
            }

            #[target_feature(enable = $feature)]
            unsafe fn pack_cols(
                w: &Weight<'_>,
                rows: Range<usize>,
                cols: Range<usize>,
                words: &mut [u32],
                _stride: usize,
            ) {
                unsafe { pack::cols::<$words>(w, rows, cols, words, pack_cols) }
            }

            #[target_feature(enable = $feature)]
            unsafe fn pack_dot_row(w: &Weight<'_>, row: &[f32], words: &mut [u32]) {
                unsafe { dots::pack_row::<$words>(w, row, words) }
            }

            #[target_feature(enable = $feature)]
            unsafe fn add_dots(
                w: &Weight<'_>,
                rows: Range<usize>,
                x: &[u32],
                tokens: usize,
                y: *mut f32,
                stride: usize,
            ) {
                unsafe { dots::add::<$words>(w, rows, x, tokens, y, stride, add_dots) }
            }

            pub(in super::super) static KERNELS: Kernels = Kernels {
                rows: 12,
                lanes: MAX_LANES,
                packing: <$words as Words>::PACKING,
                few_tokens: MAX_FEW_TOKENS,
                tile,
                pack_rows,
                pack_cols,
                pack_dot_row,
                add_dots,
            };
        }
        pub(super) use $module::KERNELS as $name;
    };
}

avx512_kernels!(F32, floats, Floats<false>, "avx512f,avx512bw,avx512dq,avx512vl");
avx512_kernels!(ROUNDED, rounded, Floats<true>, "avx512f,avx512bw,avx512dq,avx512vl");
avx512_kernels!(BF16_DOT, pairs, Pairs, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16");
