//! Damaged model files: an error that names the file, never a crash, never half an output.

use std::fs;
use std::path::Path;

use crate::program::{files, qlora};
use crate::{tiny_gguf, tiny_model};

fn logits(model: &str) -> [&str; 7] {
    ["logits", "--model", model, "--ids", "ids.json", "--out", "logits.safetensors"]
}

fn write_ids(home: &Path, ids: &str) {
    fs::write(home.join("ids.json"), ids).unwrap();
}

/// Every file cut at many places, and with many single bits flipped.
fn damaged(sound: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let cuts = (0..sound.len()).step_by(sound.len() / 12 + 1).map(|end| sound[..end].to_vec());
    // The beginning holds the structure: more flips there than in the tensors.
    let places = (0..sound.len().min(160)).step_by(5).chain((160..sound.len()).step_by(sound.len() / 16 + 1));
    let flips = places.map(|place| {
        let mut bytes = sound.to_vec();
        bytes[place] ^= 1 << (place % 8);
        bytes
    });
    cuts.chain(flips)
}

#[test]
fn a_damaged_gguf_file_is_refused_or_read_but_never_crashes() {
    let home = tempfile::tempdir().unwrap();
    let sound = tiny_gguf::bytes();
    let path = home.path().join("m.gguf");
    fs::write(&path, &sound).unwrap();
    qlora(home.path(), ["inspect", "m.gguf"]).succeeded();
    for bytes in damaged(&sound) {
        fs::write(&path, &bytes).unwrap();
        let ran = qlora(home.path(), ["inspect", "m.gguf"]);
        ran.is_clean();
        if bytes.len() < sound.len() {
            ran.failed(1, &["m.gguf"]);
        }
    }
}

#[test]
fn a_gguf_file_of_another_architecture_is_refused_by_name() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("m.gguf"), tiny_gguf::bytes()).unwrap();
    write_ids(home.path(), r#"{"input_ids": [[1, 2]]}"#);
    qlora(home.path(), logits("m.gguf")).failed(1, &["m.gguf", "`mamba` is not supported"]);
    assert!(!home.path().join("logits.safetensors").exists());
}

#[test]
fn damaged_weights_and_configurations_leave_no_output() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let model = tiny_model::write(home);
    write_ids(home, r#"{"input_ids": [[1, 2, 3], [4, 5, 6]]}"#);
    qlora(home, logits("model")).succeeded();
    fs::remove_file(home.join("logits.safetensors")).unwrap();
    let before = files(home);
    for (name, sound) in [
        ("model.safetensors", tiny_model::weights()),
        ("config.json", tiny_model::config("llama").into_bytes()),
    ] {
        for bytes in damaged(&sound) {
            fs::write(model.join(name), &bytes).unwrap();
            let ran = qlora(home, logits("model"));
            ran.is_clean();
            if bytes.len() < sound.len() {
                assert_eq!(ran.code, Some(1), "{name} of {} bytes was accepted", bytes.len());
                assert!(ran.stderr.contains(name), "{}", ran.stderr);
            }
            // A flipped bit in a number can't be noticed; then the output is there, and whole.
            if ran.code == Some(0) {
                fs::remove_file(home.join("logits.safetensors")).unwrap();
            }
            assert_eq!(files(home), before, "half an output was left");
        }
        fs::write(model.join(name), &sound).unwrap();
    }
}

#[test]
fn wrong_ids_are_told_with_their_place() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    tiny_model::write(home);
    let long = format!("{{\"input_ids\": [{:?}]}}", [1; tiny_model::CONTEXT + 1]);
    for (ids, said) in [
        (r#"{"input_ids": []}"#, "no rows"),
        (r#"{"input_ids": [[]]}"#, "row 0"),
        (r#"{"input_ids": [[1, 2], [3]]}"#, "row 1 of `input_ids` has 1 ids, row 0 has 2"),
        (r#"{"input_ids": [[1, 2], [3, 40]]}"#, "id 40 at position 1 of row 1"),
        (r#"{"input_ids": [[1, -2]]}"#, "line 1"),
        (r#"{"ids": [[1, 2]]}"#, "input_ids"),
        (r#"{"input_ids": [[1, 2"#, "line 1"),
        (long.as_str(), "context is 32"),
    ] {
        write_ids(home, ids);
        qlora(home, logits("model")).failed(1, &["ids.json", said]);
        assert!(!home.join("logits.safetensors").exists());
    }
    fs::remove_file(home.join("ids.json")).unwrap();
    qlora(home, logits("model")).failed(1, &["ids.json"]);
}

#[test]
fn an_output_that_cannot_be_written_is_told() {
    let home = tempfile::tempdir().unwrap();
    tiny_model::write(home.path());
    write_ids(home.path(), r#"{"input_ids": [[1, 2]]}"#);
    let arguments = ["logits", "--model", "model", "--ids", "ids.json", "--out", "absent/logits.safetensors"];
    qlora(home.path(), arguments).failed(1, &["absent"]);
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    tiny_model::write(home);
    write_ids(home, r#"{"input_ids": [[1, 2]]}"#);
    let with_adapter: Vec<&str> = logits("model").into_iter().chain(["--adapter", "adapter"]).collect();
    qlora(home, &with_adapter).failed(1, &["adapter_config.json"]);
    fs::create_dir(home.join("adapter")).unwrap();
    let config = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}"#;
    fs::write(home.join("adapter/adapter_config.json"), config).unwrap();
    qlora(home, &with_adapter).failed(1, &["adapter_model.safetensors"]);
    let (a, b) = (vec![0_u8; 2 * 99 * 4], vec![0_u8; 16 * 2 * 4]);
    let view =
        |shape, bytes| safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, bytes).unwrap();
    let layer = "base_model.model.model.layers.0.self_attn.q_proj";
    let tensors = [
        (format!("{layer}.lora_A.weight"), view(vec![2, 99], &a)),
        (format!("{layer}.lora_B.weight"), view(vec![16, 2], &b)),
    ];
    let bytes = safetensors::serialize(tensors, None).unwrap();
    fs::write(home.join("adapter/adapter_model.safetensors"), bytes).unwrap();
    qlora(home, &with_adapter).failed(1, &["q_proj", "99", "16"]);
    assert!(!home.join("logits.safetensors").exists());
}
