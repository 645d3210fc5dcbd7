//! What a decoder computes, whatever file said so.

use qlora_kernels::Activation;

use crate::{Family, RopeScaling};

/// Sizes and choices of a decoder.
///
/// The [default](Self::default) has no size, and makes the choices of Llama: a family names what it does otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// The family whose tensor names and conventions the checkpoint follows.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Features of a hidden state.
    pub hidden_size: usize,
    /// Features between `up_proj` and `down_proj`.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// ε of the norms.
    pub rms_norm_eps: f64,
    /// What the norms compute.
    pub norm: NormKind,
    /// Where the norms of a layer are.
    pub norm_placement: NormPlacement,
    /// How queries and keys are normalised before they are rotated.
    pub qk_norm: QkNorm,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How rotary frequencies are changed for longer contexts.
    pub rope_scaling: RopeScaling,
    /// Features of a head that are rotated, the first ones; `None`: all.
    pub rotary_dim: Option<usize>,
    /// Which features of a head are rotated together.
    pub rope_pairs: RopePairs,
    /// Base of the rotary frequencies of layers with [`LayerRope::Local`], which are not scaled.
    pub local_rope_theta: f64,
    /// Window and rotation of each layer; empty: every layer sees everything and is rotated.
    pub layer_attention: Vec<LayerAttention>,
    /// Factor of the scores of attention; `None`: `1 / √head_dim`.
    pub attention_scale: Option<f64>,
    /// Scores go through `cap · tanh(score / cap)`.
    pub attention_softcap: Option<f64>,
    /// Longest context that the model was trained for.
    pub max_position_embeddings: usize,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether the projections to queries, keys and values have a bias.
    pub attention_bias: bool,
    /// Whether the output projection of attention has a bias.
    pub output_bias: bool,
    /// Whether the projections of the MLP have a bias.
    pub mlp_bias: bool,
    /// Whether queries, keys and values come from one linear layer, and gate and up from another.
    pub fused_projections: bool,
    /// What the gate goes through.
    pub activation: Activation,
    /// Factor of the embedding.
    pub embedding_scale: f64,
    /// Factor of what attention and MLP add to the hidden states.
    pub residual_scale: f64,
    /// Factor of the logits, before the soft cap.
    pub logit_scale: f64,
    /// Logits go through `cap · tanh(logit / cap)`.
    pub logit_softcap: Option<f64>,
    /// Experts in place of the MLP.
    pub experts: Option<ExpertsConfig>,
}

/// What a norm computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NormKind {
    /// `x / √(mean(x²) + ε) · w`.
    #[default]
    Rms,
    /// `x / √(mean(x²) + ε) · (1 + w)`: Gemma.
    RmsUnitOffset,
    /// `(x − mean(x)) / √(var(x) + ε) · w`, without a bias: Cohere.
    Layer,
}

/// Where the norms of a layer are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NormPlacement {
    /// `h + attention(norm(h))`, then `h + mlp(norm(h))`.
    #[default]
    Before,
    /// `h + norm(attention(h))`, then `h + norm(mlp(h))`: OLMo 2.
    After,
    /// `h + norm(attention(norm(h)))`, then `h + norm(mlp(norm(h)))`: Gemma 2 and 3.
    Around,
    /// `h + attention(x) + mlp(x)` with `x = norm(h)`: Cohere.
    Parallel,
}

/// How queries and keys are normalised, with the kind of the other norms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QkNorm {
    /// Not at all.
    #[default]
    None,
    /// Each head, all with one weight `[head_dim]`: Qwen 3, Gemma 3.
    Head,
    /// Each head, with a weight of its own `[heads, head_dim]`: Command R+.
    EachHead,
    /// All heads together, with a weight `[heads · head_dim]`: OLMo 2.
    Whole,
}

/// Which features of a head are rotated together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RopePairs {
    /// `i` and `i + d/2`.
    #[default]
    Halves,
    /// `2i` and `2i + 1`: Cohere.
    Interleaved,
}

