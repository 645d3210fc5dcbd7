//! Gemma: a scaled embedding, norms with `1 + w`, GeGLU.

use qlora_kernels::Activation;
use serde_json::{Map, Value};

use super::gguf_entries::{GgufEntries, InLlamaCpp, NotInGguf};
use super::gguf_keys::GgufKeys;
use super::json_keys::{Defaults, JsonKeys};
use super::names::NORMS_BEFORE;
use super::{Family, RMS_EPS, Spec, json_write};
use crate::config::NormKind;
use crate::{DecoderConfig, ModelError};

pub(super) const SPEC: Spec = Spec {
    model_types: &["gemma"],
    class: "GemmaForCausalLM",
    gguf: "gemma",
    from_json,
    to_json,
    from_gguf,
    to_gguf,
    in_llama_cpp: InLlamaCpp { untied: false, ..InLlamaCpp::PLAIN },
    norms: NORMS_BEFORE,
    gguf_rows_are_interleaved: false,
    gguf_norms_have_one: true,
};

/// What all Gemmas take where a key is absent.
pub(super) fn defaults() -> Defaults {
    Defaults {
        tied: true,
        head_dim: Some(256),
        context: 8192,
        activation: Activation::GeluTanh,
        ..Defaults::default()
    }
}

fn from_json(keys: &JsonKeys<'_>) -> Result<DecoderConfig, ModelError> {
    let config = from_keys(keys, Family::Gemma, defaults())?;
    let activation = match keys.activation("hidden_activation")?.unwrap_or(config.activation) {
        // The first configurations said gelu and meant the approximation.
        Activation::GeluErf => Activation::GeluTanh,
        other => other,
    };
    Ok(DecoderConfig { activation, ..config })
}

/// What all Gemmas have.
pub(super) fn from_keys(
    keys: &JsonKeys<'_>,
    family: Family,
    defaults: Defaults,
) -> Result<DecoderConfig, ModelError> {
    keys.must_be_off("use_bidirectional_attention")?;
    let attention_bias = keys.flag("attention_bias")?;
    let config =
        DecoderConfig { attention_bias, output_bias: attention_bias, ..keys.decoder(family, defaults)? };
    Ok(computed(config))
}

/// What all Gemmas compute, whatever the file.
pub(super) fn computed(config: DecoderConfig) -> DecoderConfig {
    let embedding_scale = (config.hidden_size as f64).sqrt();
    DecoderConfig { norm: NormKind::RmsUnitOffset, embedding_scale, ..config }
}

fn to_json(config: &DecoderConfig, keys: &mut Map<String, Value>) {
    keys.insert("attention_bias".into(), config.attention_bias.into());
    keys.insert("hidden_activation".into(), json_write::activation(config.activation).into());
}

fn from_gguf(keys: &GgufKeys<'_>) -> Result<DecoderConfig, ModelError> {
    computed_from_gguf(keys, Family::Gemma)
}

/// What all Gemmas have in GGUF files.
pub(super) fn computed_from_gguf(keys: &GgufKeys<'_>, family: Family) -> Result<DecoderConfig, ModelError> {
    let config = keys.decoder(family, RMS_EPS)?;
    keys.whole_heads(&config)?;
    Ok(computed(DecoderConfig { activation: Activation::GeluTanh, ..config }))
}

pub(super) fn to_gguf(_: &DecoderConfig, _: &mut GgufEntries) -> Result<(), NotInGguf> {
    Ok(())
}
