//! Tiles of rows: how a ragged batch is cut for a GPU, and the products of tiles in shared memory.

use cubecl::prelude::*;

use crate::attention::AttentionSpan;

/// Rows and columns of a tile of the CubeCL kernels.
pub(super) const TILE: usize = 32;
/// Units on a side of the cube.
pub(super) const SIDE: usize = 8;
/// Rows and columns of scores that a unit owns.
pub(super) const OWN: usize = 4;
/// Floats from a row in shared memory to the next: one more than a tile has, so that a column meets all banks.
pub(super) const PITCH: usize = TILE + 1;
/// Words of an entry of [`query_tiles`] and [`key_tiles`].
pub(super) const ENTRY: usize = 5;

/// Tiles of queries, longest work first: first row, rows, first key, keys, position of the first row among them.
pub(crate) fn query_tiles(spans: &[AttentionSpan], tile: usize) -> Vec<u32> {
    let mut tiles = Vec::new();
    for span in spans {
        let offset = span.k_len - span.q_len;
        for start in (0..span.q_len).step_by(tile) {
            let rows = tile.min(span.q_len - start);
            tiles.push([span.q_start + start, rows, span.k_start, span.k_len, offset + start]);
        }
    }
    tiles.sort_by_key(|tile| std::cmp::Reverse(tile[4]));
    tiles.into_iter().flatten().map(|word| word as u32).collect()
}

/// Tiles of keys: first row of the span's keys, keys of the span, first key of the tile within them, first query
/// row, queries.
pub(crate) fn key_tiles(spans: &[AttentionSpan], tile: usize) -> Vec<u32> {
    let mut tiles = Vec::new();
    for span in spans {
        for start in (0..span.k_len).step_by(tile) {
            tiles.push([span.k_start, span.k_len, start, span.q_start, span.q_len]);
        }
    }
    // Early keys are seen by more queries.
    tiles.sort_by_key(|tile| std::cmp::Reverse(tile[1] - tile[2]));
    tiles.into_iter().flatten().map(|word| word as u32).collect()
}

/// Whether the spans leave no row out: then outputs need not be cleared.
pub(crate) fn covers_all(spans: &[AttentionSpan], queries: usize, keys: usize) -> (bool, bool) {
    let sum = |length: fn(&AttentionSpan) -> usize| spans.iter().map(length).sum::<usize>();
    (sum(|span| span.q_len) == queries, sum(|span| span.k_len) == keys)
}

/// Copies up to 32×32 elements into shared memory, zeros where there are none.
#[cube]
pub(super) fn load_tile<T: Float>(
    source: &Array<T>,
    target: &mut SharedMemory<f32>,
    first_row: usize,
    rows: usize,
    row_length: usize,
    first_column: usize,
    columns: usize,
) {
    let unit = UNIT_POS as usize;
    let column = unit % comptime!(TILE);
    #[unroll]
    for i in 0..comptime!(TILE * TILE / (SIDE * SIDE)) {
        let row = unit / comptime!(TILE) + i * comptime!(SIDE * SIDE / TILE);
        let mut value = 0.0f32;
        if row < rows && column < columns {
            value = f32::cast_from(source[(first_row + row) * row_length + first_column + column]);
        }
        target[row * comptime!(PITCH) + column] = value;
    }
}

/// `sums += a bᵀ`: rows of both tiles against each other.
#[cube]
pub(super) fn rows_by_rows(a: &SharedMemory<f32>, b: &SharedMemory<f32>, sums: &mut Array<f32>) {
    let row = (UNIT_POS as usize / comptime!(SIDE)) * comptime!(OWN * PITCH);
    let column = (UNIT_POS as usize % comptime!(SIDE)) * comptime!(OWN * PITCH);
    for k in 0..comptime!(TILE) {
        let mut left = Array::<f32>::new(comptime!(OWN));
        let mut right = Array::<f32>::new(comptime!(OWN));
        #[unroll]
        for i in 0..comptime!(OWN) {
            left[i] = a[row + i * comptime!(PITCH) + k];
            right[i] = b[column + i * comptime!(PITCH) + k];
        }
        #[unroll]
        for i in 0..comptime!(OWN) {
            #[unroll]
            for j in 0..comptime!(OWN) {
                sums[i * comptime!(OWN) + j] += left[i] * right[j];
            }
        }
    }
}

