//! The decoder: embedding, layers, norm, head.

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData, bf16, f16};
use qlora_kernels::device::ActivationSizes;
use qlora_kernels::{
    AttentionSpan, AttentionSpec, CrossEntropyOptions, FrozenWeight, KernelBackend, TokenLosses, embedding,
    linear_cross_entropy, logits, token_losses,
};
use qlora_lora::Pass;

use crate::config::LayerRope;
use crate::layer::{DecoderLayer, LayerContext, RopeTable};
use crate::norm::Norm;
use crate::residual::Residual;
use crate::rope::angles;
use crate::{DecoderConfig, KvCache, RopeScaling};

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
    pub(crate) norm: Norm<B>,
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
        let mut shapes: Vec<[usize; 2]> = Vec::new();
        let linears = (0..config.layers).flat_map(|layer| config.layer_linears(layer));
        for shape in linears.map(|linear| linear.shape) {
            if !shapes.contains(&shape) {
                shapes.push(shape);
            }
        }
        ActivationSizes {
            tokens,
            hidden: config.hidden_size,
            widths: shapes.iter().map(|[outputs, _]| *outputs).collect(),
            heads: config.heads,
            weights: shapes.iter().map(|[outputs, inputs]| outputs * inputs).collect(),
            vocabulary: config.vocab_size,
            compute: self.embed_tokens.compute(),
        }
    }

    /// The device that the model is on.
    #[must_use]
    pub fn device(&self) -> B::Device {
        self.norm.device()
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
        let mut h = self.embed(batch.ids);
        let dtype = B::activation_dtype(self.embed_tokens.compute());
        if !finite(&h) {
            return Some("model.embed_tokens".to_string());
        }
        for (index, layer) in self.layers.iter().enumerate() {
            h = layer.forward(Residual::new(h), &context, None).rows();
            if !finite(&h) {
                return Some(format!("model.layers.{index}"));
            }
        }
        let normed = self.norm.forward(h, dtype);
        (!finite(&normed)).then(|| "model.norm".to_string())
    }

    /// Logits of hidden states: `[tokens, vocabulary]`, f32 whatever the products are computed in.
    #[must_use]
    pub fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        let CrossEntropyOptions { logit_scale, softcap, .. } = self.loss_options();
        let logits = logits(hidden, self.head());
        let logits = if logit_scale == 1.0 { logits } else { logits * logit_scale };
        match softcap {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
        }
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
        linear_cross_entropy(hidden, self.head(), targets, weights, self.loss_options())
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
        token_losses(hidden, self.head(), targets, weights, self.loss_options())
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
            scale: config.attention_scale.unwrap_or(1.0 / (config.head_dim as f64).sqrt()) as f32,
            softcap: config.attention_softcap.map(|cap| cap as f32),
            window: None,
            compute: self.embed_tokens.compute(),
            spans: spans.into(),
        };
        let table = |theta, scaling: &RopeScaling| {
            let lengths = spec.spans.iter().map(|span| (span.q_len, span.k_len));
            let (cos, sin) = angles(theta, config.rotated(), scaling, positions, lengths);
            let table = |values| {
                let data = TensorData::new(values, [positions.len(), config.rotated() / 2]);
                Tensor::from_data(data, (&device, DType::F32))
            };
            RopeTable { cos: table(cos), sin: table(sin) }
        };
        let local = config.layer_attention.iter().any(|layer| layer.rope == LayerRope::Local);
        LayerContext {
            config: self.config.clone(),
            rope: table(config.rope_theta, &config.rope_scaling),
            local_rope: local.then(|| table(config.local_rope_theta, &RopeScaling::None)),
            spec,
            pass,
        }
    }

    /// The residual stream that the first layer gets.
    pub(crate) fn embed(&self, ids: &[u32]) -> Tensor<B, 2> {
        let h = embedding(&self.embed_tokens, ids);
        let scale = self.config.embedding_scale;
        if scale == 1.0 {
            return h;
        }
        // The factor is rounded to the type of the activations, as the peers have it.
        let scale = match B::activation_dtype(self.embed_tokens.compute()) {
            DType::BF16 => bf16::from_f64(scale).to_f64(),
            DType::F16 => f16::from_f64(scale).to_f64(),
            _ => f64::from(scale as f32),
        };
        h * scale
    }

    /// How the logits of this model become a loss.
    pub(crate) fn loss_options(&self) -> CrossEntropyOptions {
        CrossEntropyOptions {
            logit_scale: self.config.logit_scale as f32,
            softcap: self.config.logit_softcap.map(|cap| cap as f32),
            ..CrossEntropyOptions::default()
        }
    }

    fn run(
        &self,
        ids: &[u32],
        context: &LayerContext<B>,
        mut cache: Option<&mut KvCache<B>>,
    ) -> Tensor<B, 2> {
        let h = self.embed(ids);
        assert_eq!(h.dims()[0], context.rope.cos.dims()[0], "one position a token");
        let mut stream = Residual::new(h);
        for (index, layer) in self.layers.iter().enumerate() {
            stream = layer.forward(stream, context, cache.as_deref_mut().map(|cache| (cache, index)));
        }
        let dtype = B::activation_dtype(self.embed_tokens.compute());
        stream.normed(Some(&self.norm), dtype).1
    }
}
