//! Keys and values laid out for the products, once per key head and sequence.

use super::span::{AttentionShape, AttentionSpan};
use super::{PAD, product::TileProduct};
use crate::Isa;
use crate::dispatch::per_isa;

/// Where the packed keys and values of one key head of one span lie.
#[derive(Clone, Copy)]
pub(super) struct KeyHead {
    pub(super) span: AttentionSpan,
    pub(super) kv_head: usize,
    /// Offset of its rows in packed rows, in elements.
    pub(super) rows: usize,
    /// Offset of its panels in packed panels, in elements.
    pub(super) panels: usize,
}

/// Packed keys and values of all key heads.
pub(super) struct KeyHeads {
    pub(super) heads: Vec<KeyHead>,
    /// Length of packed rows: every row is padded with zeros to a multiple of [`PAD`] elements.
    pub(super) row_elements: usize,
    /// Length of packed panels: `LANES` keys side by side, so that `LANES` scores are one vector; the last
    /// panel is padded with zeros.
    pub(super) panel_elements: usize,
}

impl KeyHeads {
    /// Places the key heads of `spans` one behind the other.
    pub(super) fn new(shape: &AttentionShape, spans: impl Iterator<Item = AttentionSpan>) -> Self {
        let width = shape.head_dim.next_multiple_of(PAD);
        let (mut rows, mut panels) = (0, 0);
        let mut heads = Vec::new();
        for span in spans {
            for kv_head in 0..shape.kv_heads {
                heads.push(KeyHead { span, kv_head, rows, panels });
                rows += span.k_len * width;
                panels += span.k_len.next_multiple_of(PAD) * shape.head_dim;
            }
        }
        Self { heads, row_elements: rows, panel_elements: panels }
    }

    /// Cuts a packed buffer into the part of each head; `offset` reads the start of a head's part.
    pub(super) fn parts<'a>(
        &self,
        buffer: &'a mut [f32],
        offset: impl Fn(&KeyHead) -> usize,
    ) -> Vec<&'a mut [f32]> {
        let ends = self.heads.iter().skip(1).map(&offset).chain([buffer.len()]);
        let lengths: Vec<_> = self.heads.iter().zip(ends).map(|(head, end)| end - offset(head)).collect();
        let mut rest = buffer;
        let mut parts = Vec::with_capacity(lengths.len());
        for length in lengths {
            let (part, tail) = rest.split_at_mut(length);
            parts.push(part);
            rest = tail;
        }
        parts
    }
}

/// Rows of one head, `[rows, head_dim]` with a stride, read from `source[start..]`.
#[derive(Clone, Copy)]
pub(super) struct HeadRows<'a> {
    pub(super) source: &'a [f32],
    pub(super) start: usize,
    pub(super) stride: usize,
    pub(super) rows: usize,
    pub(super) head_dim: usize,
}

impl<'a> HeadRows<'a> {
    /// The keys (or values) that `head` packs.
    pub(super) fn keys(shape: &AttentionShape, head: &KeyHead, source: &'a [f32]) -> Self {
        Self {
            source,
            start: head.span.k_start * shape.kv_width() + head.kv_head * shape.head_dim,
            stride: shape.kv_width(),
            rows: head.span.k_len,
            head_dim: shape.head_dim,
        }
    }

    /// Row `index` of the head.
    #[inline(always)]
    pub(super) fn row(&self, index: usize) -> &'a [f32] {
        &self.source[self.start + index * self.stride..][..self.head_dim]
    }

    /// Copies the rows times `factor`, each padded with zeros to a multiple of [`PAD`].
    pub(super) fn pack_rows(&self, factor: f32, to: &mut [f32]) {
        let width = self.head_dim.next_multiple_of(PAD);
        for (index, to) in to.chunks_exact_mut(width).take(self.rows).enumerate() {
            let (values, padding) = to.split_at_mut(self.head_dim);
            values.iter_mut().zip(self.row(index)).for_each(|(to, &from)| *to = from * factor);
            padding.fill(0.0);
        }
    }
}

/// Packs rows into panels of `LANES` keys: element `(key, d)` at
/// `key / LANES · head_dim · LANES + d · LANES + key % LANES`.
#[inline(always)]
fn pack_panels_body<V: TileProduct>(rows: HeadRows<'_>, to: &mut [f32]) {
    for (panel, to) in to.chunks_exact_mut(rows.head_dim * V::LANES).enumerate() {
        for lane in 0..V::LANES {
            let key = panel * V::LANES + lane;
            if key < rows.rows {
                for (to, &from) in to.chunks_exact_mut(V::LANES).zip(rows.row(key)) {
                    to[lane] = from;
                }
            } else {
                to.chunks_exact_mut(V::LANES).for_each(|to| to[lane] = 0.0);
            }
        }
    }
}

per_isa!(fn pack_panels_on = pack_panels_body(rows: HeadRows<'_>, to: &mut [f32]));

/// Packs rows into panels for the vectors of `isa`.
pub(super) fn pack_panels(isa: Isa, rows: HeadRows<'_>, to: &mut [f32]) {
    pack_panels_on(isa, rows, to);
}

/// An output whose parts several tasks write at once, none of them twice.
pub(super) struct Shared {
    at: *mut f32,
    len: usize,
}

// SAFETY: only `part` reaches the elements, and its callers keep the parts apart.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl Shared {
    pub(super) fn new(slice: &mut [f32]) -> Self {
        Self { at: slice.as_mut_ptr(), len: slice.len() }
    }

    /// # Safety
    /// While the part lives no other part overlaps it, and the slice it was made of is not used.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn part(&self, start: usize, len: usize) -> &mut [f32] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: in bounds as just checked, not aliased as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(start), len) }
    }
}
