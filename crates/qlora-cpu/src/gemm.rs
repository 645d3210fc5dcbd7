//! Products of token rows with a frozen matrix, decoded panel by panel.
//!
//! `Y[tokens, n] = X[tokens, k] · P[k, n]`, where `P` is `Wᵀ` (forward) or `W` (the gradient of the
//! input). Nothing dense ever exists of `P`. The loops, outermost first:
//!
//! 1. **token blocks** of at most [`TOKEN_BLOCK`] rows, so that a packed block of `X` (8 MiB at most)
//!    stays in the last-level cache while every panel goes over it. Decoding a panel costs as much as
//!    multiplying some ten token rows with it: repeating it for each block is lost in the noise.
//! 2. **contraction blocks** of at most [`STEP_BLOCK`] words, so that a panel (32 lanes: 256 KiB)
//!    stays in the second-level cache. Most matrices need one block; then `Y` is written once.
//! 3. **panels** of 16 or 32 columns of `P`: the unit of parallel work. The task decodes the panel into
//!    its thread's scratch, one word a lane and step. With fewer panels than would keep the threads
//!    busy, the token rows of a panel are shared out as well.
//! 4. **tiles** of up to 12 token rows: sums stay in registers over the whole contraction block; a tile
//!    of `X` streams from the last-level cache, the panel from the second. Rows are shared out evenly
//!    over the tiles (64 rows are 11 + 11 + 11 + 11 + 10 + 10) instead of leaving a small last one.
//!
//! A low-rank update is `rank` more columns of `X` and rows of `P`: `[X, s·(X·D)] · [P; U]`. `X·D` is
//! made while a tile is packed and still in the first-level cache.
//!
//! Every element of `Y` is one chain of sums in the order of `k`, whatever the number of threads, of
//! tokens, or the place of its row in the batch: its bits depend on its row and column alone.

mod accumulator;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod kernels;
mod portable;
mod tile;

pub(crate) use kernels::Kernels;
pub(crate) use tile::{MAX_LANES, MAX_ROWS, Tile};

use crate::scratch;
use crate::weight::{Weight, WeightData};
use rayon::prelude::*;
use std::ops::Range;

/// Token rows that are packed at a time.
const TOKEN_BLOCK: usize = 1024;
/// Words of the contraction that are packed at a time.
const STEP_BLOCK: usize = 2048;

/// Which side of a matrix the product contracts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contract {
    /// The columns: `x · wᵀ`.
    Cols,
    /// The rows: `x · w`.
    Rows,
}

impl Contract {
    /// `(k, n)` of a matrix.
    pub(crate) fn shape(self, w: &Weight<'_>) -> (usize, usize) {
        match self {
            Self::Cols => (w.cols(), w.rows()),
            Self::Rows => (w.rows(), w.cols()),
        }
    }

    fn pack(self, kernels: &Kernels, w: &Weight<'_>, k: Range<usize>, n: Range<usize>, words: &mut [u32]) {
        match self {
            Self::Cols => kernels.pack_rows(w, n, k, words, kernels.lanes),
            Self::Rows => kernels.pack_cols(w, k, n, words, kernels.lanes),
        }
    }
}

/// `scale · (x · down) · up`, added to a product.
pub(crate) struct LowRank<'a> {
    /// `[k, rank]` as the product contracts it.
    pub(crate) down: Weight<'a>,
    /// `[rank, n]` as the product contracts it.
    pub(crate) up: Weight<'a>,
    pub(crate) rank: usize,
    pub(crate) scale: f32,
    /// `x · down` goes here: `[tokens, rank]`.
    pub(crate) inner: &'a mut [f32],
}

/// Sets `y = x · w (+ bias) (+ low-rank update)`.
pub(crate) fn product(
    kernels: &Kernels,
    contract: Contract,
    x: &[f32],
    tokens: usize,
    w: &Weight<'_>,
    bias: Option<&[f32]>,
    mut low_rank: Option<LowRank<'_>>,
    y: &mut [f32],
) {
    let (k, n) = contract.shape(w);
    assert!(x.len() == tokens * k && y.len() == tokens * n);
    for start in (0..tokens).step_by(TOKEN_BLOCK) {
        let block = start..tokens.min(start + TOKEN_BLOCK);
        let low_rank = low_rank
            .as_mut()
            .map(|l| LowRank { inner: &mut l.inner[block.start * l.rank..block.end * l.rank], ..*l });
        let (x, y) = (&x[block.start * k..block.end * k], &mut y[block.start * n..block.end * n]);
        token_block(kernels, contract, x, block.len(), w, bias, low_rank, y);
    }
}

