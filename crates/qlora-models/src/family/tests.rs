//! Configurations of all families: read as they were written, refused where they say what nobody understands.

use std::path::Path;

use qlora_gguf::Metadata;
use qlora_kernels::Activation;
use serde_json::{Value, json};

use super::*;
use crate::RopeScaling;
use crate::config::{ExpertsConfig, LayerAttention, LayerRope, NormKind, NormPlacement, QkNorm, RopePairs};

fn read(config: Value) -> Result<DecoderConfig, ModelError> {
    Family::config_from_json(Path::new("config.json"), &config)
}

/// A configuration of the family that has as much as it can of what sets it apart.
fn config(family: Family) -> DecoderConfig {
    let base = DecoderConfig {
        family,
        vocab_size: 97,
        hidden_size: 48,
        intermediate_size: 80,
        layers: 6,
        heads: 6,
        kv_heads: 2,
        head_dim: 16,
        rms_norm_eps: 1e-5,
        rope_theta: 500_000.0,
        max_position_embeddings: 128,
        tie_word_embeddings: true,
        ..DecoderConfig::default()
    };
    let biased = DecoderConfig { attention_bias: true, output_bias: true, ..base.clone() };
    let window = |window| LayerAttention { window: Some(window), rope: LayerRope::Global };
    let gemma = DecoderConfig {
        norm: NormKind::RmsUnitOffset,
        activation: Activation::GeluTanh,
        embedding_scale: 48f64.sqrt(),
        ..biased.clone()
    };
    let gemma2 = DecoderConfig {
        norm_placement: NormPlacement::Around,
        attention_softcap: Some(20.0),
        logit_softcap: Some(10.0),
        attention_scale: Some(24f64.powf(-0.5)),
        layer_attention: (0..6)
            .map(|layer| if layer % 2 == 0 { window(8) } else { LayerAttention::default() })
            .collect(),
        ..gemma.clone()
    };
    match family {
        Family::Llama => DecoderConfig { mlp_bias: true, activation: Activation::GeluTanh, ..biased },
        Family::Mistral => DecoderConfig { layer_attention: vec![window(9); 6], ..base },
        Family::SmolLm3 => {
            let mut layer_attention = vec![LayerAttention::default(); 6];
            layer_attention[3].rope = LayerRope::None;
            layer_attention[3].window = Some(9);
            DecoderConfig { layer_attention, ..biased }
        }
        Family::Qwen2 => {
            let mut layer_attention = vec![LayerAttention::default(); 4];
            layer_attention.extend([window(9), window(9)]);
            DecoderConfig { attention_bias: true, layer_attention, ..base }
        }
        Family::Qwen3 => DecoderConfig { qk_norm: QkNorm::Head, ..biased },
        Family::Qwen3Moe => {
            let experts = ExpertsConfig {
                count: 6,
                per_token: 2,
                intermediate_size: 24,
                normalize: true,
                dense_layers: vec![1, 4],
            };
            DecoderConfig { qk_norm: QkNorm::Head, experts: Some(experts), ..base }
        }
        Family::Gemma => gemma,
        Family::Gemma2 => gemma2,
        Family::Gemma3 => {
            let local = LayerAttention { window: Some(8), rope: LayerRope::Local };
            let mut layer_attention = vec![local; 5];
            layer_attention.push(LayerAttention::default());
            let (attention_softcap, logit_softcap) = (None, None);
            let (qk_norm, local_rope_theta) = (QkNorm::Head, 5000.0);
            DecoderConfig {
                layer_attention,
                attention_softcap,
                logit_softcap,
                qk_norm,
                local_rope_theta,
                ..gemma2
            }
        }
        Family::Phi3 => DecoderConfig {
            head_dim: 8,
            rotary_dim: Some(6),
            fused_projections: true,
            layer_attention: vec![window(9); 6],
            ..base
        },
        Family::Olmo2 => {
            DecoderConfig { norm_placement: NormPlacement::After, qk_norm: QkNorm::Whole, ..biased }
        }
        Family::Granite => DecoderConfig {
            embedding_scale: 12.0,
            attention_scale: Some(0.25),
            residual_scale: 0.22,
            logit_scale: 0.125,
            ..biased
        },
        Family::Cohere => DecoderConfig {
            norm: NormKind::Layer,
            norm_placement: NormPlacement::Parallel,
            qk_norm: QkNorm::EachHead,
            rope_pairs: RopePairs::Interleaved,
            logit_scale: 0.25,
            ..biased
        },
    }
}

fn scalings() -> Vec<RopeScaling> {
    vec![
        RopeScaling::None,
        RopeScaling::Linear { factor: 2.5 },
        RopeScaling::Dynamic { factor: 2.0, original_max_position_embeddings: 128 },
        RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        },
        RopeScaling::Yarn {
            factor: 4.0,
            beta_fast: 30.0,
            beta_slow: 2.0,
            original_max_position_embeddings: 32,
            attention_factor: 1.2,
            truncate: false,
        },
        RopeScaling::LongRope {
            short_factor: vec![1.0; 8],
            long_factor: vec![2.0; 8],
            original_max_position_embeddings: 32,
            attention_factor: 1.3,
        },
    ]
}

#[test]
fn config_json_is_read_as_it_was_written() {
    for family in Family::ALL {
        let config = config(family);
        assert_eq!(config.validate(), Ok(()), "{family:?}");
        let written = family.config_to_json(Path::new(""), &config).unwrap();
        assert_eq!(read(written.into()).unwrap(), config, "{family:?}");
    }
}

