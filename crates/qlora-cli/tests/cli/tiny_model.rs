//! A llama of a few thousand parameters, with random weights, and with a tokenizer of bytes or none.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Map, Value, json};

pub(crate) const VOCABULARY: usize = 40;
pub(crate) const CONTEXT: usize = 32;
const HIDDEN: usize = 16;
const INNER: usize = 24;
const LAYERS: usize = 2;

/// Writes `config.json` and `model.safetensors` to `home/model`.
pub(crate) fn write(home: &Path) -> PathBuf {
    let folder = home.join("model");
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join("config.json"), config("llama")).expect("written");
    fs::write(folder.join("model.safetensors"), weights()).expect("written");
    folder
}

/// The same, larger, with a tokenizer of bytes and the tokens of ChatML, but no chat template.
pub(crate) fn write_with_tokenizer(home: &Path) -> PathBuf {
    let folder = home.join("model");
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join("config.json"), sized_config("llama", 264, 256)).expect("written");
    fs::write(folder.join("model.safetensors"), sized_weights(264)).expect("written");
    fs::write(folder.join("tokenizer.json"), tokenizer().to_string()).expect("written");
    fs::write(folder.join("tokenizer_config.json"), r#"{"eos_token": "<|endoftext|>"}"#).expect("written");
    fs::write(folder.join("generation_config.json"), r#"{"eos_token_id": 256, "top_k": 7}"#)
        .expect("written");
    folder
}

fn tokenizer() -> Value {
    // GPT-2's letters for bytes: visible ones stand for themselves, the others for what comes after them.
    let visible = |byte: &u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 256..;
    let mut vocabulary: Map<String, Value> = (0..256_u32)
        .map(|byte| {
            let letter = if visible(&byte) { byte } else { others.next().expect("endless") };
            (char::from_u32(letter).expect("a letter").to_string(), byte.into())
        })
        .collect();
    let special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
    let added: Vec<Value> = (256..)
        .zip(special)
        .map(|(id, content)| {
            vocabulary.insert(content.to_owned(), id.into());
            json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false})
        })
        .collect();
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary,
                  "merges": []},
    })
}

pub(crate) fn config(model_type: &str) -> String {
    sized_config(model_type, VOCABULARY, CONTEXT)
}

fn sized_config(model_type: &str, vocabulary: usize, context: usize) -> String {
    json!({
        "model_type": model_type,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": true,
    })
    .to_string()
}

pub(crate) fn weights() -> Vec<u8> {
    sized_weights(VOCABULARY)
}

fn sized_weights(vocabulary: usize) -> Vec<u8> {
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocabulary, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![HIDDEN / 2, HIDDEN]),
            ("self_attn.v_proj", vec![HIDDEN / 2, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![INNER, HIDDEN]),
            ("mlp.up_proj", vec![INNER, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INNER]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    let mut state = 1_u64;
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let bytes = (0..shape.iter().product::<usize>())
                .flat_map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let uniform = (state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5;
                    (if name.contains("norm") { 1.0 + uniform } else { uniform }).to_le_bytes()
                })
                .collect();
            (name, shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).expect("sizes fit"))
    });
    serialize(views, None).expect("serializes")
}
