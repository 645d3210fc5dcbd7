//! `qlora generate` on a tiny model.

use std::fs;

use serde_json::{Map, Value, json};

use crate::program::qlora;
use crate::tiny_model;

/// As Qwen's: rows of the head that no token stands for are chosen, too.
#[test]
fn an_id_without_a_token_gives_no_text_and_ends_nothing() {
    let home = tempfile::tempdir().unwrap();
    let model = tiny_model::write(home.path());
    let tokens = 20;
    assert!(tokens < tiny_model::VOCABULARY);
    let words: Map<String, Value> = (0..tokens).map(|id| (format!("w{id}"), id.into())).collect();
    let definition = json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"}
    });
    fs::write(model.join("tokenizer.json"), definition.to_string()).unwrap();
    let arguments =
        ["generate", "--model", "model", "--raw", "--prompt", "w1 w2", "--max-tokens", "24", "--json"];
    let ran = qlora(home.path(), arguments).succeeded();
    let answer: Value = serde_json::from_str(&ran.stdout).unwrap();
    let ids: Vec<usize> = serde_json::from_value(answer["ids"].clone()).unwrap();
    assert!(ids.iter().any(|id| *id >= tokens), "no such id was chosen: {ids:?}");
    let known: Vec<String> = ids.iter().filter(|id| **id < tokens).map(|id| format!("w{id}")).collect();
    assert_eq!(answer["text"], known.join(" "));
}
