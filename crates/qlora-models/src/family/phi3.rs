//! Phi 3, 3.5 and 4: fused projections, a part of a head rotated in the small ones of Phi 4.

use serde_json::{Map, Value, json};

use super::gguf_entries::{GgufEntries, InLlamaCpp, NotInGguf};
use super::gguf_keys::GgufKeys;
use super::json_keys::{Defaults, JsonKeys};
use super::names::NORMS_BEFORE;
use super::{Family, RMS_EPS, Spec};
use crate::config::LayerAttention;
use crate::{DecoderConfig, ModelError, RopeScaling};

pub(super) const SPEC: Spec = Spec {
    model_types: &["phi3"],
    class: "Phi3ForCausalLM",
    gguf: "phi3",
    from_json,
    to_json,
    from_gguf,
    to_gguf,
    in_llama_cpp: InLlamaCpp::PLAIN,
    norms: NORMS_BEFORE,
    gguf_rows_are_interleaved: false,
    gguf_norms_have_one: false,
};

fn from_json(keys: &JsonKeys<'_>) -> Result<DecoderConfig, ModelError> {
    let defaults = Defaults { eps: 1e-5, context: 4096, partial_rotary: true, ..Defaults::default() };
    let config = keys.decoder(Family::Phi3, defaults)?;
    for bias in ["attention_bias", "mlp_bias", "lm_head_bias"] {
        keys.must_be_off(bias)?;
    }
    // A switch of the code that came with the first releases; transformers has the same without it.
    keys.get("full_attn_mod");
    keys.get("interpolate_factor");
    let window = keys.opt_size("sliding_window")?;
    Ok(DecoderConfig { layer_attention: windows(&config, window), fused_projections: true, ..config })
}

/// All layers have the window, or none.
fn windows(config: &DecoderConfig, window: Option<usize>) -> Vec<LayerAttention> {
    match window {
        Some(_) => vec![LayerAttention { window, ..LayerAttention::default() }; config.layers.min(1 << 16)],
        None => Vec::new(),
    }
}

fn to_json(config: &DecoderConfig, keys: &mut Map<String, Value>) {
    // transformers computes it, and refuses to be told.
    keys.remove("head_dim");
    keys.insert("sliding_window".into(), json!(config.attention_of(0).window));
    let original = match &config.rope_scaling {
        RopeScaling::LongRope { original_max_position_embeddings, .. } => *original_max_position_embeddings,
        _ => config.max_position_embeddings,
    };
    keys.insert("original_max_position_embeddings".into(), json!(original));
}

fn from_gguf(keys: &GgufKeys<'_>) -> Result<DecoderConfig, ModelError> {
    let config = keys.decoder(Family::Phi3, RMS_EPS)?;
    // Files have 0 where there is none.
    let window = keys.opt_size("attention.sliding_window")?.filter(|window| *window > 0);
    Ok(DecoderConfig { layer_attention: windows(&config, window), fused_projections: true, ..config })
}

fn to_gguf(config: &DecoderConfig, entries: &mut GgufEntries) -> Result<(), NotInGguf> {
    // It has none here, and wants to be told so.
    entries.size("attention.sliding_window", 0);
    if config.rope_scaling == RopeScaling::None {
        entries.size("rope.scaling.original_context_length", config.max_position_embeddings);
    }
    Ok(())
}
