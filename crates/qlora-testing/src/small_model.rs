//! A llama of 80,000 parameters with random weights, a byte-level tokenizer and a chat template.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::{RandomLlama, byte_tokenizer};

const MERGES: [&str; 6] = ["Ġ t", "h e", "Ġt he", "i n", "Ġ a", "e r"];
const SPECIAL: [&str; 2] = ["<s>", "</s>"];
const VOCABULARY: usize = 256 + MERGES.len() + SPECIAL.len();
const MODEL: RandomLlama = RandomLlama {
    vocabulary: VOCABULARY,
    context: 64,
    hidden: 64,
    inner: 96,
    layers: 2,
    tied: false,
    spread: 0.5,
};
const TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n\
                        {% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}";

/// Writes the checkpoint directory: configuration, weights in f32, tokenizer with a template.
///
/// # Panics
/// When it cannot be written.
pub fn write_small_model(folder: &Path) {
    fs::create_dir_all(folder).expect("a folder");
    let mut config = MODEL.config("llama");
    config["bos_token_id"] = (VOCABULARY - 2).into();
    config["eos_token_id"] = (VOCABULARY - 1).into();
    fs::write(folder.join("config.json"), config.to_string()).expect("written");
    fs::write(folder.join("model.safetensors"), MODEL.weights()).expect("written");
    fs::write(folder.join("tokenizer.json"), byte_tokenizer(&MERGES, &SPECIAL).to_string()).expect("written");
    let [bos, eos] = SPECIAL;
    let config = json!({"bos_token": bos, "eos_token": eos, "chat_template": TEMPLATE});
    fs::write(folder.join("tokenizer_config.json"), config.to_string()).expect("written");
}
