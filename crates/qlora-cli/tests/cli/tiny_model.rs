//! A llama of a few thousand parameters, with random weights, and with a tokenizer of bytes or none.

use std::fs;
use std::path::{Path, PathBuf};

use qlora_testing::{RandomLlama, byte_tokenizer};

pub(crate) const VOCABULARY: usize = 40;
pub(crate) const CONTEXT: usize = 32;
const MODEL: RandomLlama = RandomLlama {
    vocabulary: VOCABULARY,
    context: CONTEXT,
    hidden: 16,
    inner: 24,
    layers: 2,
    tied: true,
    spread: 1.0,
};

/// Writes `config.json` and `model.safetensors` to `home/model`.
pub(crate) fn write(home: &Path) -> PathBuf {
    write_model(home, MODEL)
}

/// The same, larger, with a tokenizer of bytes and the tokens of ChatML, but no chat template.
pub(crate) fn write_with_tokenizer(home: &Path) -> PathBuf {
    let folder = write_model(home, RandomLlama { vocabulary: 264, context: 256, ..MODEL });
    let tokenizer = byte_tokenizer(&[], &["<|endoftext|>", "<|im_start|>", "<|im_end|>"]);
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).expect("written");
    fs::write(folder.join("tokenizer_config.json"), r#"{"eos_token": "<|endoftext|>"}"#).expect("written");
    fs::write(folder.join("generation_config.json"), r#"{"eos_token_id": 256, "top_k": 7}"#)
        .expect("written");
    folder
}

fn write_model(home: &Path, model: RandomLlama) -> PathBuf {
    let folder = home.join("model");
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join("config.json"), model.config("llama").to_string()).expect("written");
    fs::write(folder.join("model.safetensors"), model.weights()).expect("written");
    folder
}

pub(crate) fn config(model_type: &str) -> String {
    MODEL.config(model_type).to_string()
}

pub(crate) fn weights() -> Vec<u8> {
    MODEL.weights()
}
