//! The forward pass: one cube a tile of queries and head.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::super::tensors::{array, dims, empty, rows, upload, zeros};
use super::tiles::{
    ENTRY, OWN, PITCH, SIDE, TILE, capped, covers_all, load_tile, query_tiles, rows_by_columns, rows_by_rows,
    visible,
};
use crate::attention::AttentionSpec;

#[cube(launch_unchecked)]
fn forward_kernel<T: Float>(
    q: &Array<T>,
    k: &Array<T>,
    v: &Array<T>,
    tiles: &Array<u32>,
    out: &mut Array<T>,
    lse: &mut Array<f32>,
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
    let mut p = SharedMemory::<f32>::new(comptime!(TILE * PITCH));
    let mut partial = SharedMemory::<f32>::new(comptime!(TILE * SIDE));

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
    let lane = UNIT_POS as usize % comptime!(SIDE);

    let mut largest = Array::<f32>::new(comptime!(OWN));
    let mut sum = Array::<f32>::new(comptime!(OWN));
    #[unroll]
    for i in 0..comptime!(OWN) {
        largest[i] = f32::new(-1e30);
        sum[i] = 0.0f32;
    }
    let mut o = Array::<f32>::new(comptime!(OWN * OWN * chunks));
    #[unroll]
    for i in 0..comptime!(OWN * OWN * chunks) {
        o[i] = 0.0f32;
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
        #[unroll]
        for i in 0..comptime!(OWN * OWN) {
            s[i] = 0.0f32;
        }
        #[unroll]
        for chunk in 0..chunks {
            let first = comptime!(chunk * TILE);
            let columns = comptime!((head_dim - chunk * TILE).min(TILE));
            sync_cube();
            load_tile::<T>(q, &mut a, q_row, q_rows, comptime!(heads * head_dim), q_column + first, columns);
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
            rows_by_rows(&a, &b, &mut s);
        }
        #[unroll]
        for i in 0..comptime!(OWN) {
            let mut most = f32::new(-1e30);
            #[unroll]
            for j in 0..comptime!(OWN) {
                let mut score = f32::new(-1e30);
                if visible(key + own_column + j, keys, position + own_row + i, window, windowed) {
                    score = capped(s[i * comptime!(OWN) + j] * scale, cap, softcap);
                }
                s[i * comptime!(OWN) + j] = score;
                most = max(most, score);
            }
            partial[(own_row + i) * comptime!(SIDE) + lane] = most;
        }
        sync_cube();
        #[unroll]
        for i in 0..comptime!(OWN) {
            let mut most = largest[i];
            for other in 0..comptime!(SIDE) {
                most = max(most, partial[(own_row + i) * comptime!(SIDE) + other]);
            }
            let shrink = f32::exp(largest[i] - most);
            largest[i] = most;
            let mut added = 0.0f32;
            #[unroll]
            for j in 0..comptime!(OWN) {
                let mut probability = 0.0f32;
                // A hidden key counts nothing, also where no key of the row was visible yet.
                if s[i * comptime!(OWN) + j] > f32::new(-1e29) {
                    probability = f32::exp(s[i * comptime!(OWN) + j] - most);
                }
                added += probability;
                p[(own_row + i) * comptime!(PITCH) + own_column + j] = probability;
            }
            sum[i] = sum[i] * shrink + added;
            #[unroll]
            for chunk in 0..chunks {
                #[unroll]
                for j in 0..comptime!(OWN) {
                    o[comptime!(chunk * OWN * OWN) + i * comptime!(OWN) + j] *= shrink;
                }
            }
        }
        #[unroll]
        for chunk in 0..chunks {
            let first = comptime!(chunk * TILE);
            let columns = comptime!((head_dim - chunk * TILE).min(TILE));
            sync_cube();
            load_tile::<T>(
                v,
                &mut b,
                k_row + key,
                keys - key,
                comptime!(kv_heads * head_dim),
                k_column + first,
                columns,
            );
            sync_cube();
            rows_by_columns(&p, &b, &mut o, comptime!(chunk * OWN * OWN));
        }
        key += comptime!(TILE);
    }

    sync_cube();
    #[unroll]
    for i in 0..comptime!(OWN) {
        partial[(own_row + i) * comptime!(SIDE) + lane] = sum[i];
    }
    sync_cube();
    #[unroll]
    for i in 0..comptime!(OWN) {
        let mut total = 0.0f32;
        for other in 0..comptime!(SIDE) {
            total += partial[(own_row + i) * comptime!(SIDE) + other];
        }
        if own_row + i < q_rows {
            let row = q_row + own_row + i;
            if lane == 0 {
                lse[row * comptime!(heads) + head] = largest[i] + f32::ln(total);
            }
            #[unroll]
            for chunk in 0..chunks {
                #[unroll]
                for j in 0..comptime!(OWN) {
                    let column = comptime!(chunk * TILE) + own_column + j;
                    if column < comptime!(head_dim) {
                        out[row * comptime!(heads * head_dim) + q_column + column] =
                            T::cast_from(o[comptime!(chunk * OWN * OWN) + i * comptime!(OWN) + j] / total);
                    }
                }
            }
        }
    }
}

pub(in super::super) fn forward<R: CubeRuntime>(
    q: CubeTensor<R>,
    k: CubeTensor<R>,
    v: CubeTensor<R>,
    spec: &AttentionSpec,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let [q, k, v] = [q, k, v].map(rows);
    let [queries, _] = dims(&q);
    let lse_shape = [queries, spec.heads];
    let (out, lse) = match covers_all(&spec.spans, queries, 0).0 {
        true => (empty(&q, q.shape(), q.dtype), empty(&q, lse_shape, DType::F32)),
        false => (zeros(&q, q.shape(), q.dtype), zeros(&q, lse_shape, DType::F32)),
    };
    let tiles = query_tiles(&spec.spans, TILE);
    if tiles.is_empty() {
        return (out, lse);
    }
    // SAFETY: the tiles lie inside of the tensors, which the caller checked for the spans.
    unsafe {
        forward_kernel::launch_unchecked::<R>(
            &q.client,
            CubeCount::Static((tiles.len() / ENTRY) as u32, spec.heads as u32, 1),
            CubeDim::new_1d((SIDE * SIDE) as u32),
            array(&q, 1),
            array(&k, 1),
            array(&v, 1),
            upload(&q.client, &tiles),
            array(&out, 1),
            array(&lse, 1),
            spec.scale,
            spec.softcap.unwrap_or(1.0),
            spec.window.unwrap_or(0),
            spec.heads,
            spec.kv_heads,
            spec.head_dim,
            spec.softcap.is_some(),
            spec.window.is_some(),
            q.dtype.into(),
        );
    }
    (out, lse)
}
