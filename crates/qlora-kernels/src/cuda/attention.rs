//! Attention on tensor cores: forward for Hopper, backward for Ampere and later.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::CubeElement;
use cubecl_cuda::CudaRuntime;

use super::architecture::{architecture, multiprocessors};
use super::same;
use super::source::{Kernel, Map};
use crate::attention::{AttentionSpan, AttentionSpec};
use crate::cube::attention::covers_all;
use crate::cube::tensors::{dims, empty, rows, zeros};
use crate::tier::native_over_cube;

type Tensor = CubeTensor<CudaRuntime>;

/// Queries of a tile of the forward pass.
const FORWARD_TILE: usize = 128;
/// Queries, or keys, of a tile of the backward pass.
const BACKWARD_TILE: usize = 64;
/// Words of a tile's entry: the span, and the number of the tile in it.
const ENTRY: usize = 5;

/// Tiles of `length(span)` rows, those with the most work first.
fn tiles(
    spans: &[AttentionSpan],
    rows: usize,
    length: fn(&AttentionSpan) -> usize,
    work: fn(&AttentionSpan, usize) -> usize,
) -> Vec<u32> {
    let mut tiles = Vec::new();
    for span in spans {
        for tile in 0..length(span).div_ceil(rows) {
            let entry = [span.q_start, span.q_len, span.k_start, span.k_len, tile];
            tiles.push((work(span, tile * rows), entry));
        }
    }
    tiles.sort_by_key(|(work, _)| std::cmp::Reverse(*work));
    tiles.into_iter().flat_map(|(_, entry)| entry).map(|word| word as u32).collect()
}

/// Late queries see the most keys.
fn query_tiles(spans: &[AttentionSpan], rows: usize) -> Vec<u32> {
    tiles(spans, rows, |span| span.q_len, |span, start| span.k_len - span.q_len + start)
}

/// Early keys are seen by the most queries.
fn key_tiles(spans: &[AttentionSpan], rows: usize) -> Vec<u32> {
    tiles(spans, rows, |span| span.k_len, |span, start| span.k_len - start)
}

fn half(t: &Tensor) -> bool {
    matches!(t.dtype, DType::BF16 | DType::F16)
}

/// Scale, soft cap and window, as the kernels take them: floats as bits, 0 for none.
fn settings(spec: &AttentionSpec) -> [u64; 3] {
    let bits = |value: f32| u64::from(value.to_bits());
    [bits(spec.scale), bits(spec.softcap.unwrap_or(0.0)), spec.window.unwrap_or(0) as u64]
}

/// The output and the log-sum-exp of each row. `None` where another body has to do it.
pub(crate) fn attention_forward<R: CubeRuntime>(
    q: &CubeTensor<R>,
    k: &CubeTensor<R>,
    v: &CubeTensor<R>,
    spec: &AttentionSpec,
) -> Option<(CubeTensor<R>, CubeTensor<R>)> {
    let [q, k, v] = [q, k, v].map(|t| same::<_, Tensor>(rows(t.clone())));
    let (q, k, v) = (q?, k?, v?);
    let sizes = matches!(spec.head_dim, 64 | 128) && !spec.spans.is_empty();
    if !native_over_cube(sizes && half(&q) && architecture(&q.device) == 90) {
        return None;
    }
    let ([queries, _], [keys, _]) = (dims(&q), dims(&k));
    let whole = covers_all(&spec.spans, queries, keys).0;
    let make = if whole { empty } else { zeros };
    let (out, lse) = (make(&q, q.shape(), q.dtype), make(&q, [queries, spec.heads].into(), DType::F32));
    let tiles = query_tiles(&spec.spans, FORWARD_TILE);
    let count = tiles.len() / ENTRY;
    if count == 0 {
        return Some((same(out)?, same(lse)?));
    }
    let map = |t: &Tensor| Map {
        handle: t.handle.clone(),
        shape: dims(t),
        tile: [FORWARD_TILE, 64],
        element: t.dtype.into(),
    };
    let kernel = Kernel {
        entry: "attention_forward",
        text: include_str!("kernels/attention_forward_sm90.cu"),
        defines: vec![
            ("HEAD_DIM", spec.head_dim),
            ("IS_BF16", usize::from(q.dtype == DType::BF16)),
            ("SOFTCAP", usize::from(spec.softcap.is_some())),
        ],
        threads: 384,
        shared: 1024 + FORWARD_TILE * spec.head_dim * 2 * 6 + 128,
    };
    let [scale, softcap, window] = settings(spec);
    let [queries, keys, heads, kv_heads] = [queries, keys, spec.heads, spec.kv_heads].map(|size| size as u64);
    let info = vec![queries, keys, heads, kv_heads, scale, softcap, window, count as u64];
    let blocks = multiprocessors(&q.device).min(count * spec.heads);
    let tiles = q.client.create_from_slice(u32::as_bytes(&tiles));
    let buffers = vec![out.handle.clone(), lse.handle.clone(), tiles];
    kernel.launch(&q.client, (blocks, 1, 1), vec![map(&q), map(&k), map(&v)], buffers, info);
    Some((same(out)?, same(lse)?))
}

