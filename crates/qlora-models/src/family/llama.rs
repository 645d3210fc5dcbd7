//! Llama 2 and 3, SmolLM2.

use serde_json::{Map, Value};

use super::gguf_entries::{InLlamaCpp, nothing_more};
use super::gguf_keys::GgufKeys;
use super::json_keys::{Defaults, JsonKeys};
use super::names::NORMS_BEFORE;
use super::{Family, RMS_EPS, Spec};
use crate::{DecoderConfig, ModelError};

pub(super) const SPEC: Spec = Spec {
    model_types: &["llama"],
    class: "LlamaForCausalLM",
    gguf: "llama",
    from_json,
    to_json,
    from_gguf,
    to_gguf: nothing_more,
    in_llama_cpp: InLlamaCpp { biases: true, divisors: true, ..InLlamaCpp::PLAIN },
    norms: NORMS_BEFORE,
    gguf_rows_are_interleaved: true,
    gguf_norms_have_one: false,
};

fn from_json(keys: &JsonKeys<'_>) -> Result<DecoderConfig, ModelError> {
    let attention_bias = keys.flag("attention_bias")?;
    Ok(DecoderConfig {
        // The key gives the output projection one too.
        attention_bias,
        output_bias: attention_bias,
        mlp_bias: keys.flag("mlp_bias")?,
        ..keys.decoder(Family::Llama, Defaults::default())?
    })
}

pub(super) fn to_json(config: &DecoderConfig, keys: &mut Map<String, Value>) {
    keys.insert("attention_bias".into(), config.attention_bias.into());
    keys.insert("mlp_bias".into(), config.mlp_bias.into());
}

fn from_gguf(keys: &GgufKeys<'_>) -> Result<DecoderConfig, ModelError> {
    if keys.opt_size("expert_count")?.is_some_and(|count| count > 0) {
        return Err(keys.wrong("expert_count", "is not 0: mixtures of experts are not supported in llama"));
    }
    // Written beside the former, and nothing without experts.
    keys.opt_size("expert_used_count")?;
    let config = keys.decoder(Family::Llama, RMS_EPS)?;
    keys.whole_heads(&config)?;
    Ok(config)
}
