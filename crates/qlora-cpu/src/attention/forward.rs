//! The forward pass: online softmax over tiles of keys.

use super::decode::{decode, decode_scratch};
use super::packed::{HeadRows, KeyHead, KeyHeads, Shared, pack_panels};
use super::product::{Extent, Left, Output, Right, TileProduct};
use super::span::{AttentionShape, AttentionSpan};
use super::{PAD, SEQUENTIAL_PRODUCTS, TILE_KEYS, TILE_ROWS};
use crate::dispatch::{current_isa, per_isa};
use crate::exp::{exp, tanh};
use crate::parallel::for_each;
use crate::scratch::{KEYS, TILE};
use crate::softmax::maximum;
use crate::vector::Vector;

/// Attention of every query of `spans`.
///
/// `q` and `out` are `[queries, heads · head_dim]`, `k` and `v` `[keys, kv_heads · head_dim]`; `lse`,
/// `[queries, heads]`, receives the logarithm of the sum of the exponentials of the scores, which the
/// backward pass needs. Rows of `out` and `lse` that belong to no span are left as they are.
///
/// # Panics
/// When shape, spans and slices do not fit together, or two spans write the same query.
pub fn attention(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    shape: &AttentionShape,
    spans: &[AttentionSpan],
    out: &mut [f32],
    mut lse: Option<&mut [f32]>,
) {
    shape.check(spans, q.len(), k.len(), v.len());
    assert_eq!(out.len(), q.len(), "out and q differ in length");
    let rows = q.len() / shape.q_width();
    assert!(lse.as_ref().is_none_or(|lse| lse.len() == rows * shape.heads), "lse is not [queries, heads]");
    let isa = current_isa();
    let shared_out = Shared::new(out);
    let shared_lse = lse.as_mut().map(|lse| Shared::new(lse));
    let result = Destination { out: &shared_out, lse: shared_lse.as_ref() };
    let one = shape.products(spans) < SEQUENTIAL_PRODUCTS;

    let single: Vec<_> = spans.iter().filter(|span| span.q_len == 1).collect();
    let tasks = (0..single.len() * shape.kv_heads)
        .map(|index| (single[index / shape.kv_heads], index % shape.kv_heads));
    run(one, tasks, |(span, kv_head)| {
        let visible = shape.visible(span, 0);
        let run = span.k_start + visible.start..span.k_start + visible.end;
        TILE.with_floats(decode_scratch(shape, visible.len()), |scratch| {
            decode(isa, q, k, v, shape, span.q_start, &[run], kv_head, scratch, result);
        });
    });

    let keys = KeyHeads::new(shape, spans.iter().filter(|span| span.q_len > 1).copied());
    if keys.heads.is_empty() {
        return;
    }
    KEYS.with_floats(keys.panel_elements + keys.row_elements, |packed| {
        let (panels, rows) = packed.split_at_mut(keys.panel_elements);
        let parts = keys.parts(panels, |head| head.panels).into_iter();
        let parts = parts.zip(keys.parts(rows, |head| head.rows));
        run(one, keys.heads.iter().zip(parts), |(head, (panels, rows))| {
            pack_panels(isa, HeadRows::keys(shape, head, k), panels);
            HeadRows::keys(shape, head, v).pack_rows(1.0, rows);
        });
        let (panels, rows) = (&*panels, &*rows);
        let step = queries_per_tile(shape.group());
        let mut tasks: Vec<_> = (keys.heads.iter())
            .flat_map(|head| (0..head.span.q_len).step_by(step).map(move |first| (head, first)))
            .collect();
        // The last queries see the most keys: begun first, they do not keep the others waiting at the end.
        tasks.reverse();
        run(one, tasks.into_iter(), |(head, first)| {
            let queries = first..(first + step).min(head.span.q_len);
            TILE.with_floats(tile_scratch(shape, queries.len()), |scratch| {
                let (panels, values) = (&panels[head.panels..], &rows[head.rows..]);
                tile(isa, q, panels, values, shape, head, queries, scratch, result);
            });
        });
    });
}

