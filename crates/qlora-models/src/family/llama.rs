//! Llama: config.json, GGUF metadata, and the names of tensors in both.

use std::path::Path;

use qlora_gguf::Metadata;
use qlora_kernels::Activation;
use serde_json::{Map, Value, json};

use crate::{DecoderConfig, Family, ModelError, RopeScaling};

/// Keys of config.json, read with errors that name file and key.
struct Keys<'a> {
    path: &'a Path,
    config: &'a Value,
}

impl Keys<'_> {
    fn wrong(&self, key: &str, problem: impl Into<String>) -> ModelError {
        ModelError::Config { path: self.path.to_owned(), key: key.to_owned(), problem: problem.into() }
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.config.get(key).filter(|value| !value.is_null())
    }

    fn size(&self, key: &str) -> Result<usize, ModelError> {
        self.opt_size(key)?.ok_or_else(|| self.wrong(key, "is missing; expected a number"))
    }

    fn opt_size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let read = |value: &Value| {
            value
                .as_u64()
                .and_then(|v| usize::try_from(v).ok())
                .ok_or_else(|| self.wrong(key, format!("is {value}: expected a whole number")))
        };
        self.get(key).map(read).transpose()
    }

    fn float(&self, key: &str) -> Result<f64, ModelError> {
        self.opt_float(key)?.ok_or_else(|| self.wrong(key, "is missing; expected a number"))
    }

    fn opt_float(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let read = |value: &Value| {
            value.as_f64().ok_or_else(|| self.wrong(key, format!("is {value}: expected a number")))
        };
        self.get(key).map(read).transpose()
    }

    fn flag(&self, key: &str) -> Result<bool, ModelError> {
        let read = |value: &Value| {
            value.as_bool().ok_or_else(|| self.wrong(key, format!("is {value}: expected true or false")))
        };
        self.get(key).map_or(Ok(false), read)
    }
}

pub(super) fn config_from_json(path: &Path, config: &Value) -> Result<DecoderConfig, ModelError> {
    let keys = Keys { path, config };
    let heads = keys.size("num_attention_heads")?;
    let hidden_size = keys.size("hidden_size")?;
    let head_dim = match keys.opt_size("head_dim")? {
        Some(head_dim) => head_dim,
        None => hidden_size
            .checked_div(heads)
            .ok_or_else(|| keys.wrong("num_attention_heads", "is 0: expected at least 1"))?,
    };
    let activation = match keys.get("hidden_act").and_then(Value::as_str) {
        None | Some("silu" | "swish") => Activation::Silu,
        Some("gelu") => Activation::GeluErf,
        Some("gelu_new" | "gelu_pytorch_tanh") => Activation::GeluTanh,
        Some(other) => {
            let problem = format!("is `{other}`: supported are silu, gelu, gelu_new, gelu_pytorch_tanh");
            return Err(keys.wrong("hidden_act", problem));
        }
    };
    let (rope_theta, rope_scaling) = rope(&keys)?;
    Ok(DecoderConfig {
        family: Family::Llama,
        vocab_size: keys.size("vocab_size")?,
        hidden_size,
        intermediate_size: keys.size("intermediate_size")?,
        layers: keys.size("num_hidden_layers")?,
        heads,
        kv_heads: keys.opt_size("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        rms_norm_eps: keys.opt_float("rms_norm_eps")?.unwrap_or(1e-6),
        rope_theta,
        rope_scaling,
        max_position_embeddings: keys.opt_size("max_position_embeddings")?.unwrap_or(2048),
        tie_word_embeddings: keys.flag("tie_word_embeddings")?,
        attention_bias: keys.flag("attention_bias")?,
        mlp_bias: keys.flag("mlp_bias")?,
        activation,
    })
}

/// `rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` of older configurations.
fn rope(keys: &Keys<'_>) -> Result<(f64, RopeScaling), ModelError> {
    let (block, name) = match (keys.get("rope_parameters"), keys.get("rope_scaling")) {
        (Some(parameters), _) => (Some(parameters), "rope_parameters"),
        (None, scaling) => (scaling, "rope_scaling"),
    };
    let Some(block) = block else {
        return Ok((keys.opt_float("rope_theta")?.unwrap_or(10_000.0), RopeScaling::None));
    };
    let inner = Keys { path: keys.path, config: block };
    let theta = inner.opt_float("rope_theta")?.or(keys.opt_float("rope_theta")?).unwrap_or(10_000.0);
    let kind =
        inner.get("rope_type").or_else(|| inner.get("type")).and_then(Value::as_str).unwrap_or("default");
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: inner.float("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: inner.float("factor")?,
            low_freq_factor: inner.float("low_freq_factor")?,
            high_freq_factor: inner.float("high_freq_factor")?,
            original_max_position_embeddings: inner.size("original_max_position_embeddings")?,
        },
        other => {
            let problem = format!("has rope_type `{other}`: supported are default, linear, llama3");
            return Err(keys.wrong(name, problem));
        }
    };
    Ok((theta, scaling))
}

