//! `qlora inspect`.

use std::fs;

use crate::program::qlora;
use crate::{tiny_gguf, tiny_model};

#[test]
fn files_and_directories_are_described() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    fs::write(home.join("m.gguf"), tiny_gguf::bytes()).unwrap();
    tiny_model::write(home);

    let gguf = qlora(home, ["inspect", "m.gguf", "--tensors"]).succeeded().stdout;
    for part in ["GGUF file: 1 tensors, 6 elements", "\"mamba\"", "[7,9]", "token_embd.weight  F32    [2, 3]"]
    {
        assert!(gguf.contains(part), "no {part:?} in {gguf}");
    }
    let model = qlora(home, ["inspect", "model"]).succeeded().stdout;
    assert!(model.contains("model directory: 20 tensors") && model.contains("\"llama\""), "{model}");

    let json = qlora(home, ["inspect", "model/model.safetensors", "--json"]).succeeded().stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["tensors"].as_array().unwrap().len(), 20);
    assert_eq!(json["tensors"][0]["type"], "F32");
}

#[test]
fn what_is_nothing_known_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    qlora(home, ["inspect", "absent"]).failed(1, &["absent"]);
    fs::create_dir(home.join("empty")).unwrap();
    qlora(home, ["inspect", "empty"]).failed(1, &["empty"]);
    fs::write(home.join("words.txt"), "words").unwrap();
    qlora(home, ["inspect", "words.txt"]).failed(1, &["words.txt"]);
    qlora(home, ["inspect", "smollm2-135m"]).failed(1, &["qlora fetch smollm2-135m"]);
}
