//! Causal attention within spans: packed sequences, grouped queries, windows and soft caps.
//!
//! `out = softmax(softcap(q kᵀ · scale) + mask) v`. A [`AttentionSpan`] is one sequence; nothing attends
//! across spans, so a batch of sequences of any length needs no padding. Queries are aligned with the
//! end of the keys, so that training (as many queries as keys) and cached decoding (few queries, many
//! keys) are one operation.
//!
//! Backward, from the rows' log-sum-exp (Dao 2023, <https://arxiv.org/abs/2307.08691>):
//! `P = exp(S − lse)`, `dV = Pᵀ dO`, `dS = P ⊙ (dO Vᵀ − rowsum(dO ⊙ O))`, through the soft cap times
//! `1 − (S/cap)²`, then `dQ = dS K · scale`, `dK = dSᵀ Q · scale`.

use std::sync::Arc;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Int, Tensor, TensorData};

use crate::KernelBackend;
use crate::primitive::{primitive, statistics_dtype, tensor};
use crate::weight::Compute;

/// Rows of queries and of keys that belong to one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionSpan {
    /// First row of its queries.
    pub q_start: usize,
    /// Number of queries, at most `k_len`.
    pub q_len: usize,
    /// First row of its keys and values.
    pub k_start: usize,
    /// Number of keys: query `i` sees keys `0..=k_len − q_len + i` of the span.
    pub k_len: usize,
}

impl AttentionSpan {
    /// One span a sequence, for sequences that lie one after the other: training and first passes.
    #[must_use]
    pub fn sequences(lengths: &[usize]) -> Vec<Self> {
        let mut start = 0;
        let mut spans = Vec::with_capacity(lengths.len());
        for &length in lengths {
            spans.push(Self { q_start: start, q_len: length, k_start: start, k_len: length });
            start += length;
        }
        spans
    }
}

/// What attention computes.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; `heads` is a multiple. Query head `h` reads head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// Factor of the scores, commonly `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// A query at position p sees keys in `(p − window, p]`.
    pub window: Option<usize>,
    /// In what type products are computed.
    pub compute: Compute,
    /// The sequences.
    pub spans: Arc<[AttentionSpan]>,
}

/// What the backward pass keeps.
#[derive(Clone, Debug)]
pub struct Saved<B: KernelBackend> {
    /// Queries `[queries, heads · d]`.
    pub q: FloatTensor<B>,
    /// Keys `[keys, kv_heads · d]`.
    pub k: FloatTensor<B>,
    /// Values `[keys, kv_heads · d]`.
    pub v: FloatTensor<B>,
    /// The output.
    pub out: FloatTensor<B>,
    /// Log-sum-exp of the scores `[queries, heads]`.
    pub lse: FloatTensor<B>,
}

/// Attention of `q` `[queries, heads · d]` over `k` and `v` `[keys, kv_heads · d]`: `[queries, heads · d]`.
///
/// Differentiable in q, k and v. Rows that no span covers are zero.
///
/// # Panics
/// When a span lies outside of the rows, has more queries than keys, or the sizes do not agree with `spec`.
#[must_use]
pub fn attention<B: KernelBackend>(
    q: Tensor<B, 2>,
    k: Tensor<B, 2>,
    v: Tensor<B, 2>,
    spec: &AttentionSpec,
) -> Tensor<B, 2> {
    let ([queries, width], [keys, kv_width]) = (q.dims(), k.dims());
    assert_eq!(width, spec.heads * spec.head_dim, "queries are [rows, heads * head_dim]");
    assert_eq!(kv_width, spec.kv_heads * spec.head_dim, "keys are [rows, kv_heads * head_dim]");
    assert_eq!(v.dims(), [keys, kv_width], "values are as keys");
    assert_eq!(spec.heads % spec.kv_heads, 0, "heads is a multiple of kv_heads");
    for span in spec.spans.iter() {
        assert!(span.q_len <= span.k_len, "more queries than keys in {span:?}");
        assert!(
            span.q_start + span.q_len <= queries && span.k_start + span.k_len <= keys,
            "{span:?} is outside"
        );
    }
    tensor(B::causal_attention(primitive(q), primitive(k), primitive(v), spec))
}