/// Token rows shared out evenly over the fewest tiles.
#[derive(Clone, Copy)]
struct Tiles {
    count: usize,
    rows: usize,
    /// So many tiles have a row more.
    longer: usize,
}

impl Tiles {
    fn new(tokens: usize, most: usize) -> Self {
        let count = tokens.div_ceil(most).max(1);
        Self { count, rows: tokens / count, longer: tokens % count }
    }

    fn range(self, tile: usize) -> Range<usize> {
        let start = tile * self.rows + tile.min(self.longer);
        start..start + self.rows + usize::from(tile < self.longer)
    }
}

/// A place that tasks write disjoint parts of.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(*mut T);

// SAFETY: whoever writes through it answers for the parts being disjoint.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr())
    }

    pub(crate) fn at(self, index: usize) -> *mut T {
        self.0.wrapping_add(index)
    }

    /// # Safety
    ///
    /// The range is inside the slice, and no other task uses it.
    pub(crate) unsafe fn slice<'a>(self, range: Range<usize>) -> &'a mut [T] {
        // SAFETY: as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }
}

/// Runs `task(0..count)`, on all threads if the work (multiplications, or elements moved times 16) is
/// worth waking them: that takes some ten microseconds.
pub(crate) fn for_each_task(count: usize, work: usize, task: impl Fn(usize) + Sync + Send) {
    if count < 2 || work < 1 << 20 || rayon::current_num_threads() < 2 {
        (0..count).for_each(task);
    } else {
        (0..count).into_par_iter().with_max_len(1).for_each(task);
    }
}

fn token_block(
    kernels: &Kernels,
    contract: Contract,
    x: &[f32],
    tokens: usize,
    w: &Weight<'_>,
    bias: Option<&[f32]>,
    low_rank: Option<LowRank<'_>>,
    y: &mut [f32],
) {
    let (k, n) = contract.shape(w);
    let blocks = k.div_ceil(STEP_BLOCK * kernels.packing).max(1);
    // Whole decoding chunks, so that only the last block has a ragged end.
    let block_len = k.div_ceil(blocks).next_multiple_of(32);
    let rank = low_rank.as_ref().map_or(0, |l| l.rank);
    let most_steps = block_len.min(k).div_ceil(kernels.packing) + rank.div_ceil(kernels.packing);
    let tiles = Tiles::new(tokens, kernels.rows);
    let y = Shared::new(y);
    let low_rank = low_rank.as_ref();
    let inner = low_rank.map(|l| Shared(l.inner.as_ptr().cast_mut()));
    let down_panels = rank.div_ceil(kernels.lanes);

    let run = |packed: &mut [u32], down: &mut [u32], scaled: &mut [f32]| {
        let (packed_at, scaled_at) = (Shared::new(packed), Shared::new(scaled));
        for block in 0..blocks {
            let span = (block * block_len).min(k)..((block + 1) * block_len).min(k);
            let last = block + 1 == blocks;
            let x_steps = span.len().div_ceil(kernels.packing);
            let steps = x_steps + if last { rank.div_ceil(kernels.packing) } else { 0 };
            if let Some(l) = low_rank {
                for (p, panel) in down.chunks_mut(most_steps * kernels.lanes).enumerate() {
                    let lanes = p * kernels.lanes..rank.min((p + 1) * kernels.lanes);
                    contract.pack(kernels, &l.down, span.clone(), lanes, panel);
                }
            }
            let down: &[u32] = down;

            for_each_task(tiles.count, tokens * span.len() * (16 + rank), |t| {
                let rows = tiles.range(t);
                // SAFETY: tiles are disjoint, and so are their rows in every buffer.
                let words = unsafe { packed_at.slice(rows.start * steps..rows.end * steps) };
                let x = Weight::new(rows.len(), k, WeightData::F32(&x[rows.start * k..rows.end * k]));
                kernels.pack_rows(&x, 0..rows.len(), span.clone(), words, rows.len());
                let (Some(l), Some(inner)) = (low_rank, inner) else { return };
                for p in 0..down_panels {
                    let lanes = p * kernels.lanes..rank.min((p + 1) * kernels.lanes);
                    let task = Task {
                        x: words.as_ptr(),
                        rows: rows.len(),
                        panel: &down[p * most_steps * kernels.lanes..],
                        steps: x_steps,
                        start: (block == 0).then_some(&[0.0; MAX_LANES]),
                        lanes: lanes.len(),
                    };
                    // SAFETY: the rows of this tile belong to this task.
                    unsafe { task.run(kernels, inner.at(rows.start * rank + lanes.start), rank) };
                }
                if last {
                    // SAFETY: as above.
                    let (inner, scaled) = unsafe {
                        let range = rows.start * rank..rows.end * rank;
                        (inner.slice(range.clone()), scaled_at.slice(range))
                    };
                    for (s, &v) in scaled.iter_mut().zip(inner.iter()) {
                        *s = v * l.scale;
                    }
                    let scaled = Weight::new(rows.len(), rank, WeightData::F32(scaled));
                    let words = &mut words[x_steps * rows.len()..];
                    kernels.pack_rows(&scaled, 0..rows.len(), 0..rank, words, rows.len());
                }
            });

            let panels = n.div_ceil(kernels.lanes);
            let shares = shares(panels, tiles.count);
            for_each_task(panels * shares, tokens * n * span.len(), |task| {
                let (p, share) = (task / shares, task % shares);
                let lanes = p * kernels.lanes..n.min((p + 1) * kernels.lanes);
                scratch::PANEL.with_words(steps * kernels.lanes, |panel| {
                    let (main, extra) = panel.split_at_mut(x_steps * kernels.lanes);
                    contract.pack(kernels, w, span.clone(), lanes.clone(), main);
                    if let (Some(l), true) = (low_rank, last) {
                        contract.pack(kernels, &l.up, 0..rank, lanes.clone(), extra);
                    }
                    let mut start = [0.0; MAX_LANES];
                    if let Some(bias) = bias {
                        start[..lanes.len()].copy_from_slice(&bias[lanes.clone()]);
                    }
                    for t in tiles.count * share / shares..tiles.count * (share + 1) / shares {
                        let rows = tiles.range(t);
                        let task = Task {
                            x: packed_at.at(rows.start * steps),
                            rows: rows.len(),
                            panel,
                            steps,
                            start: (block == 0).then_some(&start),
                            lanes: lanes.len(),
                        };
                        // SAFETY: a panel's columns of a share's rows belong to this task.
                        unsafe { task.run(kernels, y.at(rows.start * n + lanes.start), n) };
                    }
                });
            });
        }
    };
    scratch::PACKED.with_words(tokens * most_steps, |packed| {
        scratch::DOWN.with_words(down_panels * most_steps * kernels.lanes, |down| {
            scratch::SCALED.with_floats(tokens * rank, |scaled| run(packed, down, scaled));
        });
    });
}

