//! Keys and values of tokens that were computed before.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorPrimitive};
use qlora_kernels::{AttentionSpan, KernelBackend};

use crate::{DecoderConfig, ModelError};

/// Keys and values of every layer for a number of sequences, each with room for `capacity` tokens.
#[derive(Debug)]
pub struct KvCache<B: Backend> {
    layers: Vec<LayerCache<B>>,
    /// Tokens of each sequence.
    lengths: Vec<usize>,
    capacity: usize,
    /// Rows that the tokens of the pass under way go to.
    rows: Vec<usize>,
}

/// Keys and values of a layer, `[sequences · capacity, kv_heads · head_dim]`; `None` while rows are written.
#[derive(Debug)]
struct LayerCache<B: Backend> {
    keys: Option<Tensor<B, 2>>,
    values: Option<Tensor<B, 2>>,
}

impl<B: KernelBackend> KvCache<B> {
    /// An empty cache for `sequences` sequences of at most `capacity` tokens.
    ///
    /// # Errors
    /// When `capacity` is more than the model's context.
    pub fn new(
        config: &DecoderConfig,
        sequences: usize,
        capacity: usize,
        dtype: burn::tensor::DType,
        device: &B::Device,
    ) -> Result<Self, ModelError> {
        if capacity > config.max_position_embeddings {
            return Err(ModelError::ContextTooLong {
                tokens: capacity,
                limit: config.max_position_embeddings,
            });
        }
        let shape = [sequences * capacity, config.kv_heads * config.head_dim];
        let empty = || Some(Tensor::zeros(shape, (device, dtype)));
        let layers = (0..config.layers).map(|_| LayerCache { keys: empty(), values: empty() }).collect();
        Ok(Self { layers, lengths: vec![0; sequences], capacity, rows: Vec::new() })
    }

    /// Tokens of each sequence.
    #[must_use]
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Makes room for `lengths[i]` new tokens of sequence `sequences[i]`: their positions and spans.
    ///
    /// # Panics
    /// When a sequence would outgrow the capacity.
    pub(crate) fn reserve(
        &mut self,
        sequences: &[usize],
        lengths: &[usize],
    ) -> (Vec<u32>, Vec<AttentionSpan>) {
        let (mut positions, mut spans) = (Vec::new(), Vec::new());
        self.rows.clear();
        let mut q_start = 0;
        for (&sequence, &new) in sequences.iter().zip(lengths) {
            let old = self.lengths[sequence];
            assert!(old + new <= self.capacity, "the cache holds {} tokens a sequence", self.capacity);
            let k_start = sequence * self.capacity;
            spans.push(AttentionSpan { q_start, q_len: new, k_start, k_len: old + new });
            positions.extend((old..old + new).map(|p| p as u32));
            self.rows.extend((old..old + new).map(|p| k_start + p));
            self.lengths[sequence] = old + new;
            q_start += new;
        }
        (positions, spans)
    }

    /// Writes the keys and values of the reserved tokens of one layer; gives all of that layer's.
    pub(crate) fn append(
        &mut self,
        layer: usize,
        k: Tensor<B, 2>,
        v: Tensor<B, 2>,
    ) -> (Tensor<B, 2>, Tensor<B, 2>) {
        let rows = &self.rows;
        let write = |cache: &mut Option<Tensor<B, 2>>, new: Tensor<B, 2>| {
            // Taken out, so that the backend sees one owner and writes in place.
            let old = cache.take().expect("a cache between passes");
            let old = old.into_primitive().tensor();
            let new = B::write_rows(old, new.into_primitive().tensor(), rows);
            let tensor: Tensor<B, 2> = Tensor::from_primitive(TensorPrimitive::Float(new));
            *cache = Some(tensor.clone());
            tensor
        };
        let LayerCache { keys, values } = &mut self.layers[layer];
        (write(keys, k), write(values, v))
    }
}