/// Splits rows of a span into heads, `[heads, rows, d]`.
fn split<B: KernelBackend>(
    x: &Tensor<B, 2>,
    start: usize,
    len: usize,
    heads: usize,
    dtype: DType,
) -> Tensor<B, 3> {
    let d = x.dims()[1] / heads;
    x.clone().narrow(0, start, len).reshape([len, heads, d]).swap_dims(0, 1).cast(dtype)
}

/// Joins heads `[heads, rows, d]` to rows `[rows, heads · d]`.
fn join<B: KernelBackend>(x: Tensor<B, 3>, dtype: DType) -> Tensor<B, 2> {
    let [heads, rows, d] = x.dims();
    x.swap_dims(0, 1).reshape([rows, heads * d]).cast(dtype)
}

/// Repeats each key head for the query heads that read it.
fn repeat<B: KernelBackend>(x: Tensor<B, 3>, times: usize) -> Tensor<B, 3> {
    let [heads, rows, d] = x.dims();
    x.unsqueeze_dim::<4>(1).repeat_dim(1, times).reshape([heads * times, rows, d])
}

/// Sums the gradients of the query heads that read one key head.
fn gather_groups<B: KernelBackend>(x: Tensor<B, 3>, times: usize) -> Tensor<B, 3> {
    let [heads, rows, d] = x.dims();
    x.reshape([heads / times, times, rows, d]).sum_dim(1).squeeze_dim::<3>(1)
}

/// Scores after the soft cap `[heads, q, k]`, and the additive mask `[1, q, k]`.
fn scores<B: KernelBackend>(
    q: Tensor<B, 3>,
    k: Tensor<B, 3>,
    span: AttentionSpan,
    spec: &AttentionSpec,
) -> (Tensor<B, 3>, Tensor<B, 3>) {
    let device = q.device();
    let dtype = q.dtype();
    let mut s = spec.compute.round(q).matmul(spec.compute.round(k).swap_dims(1, 2)) * spec.scale;
    if let Some(cap) = spec.softcap {
        s = (s / cap).tanh() * cap;
    }
    let offset = span.k_len - span.q_len;
    let mut mask = vec![0f32; span.q_len * span.k_len];
    for i in 0..span.q_len {
        for j in 0..span.k_len {
            let visible = j <= i + offset && spec.window.is_none_or(|w| j + w > i + offset);
            if !visible {
                mask[i * span.k_len + j] = -1e30;
            }
        }
    }
    let mask = TensorData::new(mask, [1, span.q_len, span.k_len]);
    (s, Tensor::<B, 3>::from_data(mask, (&device, DType::F32)).cast(dtype))
}

pub(crate) fn forward<B: KernelBackend>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    spec: &AttentionSpec,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (q, k, v) = (tensor::<B, 2>(q), tensor::<B, 2>(k), tensor::<B, 2>(v));
    let dtype = q.dtype();
    let wide = statistics_dtype(dtype);
    let device = q.device();
    let groups = spec.heads / spec.kv_heads;
    let [queries, width] = q.dims();
    let mut out = Tensor::<B, 2>::zeros([queries, width], (&device, dtype));
    let mut lse = Tensor::<B, 2>::zeros([queries, spec.heads], (&device, wide));
    for &span in spec.spans.iter().filter(|span| span.q_len > 0) {
        let qs = split(&q, span.q_start, span.q_len, spec.heads, wide);
        let ks = repeat(split(&k, span.k_start, span.k_len, spec.kv_heads, wide), groups);
        let vs = repeat(split(&v, span.k_start, span.k_len, spec.kv_heads, wide), groups);
        let (s, mask) = scores(qs, ks, span, spec);
        let s = s + mask;
        let max = s.clone().max_dim(2);
        let sum = (s.clone() - max.clone()).exp().sum_dim(2);
        let row_lse = sum.log() + max;
        let p = (s - row_lse.clone()).exp();
        let o = spec.compute.round(p).matmul(spec.compute.round(vs));
        let rows = span.q_start..span.q_start + span.q_len;
        out = out.slice_assign([rows.clone(), 0..width], join(o, dtype));
        lse = lse.slice_assign([rows, 0..spec.heads], row_lse.squeeze_dim::<2>(2).transpose());
    }
    (primitive(out), primitive(lse))
}