/// With the rotary keys of transformers 5 and those of older releases, which read only their own.
pub(super) fn config_to_json(path: &Path, config: &DecoderConfig) -> Result<Map<String, Value>, ModelError> {
    let mut rope = Map::new();
    match &config.rope_scaling {
        RopeScaling::None => {
            rope.insert("rope_type".into(), "default".into());
        }
        RopeScaling::Linear { factor } => {
            rope.insert("rope_type".into(), "linear".into());
            rope.insert("factor".into(), json!(factor));
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            rope.insert("rope_type".into(), "llama3".into());
            rope.insert("factor".into(), json!(factor));
            rope.insert("low_freq_factor".into(), json!(low_freq_factor));
            rope.insert("high_freq_factor".into(), json!(high_freq_factor));
            let original = json!(original_max_position_embeddings);
            rope.insert("original_max_position_embeddings".into(), original);
        }
        RopeScaling::Divisors(_) => {
            let problem = "scales each rotary frequency by its own number, which config.json cannot say; \
                           use the safetensors checkpoint that the file was made from";
            return Err(ModelError::Config {
                path: path.to_owned(),
                key: "rope_freqs.weight".into(),
                problem: problem.into(),
            });
        }
    }
    let scaling = match config.rope_scaling {
        RopeScaling::None => Value::Null,
        _ => rope.clone().into(),
    };
    rope.insert("rope_theta".into(), json!(config.rope_theta));
    let activation = match config.activation {
        Activation::Silu => "silu",
        Activation::GeluErf => "gelu",
        Activation::GeluTanh => "gelu_pytorch_tanh",
    };
    let keys = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": config.family.name(),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": shortest(config.rms_norm_eps),
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": rope,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "hidden_act": activation,
    });
    match keys {
        Value::Object(keys) => Ok(keys),
        _ => unreachable!("the literal is an object"),
    }
}

/// The shortest decimal with the same f32: 1e-5 for what a GGUF file stores of it.
fn shortest(value: f64) -> f64 {
    if f64::from(value as f32) != value {
        return value;
    }
    (value as f32).to_string().parse().unwrap_or(value)
}