/// Queries of a tile, so that its rows fill register blocks of six.
fn queries_per_tile(group: usize) -> usize {
    let fill = (1..=6).find(|queries| (queries * group).is_multiple_of(6)).unwrap_or(6);
    (TILE_ROWS / (group * fill)).max(1) * fill
}

/// [`for_each`], on this thread alone when the work is small.
pub(super) fn run<T: Send>(one: bool, tasks: impl ExactSizeIterator<Item = T>, f: impl Fn(T) + Sync + Send) {
    if one {
        tasks.for_each(f);
    } else {
        for_each(tasks, f);
    }
}

/// Where results go: each task has rows and heads of its own.
#[derive(Clone, Copy)]
pub(super) struct Destination<'a> {
    pub(super) out: &'a Shared,
    pub(super) lse: Option<&'a Shared>,
}

impl Destination<'_> {
    /// Writes `sums / weight` and `max + ln weight` for query row `query` and head `head`.
    ///
    /// # Safety
    /// No other task writes the same query and head.
    #[inline(always)]
    pub(super) unsafe fn write<V: Vector>(
        &self,
        shape: &AttentionShape,
        query: usize,
        head: usize,
        sums: &[f32],
        max: f32,
        weight: f32,
    ) {
        // SAFETY: the caller has this query and head to itself.
        let out = unsafe { self.out.part(query * shape.q_width() + head * shape.head_dim, shape.head_dim) };
        let scale = V::splat(1.0 / weight);
        for (out, sums) in out.chunks_mut(V::LANES).zip(sums.chunks(V::LANES)) {
            (V::load(sums) * scale).store(out);
        }
        if let Some(lse) = self.lse {
            // SAFETY: as above.
            let lse = unsafe { lse.part(query * shape.heads + head, 1) };
            lse[0] = max + weight.ln();
        }
    }
}

/// Turns a row of scaled scores into capped ones, in place.
#[inline(always)]
pub(super) fn cap_scores<V: Vector>(scores: &mut [f32], softcap: Option<f32>) {
    if let Some(cap) = softcap {
        let (cap, inverse) = (V::splat(cap), V::splat(1.0 / cap));
        for x in scores.chunks_mut(V::LANES) {
            (tanh(V::load(x) * inverse) * cap).store(x);
        }
    }
}

#[inline(always)]
pub(super) fn multiply<V: Vector>(x: &mut [f32], factor: f32) {
    let factor = V::splat(factor);
    for x in x.chunks_mut(V::LANES) {
        (V::load(x) * factor).store(x);
    }
}

#[inline(always)]
pub(super) fn clear<V: Vector>(x: &mut [f32]) {
    for x in x.chunks_mut(V::LANES) {
        V::zero().store(x);
    }
}

/// Clears the vectors of a row that hold no visible key, and returns the others, with −∞ for the hidden keys
/// in them.
#[inline(always)]
fn mask<V: Vector>(scores: &mut [f32], visible: std::ops::Range<usize>, keys: usize) -> &mut [f32] {
    let begin = visible.start / V::LANES * V::LANES;
    let last = (visible.end - 1) / V::LANES * V::LANES;
    let end = last + V::LANES;
    clear::<V>(&mut scores[..begin]);
    clear::<V>(&mut scores[end..keys.next_multiple_of(V::LANES)]);
    V::load_or(&scores[last..visible.end], f32::NEG_INFINITY).store(&mut scores[last..end]);
    for hidden in &mut scores[begin..visible.start] {
        *hidden = f32::NEG_INFINITY;
    }
    &mut scores[begin..end]
}

/// `scores ← e^(scores − max)`; returns their sum.
#[inline(always)]
pub(super) fn exponentials<V: Vector>(scores: &mut [f32], max: f32) -> f32 {
    let max = V::splat(max);
    let mut sum = V::zero();
    for x in scores.chunks_mut(V::LANES) {
        let e = exp(V::load_or(x, f32::NEG_INFINITY) - max);
        sum = sum + e;
        e.store(x);
    }
    sum.sum()
}

/// Floats that a tile of `queries` works in.
fn tile_scratch(shape: &AttentionShape, queries: usize) -> usize {
    let width = shape.head_dim.next_multiple_of(PAD);
    queries * shape.group() * (shape.head_dim + TILE_KEYS + width + 2)
}

