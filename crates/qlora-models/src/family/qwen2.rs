//! Qwen 2 and 2.5: biases of queries, keys and values.

use serde_json::{Map, Value, json};

use super::gguf_entries::{InLlamaCpp, nothing_more};
use super::gguf_keys::GgufKeys;
use super::json_keys::{Defaults, JsonKeys};
use super::names::NORMS_BEFORE;
use super::{Family, RMS_EPS, Spec, json_write};
use crate::config::{LayerAttention, LayerRope};
use crate::{DecoderConfig, ModelError};

pub(super) const SPEC: Spec = Spec {
    model_types: &["qwen2"],
    class: "Qwen2ForCausalLM",
    gguf: "qwen2",
    from_json,
    to_json: windows_to_json,
    from_gguf,
    to_gguf: nothing_more,
    in_llama_cpp: InLlamaCpp::PLAIN,
    norms: NORMS_BEFORE,
    gguf_rows_are_interleaved: false,
    gguf_norms_have_one: false,
};

fn from_json(keys: &JsonKeys<'_>) -> Result<DecoderConfig, ModelError> {
    let defaults = Defaults { context: 32_768, ..Defaults::default() };
    let config = keys.decoder(Family::Qwen2, defaults)?;
    keys.must_be_off("use_mrope")?;
    let layer_attention = windows_from_json(keys, config.layers)?;
    Ok(DecoderConfig { attention_bias: true, layer_attention, ..config })
}

/// With `use_sliding_window`, layers from `max_window_layers` on have a window.
pub(super) fn windows_from_json(
    keys: &JsonKeys<'_>,
    layers: usize,
) -> Result<Vec<LayerAttention>, ModelError> {
    let has_windows = keys.flag("use_sliding_window")?;
    let window = keys.opt_size("sliding_window")?.filter(|_| has_windows);
    let first = keys.opt_size("max_window_layers")?.unwrap_or(28);
    keys.layers(layers, window, |layer| window.is_some() && layer >= first, [LayerRope::Global; 2])
}

pub(super) fn windows_to_json(config: &DecoderConfig, keys: &mut Map<String, Value>) {
    json_write::windows(config, keys);
    let windowed = |layer: &usize| config.attention_of(*layer).window.is_some();
    let first = (0..config.layers).find(windowed);
    keys.insert("use_sliding_window".into(), first.is_some().into());
    keys.insert("max_window_layers".into(), json!(first.unwrap_or(config.layers)));
}

fn from_gguf(keys: &GgufKeys<'_>) -> Result<DecoderConfig, ModelError> {
    let config = keys.decoder(Family::Qwen2, RMS_EPS)?;
    keys.whole_heads(&config)?;
    Ok(config)
}