pub(super) fn config_from_gguf(
    path: &Path,
    metadata: &Metadata,
    has_head: bool,
    rope_divisors: Option<Vec<f32>>,
) -> Result<DecoderConfig, ModelError> {
    let wrong =
        |key: &str, problem: String| ModelError::Config { path: path.to_owned(), key: key.into(), problem };
    let size = |key: &str| -> Result<usize, ModelError> {
        let value = metadata.u64(key)?;
        usize::try_from(value).map_err(|_| wrong(key, format!("is {value}: too large")))
    };
    let opt_size = |key: &str, default: usize| if metadata.contains(key) { size(key) } else { Ok(default) };
    let opt_float = |key: &str, default: f64| -> Result<f64, ModelError> {
        Ok(if metadata.contains(key) { f64::from(metadata.f32(key)?) } else { default })
    };
    let hidden_size = size("llama.embedding_length")?;
    let heads = size("llama.attention.head_count")?;
    let default_head_dim = hidden_size
        .checked_div(heads)
        .ok_or_else(|| wrong("llama.attention.head_count", "is 0: expected at least 1".into()))?;
    let head_dim = opt_size("llama.attention.key_length", default_head_dim)?;
    let rotated = opt_size("llama.rope.dimension_count", head_dim)?;
    if rotated != head_dim {
        let problem = format!("is {rotated}: rotating a part of a head of {head_dim} is not supported");
        return Err(wrong("llama.rope.dimension_count", problem));
    }
    if metadata.contains("llama.expert_count") && size("llama.expert_count")? > 0 {
        return Err(wrong("llama.expert_count", "is not 0: mixtures of experts are not supported".into()));
    }
    let scaling_key = "llama.rope.scaling.type";
    let rope_scaling = match (rope_divisors, metadata.contains(scaling_key)) {
        (Some(divisors), _) if divisors.len() == head_dim / 2 => RopeScaling::Divisors(divisors),
        (Some(divisors), _) => {
            let problem = format!("has {} elements: expected {}", divisors.len(), head_dim / 2);
            return Err(wrong("rope_freqs.weight", problem));
        }
        (None, false) => RopeScaling::None,
        (None, true) => match metadata.string(scaling_key)? {
            "none" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: opt_float("llama.rope.scaling.factor", 1.0)? },
            other => return Err(wrong(scaling_key, format!("is `{other}`: supported are none and linear"))),
        },
    };
    let vocab_size = match metadata.contains("llama.vocab_size") {
        true => size("llama.vocab_size")?,
        false => metadata.strings("tokenizer.ggml.tokens")?.len(),
    };
    Ok(DecoderConfig {
        family: Family::Llama,
        vocab_size,
        hidden_size,
        intermediate_size: size("llama.feed_forward_length")?,
        layers: size("llama.block_count")?,
        heads,
        kv_heads: opt_size("llama.attention.head_count_kv", heads)?,
        head_dim,
        rms_norm_eps: f64::from(metadata.f32("llama.attention.layer_norm_rms_epsilon")?),
        rope_theta: opt_float("llama.rope.freq_base", 10_000.0)?,
        rope_scaling,
        max_position_embeddings: size("llama.context_length")?,
        tie_word_embeddings: !has_head,
        attention_bias: false,
        mlp_bias: false,
        activation: Activation::Silu,
    })
}

/// Hugging Face name, GGUF name; those of a layer follow `model.layers.N.` and `blk.N.`.
const OUTSIDE: [(&str, &str); 3] = [
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
];
const IN_LAYER: [(&str, &str); 9] = [
    ("input_layernorm.weight", "attn_norm.weight"),
    ("self_attn.q_proj.weight", "attn_q.weight"),
    ("self_attn.k_proj.weight", "attn_k.weight"),
    ("self_attn.v_proj.weight", "attn_v.weight"),
    ("self_attn.o_proj.weight", "attn_output.weight"),
    ("post_attention_layernorm.weight", "ffn_norm.weight"),
    ("mlp.gate_proj.weight", "ffn_gate.weight"),
    ("mlp.up_proj.weight", "ffn_up.weight"),
    ("mlp.down_proj.weight", "ffn_down.weight"),
];

