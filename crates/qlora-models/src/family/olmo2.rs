//! OLMo 2: norms after attention and MLP, and of all query and key heads together.

use serde_json::{Map, Value};

use super::gguf_entries::{InLlamaCpp, nothing_more};
use super::gguf_keys::GgufKeys;
use super::json_keys::{Defaults, JsonKeys};
use super::names::NORMS_AFTER;
use super::{Family, RMS_EPS, Spec};
use crate::config::{NormPlacement, QkNorm};
use crate::{DecoderConfig, ModelError};

pub(super) const SPEC: Spec = Spec {
    model_types: &["olmo2"],
    class: "Olmo2ForCausalLM",
    gguf: "olmo2",
    from_json,
    to_json,
    from_gguf,
    to_gguf: nothing_more,
    in_llama_cpp: InLlamaCpp { tied: false, ..InLlamaCpp::PLAIN },
    norms: NORMS_AFTER,
    gguf_rows_are_interleaved: false,
    gguf_norms_have_one: false,
};

fn computed(config: DecoderConfig) -> DecoderConfig {
    DecoderConfig { norm_placement: NormPlacement::After, qk_norm: QkNorm::Whole, ..config }
}

fn from_json(keys: &JsonKeys<'_>) -> Result<DecoderConfig, ModelError> {
    let attention_bias = keys.flag("attention_bias")?;
    let config = keys.decoder(Family::Olmo2, Defaults { eps: 1e-5, ..Defaults::default() })?;
    Ok(computed(DecoderConfig { attention_bias, output_bias: attention_bias, ..config }))
}

fn to_json(config: &DecoderConfig, keys: &mut Map<String, Value>) {
    keys.insert("attention_bias".into(), config.attention_bias.into());
}

fn from_gguf(keys: &GgufKeys<'_>) -> Result<DecoderConfig, ModelError> {
    let config = keys.decoder(Family::Olmo2, RMS_EPS)?;
    keys.whole_heads(&config)?;
    Ok(computed(config))
}
