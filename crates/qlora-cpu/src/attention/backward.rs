//! The backward pass: scores are computed anew, tile by tile, from the saved `lse`.

use super::forward::{cap_scores, clear, run};
use super::packed::{HeadRows, KeyHead, KeyHeads, Shared, pack_panels};
use super::product::{Extent, Left, Output, Right, TileProduct};
use super::span::{AttentionShape, AttentionSpan, check_disjoint};
use super::{PAD, SEQUENTIAL_PRODUCTS, TILE_KEYS};
use crate::dispatch::{current_isa, per_isa};
use crate::exp::exp;
use crate::parallel::rows_per_task;
use crate::scratch::{HEAD_GRADIENTS, KEYS, TILE};
use crate::vector::Vector;

/// Queries of a tile, a multiple of the product's row block. Fewer than in the forward pass: there the rows are
/// those of several heads, here each query more is a diagonal with more hidden keys.
const QUERY_ROWS: usize = 24;

/// Gradients of [`attention`](super::attention): with `P = softmax(s)`, `dP = dout · vᵀ` and
/// `D = Σ dout · out` for each query, `ds = P (dP − D)`, and `dq`, `dk`, `dv` follow by the chain rule.
///
/// `dout`, `q`, `out`, `dq` are `[queries, heads · head_dim]`, `k`, `v`, `dk`, `dv`
/// `[keys, kv_heads · head_dim]`, `lse` is `[queries, heads]`. The rows of `dq`, `dk`, `dv` that belong to a
/// span are overwritten, the others left as they are.
///
/// # Panics
/// When shape, spans and slices do not fit together, or two spans share a query or a key.
pub fn attention_backward(
    dout: &[f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &[f32],
    lse: &[f32],
    shape: &AttentionShape,
    spans: &[AttentionSpan],
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    shape.check(spans, q.len(), k.len(), v.len());
    check_disjoint(spans.iter().map(|span| (span.k_start, span.k_len)));
    assert!(
        dout.len() == q.len() && out.len() == q.len() && dq.len() == q.len(),
        "dout, q, out and dq differ in length"
    );
    assert!(dk.len() == k.len() && dv.len() == v.len(), "dk or dv differs in length from k");
    assert_eq!(lse.len(), q.len() / shape.q_width() * shape.heads, "lse is not [queries, heads]");
    let isa = current_isa();
    let (group, head_dim) = (shape.group(), shape.head_dim);
    let one = shape.products(spans) < SEQUENTIAL_PRODUCTS;
    let keys = KeyHeads::new(shape, spans.iter().filter(|span| span.k_len > 0).copied());
    let packed_len = 2 * keys.panel_elements + keys.row_elements;
    // Heads that share a key head each write gradients of it; these are added up at the end, in their order.
    let head_keys = if group > 1 { k.len() * group } else { 0 };
    KEYS.with_floats(packed_len, |packed| {
        let (key_panels, rest) = packed.split_at_mut(keys.panel_elements);
        let (value_panels, key_rows) = rest.split_at_mut(keys.panel_elements);
        let parts = (keys.parts(key_panels, |head| head.panels).into_iter())
            .zip(keys.parts(value_panels, |head| head.panels))
            .zip(keys.parts(key_rows, |head| head.rows));
        run(one, keys.heads.iter().zip(parts), |(head, ((key_panels, value_panels), key_rows))| {
            pack_panels(isa, HeadRows::keys(shape, head, k), key_panels);
            pack_panels(isa, HeadRows::keys(shape, head, v), value_panels);
            HeadRows::keys(shape, head, k).pack_rows(1.0, key_rows);
        });
        HEAD_GRADIENTS.with_floats(2 * head_keys, |head_gradients| {
            let (head_dk, head_dv) = head_gradients.split_at_mut(head_keys);
            let saved = Saved { dout, q, out, lse };
            {
                let gradients = Gradients {
                    dq: &Shared::new(dq),
                    dk: &Shared::new(if group > 1 { &mut *head_dk } else { &mut *dk }),
                    dv: &Shared::new(if group > 1 { &mut *head_dv } else { &mut *dv }),
                };
                let (key_panels, value_panels, key_rows) = (&*key_panels, &*value_panels, &*key_rows);
                let mut tasks: Vec<_> =
                    keys.heads.iter().flat_map(|head| (0..group).map(move |index| (head, index))).collect();
                // The longest sequences first: what begins last should be short.
                tasks.sort_by_key(|(head, _)| std::cmp::Reverse(head.span.k_len));
                run(one, tasks.into_iter(), |(head, index)| {
                    let packed = Packed {
                        key_panels: &key_panels[head.panels..],
                        value_panels: &value_panels[head.panels..],
                        key_rows: &key_rows[head.rows..],
                    };
                    TILE.with_floats(scratch_len(shape, &head.span), |scratch| {
                        head_backward(isa, saved, packed, shape, head, index, scratch, gradients);
                    });
                });
            }
            if group > 1 {
                for span in spans {
                    let rows =
                        span.k_start * shape.kv_width()..(span.k_start + span.k_len) * shape.kv_width();
                    let head_rows = rows.start * group..rows.end * group;
                    let step = rows_per_task(shape.q_width(), 1) * shape.kv_width();
                    let sources = (head_dk[head_rows.clone()].chunks(step * group))
                        .zip(head_dv[head_rows].chunks(step * group));
                    let sums = dk[rows.clone()].chunks_mut(step).zip(dv[rows].chunks_mut(step));
                    run(one, sums.zip(sources), |((dk, dv), (head_dk, head_dv))| {
                        add_heads(isa, head_dk, group, head_dim, dk);
                        add_heads(isa, head_dv, group, head_dim, dv);
                    });
                }
            }
        });
    });
}

/// What the forward pass had and gave.
#[derive(Clone, Copy)]
struct Saved<'a> {
    dout: &'a [f32],
    q: &'a [f32],
    out: &'a [f32],
    lse: &'a [f32],
}

