//! The decoder: embedding, layers, norm, head.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use qlora_kernels::{
    AttentionSpan, AttentionSpec, CrossEntropyOptions, FrozenWeight, KernelBackend, RmsNormOptions,
    TokenLosses, embedding, linear, linear_cross_entropy, rms_norm, token_losses,
};
use qlora_lora::Pass;

use crate::layer::{DecoderLayer, LayerContext};
use crate::rope::{angles, frequencies};
use crate::{DecoderConfig, KvCache};

/// Sequences of token ids, one after the other, without padding.
#[derive(Clone, Copy, Debug)]
pub struct TokenBatch<'a> {
    /// All tokens.
    pub ids: &'a [u32],
    /// Tokens of each sequence; they add up to all.
    pub lengths: &'a [usize],
}

/// A decoder-only language model with a frozen base and, where attached, adapters.
#[derive(Module, Debug)]
pub struct Decoder<B: Backend> {
    pub(crate) embed_tokens: FrozenWeight<B>,
    pub(crate) layers: Vec<DecoderLayer<B>>,
    pub(crate) norm: Param<Tensor<B, 1>>,
    /// `None` where the head is the embedding.
    pub(crate) lm_head: Option<FrozenWeight<B>>,
    #[module(skip)]
    pub(crate) config: Arc<DecoderConfig>,
}

impl<B: Backend> Decoder<B> {
    /// What the model computes.
    #[must_use]
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The matrix that makes logits, `[vocabulary, hidden]`.
    #[must_use]
    pub fn head(&self) -> &FrozenWeight<B> {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }

    /// Bytes that the frozen weights take on the device.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        let layers = self.layers.iter().flat_map(|layer| layer.linears());
        let linears: usize = layers.map(|(_, linear)| linear.weight().bytes()).sum();
        linears + self.embed_tokens.bytes() + self.lm_head.as_ref().map_or(0, FrozenWeight::bytes)
    }

    /// The device that the model is on.
    #[must_use]
    pub fn device(&self) -> B::Device {
        self.norm.val().device()
    }
}

impl<B: KernelBackend> Decoder<B> {
    /// Final hidden states, after the last norm, of whole sequences: `[tokens, hidden]`.
    ///
    /// # Panics
    /// When `lengths` do not add up to the tokens, or an id is outside of the vocabulary.
    #[must_use]
    pub fn hidden_states(&self, batch: TokenBatch<'_>, pass: Pass) -> Tensor<B, 2> {
        let positions: Vec<u32> = batch.lengths.iter().flat_map(|length| 0..*length as u32).collect();
        self.run(batch.ids, &positions, AttentionSpan::sequences(batch.lengths), pass, None)
    }

    /// As [`hidden_states`](Self::hidden_states), of new tokens that follow those in a cache.
    ///
    /// `sequences[i]` is the sequence of the cache that `batch.lengths[i]` new tokens belong to.
    ///
    /// # Panics
    /// When a sequence outgrows the cache, and as [`hidden_states`](Self::hidden_states).
    #[must_use]
    pub fn hidden_states_cached(
        &self,
        batch: TokenBatch<'_>,
        sequences: &[usize],
        cache: &mut KvCache<B>,
        pass: Pass,
    ) -> Tensor<B, 2> {
        let (positions, spans) = cache.reserve(sequences, batch.lengths);
        self.run(batch.ids, &positions, spans, pass, Some(cache))
    }

    /// Logits of hidden states: `[tokens, vocabulary]`.
    #[must_use]
    pub fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        linear(hidden, self.head(), None, None)
    }

    /// `Σ weightᵢ · lossᵢ` of predicting `targets[i]` from token `i`, in nats: one element, differentiable.
    ///
    /// # Panics
    /// When targets and weights have not one element a token.
    #[must_use]
    pub fn loss(&self, batch: TokenBatch<'_>, targets: &[u32], weights: &[f32], pass: Pass) -> Tensor<B, 1> {
        let hidden = self.hidden_states(batch, pass);
        linear_cross_entropy(hidden, self.head(), targets, weights, CrossEntropyOptions::default())
    }

    /// Losses and log-probabilities of the tokens of non-zero weight; nothing to differentiate.
    ///
    /// # Panics
    /// As [`loss`](Self::loss).
    #[must_use]
    pub fn token_losses(
        &self,
        batch: TokenBatch<'_>,
        targets: &[u32],
        weights: &[f32],
        pass: Pass,
    ) -> TokenLosses {
        let hidden = self.hidden_states(batch, pass);
        token_losses(hidden, self.head(), targets, weights, CrossEntropyOptions::default())
    }

    fn run(
        &self,
        ids: &[u32],
        positions: &[u32],
        spans: Vec<AttentionSpan>,
        pass: Pass,
        mut cache: Option<&mut KvCache<B>>,
    ) -> Tensor<B, 2> {
        assert_eq!(ids.len(), positions.len(), "lengths add up to the tokens");
        let config = &*self.config;
        let mut h = embedding(&self.embed_tokens, ids);
        let spec = AttentionSpec {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            scale: 1.0 / (config.head_dim as f32).sqrt(),
            softcap: None,
            window: None,
            compute: self.embed_tokens.compute(),
            spans: spans.into(),
        };
        let frequencies = frequencies(config.rope_theta, config.head_dim, &config.rope_scaling);
        let (cos, sin) = angles(&frequencies, positions);
        let table = |values| {
            let data = TensorData::new(values, [positions.len(), config.head_dim / 2]);
            Tensor::from_data(data, (&h.device(), burn::tensor::DType::F32))
        };
        let context = LayerContext {
            spec: &spec,
            cos: table(cos),
            sin: table(sin),
            norm: self.norm_options(),
            activation: config.activation,
            pass,
        };
        for (index, layer) in self.layers.iter().enumerate() {
            h = layer.forward(h, &context, cache.as_deref_mut().map(|cache| (cache, index)));
        }
        rms_norm(h, self.norm.val(), self.norm_options())
    }

    fn norm_options(&self) -> RmsNormOptions {
        RmsNormOptions { eps: self.config.rms_norm_eps as f32, unit_offset: false }
    }
}