/// What sets the attention of one layer apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerAttention {
    /// A query sees this many tokens, itself included; `None`: all before it.
    pub window: Option<usize>,
    /// How queries and keys are rotated.
    pub rope: LayerRope,
}

/// How the queries and keys of a layer are rotated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LayerRope {
    /// By [`rope_theta`](DecoderConfig::rope_theta) and [`rope_scaling`](DecoderConfig::rope_scaling).
    #[default]
    Global,
    /// By [`local_rope_theta`](DecoderConfig::local_rope_theta).
    Local,
    /// Not at all.
    None,
}

/// A mixture of experts: each token goes through the `per_token` MLPs that a router gives the most weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertsConfig {
    /// Experts of a layer.
    pub count: usize,
    /// Experts that a token goes through.
    pub per_token: usize,
    /// Features between an expert's `up_proj` and `down_proj`.
    pub intermediate_size: usize,
    /// Whether the weights of a token's experts are made to add up to one.
    pub normalize: bool,
    /// Layers that have a plain MLP instead.
    pub dense_layers: Vec<usize>,
}

impl Default for DecoderConfig {
    fn default() -> Self {
        Self {
            family: Family::Llama,
            vocab_size: 0,
            hidden_size: 0,
            intermediate_size: 0,
            layers: 0,
            heads: 0,
            kv_heads: 0,
            head_dim: 0,
            rms_norm_eps: 1e-6,
            norm: NormKind::default(),
            norm_placement: NormPlacement::default(),
            qk_norm: QkNorm::default(),
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::default(),
            rotary_dim: None,
            rope_pairs: RopePairs::default(),
            local_rope_theta: 10_000.0,
            layer_attention: Vec::new(),
            attention_scale: None,
            attention_softcap: None,
            max_position_embeddings: 2048,
            tie_word_embeddings: false,
            attention_bias: false,
            output_bias: false,
            mlp_bias: false,
            fused_projections: false,
            activation: Activation::Silu,
            embedding_scale: 1.0,
            residual_scale: 1.0,
            logit_scale: 1.0,
            logit_softcap: None,
            experts: None,
        }
    }
}

impl DecoderConfig {
    /// Parameters of the model, without adapters.
    #[must_use]
    pub fn parameter_count(&self) -> usize {
        let elements =
            |shape: &[usize]| shape.iter().fold(1, |product: usize, &size| product.saturating_mul(size));
        self.tensors().iter().fold(0, |sum: usize, (_, shape)| sum.saturating_add(elements(shape)))
    }

    /// Window and rotation of a layer.
    #[must_use]
    pub fn attention_of(&self, layer: usize) -> LayerAttention {
        self.layer_attention.get(layer).copied().unwrap_or_default()
    }

    /// The experts of a layer; `None` where it has a plain MLP.
    #[must_use]
    pub fn experts_of(&self, layer: usize) -> Option<&ExpertsConfig> {
        self.experts.as_ref().filter(|experts| !experts.dense_layers.contains(&layer))
    }

    /// The longest context that the model computes sensibly: [`max_position_embeddings`](Self::max_position_embeddings),
    /// or what rotary scaling makes of it.
    ///
    /// Linear scaling multiplies it, as in vLLM: transformers asks that configurations leave it as it was in training.
    /// Those of Gemma 3 do not.
    #[must_use]
    pub fn context_length(&self) -> usize {
        let trained = self.max_position_embeddings;
        if self.family == Family::Gemma3 {
            return trained;
        }
        trained.max(self.rope_scaling.context_length(trained))
    }

    /// The metadata of a GGUF file of this model, `general.architecture` and the keys below it. The divisors of
    /// rotary frequencies are not in it: files have them as tensors
    /// ([`divisors`](crate::RopeScaling::divisors), [`factors`](crate::RopeScaling::factors)).
    ///
    /// Windows of architectures that have none in llama.cpp (Mistral, Qwen) are left out, and the context ends where
    /// they begin to matter.
    ///
    /// # Errors
    /// When llama.cpp computes something else.
    pub fn gguf_metadata(&self) -> Result<qlora_gguf::Metadata, crate::NotInGguf> {
        crate::family::gguf_metadata(self)
    }

