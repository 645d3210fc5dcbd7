//! What all families write into `config.json`.

use qlora_kernels::Activation;
use serde_json::{Map, Value, json};

use crate::DecoderConfig;

/// Sizes, ε, activation: the keys that all families share but the rotary ones.
pub(super) fn shared(config: &DecoderConfig) -> Map<String, Value> {
    let keys = json!({
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": shortest(config.rms_norm_eps),
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "hidden_act": activation(config.activation),
    });
    match keys {
        Value::Object(keys) => keys,
        _ => unreachable!("the literal is an object"),
    }
}

/// The name of a function of a gate.
pub(super) fn activation(activation: Activation) -> &'static str {
    match activation {
        Activation::Silu => "silu",
        Activation::GeluErf => "gelu",
        Activation::GeluTanh => "gelu_pytorch_tanh",
    }
}

/// `layer_types` of each layer, and the window of those that have one.
pub(super) fn windows(config: &DecoderConfig, keys: &mut Map<String, Value>) {
    let windows: Vec<Option<usize>> =
        (0..config.layers).map(|layer| config.attention_of(layer).window).collect();
    let kind = |window: &Option<usize>| match window {
        Some(_) => "sliding_attention",
        None => "full_attention",
    };
    keys.insert("layer_types".into(), windows.iter().map(kind).collect::<Vec<_>>().into());
    keys.insert("sliding_window".into(), json!(windows.iter().flatten().next()));
}

/// The shortest decimal with the same f32: 1e-5 for what a GGUF file stores of it.
pub(super) fn shortest(value: f64) -> f64 {
    if f64::from(value as f32) != value {
        return value;
    }
    (value as f32).to_string().parse().unwrap_or(value)
}
