//! The backward pass: a cube a tile of queries for their gradient, a cube a tile of keys for those of keys and
//! values. Scores are computed again in both: two sevenths more work than with atomics, and the same bits in
//! every run.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::super::elementwise::flat;
use super::super::tensors::{array, dims, empty, rows, upload, zeros};
use super::tiles::{
    ENTRY, OWN, PITCH, SIDE, TILE, capped, columns_by_columns, covers_all, key_tiles, load_tile, query_tiles,
    rows_by_columns, rows_by_rows, visible,
};
use crate::attention::{AttentionSpec, Saved};
use crate::cube::Cube;

/// `rowsum(dO ⊙ O)` of each row and head.
#[cube(launch_unchecked)]
fn delta_kernel<T: Float>(
    dout: &Array<T>,
    out: &Array<T>,
    delta: &mut Array<f32>,
    count: usize,
    #[comptime] head_dim: usize,
    #[define(T)] _dtype: StorageType,
) {
    if ABSOLUTE_POS < count {
        let mut sum = 0.0f32;
        for i in 0..comptime!(head_dim) {
            let at = ABSOLUTE_POS * comptime!(head_dim) + i;
            sum += f32::cast_from(dout[at]) * f32::cast_from(out[at]);
        }
        delta[ABSOLUTE_POS] = sum;
    }
}

/// From raw scores `s` and products `dp` of a unit to probabilities (in `s`) and gradients of scores (in `dp`).
#[cube]
fn score_gradients(
    s: &mut Array<f32>,
    dp: &mut Array<f32>,
    lse: &Array<f32>,
    delta: &Array<f32>,
    row: usize,
    row_limit: usize,
    head: usize,
    heads: usize,
    key: usize,
    keys: usize,
    position: usize,
    scale: f32,
    cap: f32,
    window: usize,
    #[comptime] softcap: bool,
    #[comptime] windowed: bool,
) {
    #[unroll]
    for i in 0..comptime!(OWN) {
        let mut row_lse = 0.0f32;
        let mut row_delta = 0.0f32;
        let inside = row + i < row_limit;
        if inside {
            row_lse = lse[(row + i) * heads + head];
            row_delta = delta[(row + i) * heads + head];
        }
        #[unroll]
        for j in 0..comptime!(OWN) {
            let at = comptime!(i * OWN + j);
            let mut probability = 0.0f32;
            let mut gradient = 0.0f32;
            if inside && visible(key + j, keys, position + i, window, windowed) {
                let score = capped(s[at] * scale, cap, softcap);
                probability = f32::exp(score - row_lse);
                gradient = probability * (dp[at] - row_delta) * scale;
                if softcap {
                    let ratio = score / cap;
                    gradient *= 1.0f32 - ratio * ratio;
                }
            }
            s[at] = probability;
            dp[at] = gradient;
        }
    }
}

