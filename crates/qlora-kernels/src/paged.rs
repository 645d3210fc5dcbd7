//! Keys and values in pages, and attention of one query a sequence to them: decoding.
//!
//! A cache is a matrix of rows, cut into pages of equal length; a sequence has a list of pages, in the order of its
//! tokens (Kwon et al. 2023, <https://arxiv.org/abs/2309.06180>). Sequences can share pages, and nothing moves
//! when one of them ends.

use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Int, Tensor, TensorData};

use crate::attention::{AttentionSpan, AttentionSpec, forward};
use crate::primitive::{primitive, tensor};
use crate::{KernelBackend, attention};

/// Rows of a cache, on the host and on the device.
#[derive(Clone, Debug)]
pub struct CacheRows<B: Backend> {
    /// One number a row.
    pub host: Arc<[u32]>,
    /// The same, `[rows]`, U32.
    pub device: IntTensor<B>,
}

impl<B: Backend> CacheRows<B> {
    /// These rows.
    #[must_use]
    pub fn new(rows: Vec<u32>, device: &B::Device) -> Self {
        let on_device = words::<B, 1>(rows.clone(), [rows.len()], device);
        Self { host: rows.into(), device: on_device }
    }
}

/// Which rows of a cache the sequences of a decoding step see. Row `i` of the queries is the last token of sequence `i`.
#[derive(Clone, Debug)]
pub struct PageTable<B: Backend> {
    /// Rows of a page.
    pub page_size: usize,
    /// Tokens of each sequence, at least one.
    pub lengths: Arc<[usize]>,
    /// Pages of each sequence, `[sequences, most_pages]`; those behind its last one are not read.
    pub pages: Arc<[u32]>,
    /// Columns of `pages`.
    pub most_pages: usize,
    /// `[sequences, 1 + most_pages]`, U32: the length of each, then its pages.
    pub device: IntTensor<B>,
}

impl<B: Backend> PageTable<B> {
    /// A table of sequences, each with its length and its pages.
    ///
    /// # Panics
    /// When a sequence is empty or has fewer pages than its tokens need.
    #[must_use]
    pub fn new(sequences: &[(usize, &[u32])], page_size: usize, device: &B::Device) -> Self {
        let needed = |length: usize| length.div_ceil(page_size);
        let most_pages = sequences.iter().map(|(length, _)| needed(*length)).max().unwrap_or(0);
        let (mut all, mut pages) = (Vec::new(), Vec::new());
        for &(length, of_sequence) in sequences {
            assert!(length > 0, "a sequence has at least the token that is decoded");
            assert!(of_sequence.len() >= needed(length), "{length} tokens do not fit their pages");
            let mut of_sequence = of_sequence[..needed(length)].to_vec();
            of_sequence.resize(most_pages, 0);
            all.push(length as u32);
            all.extend_from_slice(&of_sequence);
            pages.extend(of_sequence);
        }
        Self {
            page_size,
            lengths: sequences.iter().map(|(length, _)| *length).collect(),
            pages: pages.into(),
            most_pages,
            device: words::<B, 2>(all, [sequences.len(), 1 + most_pages], device),
        }
    }

    /// Pages of sequence `i`.
    #[must_use]
    pub fn pages_of(&self, i: usize) -> &[u32] {
        let pages = self.lengths[i].div_ceil(self.page_size);
        &self.pages[i * self.most_pages..][..pages]
    }

    /// Rows of the tokens of sequence `i`.
    fn rows_of(&self, i: usize) -> impl Iterator<Item = usize> + '_ {
        let pages = self.pages_of(i);
        (0..self.lengths[i])
            .map(|token| pages[token / self.page_size] as usize * self.page_size + token % self.page_size)
    }

    #[cfg(feature = "cube")]
    pub(crate) fn longest(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }
}

fn words<B: Backend, const D: usize>(words: Vec<u32>, shape: [usize; D], device: &B::Device) -> IntTensor<B> {
    Tensor::<B, D, Int>::from_data(TensorData::new(words, shape), (device, DType::U32)).into_primitive()
}

/// Attention of `q` `[sequences, heads · d]`, one query a sequence, to the pages of `keys` and `values`
/// `[rows, kv_heads · d]`: `[sequences, heads · d]`. The spans of `spec` are not used. Not differentiable.
///
/// # Panics
/// When the sizes do not agree with `spec`, or a page lies outside of the rows.
#[must_use]
pub fn paged_attention<B: KernelBackend>(
    q: Tensor<B, 2>,
    keys: Tensor<B, 2>,
    values: Tensor<B, 2>,
    table: &PageTable<B>,
    spec: &AttentionSpec,
) -> Tensor<B, 2> {
    let ([queries, width], [rows, kv_width]) = (q.dims(), keys.dims());
    assert_eq!(queries, table.lengths.len(), "one query a sequence");
    assert_eq!(width, spec.heads * spec.head_dim, "queries are [rows, heads * head_dim]");
    assert_eq!(kv_width, spec.kv_heads * spec.head_dim, "keys are [rows, kv_heads * head_dim]");
    assert_eq!(values.dims(), [rows, kv_width], "values are as keys");
    let pages = rows / table.page_size;
    assert!(table.pages.iter().all(|page| (*page as usize) < pages), "a page outside of {pages}");
    tensor(B::paged_attention(primitive(q), primitive(keys), primitive(values), table, spec))
}