    /// Features of a head that are rotated.
    pub(crate) fn rotated(&self) -> usize {
        self.rotary_dim.unwrap_or(self.head_dim)
    }

    /// Refuses sizes that no model can have, before anything is allocated for them.
    pub(crate) fn validate(&self) -> Result<(), (&'static str, String)> {
        let mut positive = vec![
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("partial_rotary_factor", self.rotated()),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        if let Some(experts) = &self.experts {
            positive.push(("moe_intermediate_size", experts.intermediate_size));
            positive.push(("num_experts_per_tok", experts.per_token));
            let (count, per_token) = (experts.count, experts.per_token);
            if count > 1 << 12 || count.saturating_mul(self.layers) > 1 << 18 {
                let problem = format!("is {count}: expected at most 2^12, and 2^18 in all layers");
                return Err(("num_experts", problem));
            }
            if per_token > count {
                let problem = format!("is {per_token}: expected at most num_experts {count}");
                return Err(("num_experts_per_tok", problem));
            }
        }
        // Names of all tensors are held in memory before the first is looked for.
        if self.layers == 0 || self.layers > 1 << 16 {
            let problem = format!("is {}: expected a number from 1 to 2^16", self.layers);
            return Err(("num_hidden_layers", problem));
        }
        for (key, value) in positive {
            if value == 0 || value > 1 << 28 {
                return Err((key, format!("is {value}: expected a number from 1 to 2^28")));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let problem =
                format!("is {}: expected a divisor of num_attention_heads {}", self.kv_heads, self.heads);
            return Err(("num_key_value_heads", problem));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(("head_dim", format!("is {}: expected an even number", self.head_dim)));
        }
        if !self.rotated().is_multiple_of(2) || self.rotated() > self.head_dim {
            let problem = format!(
                "rotates {} of the {} features of a head: expected an even number of at most all",
                self.rotated(),
                self.head_dim
            );
            return Err(("partial_rotary_factor", problem));
        }
        if !(self.rms_norm_eps >= 0.0 && self.rms_norm_eps < 1.0) {
            return Err(("rms_norm_eps", format!("is {}: expected a small number", self.rms_norm_eps)));
        }
        for (key, value) in [("rope_theta", self.rope_theta), ("rope_local_base_freq", self.local_rope_theta)]
        {
            if !(value > 0.0 && value.is_finite()) {
                return Err((key, format!("is {value}: expected a positive number")));
            }
        }
        if !self.layer_attention.is_empty() && self.layer_attention.len() != self.layers {
            let problem =
                format!("has {} elements: expected one a layer, {}", self.layer_attention.len(), self.layers);
            return Err(("layer_types", problem));
        }
        if self.layer_attention.iter().any(|layer| layer.window == Some(0)) {
            return Err(("sliding_window", "is 0: expected at least 1".to_owned()));
        }
        self.rope_scaling.validate(self.rotated())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_context_is_what_rotary_scaling_makes_of_it() {
        let original = 4096;
        let config = |family, rope_scaling| DecoderConfig {
            family,
            rope_scaling,
            max_position_embeddings: original,
            ..DecoderConfig::default()
        };
        let reached = |family, scaling| config(family, scaling).context_length();
        assert_eq!(reached(Family::Llama, RopeScaling::None), original);
        assert_eq!(reached(Family::Llama, RopeScaling::Linear { factor: 4.0 }), 4 * original);
        assert_eq!(reached(Family::Gemma3, RopeScaling::Linear { factor: 4.0 }), original);
        let dynamic = RopeScaling::Dynamic { factor: 2.0, original_max_position_embeddings: original };
        assert_eq!(reached(Family::Qwen2, dynamic), 2 * original);
    }
}
