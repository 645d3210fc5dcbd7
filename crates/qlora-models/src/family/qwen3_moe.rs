//! Qwen 3, mixtures of experts.

use serde_json::{Map, Value, json};

use super::gguf_entries::{GgufEntries, NotInGguf};
use super::gguf_keys::GgufKeys;
use super::json_keys::{Defaults, JsonKeys};
use super::{Family, RMS_EPS, Spec, qwen3};
use crate::config::{ExpertsConfig, LayerAttention, QkNorm};
use crate::{DecoderConfig, ModelError};

pub(super) const SPEC: Spec = Spec {
    model_types: &["qwen3_moe"],
    class: "Qwen3MoeForCausalLM",
    gguf: "qwen3moe",
    from_json,
    to_json,
    from_gguf,
    to_gguf,
    ..qwen3::SPEC
};

fn from_json(keys: &JsonKeys<'_>) -> Result<DecoderConfig, ModelError> {
    let defaults = Defaults { context: 32_768, ..Defaults::default() };
    let config = keys.decoder(Family::Qwen3Moe, defaults)?;
    let attention_bias = keys.flag("attention_bias")?;
    let has_windows = keys.flag("use_sliding_window")?;
    let window = keys.opt_size("sliding_window")?.filter(|_| has_windows);
    // A key of its dense sisters: here all layers have the window, or none.
    keys.get("max_window_layers");
    let layers = config.layers.min(1 << 16);
    let layer_attention = match window {
        Some(_) => vec![LayerAttention { window, ..LayerAttention::default() }; layers],
        None => Vec::new(),
    };
    let mut dense_layers = keys.opt_sizes("mlp_only_layers")?.unwrap_or_default();
    let step = keys.opt_size("decoder_sparse_step")?.unwrap_or(1);
    if step == 0 {
        return Err(keys.wrong("decoder_sparse_step", "is 0: expected at least 1"));
    }
    dense_layers.extend((0..layers).filter(|layer| !(layer + 1).is_multiple_of(step)));
    dense_layers.retain(|layer| *layer < layers);
    dense_layers.sort_unstable();
    dense_layers.dedup();
    let experts = ExpertsConfig {
        // The second is what transformers 5 calls it.
        count: keys.opt_size("num_experts")?.or(keys.opt_size("num_local_experts")?).unwrap_or(128),
        per_token: keys.opt_size("num_experts_per_tok")?.unwrap_or(8),
        intermediate_size: keys.opt_size("moe_intermediate_size")?.unwrap_or(768),
        normalize: keys.flag("norm_topk_prob")?,
        dense_layers,
    };
    Ok(DecoderConfig {
        qk_norm: QkNorm::Head,
        attention_bias,
        output_bias: attention_bias,
        layer_attention,
        experts: Some(experts).filter(|experts| experts.count > 0),
        ..config
    })
}

fn to_json(config: &DecoderConfig, keys: &mut Map<String, Value>) {
    let window = config.attention_of(0).window;
    keys.insert("attention_bias".into(), config.attention_bias.into());
    keys.insert("use_sliding_window".into(), window.is_some().into());
    keys.insert("sliding_window".into(), json!(window));
    keys.insert("decoder_sparse_step".into(), json!(1));
    let Some(experts) = &config.experts else {
        keys.insert("num_experts".into(), json!(0));
        return;
    };
    keys.insert("num_experts".into(), json!(experts.count));
    keys.insert("num_experts_per_tok".into(), json!(experts.per_token));
    keys.insert("moe_intermediate_size".into(), json!(experts.intermediate_size));
    keys.insert("norm_topk_prob".into(), experts.normalize.into());
    keys.insert("mlp_only_layers".into(), json!(experts.dense_layers));
}

/// llama.cpp normalises the weights of the experts of this architecture, and has them in all layers.
fn from_gguf(keys: &GgufKeys<'_>) -> Result<DecoderConfig, ModelError> {
    let experts = ExpertsConfig {
        count: keys.size("expert_count")?,
        per_token: keys.size("expert_used_count")?,
        intermediate_size: keys.size("expert_feed_forward_length")?,
        normalize: true,
        dense_layers: Vec::new(),
    };
    let config = keys.decoder(Family::Qwen3Moe, RMS_EPS)?;
    keys.whole_heads(&config)?;
    Ok(DecoderConfig { qk_norm: QkNorm::Head, experts: Some(experts), ..config })
}

fn to_gguf(config: &DecoderConfig, entries: &mut GgufEntries) -> Result<(), NotInGguf> {
    let Some(experts) = &config.experts else {
        return Err(NotInGguf::new("a mixture of no experts"));
    };
    entries.size("expert_count", experts.count);
    entries.size("expert_used_count", experts.per_token);
    entries.size("expert_feed_forward_length", experts.intermediate_size);
    Ok(())
}
