//! The decoder: embedding, layers, norm, head.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use qlora_kernels::device::ActivationSizes;
use qlora_kernels::{
    AttentionSpan, AttentionSpec, CrossEntropyOptions, FrozenWeight, KernelBackend, RmsNormOptions,
    TokenLosses, embedding, linear_cross_entropy, logits, rms_norm, token_losses,
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

impl TokenBatch<'_> {
    /// The place of each token in its sequence.
    pub(crate) fn positions(&self) -> Vec<u32> {
        let positions: Vec<u32> = self.lengths.iter().flat_map(|length| 0..*length as u32).collect();
        assert_eq!(positions.len(), self.ids.len(), "lengths add up to the tokens");
        positions
    }
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

    /// The sizes of what a pass of so many tokens makes.
    #[must_use]
    pub fn activation_sizes(&self, tokens: usize) -> ActivationSizes {
        let config = &self.config;
        let shapes = config.layer_linears().map(|linear| linear.shape);
        ActivationSizes {
            tokens,
            hidden: config.hidden_size,
            widths: shapes.map(|[outputs, _]| outputs).to_vec(),
            heads: config.heads,
            weights: shapes.map(|[outputs, inputs]| outputs * inputs).to_vec(),
            vocabulary: config.vocab_size,
            compute: self.embed_tokens.compute(),
        }
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
        let context = self.context(&batch.positions(), AttentionSpan::sequences(batch.lengths), pass);
        self.run(batch.ids, &context, None)
    }

    /// As [`hidden_states`](Self::hidden_states), of new tokens that follow those in a cache.
    ///
    /// `sequences[i]` is the sequence of the cache that `batch.lengths[i]` new tokens belong to.
    ///
    /// # Panics
    /// When a sequence outgrows its pages, and as [`hidden_states`](Self::hidden_states).
    #[must_use]
    pub(crate) fn hidden_states_cached(
        &self,
        batch: TokenBatch<'_>,
        sequences: &[usize],
        cache: &mut KvCache<B>,
        pass: Pass,
    ) -> Tensor<B, 2> {
        let (positions, spans) = cache.begin_pass(sequences, batch.lengths);
        self.run(batch.ids, &self.context(&positions, spans, pass), Some(cache))
    }

    /// The same model with its adapters in the form in which generation reads them: of the type of the products, scale
    /// included, and no part of a graph.
    #[must_use]
    pub fn for_inference(&self) -> Self {
        let mut decoder = self.clone();
        for layer in &mut decoder.layers {
            for (_, linear) in layer.linears_mut() {
                linear.prepare_for_inference();
            }
        }
        decoder
    }

    /// The path of the first part of the model whose output holds an infinity or NaN: the embedding, a decoder layer
    /// (`model.layers.3`), the last norm. `None` if all hidden states are finite.
    ///
    /// # Panics
    /// As [`hidden_states`](Self::hidden_states).
    #[must_use]
    pub fn first_non_finite_layer(&self, batch: TokenBatch<'_>, pass: Pass) -> Option<String> {
        let finite = |h: &Tensor<B, 2>| h.clone().is_finite().all().into_data().iter::<bool>().all(|all| all);
        let context = self.context(&batch.positions(), AttentionSpan::sequences(batch.lengths), pass);
        let mut h = embedding(&self.embed_tokens, batch.ids);
        if !finite(&h) {
            return Some("model.embed_tokens".to_string());
        }
        for (index, layer) in self.layers.iter().enumerate() {
            h = layer.forward(h, &context, None);
            if !finite(&h) {
                return Some(format!("model.layers.{index}"));
            }
        }
        let normed = rms_norm(h, self.norm.val(), self.norm_options());
        (!finite(&normed)).then(|| "model.norm".to_string())
    }

    /// Logits of hidden states: `[tokens, vocabulary]`, f32 whatever the products are computed in.
    #[must_use]
    pub fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        logits(hidden, self.head())
    }

    /// `Σ weightᵢ · lossᵢ` of predicting `targets[i]` from token `i`, in nats: one element, differentiable.
    ///
    /// # Panics
    /// When targets and weights have not one element a token.
    #[must_use]
    pub fn loss(&self, batch: TokenBatch<'_>, targets: &[u32], weights: &[f32], pass: Pass) -> Tensor<B, 1> {
        self.loss_of(self.hidden_states(batch, pass), targets, weights)
    }

    /// As [`loss`](Self::loss), of final hidden states.
    ///
    /// # Panics
    /// When targets and weights have not one element a row.
    #[must_use]
    pub fn loss_of(&self, hidden: Tensor<B, 2>, targets: &[u32], weights: &[f32]) -> Tensor<B, 1> {
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

    /// What the layers share when tokens at these positions attend to each other within spans.
    pub(crate) fn context(
        &self,
        positions: &[u32],
        spans: Vec<AttentionSpan>,
        pass: Pass,
    ) -> LayerContext<B> {
        let config = &*self.config;
        let device = self.device();
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
            Tensor::from_data(data, (&device, burn::tensor::DType::F32))
        };
        LayerContext {
            spec,
            cos: table(cos),
            sin: table(sin),
            norm: self.norm_options(),
            activation: config.activation,
            pass,
        }
    }

    fn run(
        &self,
        ids: &[u32],
        context: &LayerContext<B>,
        mut cache: Option<&mut KvCache<B>>,
    ) -> Tensor<B, 2> {
        let mut h = embedding(&self.embed_tokens, ids);
        assert_eq!(h.dims()[0], context.cos.dims()[0], "one position a token");
        for (index, layer) in self.layers.iter().enumerate() {
            h = layer.forward(h, context, cache.as_deref_mut().map(|cache| (cache, index)));
        }
        rms_norm(h, self.norm.val(), self.norm_options())
    }

    pub(crate) fn norm_options(&self) -> RmsNormOptions {
        RmsNormOptions { eps: self.config.rms_norm_eps as f32, unit_offset: false }
    }
}