#[test]
fn rotary_keys_of_both_spellings_are_read_as_they_were_written() {
    for rope_scaling in scalings() {
        for family in [Family::Llama, Family::Gemma3] {
            let config = DecoderConfig { rope_scaling: rope_scaling.clone(), ..config(family) };
            let written = family.config_to_json(Path::new(""), &config).unwrap();
            assert_eq!(read(written.clone().into()).unwrap(), config);
            // What older releases of transformers read.
            let mut older = written;
            older.remove("rope_parameters");
            assert_eq!(read(older.into()).unwrap(), config);
        }
    }
}

#[test]
fn an_epsilon_of_f32_is_written_in_short() {
    let config = DecoderConfig { rms_norm_eps: f64::from(1e-5_f32), ..config(Family::Llama) };
    assert_eq!(Family::Llama.config_to_json(Path::new(""), &config).unwrap()["rms_norm_eps"], json!(1e-5));
}

#[test]
fn divisors_of_frequencies_are_refused_by_name() {
    let rope_scaling = RopeScaling::Divisors(vec![1.0; 8]);
    let config = DecoderConfig { rope_scaling, ..config(Family::Llama) };
    let error = Family::Llama.config_to_json(Path::new("m.gguf"), &config).unwrap_err().to_string();
    assert!(error.starts_with("m.gguf: `rope_freqs.weight` "), "{error}");
}

#[test]
fn keys_that_nobody_understands_are_refused_and_those_that_change_nothing_are_not() {
    let written = |key: &str, value: Value| {
        let mut keys = Family::Llama.config_to_json(Path::new(""), &config(Family::Llama)).unwrap();
        keys.insert(key.into(), value);
        read(keys.into()).map(|_| ()).map_err(|error| error.to_string())
    };
    for (key, value) in [
        ("attention_multiplier", json!(0.5)),
        ("final_logit_softcapping", json!(30.0)),
        ("sliding_window", json!(4096)),
        ("num_local_experts", json!(8)),
        ("rope_interleaved", json!(true)),
    ] {
        let error = written(key, value).unwrap_err();
        assert!(error.starts_with(&format!("config.json: `{key}` is ")), "{error}");
    }
    for (key, value) in [
        ("torch_dtype", json!("bfloat16")),
        ("transformers.js_config", json!({ "dtype": "q4" })),
        ("rope_interleaved", json!(false)),
        ("sliding_window", Value::Null),
        ("_name_or_path", json!("x")),
        ("pretraining_tp", json!(1)),
    ] {
        assert_eq!(written(key, value), Ok(()), "{key}");
    }
    let mut keys = Family::Llama.config_to_json(Path::new(""), &config(Family::Llama)).unwrap();
    keys["rope_parameters"]["short_mscale"] = json!(1.2);
    let error = read(keys.into()).unwrap_err().to_string();
    assert!(error.contains("`rope_parameters.short_mscale`"), "{error}");
}

#[test]
fn an_unknown_architecture_is_refused_with_those_that_are_known() {
    let error = read(json!({ "model_type": "mamba" })).unwrap_err().to_string();
    assert!(error.contains("`mamba` is not supported; supported are llama, mistral, smollm3"), "{error}");
}

#[test]
fn the_text_part_of_a_model_that_also_sees_is_read() {
    let text = json!({
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10_240,
        "num_hidden_layers": 34,
        "rope_scaling": { "factor": 8.0, "rope_type": "linear" },
        "sliding_window": 1024,
    });
    let config = read(json!({ "model_type": "gemma3", "text_config": text, "vision_config": {} })).unwrap();
    assert_eq!((config.vocab_size, config.heads, config.kv_heads, config.head_dim), (262_208, 8, 4, 256));
    assert_eq!(config.rope_scaling, RopeScaling::Linear { factor: 8.0 });
    assert_eq!(config.attention_of(5), LayerAttention::default());
    let local = LayerAttention { window: Some(1024), rope: LayerRope::Local };
    assert_eq!(config.attention_of(6), local);
    assert_eq!(config.rope_theta, 1_000_000.0);
}

#[test]
fn metadata_of_gguf_files() {
    let metadata = |architecture: &str| {
        let mut metadata = Metadata::new();
        metadata.insert("general.architecture", architecture);
        for (key, value) in [
            ("vocab_size", 97_u32),
            ("embedding_length", 48),
            ("feed_forward_length", 80),
            ("block_count", 6),
            ("attention.head_count", 6),
            ("attention.head_count_kv", 2),
            ("attention.key_length", 16),
            ("attention.sliding_window", 8),
            ("context_length", 128),
        ] {
            metadata.insert(format!("{architecture}.{key}"), value);
        }
        metadata.insert(format!("{architecture}.attention.layer_norm_rms_epsilon"), 1e-5_f32);
        metadata
    };
    let read = |metadata: &Metadata| {
        Family::config_from_gguf(Path::new("m.gguf"), metadata, &GgufTensors::default())
            .map_err(|error| error.to_string())
    };
    let gemma3 = read(&metadata("gemma3")).unwrap();
    let expected = DecoderConfig {
        attention_scale: Some(0.25),
        rope_theta: 1_000_000.0,
        local_rope_theta: 10_000.0,
        attention_bias: false,
        output_bias: false,
        rms_norm_eps: f64::from(1e-5_f32),
        ..config(Family::Gemma3)
    };
    assert_eq!(gemma3, expected);
    let gemma2 = read(&metadata("gemma2")).unwrap();
    assert_eq!(gemma2.layer_attention, config(Family::Gemma2).layer_attention);
    assert_eq!((gemma2.attention_softcap, gemma2.logit_softcap), (Some(50.0), Some(30.0)));
    let error = read(&metadata("qwen2")).unwrap_err();
    assert!(error.starts_with("m.gguf: `qwen2.attention.sliding_window` is not known"), "{error}");
}
