//! The innermost loop: a few token rows times a panel, sums in registers.

use super::accumulator::Accumulator;

/// Most token rows in a tile, on any processor.
pub(crate) const MAX_ROWS: usize = 12;
/// Most lanes of a panel, on any processor.
pub(crate) const MAX_LANES: usize = 32;

/// `y[i][j] = start[j] + Σ_s x[s][i] · w[s][j]` over words `s` (an `f32` or a bf16 pair each).
pub(crate) struct Tile {
    /// `steps` rows of words, one for each row of the tile, `x_stride` words apart.
    pub(crate) x: *const u32,
    pub(crate) x_stride: usize,
    /// `steps` rows of as many words as the panel has lanes, `w_stride` words apart.
    pub(crate) w: *const u32,
    pub(crate) w_stride: usize,
    pub(crate) steps: usize,
    /// What every row starts from, one value a lane; null to start from `y` itself.
    pub(crate) start: *const f32,
    /// Rows of `y_stride` floats.
    pub(crate) y: *mut f32,
    pub(crate) y_stride: usize,
}

/// A tile of `M` rows and `N` registers of lanes.
///
/// # Safety
///
/// The pointers of `t` reach what their documentation says, and the processor has `A`'s instructions.
#[inline(always)]
pub(super) unsafe fn multiply<A: Accumulator, const M: usize, const N: usize>(t: &Tile) {
    // SAFETY: every access is inside what `Tile` describes.
    unsafe {
        let mut sums = [[A::zero(); N]; M];
        for (i, row) in sums.iter_mut().enumerate() {
            let from = if t.start.is_null() { t.y.add(i * t.y_stride).cast_const() } else { t.start };
            for (j, sum) in row.iter_mut().enumerate() {
                *sum = A::load(from.add(j * A::LANES).cast());
            }
        }
        let (mut x, mut w) = (t.x, t.w);
        for _ in 0..t.steps {
            let mut lanes = [A::zero(); N];
            for (j, lane) in lanes.iter_mut().enumerate() {
                *lane = A::load(w.add(j * A::LANES));
            }
            for (i, row) in sums.iter_mut().enumerate() {
                let value = A::splat(x.add(i));
                for (sum, lane) in row.iter_mut().zip(lanes) {
                    *sum = sum.plus_product(value, lane);
                }
            }
            x = x.wrapping_add(t.x_stride);
            w = w.wrapping_add(t.w_stride);
        }
        for (i, row) in sums.iter().enumerate() {
            for (j, sum) in row.iter().enumerate() {
                sum.store(t.y.add(i * t.y_stride + j * A::LANES));
            }
        }
    }
}

/// Picks the tile with as many rows as there are.
macro_rules! tile_of {
    ($vector:ty, $registers:literal, $rows:expr, $tile:expr, [$($m:literal)*]) => {
        match $rows {
            $($m => $crate::gemm::tile::multiply::<$vector, $m, $registers>($tile),)*
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}
pub(super) use tile_of;

/// `[Σ_s x[t][s] · w[s] for t]`: one row of a weight against a few tokens.
///
/// # Safety
///
/// `w` and each `x + t · x_stride` reach `words` words, a multiple of `A::LANES`.
#[inline(always)]
pub(super) unsafe fn dots<A: Accumulator>(
    w: *const u32,
    x: *const u32,
    x_stride: usize,
    words: usize,
    out: &mut [f32],
) {
    for (t, out) in out.iter_mut().enumerate() {
        // SAFETY: as the caller promises.
        unsafe {
            let x = x.add(t * x_stride);
            // Four chains hide the latency of the additions.
            let mut sums = [A::zero(); 4];
            let mut s = 0;
            while s + 4 * A::LANES <= words {
                for (j, sum) in sums.iter_mut().enumerate() {
                    let at = s + j * A::LANES;
                    *sum = sum.plus_product(A::load(x.add(at)), A::load(w.add(at)));
                }
                s += 4 * A::LANES;
            }
            while s < words {
                sums[0] = sums[0].plus_product(A::load(x.add(s)), A::load(w.add(s)));
                s += A::LANES;
            }
            *out = (sums[0].sum() + sums[1].sum()) + (sums[2].sum() + sums[3].sum());
        }
    }
}
