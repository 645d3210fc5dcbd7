//! SmolLM3: every fourth layer is not rotated.

use serde_json::{Map, Value, json};

use super::gguf_entries::InLlamaCpp;
use super::gguf_keys::GgufKeys;
use super::json_keys::{Defaults, JsonKeys};
use super::{Family, RMS_EPS, Spec, json_write, llama};
use crate::config::{LayerAttention, LayerRope};
use crate::{DecoderConfig, ModelError};

pub(super) const SPEC: Spec = Spec {
    model_types: &["smollm3"],
    class: "SmolLM3ForCausalLM",
    gguf: "smollm3",
    from_json,
    to_json,
    from_gguf,
    in_llama_cpp: InLlamaCpp::PLAIN,
    ..llama::SPEC
};

fn from_json(keys: &JsonKeys<'_>) -> Result<DecoderConfig, ModelError> {
    let defaults = Defaults { tied: true, rope_theta: 2_000_000.0, context: 32_768, ..Defaults::default() };
    let attention_bias = keys.flag("attention_bias")?;
    let config = DecoderConfig {
        attention_bias,
        output_bias: attention_bias,
        mlp_bias: keys.flag("mlp_bias")?,
        ..keys.decoder(Family::SmolLm3, defaults)?
    };
    let layers = config.layers.min(1 << 16);
    let interval = keys.opt_size("no_rope_layer_interval")?.unwrap_or(4).max(1);
    let default = || (0..layers).map(|layer| usize::from(!(layer + 1).is_multiple_of(interval))).collect();
    let rotated = keys.opt_sizes("no_rope_layers")?.unwrap_or_else(default);
    if rotated.len() != layers {
        let problem = format!("has {} elements: expected one a layer, {layers}", rotated.len());
        return Err(keys.wrong("no_rope_layers", problem));
    }
    // Of Qwen's, from which the configuration was made.
    keys.get("max_window_layers");
    let has_windows = keys.flag("use_sliding_window")?;
    let window = keys.opt_size("sliding_window")?.filter(|_| has_windows);
    let absent = |layer: usize| window.is_some() && rotated[layer] == 0;
    let mut layer_attention = match window {
        // Without windows the list has no meaning, whatever it says.
        None => {
            keys.get("layer_types");
            Vec::new()
        }
        Some(_) => keys.layers(layers, window, absent, [LayerRope::Global; 2])?,
    };
    if layer_attention.is_empty() {
        layer_attention = vec![LayerAttention::default(); layers];
    }
    for (layer, rotated) in layer_attention.iter_mut().zip(rotated) {
        if rotated == 0 {
            layer.rope = LayerRope::None;
        }
    }
    Ok(DecoderConfig { layer_attention, ..config })
}

fn to_json(config: &DecoderConfig, keys: &mut Map<String, Value>) {
    llama::to_json(config, keys);
    json_write::windows(config, keys);
    let windowed = config.layer_attention.iter().any(|layer| layer.window.is_some());
    keys.insert("use_sliding_window".into(), windowed.into());
    let rotated = |layer: usize| u8::from(config.attention_of(layer).rope != LayerRope::None);
    keys.insert("no_rope_layers".into(), json!((0..config.layers).map(rotated).collect::<Vec<_>>()));
}

/// The file does not say which layers are not rotated: llama.cpp has the same constant.
fn from_gguf(keys: &GgufKeys<'_>) -> Result<DecoderConfig, ModelError> {
    let config = keys.decoder(Family::SmolLm3, RMS_EPS)?;
    keys.whole_heads(&config)?;
    let rope = |layer: usize| match (layer + 1).is_multiple_of(4) {
        true => LayerRope::None,
        false => LayerRope::Global,
    };
    let layer = |layer: usize| LayerAttention { window: None, rope: rope(layer) };
    let layer_attention = (0..config.layers.min(1 << 16)).map(layer).collect();
    Ok(DecoderConfig { layer_attention, ..config })
}
