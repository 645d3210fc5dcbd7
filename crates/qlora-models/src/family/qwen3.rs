//! Qwen 3: norms of each query and key head.

use serde_json::{Map, Value};

use super::gguf_keys::GgufKeys;
use super::json_keys::{Defaults, JsonKeys};
use super::{Family, RMS_EPS, Spec, qwen2};
use crate::config::QkNorm;
use crate::{DecoderConfig, ModelError};

pub(super) const SPEC: Spec = Spec {
    model_types: &["qwen3"],
    class: "Qwen3ForCausalLM",
    gguf: "qwen3",
    from_json,
    to_json,
    from_gguf,
    ..qwen2::SPEC
};

fn from_json(keys: &JsonKeys<'_>) -> Result<DecoderConfig, ModelError> {
    let defaults = Defaults { head_dim: Some(128), context: 32_768, ..Defaults::default() };
    let config = keys.decoder(Family::Qwen3, defaults)?;
    let attention_bias = keys.flag("attention_bias")?;
    let layer_attention = qwen2::windows_from_json(keys, config.layers)?;
    let output_bias = attention_bias;
    Ok(DecoderConfig { qk_norm: QkNorm::Head, attention_bias, output_bias, layer_attention, ..config })
}

fn to_json(config: &DecoderConfig, keys: &mut Map<String, Value>) {
    qwen2::windows_to_json(config, keys);
    keys.insert("attention_bias".into(), config.attention_bias.into());
}

fn from_gguf(keys: &GgufKeys<'_>) -> Result<DecoderConfig, ModelError> {
    let config = keys.decoder(Family::Qwen3, RMS_EPS)?;
    keys.whole_heads(&config)?;
    Ok(DecoderConfig { qk_norm: QkNorm::Head, ..config })
}