pub(super) fn gguf_name(name: &str) -> Option<String> {
    if let Some((_, gguf)) = OUTSIDE.iter().find(|(hf, _)| *hf == name) {
        return Some((*gguf).to_owned());
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (_, gguf) = IN_LAYER.iter().find(|(hf, _)| *hf == rest)?;
    Some(format!("blk.{layer}.{gguf}"))
}

/// GGUF files hold the rows of q and k for interleaved pairs; ours rotate halves.
pub(super) fn rows_from_gguf(name: &str, values: Vec<f32>, config: &DecoderConfig) -> Vec<f32> {
    let half = config.head_dim / 2;
    reorder_rows(name, values, config, |row| row % half * 2 + row / half)
}

/// Undoes [`rows_from_gguf`].
pub(super) fn rows_to_gguf(name: &str, values: Vec<f32>, config: &DecoderConfig) -> Vec<f32> {
    let half = config.head_dim / 2;
    reorder_rows(name, values, config, |row| row % 2 * half + row / 2)
}

/// Row `r` of a head of q or k becomes what row `source(r)` was; other tensors stay as they are.
fn reorder_rows(
    name: &str,
    values: Vec<f32>,
    config: &DecoderConfig,
    source: impl Fn(usize) -> usize,
) -> Vec<f32> {
    let heads = match name.rsplit_once("self_attn.") {
        Some((_, "q_proj.weight")) => config.heads,
        Some((_, "k_proj.weight")) => config.kv_heads,
        _ => return values,
    };
    let (head_dim, width) = (config.head_dim, values.len() / (heads * config.head_dim));
    let mut rows = Vec::with_capacity(values.len());
    for row in 0..heads * head_dim {
        let source = row / head_dim * head_dim + source(row % head_dim);
        rows.extend_from_slice(&values[source * width..(source + 1) * width]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(rope_scaling: RopeScaling) -> DecoderConfig {
        DecoderConfig {
            family: Family::Llama,
            vocab_size: 97,
            hidden_size: 48,
            intermediate_size: 80,
            layers: 3,
            heads: 6,
            kv_heads: 2,
            head_dim: 16,
            rms_norm_eps: 1e-5,
            rope_theta: 500_000.0,
            rope_scaling,
            max_position_embeddings: 128,
            tie_word_embeddings: true,
            attention_bias: true,
            mlp_bias: false,
            activation: Activation::GeluTanh,
        }
    }

    #[test]
    fn config_json_is_read_as_it_was_written() {
        let path = Path::new("config.json");
        let llama3 = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        for scaling in [RopeScaling::None, RopeScaling::Linear { factor: 2.5 }, llama3] {
            let config = config(scaling);
            let written = config_to_json(path, &config).unwrap();
            assert_eq!(config_from_json(path, &written.clone().into()).unwrap(), config);
            // What older releases of transformers read.
            let mut older = written;
            older.remove("rope_parameters");
            assert_eq!(config_from_json(path, &older.into()).unwrap(), config);
        }
    }

    #[test]
    fn an_epsilon_of_f32_is_written_in_short() {
        let config = DecoderConfig { rms_norm_eps: f64::from(1e-5_f32), ..config(RopeScaling::None) };
        assert_eq!(config_to_json(Path::new(""), &config).unwrap()["rms_norm_eps"], json!(1e-5));
    }

    #[test]
    fn divisors_of_frequencies_are_refused_by_name() {
        let config = config(RopeScaling::Divisors(vec![1.0; 8]));
        let error = config_to_json(Path::new("m.gguf"), &config).unwrap_err().to_string();
        assert!(error.starts_with("m.gguf: `rope_freqs.weight` "), "{error}");
    }

    #[test]
    fn rows_go_to_gguf_and_back() {
        let config = config(RopeScaling::None);
        for (name, rows, width) in
            [("q_proj", 96, 48), ("k_proj", 32, 48), ("q_proj", 96, 3), ("v_proj", 32, 48)]
        {
            let name = format!("model.layers.1.self_attn.{name}.weight");
            let values: Vec<f32> = (0..rows * width).map(|value| value as f32).collect();
            let stored = rows_to_gguf(&name, values.clone(), &config);
            assert_eq!(stored == values, name.contains("v_proj"));
            // The second row of the file is the ninth here: the partner of the first.
            if !name.contains("v_proj") {
                assert_eq!(stored[width..2 * width], values[8 * width..9 * width]);
            }
            assert_eq!(rows_from_gguf(&name, stored, &config), values);
        }
    }

    #[test]
    fn names_of_layers_and_of_the_rest() {
        assert_eq!(gguf_name("model.layers.12.mlp.up_proj.weight").unwrap(), "blk.12.ffn_up.weight");
        assert_eq!(gguf_name("lm_head.weight").unwrap(), "output.weight");
        assert_eq!(gguf_name("model.layers.1.mlp.unknown.weight"), None);
    }
}