/// Writes keys and values, one row a token, at `rows` of a cache: in place where nobody else holds it.
///
/// # Panics
/// When there is not one row a token, or one lies outside of the cache.
#[must_use]
pub fn append_to_cache<B: KernelBackend>(
    cache: (Tensor<B, 2>, Tensor<B, 2>),
    new: (Tensor<B, 2>, Tensor<B, 2>),
    rows: &CacheRows<B>,
) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let [tokens, _] = new.0.dims();
    let [size, _] = cache.0.dims();
    assert_eq!(tokens, rows.host.len(), "one row a token");
    assert!(rows.host.iter().all(|row| (*row as usize) < size), "a row outside of {size}");
    // Handles are moved through, so that a backend sees one owner and writes in place.
    let (keys, values) = B::append_to_cache(
        (primitive(cache.0), primitive(cache.1)),
        (primitive(new.0), primitive(new.1)),
        rows,
    );
    (tensor(keys), tensor(values))
}

/// Rotates queries and keys by the angles of their tokens, as [`rope`](crate::rope()) does, and appends keys and values to
/// a cache as [`append_to_cache`] does: the queries, and the cache.
///
/// `angles` are cosines and sines, `[tokens, d/2]`.
///
/// # Panics
/// As [`append_to_cache`].
#[must_use]
pub fn rotate_and_append<B: KernelBackend>(
    q: Tensor<B, 2>,
    new: (Tensor<B, 2>, Tensor<B, 2>),
    angles: (Tensor<B, 2>, Tensor<B, 2>),
    cache: (Tensor<B, 2>, Tensor<B, 2>),
    rows: &CacheRows<B>,
) -> (Tensor<B, 2>, (Tensor<B, 2>, Tensor<B, 2>)) {
    let ([tokens, _], [size, _]) = (new.0.dims(), cache.0.dims());
    assert_eq!([tokens, q.dims()[0], angles.0.dims()[0]], [rows.host.len(); 3], "one row a token");
    assert!(rows.host.iter().all(|row| (*row as usize) < size), "a row outside of {size}");
    let pair = |(first, second): (Tensor<B, 2>, Tensor<B, 2>)| (primitive(first), primitive(second));
    let (q, (keys, values)) = B::rotate_and_append(primitive(q), pair(new), pair(angles), pair(cache), rows);
    (tensor(q), (tensor(keys), tensor(values)))
}

/// Rows of a cache, copied one behind the other.
///
/// # Panics
/// When a row lies outside of the cache.
#[must_use]
pub fn gather_rows<B: KernelBackend>(cache: &Tensor<B, 2>, rows: &CacheRows<B>) -> Tensor<B, 2> {
    let [size, _] = cache.dims();
    assert!(rows.host.iter().all(|row| (*row as usize) < size), "a row outside of {size}");
    tensor(B::gather_rows(primitive(cache.clone()), rows))
}

/// Reference: a selection.
pub(crate) fn gather_reference<B: KernelBackend>(
    cache: FloatTensor<B>,
    rows: &CacheRows<B>,
) -> FloatTensor<B> {
    let cache = tensor::<B, 2>(cache);
    let at: Vec<i64> = rows.host.iter().map(|row| i64::from(*row)).collect();
    let at = Tensor::<B, 1, Int>::from_data(TensorData::new(at, [rows.host.len()]), &cache.device());
    primitive(cache.select(0, at))
}

/// Reference: the keys of each sequence, gathered, as a span.
pub(crate) fn paged_attention_reference<B: KernelBackend>(
    q: FloatTensor<B>,
    keys: FloatTensor<B>,
    values: FloatTensor<B>,
    table: &PageTable<B>,
    spec: &AttentionSpec,
) -> FloatTensor<B> {
    let (q, keys, values) = (tensor::<B, 2>(q), tensor::<B, 2>(keys), tensor::<B, 2>(values));
    let device = q.device();
    let (mut rows, mut spans) = (Vec::new(), Vec::new());
    for (query, &length) in table.lengths.iter().enumerate() {
        spans.push(AttentionSpan { q_start: query, q_len: 1, k_start: rows.len(), k_len: length });
        rows.extend(table.rows_of(query).map(|row| row as i64));
    }
    let count = rows.len();
    let rows = Tensor::<B, 1, Int>::from_data(TensorData::new(rows, [count]), &device);
    let spec = AttentionSpec { spans: spans.into(), ..spec.clone() };
    let (keys, values) = (keys.select(0, rows.clone()), values.select(0, rows));
    forward::<B>(primitive(q), primitive(keys), primitive(values), &spec).0
}

/// Reference: two scatters of whole rows.
pub(crate) fn append_reference<B: KernelBackend>(
    cache: (FloatTensor<B>, FloatTensor<B>),
    new: (FloatTensor<B>, FloatTensor<B>),
    rows: &CacheRows<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let write = |cache, new| attention::write_rows::<B>(cache, new, &rows.host);
    (write(cache.0, new.0), write(cache.1, new.1))
}