/// `sums[first..] += a b`: rows of the first tile against columns of the second.
#[cube]
pub(super) fn rows_by_columns(
    a: &SharedMemory<f32>,
    b: &SharedMemory<f32>,
    sums: &mut Array<f32>,
    #[comptime] first: usize,
) {
    let row = (UNIT_POS as usize / comptime!(SIDE)) * comptime!(OWN * PITCH);
    let column = (UNIT_POS as usize % comptime!(SIDE)) * comptime!(OWN);
    for k in 0..comptime!(TILE) {
        let mut left = Array::<f32>::new(comptime!(OWN));
        let mut right = Array::<f32>::new(comptime!(OWN));
        #[unroll]
        for i in 0..comptime!(OWN) {
            left[i] = a[row + i * comptime!(PITCH) + k];
            right[i] = b[k * comptime!(PITCH) + column + i];
        }
        #[unroll]
        for i in 0..comptime!(OWN) {
            #[unroll]
            for j in 0..comptime!(OWN) {
                sums[comptime!(first) + i * comptime!(OWN) + j] += left[i] * right[j];
            }
        }
    }
}

/// `sums[first..] += aᵀ b`: columns of both tiles against each other.
#[cube]
pub(super) fn columns_by_columns(
    a: &SharedMemory<f32>,
    b: &SharedMemory<f32>,
    sums: &mut Array<f32>,
    #[comptime] first: usize,
) {
    let row = (UNIT_POS as usize / comptime!(SIDE)) * comptime!(OWN);
    let column = (UNIT_POS as usize % comptime!(SIDE)) * comptime!(OWN);
    for k in 0..comptime!(TILE) {
        let mut left = Array::<f32>::new(comptime!(OWN));
        let mut right = Array::<f32>::new(comptime!(OWN));
        #[unroll]
        for i in 0..comptime!(OWN) {
            left[i] = a[k * comptime!(PITCH) + row + i];
            right[i] = b[k * comptime!(PITCH) + column + i];
        }
        #[unroll]
        for i in 0..comptime!(OWN) {
            #[unroll]
            for j in 0..comptime!(OWN) {
                sums[comptime!(first) + i * comptime!(OWN) + j] += left[i] * right[j];
            }
        }
    }
}

/// `cap · tanh(score / cap)` where there is a cap.
#[cube]
pub(super) fn capped(score: f32, cap: f32, #[comptime] softcap: bool) -> f32 {
    if softcap {
        // By exponentials: the built-in tanh of some drivers overflows to NaN.
        let x = clamp(score / cap, f32::new(-15.0), f32::new(15.0));
        let e = f32::exp(2.0f32 * x);
        cap * (e - 1.0f32) / (e + 1.0f32)
    } else {
        score
    }
}

/// Whether the query at `position` sees the key.
#[cube]
pub(super) fn visible(
    key: usize,
    keys: usize,
    position: usize,
    window: usize,
    #[comptime] windowed: bool,
) -> bool {
    let causal = key < keys && key <= position;
    if windowed { causal && key + window > position } else { causal }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_row_once() {
        let spans = [
            AttentionSpan { q_start: 0, q_len: 70, k_start: 3, k_len: 75 },
            AttentionSpan { q_start: 70, q_len: 1, k_start: 78, k_len: 1 },
        ];
        let tiles = query_tiles(&spans, 32);
        let mut rows: Vec<u32> = tiles.chunks(ENTRY).flat_map(|tile| tile[0]..tile[0] + tile[1]).collect();
        rows.sort_unstable();
        assert_eq!(rows, (0..71).collect::<Vec<_>>());
        assert!(tiles.chunks(ENTRY).any(|tile| tile == [64, 6, 3, 75, 69]));
        let tiles = key_tiles(&spans, 32);
        assert_eq!(tiles.len(), ENTRY * 4);
        assert!(tiles.chunks(ENTRY).any(|tile| tile == [78, 1, 0, 70, 1]));
        assert_eq!(covers_all(&spans, 71, 76), (true, true));
        assert_eq!(covers_all(&spans, 72, 79), (false, false));
    }
}