/// Into how many parts the token rows of each panel go, so that there are some four tasks a thread.
/// Each part decodes the panel anew; parts stay long enough for that not to matter.
fn shares(panels: usize, tiles: usize) -> usize {
    const MIN_TILES: usize = 4;
    let threads = rayon::current_num_threads();
    if threads == 1 || panels >= 3 * threads {
        return 1;
    }
    (4 * threads).div_ceil(panels.max(1)).min(tiles / MIN_TILES).max(1)
}

/// A packed tile times a packed panel.
struct Task<'a> {
    x: *const u32,
    rows: usize,
    panel: &'a [u32],
    steps: usize,
    /// What the sums start from; `None`: what is in the output.
    start: Option<&'a [f32; MAX_LANES]>,
    lanes: usize,
}

impl Task<'_> {
    /// # Safety
    ///
    /// `x` reaches `steps` rows of `rows` words; `y` reaches `rows` rows, `stride` apart, of `lanes`
    /// floats, which no other task uses.
    unsafe fn run(&self, kernels: &Kernels, y: *mut f32, stride: usize) {
        assert!(self.panel.len() >= self.steps * kernels.lanes);
        let mut tile = Tile {
            x: self.x,
            x_stride: self.rows,
            w: self.panel.as_ptr(),
            w_stride: kernels.lanes,
            steps: self.steps,
            start: self.start.map_or(std::ptr::null(), |s| s.as_ptr()),
            y,
            y_stride: stride,
        };
        if self.lanes == kernels.lanes {
            // SAFETY: as the caller promises.
            return unsafe { kernels.tile(self.rows, &tile) };
        }
        // A last panel of fewer lanes goes through a tile of its own.
        let mut whole = [0f32; MAX_ROWS * MAX_LANES];
        tile.y = whole.as_mut_ptr();
        tile.y_stride = kernels.lanes;
        // SAFETY: as the caller promises, and `whole` has room for every tile.
        unsafe {
            if self.start.is_none() {
                for row in 0..self.rows {
                    let from = y.add(row * stride);
                    from.copy_to_nonoverlapping(tile.y.add(row * kernels.lanes), self.lanes);
                }
            }
            kernels.tile(self.rows, &tile);
            for row in 0..self.rows {
                let from = tile.y.add(row * kernels.lanes);
                from.copy_to_nonoverlapping(y.add(row * stride), self.lanes);
            }
        }
    }
}
