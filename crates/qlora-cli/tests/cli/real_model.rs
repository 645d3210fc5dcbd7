//! SmolLM2-135M-Instruct through the program: what transformers computes.

use std::fs;

use serde_json::{Value, json};

use crate::program::qlora;

#[test]
fn logits_and_greedy_tokens_equal_those_of_transformers() {
    let (Some(model), Some(golden)) =
        (qlora_testing::model(), qlora_testing::golden("smollm2/gguf_f32.json"))
    else {
        return;
    };
    let model = model.to_str().unwrap();
    let golden: Value = serde_json::from_slice(&fs::read(golden).unwrap()).unwrap();
    let prompt = &golden["prompts"][0];
    assert_eq!(prompt["kind"], "chat");
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    fs::write(home.join("ids.json"), json!({"input_ids": [prompt["input_ids"]]}).to_string()).unwrap();
    let arguments =
        ["logits", "--dtype", "f32", "--model", model, "--ids", "ids.json", "--out", "l.safetensors"];
    qlora(home, arguments).succeeded();
    let bytes = fs::read(home.join("l.safetensors")).unwrap();
    let logits = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let logits = logits.tensor("logits").unwrap();
    let tokens = prompt["input_ids"].as_array().unwrap().len();
    assert_eq!(logits.shape(), [1, tokens, 49152]);
    let last = &logits.data()[(tokens - 1) * 49152 * 4..];
    for pair in prompt["last_logits_top20"].as_array().unwrap() {
        let (id, expected) = (pair[0].as_u64().unwrap() as usize, pair[1].as_f64().unwrap());
        let found = f32::from_le_bytes(last[id * 4..id * 4 + 4].try_into().unwrap());
        assert!((f64::from(found) - expected).abs() < 2e-3, "logit of {id}: {found}, expected {expected}");
    }

    let text = prompt["prompt"].as_str().unwrap();
    let arguments =
        ["generate", "--dtype", "f32", "--model", model, "--greedy", "--max-tokens", "8", "--json"];
    let ran = qlora(home, arguments.iter().chain(&["--prompt", text])).succeeded();
    let answer: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(answer["ids"], prompt["greedy_ids"]);
    assert_eq!(answer["prompt_tokens"], tokens);
    assert_eq!(answer["text"], "The capital of France is Paris.");
    assert_eq!(answer["finish"], "stop");
}
