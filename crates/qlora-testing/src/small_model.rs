//! A llama of 80,000 parameters with random weights, a byte-level tokenizer and a chat template.

use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Map, Value, json};

const HIDDEN: usize = 64;
const INNER: usize = 96;
const LAYERS: usize = 2;
const MERGES: [&str; 6] = ["Ġ t", "h e", "Ġt he", "i n", "Ġ a", "e r"];
const SPECIAL: [&str; 2] = ["<s>", "</s>"];
const VOCABULARY: usize = 256 + MERGES.len() + SPECIAL.len();
const TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n\
                        {% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}";

/// Writes the checkpoint directory: configuration, weights in f32, tokenizer with a template.
///
/// # Panics
/// When it cannot be written.
pub fn write_small_model(folder: &Path) {
    fs::create_dir_all(folder).expect("a folder");
    let config = json!({
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": false, "bos_token_id": VOCABULARY - 2, "eos_token_id": VOCABULARY - 1,
    });
    fs::write(folder.join("config.json"), config.to_string()).expect("written");
    fs::write(folder.join("model.safetensors"), weights()).expect("written");
    fs::write(folder.join("tokenizer.json"), tokenizer().to_string()).expect("written");
    let [bos, eos] = SPECIAL;
    let config = json!({"bos_token": bos, "eos_token": eos, "chat_template": TEMPLATE});
    fs::write(folder.join("tokenizer_config.json"), config.to_string()).expect("written");
}

fn weights() -> Vec<u8> {
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
        ("lm_head.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
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
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5
    };
    let mut values = |name: &str, elements: usize| -> Vec<u8> {
        let one = if name.contains("norm") { 1.0 } else { 0.0 };
        (0..elements).flat_map(|_| (one + uniform() / 2.0).to_le_bytes()).collect()
    };
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let bytes = values(&name, shape.iter().product());
            (name, shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).expect("sizes fit"))
    });
    serialize(views, None).expect("serializes")
}

/// Bytes and a few merges, split by GPT-2's rules.
fn tokenizer() -> Value {
    let mut vocabulary = Map::new();
    for token in
        (0..=255).map(|byte| byte_character(byte).to_string()).chain(MERGES.map(|m| m.replace(' ', "")))
    {
        vocabulary.insert(token, json!(vocabulary.len()));
    }
    let added = SPECIAL.iter().enumerate().map(|(index, token)| {
        json!({"id": vocabulary.len() + index, "content": token, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": true})
    });
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": added.collect::<Vec<_>>(), "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocabulary, "merges": MERGES},
    })
}

/// The character that stands for a byte in a byte-level vocabulary (GPT-2's rule): itself where it can be printed,
/// else one from U+0100 on.
fn byte_character(byte: u8) -> char {
    let printed = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printed(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !printed(b)).count() as u32;
    char::from_u32(0x100 + before).expect("below the surrogates")
}