/// Packed keys and values of one key head.
#[derive(Clone, Copy)]
struct Packed<'a> {
    key_panels: &'a [f32],
    value_panels: &'a [f32],
    key_rows: &'a [f32],
}

/// Where gradients go. `dk` and `dv` have `heads` heads here.
#[derive(Clone, Copy)]
struct Gradients<'a> {
    dq: &'a Shared,
    dk: &'a Shared,
    dv: &'a Shared,
}

/// Floats that one head of one span works in.
fn scratch_len(shape: &AttentionShape, span: &AttentionSpan) -> usize {
    let width = shape.head_dim.next_multiple_of(PAD);
    span.q_len * (3 * width + 1) + 2 * QUERY_ROWS * TILE_KEYS + 2 * TILE_KEYS * width
}

/// All gradients of query head `index` of the heads that share `head`, for one span.
#[inline(always)]
fn head_body<V: TileProduct>(
    saved: Saved<'_>,
    packed: Packed<'_>,
    shape: &AttentionShape,
    head: &KeyHead,
    index: usize,
    scratch: &mut [f32],
    gradients: Gradients<'_>,
) {
    let (span, head_dim) = (&head.span, shape.head_dim);
    let width = head_dim.next_multiple_of(PAD);
    let (queries, query_head) = (span.q_len, head.kv_head * shape.group() + index);
    let (q, scratch) = scratch.split_at_mut(queries * width);
    let (dout, scratch) = scratch.split_at_mut(queries * width);
    let (dq, scratch) = scratch.split_at_mut(queries * width);
    let (delta, scratch) = scratch.split_at_mut(queries);
    let (p, scratch) = scratch.split_at_mut(QUERY_ROWS * TILE_KEYS);
    let (ds, scratch) = scratch.split_at_mut(QUERY_ROWS * TILE_KEYS);
    let (dk, dv) = scratch.split_at_mut(TILE_KEYS * width);

    let start = span.q_start * shape.q_width() + query_head * head_dim;
    let rows = |source| HeadRows { source, start, stride: shape.q_width(), rows: queries, head_dim };
    rows(saved.q).pack_rows(shape.scale, q);
    rows(saved.dout).pack_rows(1.0, dout);
    dq.fill(0.0);
    for (i, delta) in delta.iter_mut().enumerate() {
        *delta = dot::<V>(rows(saved.dout).row(i), rows(saved.out).row(i));
    }

    for first_key in (0..span.k_len).step_by(TILE_KEYS) {
        let tile_keys = (span.k_len - first_key).min(TILE_KEYS);
        let mut written = false;
        for first in (0..queries).step_by(QUERY_ROWS) {
            let tile_rows = (queries - first).min(QUERY_ROWS);
            let seen = shape.visible(span, first).start..shape.visible(span, first + tile_rows - 1).end;
            if seen.start >= first_key + tile_keys || seen.end <= first_key {
                continue;
            }
            let keys = tile_keys.min(seen.end - first_key);
            let scores = Extent { rows: tile_rows, vectors: keys.div_ceil(V::LANES), depth: head_dim };
            let panels = |panels: &[f32]| Right {
                at: panels[first_key * head_dim..].as_ptr(),
                step: V::LANES,
                vector: head_dim * V::LANES,
            };
            let tile = |rows: &[f32]| Left { at: rows[first * width..].as_ptr(), row: width, step: 1 };
            // SAFETY: the tile's rows are in `q` and `dout`; the panels reach to the next multiple of `PAD` keys;
            // rows of `p` and `ds` have room for `TILE_KEYS`.
            unsafe {
                let (p, ds) = (p.as_mut_ptr(), ds.as_mut_ptr());
                let to = |at| Output { at, row: TILE_KEYS };
                V::product(scores, tile(q), panels(packed.key_panels), to(p), false);
                V::product(scores, tile(dout), panels(packed.value_panels), to(ds), false);
            }
            for (row, (p, ds)) in
                p.chunks_exact_mut(TILE_KEYS).zip(ds.chunks_exact_mut(TILE_KEYS)).take(tile_rows).enumerate()
            {
                let visible = shape.visible(span, first + row);
                let low = visible.start.saturating_sub(first_key).min(keys);
                let high = visible.end.saturating_sub(first_key).min(keys).max(low);
                for x in [&mut *p, &mut *ds] {
                    clear::<V>(&mut x[..low]);
                    clear::<V>(&mut x[high..keys]);
                }
                let lse = saved.lse[(span.q_start + first + row) * shape.heads + query_head];
                let (p, ds) = (&mut p[low..high], &mut ds[low..high]);
                score_gradients::<V>(p, ds, lse, delta[first + row], shape.softcap);
            }
            let transposed = |at: &[f32]| Left { at: at.as_ptr(), row: 1, step: TILE_KEYS };
            let key_extent = Extent { rows: keys, vectors: width / V::LANES, depth: tile_rows };
            let right = |rows: &[f32], first: usize| Right {
                at: rows[first * width..].as_ptr(),
                step: width,
                vector: V::LANES,
            };
            // SAFETY: `p` and `ds` hold `tile_rows` rows of `keys`; `dk` and `dv` have `TILE_KEYS` rows of `width`,
            // `q`, `dout`, `dq` and the packed keys at least the tile's.
            unsafe {
                if !written {
                    dk[keys * width..].fill(0.0);
                    dv[keys * width..].fill(0.0);
                }
                let (dk, dv) = (dk.as_mut_ptr(), dv.as_mut_ptr());
                let to = |at| Output { at, row: width };
                V::product(key_extent, transposed(p), right(dout, first), to(dv), written);
                V::product(key_extent, transposed(ds), right(q, first), to(dk), written);
                V::product(
                    Extent { rows: tile_rows, vectors: width / V::LANES, depth: keys },
                    Left { at: ds.as_ptr(), row: TILE_KEYS, step: 1 },
                    right(packed.key_rows, first_key),
                    to(dq[first * width..].as_mut_ptr()),
                    true,
                );
            }
            written = true;
        }
        let heads = shape.heads * head_dim;
        for key in 0..tile_keys {
            let at = (span.k_start + first_key + key) * heads + query_head * head_dim;
            // SAFETY: this task alone has these keys for this query head.
            let (to_dk, to_dv) =
                unsafe { (gradients.dk.part(at, head_dim), gradients.dv.part(at, head_dim)) };
            if written {
                to_dk.copy_from_slice(&dk[key * width..][..head_dim]);
                to_dv.copy_from_slice(&dv[key * width..][..head_dim]);
            } else {
                to_dk.fill(0.0);
                to_dv.fill(0.0);
            }
        }
    }
    for (i, dq) in dq.chunks_exact(width).enumerate() {
        let at = start + i * shape.q_width();
        // SAFETY: this task alone has these queries for this head.
        let to = unsafe { gradients.dq.part(at, head_dim) };
        for (to, &dq) in to.iter_mut().zip(dq) {
            *to = dq * shape.scale;
        }
    }
}

