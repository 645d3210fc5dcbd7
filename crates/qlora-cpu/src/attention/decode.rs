//! One query against a cache: every key is read once, in place.

use super::forward::{Destination, cap_scores, exponentials};
use super::product::{Extent, Left, Output, Right, TileProduct};
use super::span::{AttentionShape, AttentionSpan};
use super::{PAD, TILE_KEYS};
use crate::dispatch::per_isa;
use crate::softmax::maximum;

/// Floats that [`decode`] works in.
pub(super) fn decode_scratch(shape: &AttentionShape, span: &AttentionSpan) -> usize {
    let width = shape.head_dim.next_multiple_of(PAD);
    shape.group() * (shape.visible(span, 0).len() + width + 2) + TILE_KEYS * width
}

#[inline(always)]
fn decode_body<V: TileProduct>(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    shape: &AttentionShape,
    span: &AttentionSpan,
    kv_head: usize,
    scratch: &mut [f32],
    result: Destination<'_>,
) {
    let (group, head_dim, stride) = (shape.group(), shape.head_dim, shape.kv_width());
    let width = head_dim.next_multiple_of(PAD);
    let visible = shape.visible(span, 0);
    let keys = visible.len();
    let first_key = (span.k_start + visible.start) * stride + kv_head * head_dim;
    let first_head = kv_head * group;
    let q = &q[span.q_start * shape.q_width() + first_head * head_dim..][..group * head_dim];
    let (scores, scratch) = scratch.split_at_mut(group * keys);
    let (sums, scratch) = scratch.split_at_mut(group * width);
    let (maxima, scratch) = scratch.split_at_mut(group);
    let (weights, copy) = scratch.split_at_mut(group);

    for key in 0..keys {
        let k = &k[first_key + key * stride..][..head_dim];
        for (head, q) in q.chunks_exact(head_dim).enumerate() {
            scores[head * keys + key] = dot::<V>(q, k) * shape.scale;
        }
    }
    for (head, scores) in scores.chunks_exact_mut(keys).enumerate() {
        cap_scores::<V>(scores, shape.softcap);
        maxima[head] = maximum::<V>(scores);
        weights[head] = exponentials::<V>(scores, maxima[head]);
    }
    for start in (0..keys).step_by(TILE_KEYS) {
        let depth = (keys - start).min(TILE_KEYS);
        let at = first_key + start * stride;
        let right = if head_dim.is_multiple_of(V::LANES) {
            Right { at: v[at..at + (depth - 1) * stride + head_dim].as_ptr(), step: stride, vector: V::LANES }
        } else {
            for (key, copy) in copy.chunks_exact_mut(width).take(depth).enumerate() {
                copy[..head_dim].copy_from_slice(&v[at + key * stride..][..head_dim]);
                copy[head_dim..].fill(0.0);
            }
            Right { at: copy.as_ptr(), step: width, vector: V::LANES }
        };
        // SAFETY: `scores` has `group` rows of `keys`; in place, the vectors of a row end with its head and the
        // slice ends with the last row; copied rows have `width` elements.
        unsafe {
            V::product(
                Extent { rows: group, vectors: head_dim.div_ceil(V::LANES), depth },
                Left { at: scores[start..].as_ptr(), row: keys, step: 1 },
                right,
                Output { at: sums.as_mut_ptr(), row: width },
                start > 0,
            );
        }
    }
    for (head, sums) in sums.chunks_exact(width).enumerate() {
        // SAFETY: this task alone has this query for the heads of this key head.
        unsafe {
            result.write::<V>(shape, span.q_start, first_head + head, sums, maxima[head], weights[head]);
        }
    }
}

#[inline(always)]
fn dot<V: TileProduct>(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [V::zero(); 4];
    for (a, b) in a.chunks(4 * V::LANES).zip(b.chunks(4 * V::LANES)) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.chunks(V::LANES).zip(b.chunks(V::LANES))) {
            *sum = V::load(a).mul_add(V::load(b), *sum);
        }
    }
    ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum()
}

per_isa!(pub(super) fn decode = decode_body(
    q: &[f32], k: &[f32], v: &[f32], shape: &AttentionShape, span: &AttentionSpan, kv_head: usize,
    scratch: &mut [f32], result: Destination<'_>
));
