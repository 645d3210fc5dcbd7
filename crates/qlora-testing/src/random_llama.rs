//! Llamas with random weights, of any small size.

use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};

/// The sizes of one; four query heads, two heads of keys.
#[derive(Clone, Copy, Debug)]
pub struct RandomLlama {
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// `max_position_embeddings`.
    pub context: usize,
    /// Features of hidden states.
    pub hidden: usize,
    /// Features within an MLP.
    pub inner: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Whether the embedding is the head too.
    pub tied: bool,
    /// Weights are uniform over an interval of this length about 0, those of norms about 1.
    pub spread: f32,
}

impl RandomLlama {
    /// `config.json`.
    #[must_use]
    pub fn config(&self, model_type: &str) -> Value {
        json!({
            "model_type": model_type,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": self.tied,
        })
    }

    /// `model.safetensors`, in f32: the same numbers each time.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn weights(&self) -> Vec<u8> {
        let mut state = 1_u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5
        };
        let mut values = |name: &str, elements: usize| -> Vec<u8> {
            let middle = if name.contains("norm") { 1.0 } else { 0.0 };
            (0..elements).flat_map(|_| (middle + uniform() * self.spread).to_le_bytes()).collect()
        };
        let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = self
            .shapes()
            .into_iter()
            .map(|(name, shape)| {
                let bytes = values(&name, shape.iter().product());
                (name, shape, bytes)
            })
            .collect();
        let views = tensors.iter().map(|(name, shape, bytes)| {
            (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).expect("sizes fit"))
        });
        serialize(views, None).expect("serializes")
    }

    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let Self { vocabulary, hidden, inner, layers, tied, .. } = *self;
        let mut shapes = vec![
            ("model.embed_tokens.weight".to_owned(), vec![vocabulary, hidden]),
            ("model.norm.weight".to_owned(), vec![hidden]),
        ];
        if !tied {
            shapes.push(("lm_head.weight".to_owned(), vec![vocabulary, hidden]));
        }
        for layer in 0..layers {
            for (name, shape) in [
                ("input_layernorm", vec![hidden]),
                ("post_attention_layernorm", vec![hidden]),
                ("self_attn.q_proj", vec![hidden, hidden]),
                ("self_attn.k_proj", vec![hidden / 2, hidden]),
                ("self_attn.v_proj", vec![hidden / 2, hidden]),
                ("self_attn.o_proj", vec![hidden, hidden]),
                ("mlp.gate_proj", vec![inner, hidden]),
                ("mlp.up_proj", vec![inner, hidden]),
                ("mlp.down_proj", vec![hidden, inner]),
            ] {
                shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
            }
        }
        shapes
    }
}
