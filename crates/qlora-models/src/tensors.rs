//! The tensors of a model: names and shapes, as Hugging Face checkpoints have them.

use crate::DecoderConfig;

/// A linear layer of every decoder layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinearShape {
    /// Its name below the layer (`mlp.up_proj`).
    pub(crate) name: &'static str,
    /// `[out, in]`.
    pub(crate) shape: [usize; 2],
    /// Whether it has a bias.
    pub(crate) bias: bool,
}

/// The norms of every decoder layer: attention's, the MLP's.
pub(crate) const LAYER_NORMS: [&str; 2] = ["input_layernorm.weight", "post_attention_layernorm.weight"];

impl DecoderConfig {
    /// The linear layers of a decoder layer, in the order of the forward pass.
    pub(crate) fn layer_linears(&self) -> [LinearShape; 7] {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let attention = |name, shape| LinearShape { name, shape, bias: self.attention_bias };
        let mlp = |name, shape| LinearShape { name, shape, bias: self.mlp_bias };
        [
            attention("self_attn.q_proj", [queries, hidden]),
            attention("self_attn.k_proj", [keys, hidden]),
            attention("self_attn.v_proj", [keys, hidden]),
            // Llama's `attention_bias` gives the output projection one too.
            attention("self_attn.o_proj", [hidden, queries]),
            mlp("mlp.gate_proj", [inner, hidden]),
            mlp("mlp.up_proj", [inner, hidden]),
            mlp("mlp.down_proj", [hidden, inner]),
        ]
    }

    /// Paths (`model.layers.0.self_attn.q_proj`) and shapes `[out, in]` of the layers that adapters can be
    /// attached to, in the order of the forward pass.
    pub fn linears(&self) -> impl Iterator<Item = (String, [usize; 2])> {
        let linears = self.layer_linears();
        (0..self.layers).flat_map(move |layer| {
            linears.map(|linear| (format!("model.layers.{layer}.{}", linear.name), linear.shape))
        })
    }

    /// Names and shapes of all tensors of a checkpoint of the model, in the order of the forward pass.
    #[must_use]
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, vocabulary) = (self.hidden_size, self.vocab_size);
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![vocabulary, hidden])];
        for layer in 0..self.layers {
            let path = |name: &str| format!("model.layers.{layer}.{name}");
            tensors.extend(LAYER_NORMS.map(|norm| (path(norm), vec![hidden])));
            for LinearShape { name, shape, bias } in self.layer_linears() {
                tensors.push((format!("{}.weight", path(name)), shape.to_vec()));
                if bias {
                    tensors.push((format!("{}.bias", path(name)), vec![shape[0]]));
                }
            }
        }
        tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
        if !self.tie_word_embeddings {
            tensors.push(("lm_head.weight".to_owned(), vec![vocabulary, hidden]));
        }
        tensors
    }
}
