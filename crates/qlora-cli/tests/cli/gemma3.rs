//! Gemma 3 270M from a GGUF file: tokens and text of llama.cpp. The model is under terms of its own, so that the test
//! asks for it: `QLORA_TEST_GEMMA=/path/to/gemma-3-270m-q4_k_m.gguf`. Expected numbers are of `golden/make_gemma3.py`,
//! which says where the file comes from.

use std::fs;
use std::path::Path;

use qlora_core::models::Checkpoint;
use serde_json::Value;

use crate::program::qlora;

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn tokens_and_text_are_those_of_llama_cpp() {
    let Some(model) = std::env::var_os("QLORA_TEST_GEMMA") else {
        eprintln!("SKIPPED: set QLORA_TEST_GEMMA to run this test");
        return;
    };
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gemma3_270m.json");
    let golden: Value = serde_json::from_slice(&fs::read(golden).unwrap()).unwrap();

    let checkpoint = Checkpoint::open(&model).unwrap();
    let tokenizer = checkpoint.tokenizer().unwrap();
    for entry in golden["texts"].as_array().unwrap() {
        let text = entry["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text).unwrap(), ids(&entry["ids"]), "{text:?}");
    }

    let home = tempfile::tempdir().unwrap();
    let (model, prompt) = (model.to_str().unwrap(), golden["prompt"].as_str().unwrap());
    let arguments =
        ["generate", "--model", model, "--raw", "--greedy", "--max-tokens", "12", "--json", "--prompt"];
    let ran = qlora(home.path(), arguments.iter().chain(&[prompt])).succeeded();
    let answer: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(answer["ids"], golden["greedy"], "{}", answer["text"]);
}
