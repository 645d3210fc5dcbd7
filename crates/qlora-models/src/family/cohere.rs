//! Command R and R+: attention and MLP side by side behind one norm with a mean, interleaved rotation, scaled logits.

use serde_json::{Map, Value, json};

use super::gguf_entries::{GgufEntries, InLlamaCpp, NotInGguf};
use super::gguf_keys::GgufKeys;
use super::json_keys::{Defaults, JsonKeys};
use super::names::NORMS_BEFORE;
use super::{Family, Spec};
use crate::config::{NormKind, NormPlacement, QkNorm, RopePairs};
use crate::{DecoderConfig, ModelError};

/// These norms have a mean.
const EPS: &str = "attention.layer_norm_epsilon";

pub(super) const SPEC: Spec = Spec {
    model_types: &["cohere"],
    class: "CohereForCausalLM",
    gguf: "command-r",
    from_json,
    to_json,
    from_gguf,
    to_gguf,
    in_llama_cpp: InLlamaCpp { eps: EPS, untied: false, ..InLlamaCpp::PLAIN },
    norms: NORMS_BEFORE,
    gguf_rows_are_interleaved: false,
    gguf_norms_have_one: false,
};

fn computed(config: DecoderConfig, qk_norm: bool) -> DecoderConfig {
    DecoderConfig {
        norm: NormKind::Layer,
        norm_placement: NormPlacement::Parallel,
        qk_norm: if qk_norm { QkNorm::EachHead } else { QkNorm::None },
        rope_pairs: RopePairs::Interleaved,
        ..config
    }
}

fn from_json(keys: &JsonKeys<'_>) -> Result<DecoderConfig, ModelError> {
    let defaults = Defaults {
        tied: true,
        rope_theta: 500_000.0,
        eps: 1e-5,
        eps_key: "layer_norm_eps",
        context: 8192,
        ..Defaults::default()
    };
    let attention_bias = keys.flag("attention_bias")?;
    let config = DecoderConfig {
        attention_bias,
        output_bias: attention_bias,
        logit_scale: keys.opt_float("logit_scale")?.unwrap_or(0.0625),
        ..keys.decoder(Family::Cohere, defaults)?
    };
    // Written by the first releases, and never read: the context is the other one.
    keys.get("model_max_length");
    Ok(computed(config, keys.flag("use_qk_norm")?))
}

fn to_json(config: &DecoderConfig, keys: &mut Map<String, Value>) {
    if let Some(eps) = keys.remove("rms_norm_eps") {
        keys.insert("layer_norm_eps".into(), eps);
    }
    keys.insert("attention_bias".into(), config.attention_bias.into());
    keys.insert("logit_scale".into(), json!(config.logit_scale));
    keys.insert("use_qk_norm".into(), (config.qk_norm != QkNorm::None).into());
}

fn from_gguf(keys: &GgufKeys<'_>) -> Result<DecoderConfig, ModelError> {
    let config = keys.decoder(Family::Cohere, EPS)?;
    keys.whole_heads(&config)?;
    let logit_scale = keys.opt_float("logit_scale")?.unwrap_or(0.0625);
    Ok(computed(DecoderConfig { logit_scale, ..config }, keys.tensors.has_qk_norm))
}

fn to_gguf(config: &DecoderConfig, entries: &mut GgufEntries) -> Result<(), NotInGguf> {
    // llama.cpp tells by the size whether there are such norms.
    if (config.qk_norm == QkNorm::EachHead) != (config.layers >= 64) {
        let what = if config.qk_norm == QkNorm::None { "no norms" } else { "norms" };
        return Err(NotInGguf::new(format!(
            "{what} of query and key heads in a model of {} layers",
            config.layers
        )));
    }
    entries.float("logit_scale", config.logit_scale);
    Ok(())
}