/// The queries of one tile against all keys they see. The packed `panels` and `values` are those of `head`.
#[inline(always)]
fn tile_body<V: TileProduct>(
    q: &[f32],
    panels: &[f32],
    values: &[f32],
    shape: &AttentionShape,
    head: &KeyHead,
    queries: std::ops::Range<usize>,
    scratch: &mut [f32],
    result: Destination<'_>,
) {
    let (span, group, head_dim) = (&head.span, shape.group(), shape.head_dim);
    let width = head_dim.next_multiple_of(PAD);
    let rows = queries.len() * group;
    let first_head = head.kv_head * group;
    let (scaled, scratch) = scratch.split_at_mut(rows * head_dim);
    let (scores, scratch) = scratch.split_at_mut(rows * TILE_KEYS);
    let (sums, scratch) = scratch.split_at_mut(rows * width);
    let (maxima, weights) = scratch.split_at_mut(rows);
    maxima.fill(f32::NEG_INFINITY);
    weights.fill(0.0);
    let row_len = group * head_dim;
    for (i, scaled) in queries.clone().zip(scaled.chunks_exact_mut(row_len)) {
        let at = (span.q_start + i) * shape.q_width() + first_head * head_dim;
        scaled.copy_from_slice(&q[at..at + row_len]);
        multiply::<V>(scaled, shape.scale);
    }

    let begin = shape.visible(span, queries.start).start / V::LANES * V::LANES;
    let end = shape.visible(span, queries.end - 1).end;
    for start in (begin..end).step_by(TILE_KEYS) {
        let keys = (end - start).min(TILE_KEYS);
        // SAFETY: `scaled` has `rows` rows; the packed panels reach to the next multiple of `PAD` keys, and the
        // vectors take no more than that; a row of scores has room for `TILE_KEYS`.
        unsafe {
            V::product(
                Extent { rows, vectors: keys.div_ceil(V::LANES), depth: head_dim },
                Left { at: scaled.as_ptr(), row: head_dim, step: 1 },
                Right {
                    at: panels[start * head_dim..].as_ptr(),
                    step: V::LANES,
                    vector: head_dim * V::LANES,
                },
                Output { at: scores.as_mut_ptr(), row: TILE_KEYS },
                false,
            );
        }
        for (row, scores) in scores.chunks_exact_mut(TILE_KEYS).enumerate() {
            let visible = shape.visible(span, queries.start + row / group);
            let low = visible.start.saturating_sub(start).min(keys);
            let high = visible.end.saturating_sub(start).min(keys);
            if low >= high {
                clear::<V>(&mut scores[..keys]);
                continue;
            }
            cap_scores::<V>(&mut scores[low..high], shape.softcap);
            let scores = mask::<V>(scores, low..high, keys);
            let max = maxima[row].max(maximum::<V>(scores));
            if max != maxima[row] && start > begin {
                let shrink = (maxima[row] - max).exp();
                weights[row] *= shrink;
                multiply::<V>(&mut sums[row * width..(row + 1) * width], shrink);
            }
            weights[row] += exponentials::<V>(scores, max);
            maxima[row] = max;
        }
        // SAFETY: `scores` holds `rows` rows of at least `keys`, the packed values as many rows of `width`.
        unsafe {
            V::product(
                Extent { rows, vectors: width / V::LANES, depth: keys },
                Left { at: scores.as_ptr(), row: TILE_KEYS, step: 1 },
                Right { at: values[start * width..].as_ptr(), step: width, vector: V::LANES },
                Output { at: sums.as_mut_ptr(), row: width },
                start > begin,
            );
        }
    }
    for (row, sums) in sums.chunks_exact(width).enumerate() {
        let query = span.q_start + queries.start + row / group;
        // SAFETY: this tile alone has these queries for the heads of this key head.
        unsafe {
            result.write::<V>(shape, query, first_head + row % group, sums, maxima[row], weights[row]);
        }
    }
}

per_isa!(fn tile = tile_body(
    q: &[f32], panels: &[f32], values: &[f32], shape: &AttentionShape, head: &KeyHead,
    queries: std::ops::Range<usize>, scratch: &mut [f32], result: Destination<'_>
));
