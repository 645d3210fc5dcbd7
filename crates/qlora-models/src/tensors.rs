//! The tensors of a model: names and shapes, as Hugging Face checkpoints have them.

use std::borrow::Cow;

use crate::DecoderConfig;
use crate::config::{NormPlacement, QkNorm};

/// A linear layer of a decoder layer.
#[derive(Clone, Debug)]
pub(crate) struct LinearShape {
    /// Its name below the layer (`mlp.up_proj`).
    pub(crate) name: Cow<'static, str>,
    /// `[out, in]`.
    pub(crate) shape: [usize; 2],
    /// Whether it has a bias.
    pub(crate) bias: bool,
}

/// The norms of a decoder layer by their place: names below the layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerNorms {
    pub(crate) before_attention: Option<&'static str>,
    pub(crate) after_attention: Option<&'static str>,
    pub(crate) before_mlp: Option<&'static str>,
    pub(crate) after_mlp: Option<&'static str>,
}

/// The router of a layer with experts.
pub(crate) const ROUTER: &str = "mlp.gate.weight";
/// The norms of queries and of keys.
pub(crate) const QK_NORMS: [&str; 2] = ["self_attn.q_norm.weight", "self_attn.k_norm.weight"];

/// The names of the layers that make queries, keys and values, of which there are three or one.
pub(crate) fn qkv_names(count: usize) -> &'static [&'static str] {
    match count {
        1 => &["self_attn.qkv_proj"],
        _ => &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    }
}

/// The names of the layers that make gate and up, of which there are two or one.
pub(crate) fn gate_up_names(count: usize) -> &'static [&'static str] {
    match count {
        1 => &["mlp.gate_up_proj"],
        _ => &["mlp.gate_proj", "mlp.up_proj"],
    }
}

/// `mlp.experts.3.up_proj` of `mlp.up_proj`.
pub(crate) fn expert_name(name: &'static str, expert: Option<usize>) -> Cow<'static, str> {
    match (expert, name.strip_prefix("mlp.")) {
        (Some(expert), Some(rest)) => format!("mlp.experts.{expert}.{rest}").into(),
        _ => name.into(),
    }
}

impl DecoderConfig {
    /// The linear layers of a decoder layer, in the order of the forward pass.
    pub(crate) fn layer_linears(&self, layer: usize) -> Vec<LinearShape> {
        let hidden = self.hidden_size;
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let outputs =
            if self.fused_projections { vec![queries + 2 * keys] } else { vec![queries, keys, keys] };
        let mut linears: Vec<LinearShape> = qkv_names(outputs.len())
            .iter()
            .zip(outputs)
            .map(|(name, outputs)| LinearShape {
                name: (*name).into(),
                shape: [outputs, hidden],
                bias: self.attention_bias,
            })
            .collect();
        let output = "self_attn.o_proj".into();
        linears.push(LinearShape { name: output, shape: [hidden, queries], bias: self.output_bias });
        let mut mlp = |inner: usize, expert: Option<usize>| {
            let outputs = if self.fused_projections { vec![2 * inner] } else { vec![inner, inner] };
            for (name, outputs) in gate_up_names(outputs.len()).iter().zip(outputs) {
                let name = expert_name(name, expert);
                linears.push(LinearShape { name, shape: [outputs, hidden], bias: self.mlp_bias });
            }
            let name = expert_name("mlp.down_proj", expert);
            linears.push(LinearShape { name, shape: [hidden, inner], bias: self.mlp_bias });
        };
        match self.experts_of(layer) {
            None => mlp(self.intermediate_size, None),
            Some(experts) => {
                (0..experts.count).for_each(|expert| mlp(experts.intermediate_size, Some(expert)));
            }
        }
        linears
    }

    /// The norms of every decoder layer.
    pub(crate) fn layer_norms(&self) -> LayerNorms {
        let (input, after) = ("input_layernorm.weight", "post_attention_layernorm.weight");
        let (before_mlp, after_mlp) =
            ("pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight");
        let none =
            LayerNorms { before_attention: None, after_attention: None, before_mlp: None, after_mlp: None };
        match self.norm_placement {
            // The name is from before there were norms after attention.
            NormPlacement::Before => {
                LayerNorms { before_attention: Some(input), before_mlp: Some(after), ..none }
            }
            NormPlacement::After => {
                LayerNorms { after_attention: Some(after), after_mlp: Some(after_mlp), ..none }
            }
            NormPlacement::Around => LayerNorms {
                before_attention: Some(input),
                after_attention: Some(after),
                before_mlp: Some(before_mlp),
                after_mlp: Some(after_mlp),
            },
            NormPlacement::Parallel => LayerNorms { before_attention: Some(input), ..none },
        }
    }

    /// The shapes of the norms of queries and of keys.
    pub(crate) fn qk_norm_shapes(&self) -> Option<[Vec<usize>; 2]> {
        let (heads, head_dim) = ([self.heads, self.kv_heads], self.head_dim);
        match self.qk_norm {
            QkNorm::None => None,
            QkNorm::Head => Some(heads.map(|_| vec![head_dim])),
            QkNorm::EachHead => Some(heads.map(|heads| vec![heads, head_dim])),
            QkNorm::Whole => Some(heads.map(|heads| vec![heads * head_dim])),
        }
    }

    /// Paths (`model.layers.0.self_attn.q_proj`) and shapes `[out, in]` of the layers that adapters can be
    /// attached to, in the order of the forward pass.
    pub fn linears(&self) -> impl Iterator<Item = (String, [usize; 2])> {
        (0..self.layers).flat_map(move |layer| {
            let path =
                move |linear: LinearShape| (format!("model.layers.{layer}.{}", linear.name), linear.shape);
            self.layer_linears(layer).into_iter().map(path)
        })
    }

    /// Names and shapes of all tensors of a checkpoint of the model, in the order of the forward pass.
    #[must_use]
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, vocabulary) = (self.hidden_size, self.vocab_size);
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![vocabulary, hidden])];
        let LayerNorms { before_attention, after_attention, before_mlp, after_mlp } = self.layer_norms();
        for layer in 0..self.layers {
            let path = |name: &str| format!("model.layers.{layer}.{name}");
            for norm in [before_attention, after_attention, before_mlp, after_mlp].into_iter().flatten() {
                tensors.push((path(norm), vec![hidden]));
            }
            for (name, shape) in QK_NORMS.into_iter().zip(self.qk_norm_shapes().into_iter().flatten()) {
                tensors.push((path(name), shape));
            }
            if let Some(experts) = self.experts_of(layer) {
                tensors.push((path(ROUTER), vec![experts.count, hidden]));
            }
            for LinearShape { name, shape, bias } in self.layer_linears(layer) {
                tensors.push((format!("{}.weight", path(&name)), shape.to_vec()));
                if bias {
                    tensors.push((format!("{}.bias", path(&name)), vec![shape[0]]));
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
