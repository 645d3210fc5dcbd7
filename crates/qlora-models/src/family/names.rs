//! Names of tensors in Hugging Face checkpoints and in GGUF files, and the order of rows in both.

use super::Family;
use crate::DecoderConfig;

/// Hugging Face name, GGUF name; those of a layer follow `model.layers.N.` and `blk.N.`.
const OUTSIDE: [(&str, &str); 3] = [
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
];

/// A pair of names of modules below a layer; `.weight` and `.bias` follow.
pub(super) type NamePair = (&'static str, &'static str);

/// Linear layers, norms of queries and keys: called alike in all families.
const IN_LAYER: [NamePair; 13] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate", "ffn_gate_inp"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("input_layernorm", "attn_norm"),
];

/// The norm that Llama calls after what is before it.
pub(super) const NORMS_BEFORE: &[NamePair] = &[("post_attention_layernorm", "ffn_norm")];
/// The norms of Gemma 2 and 3, and of OLMo 2.
pub(super) const NORMS_AFTER: &[NamePair] = &[
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];

/// A tensor of a GGUF file, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufName {
    /// The tensor.
    pub tensor: String,
    /// Which of the experts that lie in it one after the other.
    pub expert: Option<usize>,
}

/// The GGUF name of a tensor that Hugging Face checkpoints call `name`.
pub(super) fn gguf_name(norms: &[NamePair], name: &str) -> Option<GgufName> {
    let whole = |tensor: String| Some(GgufName { tensor, expert: None });
    if let Some((_, gguf)) = OUTSIDE.iter().find(|(hf, _)| *hf == name) {
        return whole((*gguf).to_owned());
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, kind) = rest.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
    let find =
        |module: &str| IN_LAYER.iter().chain(norms).find(|(hf, _)| *hf == module).map(|(_, gguf)| *gguf);
    match module.strip_prefix("mlp.experts.") {
        None => whole(format!("blk.{layer}.{}.{kind}", find(module)?)),
        Some(expert) => {
            let (expert, module) = expert.split_once('.')?;
            let gguf = find(&format!("mlp.{module}"))?;
            let tensor = format!("blk.{layer}.{gguf}_exps.{kind}");
            Some(GgufName { tensor, expert: Some(expert.parse().ok()?) })
        }
    }
}

impl Family {
    /// Brings what GGUF files hold for the tensor that Hugging Face checkpoints call `name`, or for a factor B
    /// `[out, rank]` that is added to it, to what those hold.
    #[must_use]
    pub fn values_from_gguf(self, name: &str, mut values: Vec<f32>, config: &DecoderConfig) -> Vec<f32> {
        let spec = self.spec();
        if spec.gguf_norms_have_one && name.ends_with("norm.weight") {
            values.iter_mut().for_each(|value| *value -= 1.0);
        }
        if spec.gguf_rows_are_interleaved {
            return halves_from_interleaved(name, values, config);
        }
        values
    }