per_isa!(fn head_backward = head_body(
    saved: Saved<'_>, packed: Packed<'_>, shape: &AttentionShape, head: &KeyHead, index: usize,
    scratch: &mut [f32], gradients: Gradients<'_>
));

/// Scores become probabilities, gradients of probabilities become gradients of scores, in place.
#[inline(always)]
fn score_gradients<V: Vector>(p: &mut [f32], ds: &mut [f32], lse: f32, delta: f32, softcap: Option<f32>) {
    cap_scores::<V>(p, softcap);
    let (lse, delta) = (V::splat(lse), V::splat(delta));
    let inverse = V::splat(softcap.map_or(0.0, |cap| 1.0 / cap));
    for (p, ds) in p.chunks_mut(V::LANES).zip(ds.chunks_mut(V::LANES)) {
        let score = V::load(p);
        // Without a cap the ratio is 0 and the slope 1.
        let ratio = score * inverse;
        let slope = V::splat(1.0) - ratio * ratio;
        let probability = exp(score - lse);
        (probability * (V::load(ds) - delta) * slope).store(ds);
        probability.store(p);
    }
}

#[inline(always)]
fn dot<V: Vector>(a: &[f32], b: &[f32]) -> f32 {
    let mut sum = V::zero();
    for (a, b) in a.chunks(V::LANES).zip(b.chunks(V::LANES)) {
        sum = V::load(a).mul_add(V::load(b), sum);
    }
    sum.sum()
}

/// `to[row, g] = Σ from[row, g · group + h]` over the heads `h` of a group.
#[inline(always)]
fn add_heads_body<V: Vector>(from: &[f32], group: usize, head_dim: usize, to: &mut [f32]) {
    for (from, to) in from.chunks_exact(group * head_dim).zip(to.chunks_exact_mut(head_dim)) {
        for at in (0..head_dim).step_by(V::LANES) {
            let mut sum = V::zero();
            for from in from.chunks_exact(head_dim) {
                sum = sum + V::load(&from[at..]);
            }
            sum.store(&mut to[at..]);
        }
    }
}

per_isa!(fn add_heads = add_heads_body(from: &[f32], group: usize, head_dim: usize, to: &mut [f32]));
