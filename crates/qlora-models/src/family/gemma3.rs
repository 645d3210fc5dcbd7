//! Gemma 3, the text model: norms of query and key heads, five layers of six with a window and frequencies of their own.

use serde_json::{Map, Value, json};

use super::gguf_entries::{GgufEntries, InLlamaCpp, NotInGguf};
use super::gguf_keys::GgufKeys;
use super::json_keys::{Defaults, JsonKeys};
use super::{Family, Spec, gemma, gemma2, rope_json};
use crate::config::{LayerRope, NormPlacement, QkNorm};
use crate::{DecoderConfig, ModelError};

pub(super) const SPEC: Spec = Spec {
    model_types: &["gemma3_text"],
    class: "Gemma3ForCausalLM",
    gguf: "gemma3",
    from_json,
    to_json,
    from_gguf,
    to_gguf,
    in_llama_cpp: InLlamaCpp { windows: true, ..InLlamaCpp::PLAIN },
    ..gemma2::SPEC
};

fn from_json(keys: &JsonKeys<'_>) -> Result<DecoderConfig, ModelError> {
    let defaults = Defaults {
        activation_key: "hidden_activation",
        rope_theta: 1_000_000.0,
        context: 131_072,
        // Of models that also see, whose configurations do not repeat them.
        vocab_size: Some(262_208),
        heads: Some(8),
        kv_heads: Some(4),
        ..gemma::defaults()
    };
    let config = gemma2::capped(keys, gemma::from_keys(keys, Family::Gemma3, defaults)?, [None, None])?;
    let mut local_rope_theta = keys.opt_float("rope_local_base_freq")?.unwrap_or(10_000.0);
    if let Some(parameters) = keys.inner("rope_parameters")?
        && let Some(local) = parameters.inner("sliding_attention")?
    {
        if !matches!(local.opt_text("rope_type")?, None | Some("default")) {
            return Err(local.wrong("rope_type", "is not default: layers with a window are not scaled"));
        }
        local_rope_theta = local.opt_float("rope_theta")?.unwrap_or(local_rope_theta);
        local.finish("this rotation")?;
    }
    let window = keys.opt_size("sliding_window")?.or(Some(4096));
    let pattern = keys.opt_size("sliding_window_pattern")?.or(keys.opt_size("_sliding_window_pattern")?);
    let pattern = pattern.unwrap_or(6).max(1);
    let rope = [LayerRope::Local, LayerRope::Global];
    let layer_attention =
        keys.layers(config.layers, window, |layer| !(layer + 1).is_multiple_of(pattern), rope)?;
    Ok(DecoderConfig { qk_norm: QkNorm::Head, local_rope_theta, layer_attention, ..config })
}

fn to_json(config: &DecoderConfig, keys: &mut Map<String, Value>) {
    gemma2::to_json(config, keys);
    let mut global = rope_json::scaling_to_json(&config.rope_scaling).unwrap_or_default();
    global.insert("rope_theta".into(), json!(config.rope_theta));
    let local = json!({ "rope_type": "default", "rope_theta": config.local_rope_theta });
    keys.insert("rope_parameters".into(), json!({ "full_attention": global, "sliding_attention": local }));
    keys.insert("rope_local_base_freq".into(), json!(config.local_rope_theta));
}

fn from_gguf(keys: &GgufKeys<'_>) -> Result<DecoderConfig, ModelError> {
    let config = gemma::computed_from_gguf(keys, Family::Gemma3)?;
    let layer_attention = keys.alternating(config.layers, 6, LayerRope::Local)?;
    let global = keys.opt_float("rope.freq_base")?.unwrap_or(1_000_000.0);
    let local = keys.opt_float("rope.freq_base_swa")?.unwrap_or(10_000.0);
    Ok(DecoderConfig {
        norm_placement: NormPlacement::Around,
        qk_norm: QkNorm::Head,
        attention_softcap: keys.opt_float("attn_logit_softcapping")?,
        logit_softcap: keys.opt_float("final_logit_softcapping")?,
        attention_scale: Some(gemma2::scale(keys, &config, 62)?),
        rope_theta: global,
        local_rope_theta: local,
        layer_attention,
        ..config
    })
}

fn to_gguf(config: &DecoderConfig, entries: &mut GgufEntries) -> Result<(), NotInGguf> {
    entries.windows(config);
    entries.float("rope.freq_base_swa", config.local_rope_theta);
    if let Some(cap) = config.logit_softcap {
        entries.float("final_logit_softcapping", cap);
    }
    Ok(())
}