    /// Brings the values of a tensor `name` of Hugging Face checkpoints, or a factor B `[out, rank]` that is added to it, to
    /// what GGUF files hold.
    #[must_use]
    pub fn values_to_gguf(self, name: &str, mut values: Vec<f32>, config: &DecoderConfig) -> Vec<f32> {
        let spec = self.spec();
        if spec.gguf_norms_have_one && name.ends_with("norm.weight") {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        if spec.gguf_rows_are_interleaved {
            return interleaved_from_halves(name, values, config);
        }
        values
    }
}

/// The converter brings rows of q and k into the order of interleaved pairs; ours rotate halves.
fn halves_from_interleaved(name: &str, values: Vec<f32>, config: &DecoderConfig) -> Vec<f32> {
    let half = config.head_dim / 2;
    reorder_rows(name, values, config, |row| row % half * 2 + row / half)
}

/// Undoes [`halves_from_interleaved`].
fn interleaved_from_halves(name: &str, values: Vec<f32>, config: &DecoderConfig) -> Vec<f32> {
    let half = config.head_dim / 2;
    reorder_rows(name, values, config, |row| row % 2 * half + row / 2)
}

/// Row `r` of a head of q or k becomes what row `source(r)` was; other tensors stay as they are.
fn reorder_rows(
    name: &str,
    values: Vec<f32>,
    config: &DecoderConfig,
    source: impl Fn(usize) -> usize,
) -> Vec<f32> {
    let heads = match name.rsplit_once("self_attn.") {
        Some((_, "q_proj.weight" | "q_proj.bias")) => config.heads,
        Some((_, "k_proj.weight" | "k_proj.bias")) => config.kv_heads,
        _ => return values,
    };
    let head_dim = config.head_dim;
    let cols = values.len() / (heads * head_dim);
    let mut rows = Vec::with_capacity(values.len());
    for row in 0..heads * head_dim {
        let source = row / head_dim * head_dim + source(row % head_dim);
        rows.extend_from_slice(&values[source * cols..(source + 1) * cols]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(norms: &[NamePair], name: &str) -> Option<String> {
        gguf_name(norms, name).map(|name| name.tensor)
    }

    #[test]
    fn names_of_layers_and_of_the_rest() {
        let norms = NORMS_BEFORE;
        assert_eq!(name(norms, "model.layers.12.mlp.up_proj.weight").unwrap(), "blk.12.ffn_up.weight");
        assert_eq!(name(norms, "model.layers.1.self_attn.q_proj.bias").unwrap(), "blk.1.attn_q.bias");
        assert_eq!(name(norms, "lm_head.weight").unwrap(), "output.weight");
        assert_eq!(name(norms, "model.layers.1.mlp.unknown.weight"), None);
        let norm = "model.layers.0.post_attention_layernorm.weight";
        assert_eq!(name(norms, norm).unwrap(), "blk.0.ffn_norm.weight");
        assert_eq!(name(NORMS_AFTER, norm).unwrap(), "blk.0.post_attention_norm.weight");
    }

    #[test]
    fn experts_lie_in_one_tensor() {
        let found = gguf_name(NORMS_BEFORE, "model.layers.2.mlp.experts.7.down_proj.weight").unwrap();
        assert_eq!(found, GgufName { tensor: "blk.2.ffn_down_exps.weight".into(), expert: Some(7) });
        let router = gguf_name(NORMS_BEFORE, "model.layers.2.mlp.gate.weight").unwrap();
        assert_eq!(router, GgufName { tensor: "blk.2.ffn_gate_inp.weight".into(), expert: None });
    }

    #[test]
    fn rows_are_sorted_by_halves() {
        let config =
            DecoderConfig { heads: 2, kv_heads: 1, head_dim: 4, hidden_size: 1, ..DecoderConfig::default() };
        let values = vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];
        let sorted =
            Family::Llama.values_from_gguf("model.layers.0.self_attn.q_proj.weight", values, &config);
        assert_eq!(sorted, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        let name = "model.layers.0.self_attn.q_proj.weight";
        let back = Family::Llama.values_to_gguf(name, sorted, &config);
        assert_eq!(back, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        let bias = Family::Llama.values_from_gguf("self_attn.k_proj.bias", vec![0.0, 1.0, 2.0, 3.0], &config);
        assert_eq!(bias, [0.0, 2.0, 1.0, 3.0]);
        let qwen = Family::Qwen2.values_from_gguf("self_attn.k_proj.bias", vec![0.0, 1.0], &config);
        assert_eq!(qwen, [0.0, 1.0]);
    }

    #[test]
    fn norms_of_gemma_are_stored_with_one_added() {
        let config = DecoderConfig::default();
        let found = Family::Gemma2.values_from_gguf("model.norm.weight", vec![1.5], &config);
        assert_eq!(found, [0.5]);
    }
}
