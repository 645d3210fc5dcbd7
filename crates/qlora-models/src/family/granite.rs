//! Granite: Llama with factors of embedding, attention, residuals and logits.

use serde_json::{Map, Value, json};

use super::gguf_entries::{GgufEntries, NotInGguf};
use super::gguf_keys::GgufKeys;
use super::json_keys::{Defaults, JsonKeys};
use super::{Family, RMS_EPS, Spec, llama};
use crate::{DecoderConfig, ModelError};

pub(super) const SPEC: Spec = Spec {
    model_types: &["granite"],
    class: "GraniteForCausalLM",
    gguf: "granite",
    from_json,
    to_json,
    from_gguf,
    to_gguf,
    ..llama::SPEC
};

fn from_json(keys: &JsonKeys<'_>) -> Result<DecoderConfig, ModelError> {
    let attention_bias = keys.flag("attention_bias")?;
    let factor = |key: &str| -> Result<f64, ModelError> {
        match keys.opt_float(key)?.unwrap_or(1.0) {
            factor if factor > 0.0 => Ok(factor),
            factor => Err(keys.wrong(key, format!("is {factor}: expected a positive number"))),
        }
    };
    Ok(DecoderConfig {
        attention_bias,
        output_bias: attention_bias,
        mlp_bias: keys.flag("mlp_bias")?,
        embedding_scale: factor("embedding_multiplier")?,
        attention_scale: Some(factor("attention_multiplier")?),
        residual_scale: factor("residual_multiplier")?,
        logit_scale: 1.0 / factor("logits_scaling")?,
        ..keys.decoder(Family::Granite, Defaults::default())?
    })
}

fn to_json(config: &DecoderConfig, keys: &mut Map<String, Value>) {
    llama::to_json(config, keys);
    let attention = config.attention_scale.unwrap_or(1.0 / (config.head_dim as f64).sqrt());
    keys.insert("embedding_multiplier".into(), json!(config.embedding_scale));
    keys.insert("attention_multiplier".into(), json!(attention));
    keys.insert("residual_multiplier".into(), json!(config.residual_scale));
    keys.insert("logits_scaling".into(), json!(1.0 / config.logit_scale));
}

fn from_gguf(keys: &GgufKeys<'_>) -> Result<DecoderConfig, ModelError> {
    let config = keys.decoder(Family::Granite, RMS_EPS)?;
    keys.whole_heads(&config)?;
    Ok(DecoderConfig {
        embedding_scale: keys.opt_float("embedding_scale")?.unwrap_or(1.0),
        attention_scale: keys.opt_float("attention.scale")?,
        residual_scale: keys.opt_float("residual_scale")?.unwrap_or(1.0),
        logit_scale: 1.0 / keys.opt_float("logit_scale")?.unwrap_or(1.0),
        ..config
    })
}

fn to_gguf(config: &DecoderConfig, entries: &mut GgufEntries) -> Result<(), NotInGguf> {
    entries.float("embedding_scale", config.embedding_scale);
    entries.float("attention.scale", config.attention_scale.unwrap_or((config.head_dim as f64).powf(-0.5)));
    entries.float("residual_scale", config.residual_scale);
    // What logits are divided by.
    entries.float("logit_scale", 1.0 / config.logit_scale);
    Ok(())
}