/// What the backward pass reads.
pub(crate) struct BackwardInputs<R: CubeRuntime> {
    pub(crate) dout: CubeTensor<R>,
    pub(crate) q: CubeTensor<R>,
    pub(crate) k: CubeTensor<R>,
    pub(crate) v: CubeTensor<R>,
    pub(crate) out: CubeTensor<R>,
    pub(crate) lse: CubeTensor<R>,
}

/// Gradients of q, k and v.
pub(crate) fn attention_backward<R: CubeRuntime>(
    inputs: &BackwardInputs<R>,
    spec: &AttentionSpec,
) -> Option<(CubeTensor<R>, CubeTensor<R>, CubeTensor<R>)> {
    let BackwardInputs { dout, q, k, v, out, lse } = inputs;
    let [dout, q, k, v, out, lse] = [dout, q, k, v, out, lse].map(|t| same::<_, Tensor>(rows(t.clone())));
    let (dout, q, k, v, out, lse) = (dout?, q?, k?, v?, out?, lse?);
    let sizes = matches!(spec.head_dim, 32 | 64 | 96 | 128) && !spec.spans.is_empty();
    let generation = architecture(&q.device);
    if !native_over_cube(sizes && half(&q) && generation >= 80) {
        return None;
    }
    let ([queries, _], [keys, _]) = (dims(&q), dims(&k));
    let (all_queries, all_keys) = covers_all(&spec.spans, queries, keys);
    let make = |like: &Tensor, all: bool| {
        if all { empty(like, like.shape(), like.dtype) } else { zeros(like, like.shape(), like.dtype) }
    };
    let (dq, dk, dv) = (make(&q, all_queries), make(&k, all_keys), make(&v, all_keys));
    let delta = empty(&q, [queries, spec.heads], DType::F32);
    let head_dim = spec.head_dim;
    let kernel = |entry, threads, shared| Kernel {
        entry,
        text: include_str!("kernels/attention_backward.cu"),
        defines: vec![
            ("HEAD_DIM", head_dim),
            ("IS_BF16", usize::from(q.dtype == DType::BF16)),
            ("SOFTCAP", usize::from(spec.softcap.is_some())),
            ("WGMMA", usize::from(generation == 90)),
        ],
        threads,
        shared,
    };
    let [scale, softcap, window] = settings(spec);
    let sizes = [queries, keys, spec.heads, spec.kv_heads].map(|size| size as u64);
    let info = [&sizes[..], &[scale, softcap, window]].concat();
    let handles = |tensors: &[&Tensor]| tensors.iter().map(|t| t.handle.clone()).collect::<Vec<_>>();

    let delta_rows = match head_dim {
        32 => 64,
        64 => 32,
        _ => 16,
    };
    let blocks = (queries * spec.heads).div_ceil(delta_rows);
    let buffers = handles(&[&out, &dout, &delta]);
    kernel("attention_delta", 256, 0).launch(&q.client, (blocks, 1, 1), vec![], buffers, info.clone());

    let shared = 6 * 8192 * head_dim.div_ceil(64) + 2048;
    let pass = |entry, tiles: Vec<u32>, heads: usize, outputs: &[&Tensor]| {
        if tiles.is_empty() {
            return;
        }
        let grid = (tiles.len() / ENTRY, heads, 1);
        let mut buffers = handles(&[&q, &k, &v, &dout, &lse, &delta]);
        buffers.extend(handles(outputs));
        buffers.push(q.client.create_from_slice(u32::as_bytes(&tiles)));
        kernel(entry, 128, shared).launch(&q.client, grid, vec![], buffers, info.clone());
    };
    pass("attention_backward_kv", key_tiles(&spec.spans, BACKWARD_TILE), spec.kv_heads, &[&dk, &dv]);
    pass("attention_backward_q", query_tiles(&spec.spans, BACKWARD_TILE), spec.heads, &[&dq]);
    Some((same(dq)?, same(dk)?, same(dv)?))
}