#[cube(launch_unchecked)]
fn query_kernel<T: Float>(
    dout: &Array<T>,
    q: &Array<T>,
    k: &Array<T>,
    v: &Array<T>,
    lse: &Array<f32>,
    delta: &Array<f32>,
    tiles: &Array<u32>,
    dq: &mut Array<T>,
    scale: f32,
    cap: f32,
    window: usize,
    #[comptime] heads: usize,
    #[comptime] kv_heads: usize,
    #[comptime] head_dim: usize,
    #[comptime] softcap: bool,
    #[comptime] windowed: bool,
    #[define(T)] _dtype: StorageType,
) {
    let chunks = comptime!(head_dim.div_ceil(TILE));
    let mut a = SharedMemory::<f32>::new(comptime!(TILE * PITCH));
    let mut b = SharedMemory::<f32>::new(comptime!(TILE * PITCH));
    let mut ds = SharedMemory::<f32>::new(comptime!(TILE * PITCH));

    let entry = CUBE_POS_X as usize * comptime!(ENTRY);
    let q_row = tiles[entry] as usize;
    let q_rows = tiles[entry + 1] as usize;
    let k_row = tiles[entry + 2] as usize;
    let keys = tiles[entry + 3] as usize;
    let position = tiles[entry + 4] as usize;
    let head = CUBE_POS_Y as usize;
    let q_column = head * comptime!(head_dim);
    let k_column = (head / comptime!(heads / kv_heads)) * comptime!(head_dim);
    let own_row = (UNIT_POS as usize / comptime!(SIDE)) * comptime!(OWN);
    let own_column = (UNIT_POS as usize % comptime!(SIDE)) * comptime!(OWN);

    let mut sums = Array::<f32>::new(comptime!(OWN * OWN * chunks));
    #[unroll]
    for i in 0..comptime!(OWN * OWN * chunks) {
        sums[i] = 0.0f32;
    }
    let end = min(keys, position + q_rows);
    let mut key = 0usize;
    if windowed {
        if position + 1 > window {
            key = (position + 1 - window) / comptime!(TILE) * comptime!(TILE);
        }
    }
    while key < end {
        let mut s = Array::<f32>::new(comptime!(OWN * OWN));
        let mut dp = Array::<f32>::new(comptime!(OWN * OWN));
        #[unroll]
        for i in 0..comptime!(OWN * OWN) {
            s[i] = 0.0f32;
            dp[i] = 0.0f32;
        }
        #[unroll]
        for chunk in 0..chunks {
            let first = comptime!(chunk * TILE);
            let columns = comptime!((head_dim - chunk * TILE).min(TILE));
            let q_length = comptime!(heads * head_dim);
            let k_length = comptime!(kv_heads * head_dim);
            sync_cube();
            load_tile::<T>(q, &mut a, q_row, q_rows, q_length, q_column + first, columns);
            load_tile::<T>(k, &mut b, k_row + key, keys - key, k_length, k_column + first, columns);
            sync_cube();
            rows_by_rows(&a, &b, &mut s);
            sync_cube();
            load_tile::<T>(dout, &mut a, q_row, q_rows, q_length, q_column + first, columns);
            load_tile::<T>(v, &mut b, k_row + key, keys - key, k_length, k_column + first, columns);
            sync_cube();
            rows_by_rows(&a, &b, &mut dp);
        }
        score_gradients(
            &mut s,
            &mut dp,
            lse,
            delta,
            q_row + own_row,
            q_row + q_rows,
            head,
            comptime!(heads).runtime(),
            key + own_column,
            keys,
            position + own_row,
            scale,
            cap,
            window,
            softcap,
            windowed,
        );
        #[unroll]
        for i in 0..comptime!(OWN) {
            #[unroll]
            for j in 0..comptime!(OWN) {
                ds[(own_row + i) * comptime!(PITCH) + own_column + j] = dp[comptime!(i * OWN + j)];
            }
        }
        #[unroll]
        for chunk in 0..chunks {
            let first = comptime!(chunk * TILE);
            let columns = comptime!((head_dim - chunk * TILE).min(TILE));
            sync_cube();
            load_tile::<T>(
                k,
                &mut b,
                k_row + key,
                keys - key,
                comptime!(kv_heads * head_dim),
                k_column + first,
                columns,
            );
            sync_cube();
            rows_by_columns(&ds, &b, &mut sums, comptime!(chunk * OWN * OWN));
        }
        key += comptime!(TILE);
    }
    #[unroll]
    for i in 0..comptime!(OWN) {
        if own_row + i < q_rows {
            let row = (q_row + own_row + i) * comptime!(heads * head_dim) + q_column;
            #[unroll]
            for chunk in 0..chunks {
                #[unroll]
                for j in 0..comptime!(OWN) {
                    let column = comptime!(chunk * TILE) + own_column + j;
                    if column < comptime!(head_dim) {
                        dq[row + column] =
                            T::cast_from(sums[comptime!(chunk * OWN * OWN) + i * comptime!(OWN) + j]);
                    }
                }
            }
        }
    }
}

