//! Decoding from a cache in pages (Kwon et al. 2023, arXiv:2309.06180): a sequence's keys lie in pages of any order.

use std::ops::Range;

use super::SEQUENTIAL_PRODUCTS;
use super::decode::{decode, decode_scratch};
use super::forward::{Destination, run};
use super::packed::Shared;
use super::span::AttentionShape;
use crate::dispatch::current_isa;
use crate::scratch::TILE;

/// The keys of one query: the first `length` tokens of its pages, of which the query is the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagedSequence<'a> {
    /// Tokens, at least one.
    pub length: usize,
    /// Pages in the order of the tokens.
    pub pages: &'a [u32],
}

impl PagedSequence<'_> {
    /// The rows of tokens `visible`, neighbours joined.
    fn runs(&self, page_size: usize, visible: Range<usize>) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        let mut token = visible.start;
        while token < visible.end {
            let end = ((token / page_size + 1) * page_size).min(visible.end);
            let row = self.pages[token / page_size] as usize * page_size + token % page_size;
            match runs.last_mut() {
                Some(last) if last.end == row => last.end += end - token,
                _ => runs.push(row..row + end - token),
            }
            token = end;
        }
        runs
    }
}

/// Attention of one query a sequence: row `i` of `q` is the last token of `sequences[i]`.
///
/// `q` and `out` are `[sequences, heads · head_dim]`, `k` and `v` `[pages · page_size, kv_heads · head_dim]`.
///
/// # Panics
/// When a sequence is empty or its pages lie outside of the rows, or slices and sizes do not fit together.
pub fn paged_attention(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    shape: &AttentionShape,
    page_size: usize,
    sequences: &[PagedSequence<'_>],
    out: &mut [f32],
) {
    shape.check(&[], q.len(), k.len(), v.len());
    assert_eq!(q.len(), sequences.len() * shape.q_width(), "one query a sequence");
    assert_eq!(out.len(), q.len(), "out and q differ in length");
    let rows = k.len() / shape.kv_width();
    let runs: Vec<Vec<Range<usize>>> = (sequences.iter())
        .map(|sequence| {
            assert!(sequence.length > 0, "a sequence without a token");
            let first = shape.window.map_or(0, |window| sequence.length.saturating_sub(window));
            let runs = sequence.runs(page_size, first..sequence.length);
            assert!(runs.iter().all(|run| run.end <= rows), "a page outside of {rows} rows");
            runs
        })
        .collect();
    let isa = current_isa();
    let shared = Shared::new(out);
    let result = Destination { out: &shared, lse: None };
    let keys = |query: usize| runs[query].iter().map(Range::len).sum::<usize>();
    let products: usize = (0..sequences.len()).map(|query| keys(query) * shape.q_width()).sum();
    let tasks = 0..sequences.len() * shape.kv_heads;
    run(products < SEQUENTIAL_PRODUCTS, tasks, |index| {
        let (query, kv_head) = (index / shape.kv_heads, index % shape.kv_heads);
        TILE.with_floats(decode_scratch(shape, keys(query)), |scratch| {
            decode(isa, q, k, v, shape, query, &runs[query], kv_head, scratch, result);
        });
    });
}
