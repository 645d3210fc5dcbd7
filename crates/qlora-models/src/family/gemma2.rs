//! Gemma 2: norms around attention and MLP, soft caps, every second layer with a window.

use serde_json::{Map, Value, json};

use super::gguf_entries::{GgufEntries, InLlamaCpp, NotInGguf};
use super::gguf_keys::GgufKeys;
use super::json_keys::{Defaults, JsonKeys};
use super::names::NORMS_AFTER;
use super::{Family, Spec, gemma, json_write};
use crate::config::{LayerRope, NormPlacement};
use crate::{DecoderConfig, ModelError};

pub(super) const SPEC: Spec = Spec {
    model_types: &["gemma2"],
    class: "Gemma2ForCausalLM",
    gguf: "gemma2",
    from_json,
    to_json,
    from_gguf,
    to_gguf,
    in_llama_cpp: InLlamaCpp { windows: true, untied: false, ..InLlamaCpp::PLAIN },
    norms: NORMS_AFTER,
    ..gemma::SPEC
};

fn from_json(keys: &JsonKeys<'_>) -> Result<DecoderConfig, ModelError> {
    let defaults = Defaults { activation_key: "hidden_activation", ..gemma::defaults() };
    let config = capped(keys, gemma::from_keys(keys, Family::Gemma2, defaults)?, [Some(50.0), Some(30.0)])?;
    let window = keys.opt_size("sliding_window")?.or(Some(4096));
    let rope = [LayerRope::Global; 2];
    let layer_attention = keys.layers(config.layers, window, |layer| layer.is_multiple_of(2), rope)?;
    Ok(DecoderConfig { layer_attention, ..config })
}

/// Norms, soft caps and scale of Gemma 2 and 3. `defaults` are the caps of the scores and of the logits where the keys
/// are absent; null is no cap.
pub(super) fn capped(
    keys: &JsonKeys<'_>,
    config: DecoderConfig,
    [scores, logits]: [Option<f64>; 2],
) -> Result<DecoderConfig, ModelError> {
    // Of the first releases beside the name of today, which is the one that counts.
    keys.get("hidden_act");
    let cap = |key: &str, default: Option<f64>| -> Result<Option<f64>, ModelError> {
        if !keys.has(key) {
            return Ok(default);
        }
        match keys.opt_float(key)? {
            Some(cap) if cap <= 0.0 => Err(keys.wrong(key, format!("is {cap}: expected a positive number"))),
            cap => Ok(cap),
        }
    };
    let scalar = keys.opt_float("query_pre_attn_scalar")?.unwrap_or(256.0);
    if scalar <= 0.0 {
        return Err(keys.wrong("query_pre_attn_scalar", format!("is {scalar}: expected a positive number")));
    }
    Ok(DecoderConfig {
        norm_placement: NormPlacement::Around,
        attention_softcap: cap("attn_logit_softcapping", scores)?,
        logit_softcap: cap("final_logit_softcapping", logits)?,
        attention_scale: Some(scalar.powf(-0.5)),
        ..config
    })
}

pub(super) fn to_json(config: &DecoderConfig, keys: &mut Map<String, Value>) {
    json_write::windows(config, keys);
    keys.remove("hidden_act");
    keys.insert("hidden_activation".into(), json_write::activation(config.activation).into());
    keys.insert("attention_bias".into(), config.attention_bias.into());
    keys.insert("attn_logit_softcapping".into(), json!(config.attention_softcap));
    keys.insert("final_logit_softcapping".into(), json!(config.logit_softcap));
    let scale = config.attention_scale.unwrap_or(1.0 / (config.head_dim as f64).sqrt());
    // Whole in all models; transformers wants an integer.
    let scalar = 1.0 / (scale * scale);
    let whole = ((scalar - scalar.round()).abs() < 1e-6).then_some(scalar.round() as u64);
    keys.insert("query_pre_attn_scalar".into(), whole.map_or_else(|| json!(scalar), |whole| json!(whole)));
}

fn from_gguf(keys: &GgufKeys<'_>) -> Result<DecoderConfig, ModelError> {
    let config = gemma::computed_from_gguf(keys, Family::Gemma2)?;
    let layer_attention = keys.alternating(config.layers, 2, LayerRope::Global)?;
    Ok(DecoderConfig {
        norm_placement: NormPlacement::Around,
        attention_softcap: Some(keys.opt_float("attn_logit_softcapping")?.unwrap_or(50.0)),
        logit_softcap: Some(keys.opt_float("final_logit_softcapping")?.unwrap_or(30.0)),
        attention_scale: Some(scale(keys, &config, 46)?),
        layer_attention,
        ..config
    })
}

/// The file may not say the scale; the largest model, of so many layers, has another than the others.
pub(super) fn scale(keys: &GgufKeys<'_>, config: &DecoderConfig, largest: usize) -> Result<f64, ModelError> {
    let per_head =
        if config.layers == largest { config.hidden_size / config.heads.max(1) } else { config.head_dim };
    Ok(keys.opt_float("attention.scale")?.unwrap_or((per_head as f64).powf(-0.5)))
}

fn to_gguf(config: &DecoderConfig, entries: &mut GgufEntries) -> Result<(), NotInGguf> {
    entries.windows(config);
    if let Some(cap) = config.attention_softcap {
        entries.float("attn_logit_softcapping", cap);
    }
    if let Some(cap) = config.logit_softcap {
        entries.float("final_logit_softcapping", cap);
    }
    Ok(())
}
