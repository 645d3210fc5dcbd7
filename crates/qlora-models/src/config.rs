//! What a decoder computes, whatever file said so.

use qlora_kernels::Activation;

use crate::{Family, RopeScaling};

/// Sizes and choices of a decoder.
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
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How rotary frequencies are changed for longer contexts.
    pub rope_scaling: RopeScaling,
    /// Longest context that the model was trained for.
    pub max_position_embeddings: usize,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether the projections of attention have a bias.
    pub attention_bias: bool,
    /// Whether the projections of the MLP have a bias.
    pub mlp_bias: bool,
    /// What the gate goes through.
    pub activation: Activation,
}

impl DecoderConfig {
    /// Parameters of the model, without adapters.
    #[must_use]
    pub fn parameter_count(&self) -> usize {
        let elements =
            |shape: &[usize]| shape.iter().fold(1, |product: usize, &size| product.saturating_mul(size));
        self.tensors().iter().fold(0, |sum: usize, (_, shape)| sum.saturating_add(elements(shape)))
    }

    /// Refuses sizes that no model can have, before anything is allocated for them.
    pub(crate) fn validate(&self) -> Result<(), (&'static str, String)> {
        let positive = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
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
        if !(self.rms_norm_eps >= 0.0 && self.rms_norm_eps < 1.0) {
            return Err(("rms_norm_eps", format!("is {}: expected a small number", self.rms_norm_eps)));
        }
        if !(self.rope_theta > 0.0 && self.rope_theta.is_finite()) {
            return Err(("rope_theta", format!("is {}: expected a positive number", self.rope_theta)));
        }
        Ok(())
    }
}