pub(crate) fn backward<B: KernelBackend>(
    dout: FloatTensor<B>,
    saved: Saved<B>,
    spec: &AttentionSpec,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let dout = tensor::<B, 2>(dout);
    let (q, k, v) = (tensor::<B, 2>(saved.q), tensor::<B, 2>(saved.k), tensor::<B, 2>(saved.v));
    let (out, lse) = (tensor::<B, 2>(saved.out), tensor::<B, 2>(saved.lse));
    let dtype = q.dtype();
    let wide = statistics_dtype(dtype);
    let groups = spec.heads / spec.kv_heads;
    let (mut dq, mut dk, mut dv) = (q.zeros_like(), k.zeros_like(), v.zeros_like());
    let round = |x: Tensor<B, 3>| spec.compute.round(x);
    for &span in spec.spans.iter().filter(|span| span.q_len > 0) {
        let qs = split(&q, span.q_start, span.q_len, spec.heads, wide);
        let ks = repeat(split(&k, span.k_start, span.k_len, spec.kv_heads, wide), groups);
        let vs = repeat(split(&v, span.k_start, span.k_len, spec.kv_heads, wide), groups);
        let dos = split(&dout, span.q_start, span.q_len, spec.heads, wide);
        let os = split(&out, span.q_start, span.q_len, spec.heads, wide);
        let row_lse = lse.clone().narrow(0, span.q_start, span.q_len).transpose().unsqueeze_dim::<3>(2);
        let (s, mask) = scores(qs.clone(), ks.clone(), span, spec);
        let p = (s.clone() + mask - row_lse).exp();
        let dp = round(dos.clone()).matmul(round(vs).swap_dims(1, 2));
        let mut ds = p.clone() * (dp - (dos.clone() * os).sum_dim(2));
        if let Some(cap) = spec.softcap {
            ds = ds * ((s / cap).powf_scalar(2.0).neg() + 1.0);
        }
        let ds = round(ds * spec.scale);
        let dvs = round(p).swap_dims(1, 2).matmul(round(dos));
        let dqs = ds.clone().matmul(round(ks));
        let dks = ds.swap_dims(1, 2).matmul(round(qs));
        let q_rows = span.q_start..span.q_start + span.q_len;
        let k_rows = span.k_start..span.k_start + span.k_len;
        let [_, width] = dq.dims();
        let [_, kv_width] = dk.dims();
        dq = dq.slice_assign([q_rows, 0..width], join(dqs, dtype));
        dk = dk.slice_assign([k_rows.clone(), 0..kv_width], join(gather_groups(dks, groups), dtype));
        dv = dv.slice_assign([k_rows, 0..kv_width], join(gather_groups(dvs, groups), dtype));
    }
    (primitive(dq), primitive(dk), primitive(dv))
}

/// Reference: a scatter of whole rows.
pub(crate) fn write_rows<B: KernelBackend>(
    cache: FloatTensor<B>,
    rows: FloatTensor<B>,
    at: &[u32],
) -> FloatTensor<B> {
    let (cache, rows) = (tensor::<B, 2>(cache), tensor::<B, 2>(rows));
    let device = cache.device();
    let at: Vec<i64> = at.iter().map(|row| i64::from(*row)).collect();
    let count = at.len();
    let at = Tensor::<B, 1, Int>::from_data(TensorData::new(at, [count]), &device);
    // Adding the difference is the one scatter that every backend has.
    let old = cache.clone().select(0, at.clone());
    primitive(cache.select_assign(0, at, rows - old, burn::tensor::IndexingUpdateOp::Add))
}