#[cube(launch_unchecked)]
fn key_kernel<T: Float>(
    dout: &Array<T>,
    q: &Array<T>,
    k: &Array<T>,
    v: &Array<T>,
    lse: &Array<f32>,
    delta: &Array<f32>,
    tiles: &Array<u32>,
    dk: &mut Array<T>,
    dv: &mut Array<T>,
    scale: f32,
    cap: f32,
    window: usize,
    #[comptime] heads: usize,
    #[comptime] kv_heads: usize,
    #[comptime] head_dim: usize,
    #[comptime] softcap: bool,
    #[comptime] windowed: bool,
    #[define(T)] _dtype: StorageType,
) {
    let chunks = comptime!(head_dim.div_ceil(TILE));
    let group = comptime!(heads / kv_heads);
    let mut a = SharedMemory::<f32>::new(comptime!(TILE * PITCH));
    let mut b = SharedMemory::<f32>::new(comptime!(TILE * PITCH));
    let mut ps = SharedMemory::<f32>::new(comptime!(TILE * PITCH));

    let entry = CUBE_POS_X as usize * comptime!(ENTRY);
    let k_row = tiles[entry] as usize;
    let keys = tiles[entry + 1] as usize;
    let key = tiles[entry + 2] as usize;
    let q_row = tiles[entry + 3] as usize;
    let queries = tiles[entry + 4] as usize;
    let offset = keys - queries;
    let kv_head = CUBE_POS_Y as usize;
    let k_column = kv_head * comptime!(head_dim);
    let own_row = (UNIT_POS as usize / comptime!(SIDE)) * comptime!(OWN);
    let own_column = (UNIT_POS as usize % comptime!(SIDE)) * comptime!(OWN);

    let mut key_sums = Array::<f32>::new(comptime!(OWN * OWN * chunks));
    let mut value_sums = Array::<f32>::new(comptime!(OWN * OWN * chunks));
    #[unroll]
    for i in 0..comptime!(OWN * OWN * chunks) {
        key_sums[i] = 0.0f32;
        value_sums[i] = 0.0f32;
    }
    // The first query whose position reaches the first key, and the end of those whose window still holds the last.
    let mut start = 0usize;
    if key > offset {
        start = (key - offset) / comptime!(TILE) * comptime!(TILE);
    }
    let mut end = queries;
    if windowed {
        let last = min(key + comptime!(TILE), keys) - 1;
        if last + window < offset {
            end = 0usize;
        } else {
            end = min(queries, last + window - offset);
        }
    }
    for member in 0..group {
        let head = kv_head * group + member;
        let q_column = head * comptime!(head_dim);
        let mut query = start;
        while query < end {
            let mut s = Array::<f32>::new(comptime!(OWN * OWN));
            let mut dp = Array::<f32>::new(comptime!(OWN * OWN));
            #[unroll]
            for i in 0..comptime!(OWN * OWN) {
                s[i] = 0.0f32;
                dp[i] = 0.0f32;
            }
            let q_length = comptime!(heads * head_dim);
            let k_length = comptime!(kv_heads * head_dim);
            #[unroll]
            for chunk in 0..chunks {
                let first = comptime!(chunk * TILE);
                let columns = comptime!((head_dim - chunk * TILE).min(TILE));
                sync_cube();
                load_tile::<T>(
                    q,
                    &mut a,
                    q_row + query,
                    queries - query,
                    q_length,
                    q_column + first,
                    columns,
                );
                load_tile::<T>(k, &mut b, k_row + key, keys - key, k_length, k_column + first, columns);
                sync_cube();
                rows_by_rows(&a, &b, &mut s);
                sync_cube();
                load_tile::<T>(
                    dout,
                    &mut a,
                    q_row + query,
                    queries - query,
                    q_length,
                    q_column + first,
                    columns,
                );
                load_tile::<T>(v, &mut b, k_row + key, keys - key, k_length, k_column + first, columns);
                sync_cube();
                rows_by_rows(&a, &b, &mut dp);
            }
            score_gradients(
                &mut s,
                &mut dp,
                lse,
                delta,
                q_row + query + own_row,
                q_row + queries,
                head,
                comptime!(heads).runtime(),
                key + own_column,
                keys,
                offset + query + own_row,
                scale,
                cap,
                window,
                softcap,
                windowed,
            );
            sync_cube();
            #[unroll]
            for i in 0..comptime!(OWN) {
                #[unroll]
                for j in 0..comptime!(OWN) {
                    ps[(own_row + i) * comptime!(PITCH) + own_column + j] = s[comptime!(i * OWN + j)];
                    b[(own_row + i) * comptime!(PITCH) + own_column + j] = dp[comptime!(i * OWN + j)];
                }
            }
            #[unroll]
            for chunk in 0..chunks {
                let first = comptime!(chunk * TILE);
                let columns = comptime!((head_dim - chunk * TILE).min(TILE));
                sync_cube();
                load_tile::<T>(
                    dout,
                    &mut a,
                    q_row + query,
                    queries - query,
                    q_length,
                    q_column + first,
                    columns,
                );
                sync_cube();
                columns_by_columns(&ps, &a, &mut value_sums, comptime!(chunk * OWN * OWN));
                sync_cube();
                load_tile::<T>(
                    q,
                    &mut a,
                    q_row + query,
                    queries - query,
                    q_length,
                    q_column + first,
                    columns,
                );
                sync_cube();
                columns_by_columns(&b, &a, &mut key_sums, comptime!(chunk * OWN * OWN));
            }
            query += comptime!(TILE);
        }
    }
    #[unroll]
    for i in 0..comptime!(OWN) {
        if key + own_row + i < keys {
            let row = (k_row + key + own_row + i) * comptime!(kv_heads * head_dim) + k_column;
            #[unroll]
            for chunk in 0..chunks {
                #[unroll]
                for j in 0..comptime!(OWN) {
                    let column = comptime!(chunk * TILE) + own_column + j;
                    if column < comptime!(head_dim) {
                        let at = comptime!(chunk * OWN * OWN + i * OWN + j);
                        dk[row + column] = T::cast_from(key_sums[at]);
                        dv[row + column] = T::cast_from(value_sums[at]);
                    }
                }
            }
        }
    }
}

