//! One query against a cache: every key is read once, in place.

use std::ops::Range;

use super::forward::{Destination, cap_scores, exponentials};
use super::product::{Extent, Left, Output, Right, TileProduct};
use super::span::AttentionShape;
use super::{PAD, TILE_KEYS};
use crate::dispatch::per_isa;
use crate::softmax::maximum;

/// Floats that [`decode`] of so many visible keys works in.
pub(super) fn decode_scratch(shape: &AttentionShape, keys: usize) -> usize {
    let width = shape.head_dim.next_multiple_of(PAD);
    shape.group() * (keys + width + 2) + TILE_KEYS * width
}

/// Query row `query` against the rows of keys in `runs`, all of which it sees, for the heads of one key head.
#[inline(always)]
fn decode_body<V: TileProduct>(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    shape: &AttentionShape,
    query: usize,
    runs: &[Range<usize>],
    kv_head: usize,
    scratch: &mut [f32],
    result: Destination<'_>,
) {
    let (group, head_dim, stride) = (shape.group(), shape.head_dim, shape.kv_width());
    let width = head_dim.next_multiple_of(PAD);
    let keys: usize = runs.iter().map(Range::len).sum();
    let first_head = kv_head * group;
    let q = &q[query * shape.q_width() + first_head * head_dim..][..group * head_dim];
    let (scores, scratch) = scratch.split_at_mut(group * keys);
    let (sums, scratch) = scratch.split_at_mut(group * width);
    let (maxima, scratch) = scratch.split_at_mut(group);
    let (weights, copy) = scratch.split_at_mut(group);

    for (key, row) in runs.iter().cloned().flatten().enumerate() {
        let k = &k[row * stride + kv_head * head_dim..][..head_dim];
        for (head, q) in q.chunks_exact(head_dim).enumerate() {
            scores[head * keys + key] = dot::<V>(q, k) * shape.scale;
        }
    }
    for (head, scores) in scores.chunks_exact_mut(keys).enumerate() {
        cap_scores::<V>(scores, shape.softcap);
        maxima[head] = maximum::<V>(scores);
        weights[head] = exponentials::<V>(scores, maxima[head]);
    }
    let mut start = 0;
    for run in runs {
        for row in run.clone().step_by(TILE_KEYS) {
            let depth = (run.end - row).min(TILE_KEYS);
            let at = row * stride + kv_head * head_dim;
            let right = if head_dim.is_multiple_of(V::LANES) {
                let values = &v[at..at + (depth - 1) * stride + head_dim];
                Right { at: values.as_ptr(), step: stride, vector: V::LANES }
            } else {
                for (key, copy) in copy.chunks_exact_mut(width).take(depth).enumerate() {
                    copy[..head_dim].copy_from_slice(&v[at + key * stride..][..head_dim]);
                    copy[head_dim..].fill(0.0);
                }
                Right { at: copy.as_ptr(), step: width, vector: V::LANES }
            };
            // SAFETY: `scores` has `group` rows of `keys`; in place, the vectors of a row end with its head and
            // the slice ends with the last row; copied rows have `width` elements.
            unsafe {
                V::product(
                    Extent { rows: group, vectors: head_dim.div_ceil(V::LANES), depth },
                    Left { at: scores[start..].as_ptr(), row: keys, step: 1 },
                    right,
                    Output { at: sums.as_mut_ptr(), row: width },
                    start > 0,
                );
            }
            start += depth;
        }
    }
    for (head, sums) in sums.chunks_exact(width).enumerate() {
        // SAFETY: this task alone has this query for the heads of this key head.
        unsafe {
            result.write::<V>(shape, query, first_head + head, sums, maxima[head], weights[head]);
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
    q: &[f32], k: &[f32], v: &[f32], shape: &AttentionShape, query: usize, runs: &[Range<usize>], kv_head: usize,
    scratch: &mut [f32], result: Destination<'_>
));
