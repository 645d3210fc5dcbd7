//! What attends to what.

/// Shape and score function of an attention layer.
///
/// With `s = scale · q·k`, capped to `softcap · tanh(s / softcap)` where a bound is given, query `q` gets
/// `Σ softmax(s)ⱼ vⱼ` over the keys it sees. Query head `h` reads key head `h / (heads / kv_heads)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of the keys and values; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Bound of the scores (Gemma 2).
    pub softcap: Option<f32>,
    /// A query at position `p` sees keys `p − window + 1 ..= p` only.
    pub window: Option<usize>,
}

/// One sequence of a ragged batch: which rows hold its queries and its keys.
///
/// Queries and keys end together: query `i` of the span is at position `k_len − q_len + i` and sees the keys
/// up to that position. In training both ranges are the same; with a cache `q_len` is what is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionSpan {
    /// First query row.
    pub q_start: usize,
    /// Query rows.
    pub q_len: usize,
    /// First row of keys and values.
    pub k_start: usize,
    /// Rows of keys and values; at least `q_len`.
    pub k_len: usize,
}

impl AttentionSpan {
    /// A sequence whose queries and keys are rows `start .. start + len`.
    #[must_use]
    pub fn causal(start: usize, len: usize) -> Self {
        Self { q_start: start, q_len: len, k_start: start, k_len: len }
    }

    /// The spans of sequences that lie one behind the other.
    #[must_use]
    pub fn packed(lengths: &[usize]) -> Vec<Self> {
        let mut start = 0;
        let span = |&len: &usize| {
            let span = Self::causal(start, len);
            start += len;
            span
        };
        lengths.iter().map(span).collect()
    }
}

impl AttentionShape {
    /// Query heads that share a key head.
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Row stride of queries.
    pub(super) fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Row stride of keys and values.
    pub(super) fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The keys of `span` that its query `i` sees.
    pub(super) fn visible(&self, span: &AttentionSpan, i: usize) -> std::ops::Range<usize> {
        let end = span.k_len - span.q_len + i + 1;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// Multiplications of the scores of one head, to tell small calls from large ones.
    pub(super) fn products(&self, spans: &[AttentionSpan]) -> usize {
        spans.iter().map(|span| span.q_len * span.k_len * self.q_width()).sum()
    }

    /// # Panics
    /// When the shape, the spans and the slices do not fit together, or two spans write the same query.
    pub(super) fn check(&self, spans: &[AttentionSpan], q: usize, k: usize, v: usize) {
        assert!(
            self.heads > 0 && self.kv_heads > 0 && self.head_dim > 0,
            "an attention of nothing: {self:?}"
        );
        assert!(self.heads.is_multiple_of(self.kv_heads), "kv_heads does not divide heads: {self:?}");
        assert!(self.window != Some(0), "a window of no keys");
        assert!(q.is_multiple_of(self.q_width()), "queries are not rows of {}", self.q_width());
        assert!(k.is_multiple_of(self.kv_width()) && k == v, "keys, values: not rows of {}", self.kv_width());
        let (queries, keys) = (q / self.q_width(), k / self.kv_width());
        for span in spans {
            assert!(span.q_len <= span.k_len, "more queries than keys: {span:?}");
            let fits = |start: usize, len: usize, rows| start.checked_add(len).is_some_and(|end| end <= rows);
            assert!(fits(span.q_start, span.q_len, queries), "{span:?} of {queries} queries");
            assert!(fits(span.k_start, span.k_len, keys), "{span:?} of {keys} keys");
        }
        check_disjoint(spans.iter().map(|span| (span.q_start, span.q_len)));
    }
}

/// # Panics
/// When two of the ranges `(start, length)` overlap.
pub(super) fn check_disjoint(ranges: impl Iterator<Item = (usize, usize)>) {
    let mut ranges: Vec<_> = ranges.filter(|range| range.1 > 0).collect();
    if !ranges.is_sorted() {
        ranges.sort_unstable();
    }
    assert!(ranges.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "two spans share a row");
}