pub(in super::super) fn backward<R: CubeRuntime, F, I, BT>(
    dout: CubeTensor<R>,
    saved: Saved<Cube<R, F, I, BT>>,
    spec: &AttentionSpec,
) -> (CubeTensor<R>, CubeTensor<R>, CubeTensor<R>)
where
    F: burn_cubecl::FloatElement,
    I: burn_cubecl::IntElement,
    BT: burn_cubecl::BoolElement,
{
    let Saved { q, k, v, out, lse } = saved;
    let [dout, q, k, v, out, lse] = [dout, q, k, v, out, lse].map(rows);
    let ([queries, _], [keys, _]) = (dims(&q), dims(&k));
    let client = q.client.clone();
    let output = |like: &CubeTensor<R>, all: bool| match all {
        true => empty(like, like.shape(), like.dtype),
        false => zeros(like, like.shape(), like.dtype),
    };
    let (all_queries, all_keys) = covers_all(&spec.spans, queries, keys);
    let (dq, dk, dv) = (output(&q, all_queries), output(&k, all_keys), output(&v, all_keys));
    let delta = empty(&q, [queries, spec.heads], DType::F32);
    let (count, dim) = flat(&client, queries * spec.heads);
    let (q_tiles, k_tiles) = (query_tiles(&spec.spans, TILE), key_tiles(&spec.spans, TILE));
    if k_tiles.is_empty() {
        return (dq, dk, dv);
    }
    let units = CubeDim::new_1d((SIDE * SIDE) as u32);
    let (scale, cap, window) = (spec.scale, spec.softcap.unwrap_or(1.0), spec.window.unwrap_or(0));
    // SAFETY: the tiles lie inside of the tensors, which the caller checked for the spans.
    unsafe {
        delta_kernel::launch_unchecked::<R>(
            &client,
            count,
            dim,
            array(&dout, 1),
            array(&out, 1),
            array(&delta, 1),
            queries * spec.heads,
            spec.head_dim,
            q.dtype.into(),
        );
        if !q_tiles.is_empty() {
            query_kernel::launch_unchecked::<R>(
                &client,
                CubeCount::Static((q_tiles.len() / ENTRY) as u32, spec.heads as u32, 1),
                units,
                array(&dout, 1),
                array(&q, 1),
                array(&k, 1),
                array(&v, 1),
                array(&lse, 1),
                array(&delta, 1),
                upload(&client, &q_tiles),
                array(&dq, 1),
                scale,
                cap,
                window,
                spec.heads,
                spec.kv_heads,
                spec.head_dim,
                spec.softcap.is_some(),
                spec.window.is_some(),
                q.dtype.into(),
            );
        }
        key_kernel::launch_unchecked::<R>(
            &client,
            CubeCount::Static((k_tiles.len() / ENTRY) as u32, spec.kv_heads as u32, 1),
            units,
            array(&dout, 1),
            array(&q, 1),
            array(&k, 1),
            array(&v, 1),
            array(&lse, 1),
            array(&delta, 1),
            upload(&client, &k_tiles),
            array(&dk, 1),
            array(&dv, 1),
            scale,
            cap,
            window,
            spec.heads,
            spec.kv_heads,
            spec.head_dim,
            spec.softcap.is_some(),
            spec.window.is_some(),
            q.dtype.into(),
        );
    }
    (dq, dk, dv)
}
