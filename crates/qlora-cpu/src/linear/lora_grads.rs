//! Gradients of the low-rank factors.

use crate::gemm::{Kernels, MAX_LANES, Shared, Tile, for_each_task};
use crate::isa::Isa;
use crate::scratch;
use crate::weight::Precision;

/// Panels of a strip, the unit of work. Rows of a wide matrix are pages apart: a strip of one panel
/// would take two cache lines from each page.
const PANELS: usize = 4;
/// Token rows of a strip that are copied together at a time: 256 KiB.
const TOKEN_BLOCK: usize = 512;

/// Gradients of the factors of [`super::linear`]: `da = scale · (dy B)ᵀ x` and `db = scale · dyᵀ (x Aᵀ)`.
///
/// * `x`: `[tokens, in]`, `dy`: `[tokens, out]`
/// * `xa` = `x Aᵀ` and `dyb` = `dy B`: `[tokens, rank]`, as [`super::linear`] and
///   [`super::linear_grad_input`] left them
/// * `da`: `[rank, in]`, `db`: `[out, rank]`, both overwritten
///
/// Always in `f32`: gradients add up over many small steps. Each element is one chain of sums in the
/// order of the tokens, whatever the number of threads.
///
/// # Panics
///
/// When a slice has not the length its shape says.
pub fn lora_grads(
    x: &[f32],
    xa: &[f32],
    dy: &[f32],
    dyb: &[f32],
    tokens: usize,
    in_features: usize,
    out_features: usize,
    rank: usize,
    scale: f32,
    da: &mut [f32],
    db: &mut [f32],
) {
    lora_grads_with(Isa::detect(), x, xa, dy, dyb, tokens, in_features, out_features, rank, scale, da, db);
}

pub(crate) fn lora_grads_with(
    isa: Isa,
    x: &[f32],
    xa: &[f32],
    dy: &[f32],
    dyb: &[f32],
    tokens: usize,
    in_features: usize,
    out_features: usize,
    rank: usize,
    scale: f32,
    da: &mut [f32],
    db: &mut [f32],
) {
    assert_eq!(x.len(), tokens * in_features, "lora_grads: x is [tokens, in]");
    assert_eq!(dy.len(), tokens * out_features, "lora_grads: dy is [tokens, out]");
    assert_eq!(xa.len(), tokens * rank, "lora_grads: xa is [tokens, rank]");
    assert_eq!(dyb.len(), tokens * rank, "lora_grads: dyb is [tokens, rank]");
    assert_eq!(da.len(), rank * in_features, "lora_grads: da is [rank, in]");
    assert_eq!(db.len(), out_features * rank, "lora_grads: db is [out, rank]");
    if rank == 0 {
        return;
    }
    let kernels = Kernels::get(isa, Precision::F32);
    let (da, db) = (Shared::new(da), Shared::new(db));
    let width = PANELS * kernels.lanes;
    let a_strips = in_features.div_ceil(width);
    let strips = a_strips + out_features.div_ceil(width);
    let work = tokens * (in_features + out_features) * (rank + 16);
    for_each_task(strips, work, |strip| {
        if let Some(strip) = strip.checked_sub(a_strips) {
            let wide = Wide { values: dy, cols: out_features, first: strip * width };
            reduce(kernels, &wide, Narrow { values: xa, rank }, tokens, |r, lane, sum| {
                // SAFETY: this strip's columns of `dy` are rows of `db` that no other task has.
                unsafe { *db.at(lane * rank + r) = scale * sum }
            });
        } else {
            let wide = Wide { values: x, cols: in_features, first: strip * width };
            reduce(kernels, &wide, Narrow { values: dyb, rank }, tokens, |r, lane, sum| {
                // SAFETY: this strip's columns of `x` are columns of `da` that no other task has.
                unsafe { *da.at(r * in_features + lane) = scale * sum }
            });
        }
    });
}

/// The columns of a `[tokens, cols]` matrix from `first` on, as many as a strip has.
struct Wide<'a> {
    values: &'a [f32],
    cols: usize,
    first: usize,
}

/// A `[tokens, rank]` matrix.
struct Narrow<'a> {
    values: &'a [f32],
    rank: usize,
}

/// `put(r, column, Σ_t narrow[t][r] · wide[t][column])` for every `r` and column of the strip.
fn reduce(
    kernels: &Kernels,
    wide: &Wide<'_>,
    narrow: Narrow<'_>,
    tokens: usize,
    put: impl Fn(usize, usize, f32),
) {
    let cols = (PANELS * kernels.lanes).min(wide.cols - wide.first);
    let panels = cols.div_ceil(kernels.lanes);
    // Even tiles: a rank of 16 is 8 + 8, not 12 + 4.
    let tiles = narrow.rank.div_ceil(kernels.rows);
    let rows = narrow.rank.div_ceil(tiles);
    let zeros = [0f32; MAX_LANES];
    // Sums of `rows · tiles >= rank` rows of lanes for each panel.
    let panel_sums = tiles * rows * kernels.lanes;
    scratch::SUMS.with_floats(panels * panel_sums, |sums| {
        sums.fill(0.0);
        for block in (0..tokens).step_by(TOKEN_BLOCK) {
            let steps = TOKEN_BLOCK.min(tokens - block);
            let panel_words = steps * kernels.lanes;
            scratch::PANEL.with_words(panels * panel_words, |words| {
                for (step, row) in
                    wide.values[block * wide.cols..].chunks_exact(wide.cols).take(steps).enumerate()
                {
                    let strip = &row[wide.first..wide.first + cols];
                    for (panel, from) in strip.chunks(kernels.lanes).enumerate() {
                        let to = &mut words[panel * panel_words + step * kernels.lanes..];
                        for (to, from) in to.iter_mut().zip(from) {
                            *to = from.to_bits();
                        }
                    }
                }
                for (words, sums) in words.chunks_exact(panel_words).zip(sums.chunks_exact_mut(panel_sums)) {
                    for first in (0..narrow.rank).step_by(rows) {
                        let tile = Tile {
                            x: narrow.values[block * narrow.rank + first..].as_ptr().cast(),
                            x_stride: narrow.rank,
                            w: words.as_ptr(),
                            w_stride: kernels.lanes,
                            steps,
                            start: if block == 0 { zeros.as_ptr() } else { std::ptr::null() },
                            y: sums[first * kernels.lanes..].as_mut_ptr(),
                            y_stride: kernels.lanes,
                        };
                        // SAFETY: the narrow rows have so many values from `first` on, the panel
                        // `steps` rows of lanes, and `sums` room for whole tiles.
                        unsafe { kernels.tile(rows.min(narrow.rank - first), &tile) };
                    }
                }
            });
        }
        for (panel, sums) in sums.chunks_exact(panel_sums).enumerate() {
            let first = panel * kernels.lanes;
            for (r, sums) in sums.chunks_exact(kernels.lanes).take(narrow.rank).enumerate() {
                for (lane, &sum) in sums.iter().take(cols - first).enumerate() {
                    put(r, wide.first + first + lane, sum);
                }
            }
        }
    });
}
