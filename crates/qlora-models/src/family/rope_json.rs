//! The rotary keys of `config.json`: `rope_parameters` of transformers 5, `rope_theta` and `rope_scaling` before.

use serde_json::{Map, Value, json};

use super::json_keys::JsonKeys;
use crate::{DecoderConfig, ModelError, RopeScaling};

/// What the rotary keys say.
#[derive(Debug)]
pub(super) struct RopeKeys {
    pub(super) theta: f64,
    pub(super) scaling: RopeScaling,
    /// The share of a head that is rotated.
    pub(super) partial: f64,
}

/// Reads the keys of a configuration with one kind of rotation.
pub(super) fn read(keys: &JsonKeys<'_>, default_theta: f64, context: usize) -> Result<RopeKeys, ModelError> {
    let theta = keys.opt_float("rope_theta")?;
    let partial = keys.opt_float("partial_rotary_factor")?;
    let original = keys.opt_size("original_max_position_embeddings")?;
    let (new, old) = (keys.inner("rope_parameters")?, keys.inner("rope_scaling")?);
    // Of layers that differ, in Gemma 3, this is what those that see everything have.
    let new = match new {
        Some(parameters) if parameters.get("full_attention").is_some() => {
            parameters.inner("full_attention")?
        }
        other => other,
    };
    let Some(block) = new.or(old) else {
        let (theta, partial) = (theta.unwrap_or(default_theta), partial.unwrap_or(1.0));
        return Ok(RopeKeys { theta, scaling: RopeScaling::None, partial });
    };
    let theta = block.opt_float("rope_theta")?.or(theta).unwrap_or(default_theta);
    let partial = block.opt_float("partial_rotary_factor")?.or(partial).unwrap_or(1.0);
    let scaling = scaling(&block, original, context)?;
    block.finish("this rotary scaling")?;
    Ok(RopeKeys { theta, scaling, partial })
}

fn scaling(
    block: &JsonKeys<'_>,
    outer_original: Option<usize>,
    context: usize,
) -> Result<RopeScaling, ModelError> {
    let (new, old) = (block.opt_text("rope_type")?, block.opt_text("type")?);
    let kind = match new.or(old).unwrap_or("default") {
        // As the first releases of Phi 3 called it.
        "su" => "longrope",
        "yarn" if block.get("short_factor").is_some() => "longrope",
        kind => kind,
    };
    // transformers prefers the one outside of the block.
    let original = || -> Result<usize, ModelError> {
        let inner = block.opt_size("original_max_position_embeddings")?;
        Ok(outer_original.or(inner).unwrap_or(context))
    };
    Ok(match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: block.float("factor")? },
        "dynamic" => {
            RopeScaling::Dynamic { factor: block.float("factor")?, original_max_position_embeddings: context }
        }
        "llama3" => RopeScaling::Llama3 {
            factor: block.float("factor")?,
            low_freq_factor: block.float("low_freq_factor")?,
            high_freq_factor: block.float("high_freq_factor")?,
            original_max_position_embeddings: original()?,
        },
        "yarn" => {
            let original = original()?;
            let factor = block.opt_float("factor")?.unwrap_or(context as f64 / original as f64);
            let scales = (block.opt_float("mscale")?, block.opt_float("mscale_all_dim")?);
            let given = block.opt_float("attention_factor")?;
            let attention = |scale| RopeScaling::yarn_attention_factor(factor, scale);
            let attention_factor = match (given, scales) {
                (Some(given), _) => given,
                (None, (Some(scale), Some(all))) if scale != 0.0 && all != 0.0 => {
                    attention(scale) / attention(all)
                }
                (None, _) => attention(1.0),
            };
            let or = |value: Option<f64>, default| value.filter(|value| *value != 0.0).unwrap_or(default);
            RopeScaling::Yarn {
                factor,
                beta_fast: or(block.opt_float("beta_fast")?, 32.0),
                beta_slow: or(block.opt_float("beta_slow")?, 1.0),
                original_max_position_embeddings: original,
                attention_factor,
                truncate: block.flag_or("truncate", true)?,
            }
        }
        "longrope" => {
            let original = original()?;
            let factor = block.opt_float("factor")?.unwrap_or(context as f64 / original as f64);
            let attention = || RopeScaling::longrope_attention_factor(factor, original);
            RopeScaling::LongRope {
                short_factor: block.floats("short_factor")?,
                long_factor: block.floats("long_factor")?,
                original_max_position_embeddings: original,
                attention_factor: block.opt_float("attention_factor")?.unwrap_or_else(attention),
            }
        }
        other => {
            let problem =
                format!("is `{other}`: supported are default, linear, dynamic, llama3, yarn, longrope");
            return Err(block.wrong("rope_type", problem));
        }
    })
}

/// The keys of the scaling, without the base. Read by all releases, if in different places.
pub(super) fn scaling_to_json(scaling: &RopeScaling) -> Result<Map<String, Value>, String> {
    let block = match scaling {
        RopeScaling::None => json!({ "rope_type": "default" }),
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Dynamic { factor, .. } => json!({ "rope_type": "dynamic", "factor": factor }),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_max_position_embeddings,
            attention_factor,
            truncate,
        } => json!({
            "rope_type": "yarn",
            "factor": factor,
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
            "original_max_position_embeddings": original_max_position_embeddings,
            "attention_factor": attention_factor,
            "truncate": truncate,
        }),
        RopeScaling::LongRope {
            short_factor,
            long_factor,
            original_max_position_embeddings,
            attention_factor,
        } => json!({
            "rope_type": "longrope",
            "short_factor": short_factor,
            "long_factor": long_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
            "attention_factor": attention_factor,
        }),
        RopeScaling::Divisors(_) => {
            return Err(
                "scales each rotary frequency by its own number, which config.json cannot say; use the \
                        safetensors checkpoint that the file was made from"
                    .to_owned(),
            );
        }
    };
    match block {
        Value::Object(block) => Ok(block),
        _ => unreachable!("the literals are objects"),
    }
}

/// The rotary keys of transformers 5 and those of older releases, which read only their own.
pub(super) fn write(config: &DecoderConfig, keys: &mut Map<String, Value>) -> Result<(), String> {
    let mut block = scaling_to_json(&config.rope_scaling)?;
    if let Some(rotated) = config.rotary_dim {
        let partial = json!(rotated as f64 / config.head_dim as f64);
        keys.insert("partial_rotary_factor".into(), partial.clone());
        block.insert("partial_rotary_factor".into(), partial);
    }
    let scaling = match config.rope_scaling {
        RopeScaling::None => Value::Null,
        _ => block.clone().into(),
    };
    block.insert("rope_theta".into(), json!(config.rope_theta));
    keys.insert("rope_theta".into(), json!(config.rope_theta));
    keys.insert("rope_scaling".into(), scaling);
    keys.insert("rope_parameters".into(), block.into());
    Ok(())
}
