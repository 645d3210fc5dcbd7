//! `qlora generate`: what it refuses, and `--chat` with its turns on stdin.

use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};

use crate::program::{Ran, qlora, qlora_told};
use crate::tiny_model;

const MODEL: [&str; 9] =
    ["generate", "--model", "model", "--template", "chatml", "--greedy", "--dtype", "f32", "--json"];

/// A conversation with the tiny model, whose tokens are bytes and whose context is 256 of them.
fn chat(home: &Path, more: &[&str], turns: &str) -> Ran {
    tiny_model::write_with_tokenizer(home);
    qlora_told(home, MODEL.iter().chain(&["--chat", "--max-tokens", "4"]).chain(more), turns)
}

/// Ids and length of the prompt of each answer.
fn answers(ran: &Ran) -> Vec<(Vec<u64>, u64)> {
    let read = |line: &str| {
        let answer: Value = serde_json::from_str(line).unwrap();
        let ids = answer["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
        (ids, answer["prompt_tokens"].as_u64().unwrap())
    };
    ran.stdout.lines().map(read).collect()
}

/// An adapter of one layer that changes much.
fn write_adapter(home: &Path, name: &str, strength: f32) {
    let folder = home.join(name);
    fs::create_dir_all(&folder).unwrap();
    let config = json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["down_proj"]});
    fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    let factor = |count: usize, scale: f32| -> Vec<u8> {
        (0..count).flat_map(|i| (scale * ((i * 7 % 5) as f32 - 1.5)).to_le_bytes()).collect()
    };
    let layer = "base_model.model.model.layers.0.mlp.down_proj";
    let (a, b) = (factor(24, 1.0), factor(16, strength));
    let tensors = [
        (format!("{layer}.lora_A.weight"), TensorView::new(Dtype::F32, vec![1, 24], &a).unwrap()),
        (format!("{layer}.lora_B.weight"), TensorView::new(Dtype::F32, vec![16, 1], &b).unwrap()),
    ];
    fs::write(folder.join("adapter_model.safetensors"), serialize(tensors, None).unwrap()).unwrap();
}

#[test]
fn a_conversation_is_remembered_and_forgotten() {
    let home = tempfile::tempdir().unwrap();
    let turns = "Hi\nOne \\\ntwo\n/undo\n\nOne \\\ntwo\n/reset\nHi\n\"\"\"\nOne \ntwo\n\"\"\"\n/again\n\
                 /undo\n/undo\n/undo\n/adapter on\n/nonsense\n/quit\nunread\n";
    let ran = chat(home.path(), &[], turns).succeeded();
    let told = answers(&ran);
    let [hi, two, two_again, hi_again, two_in_quotes, two_once_more] = &told[..] else { panic!("{told:?}") };
    // <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n, every letter a token.
    assert_eq!(hi.1, 21);
    assert!(two.1 > 21 + 21, "the first turn and its answer are there: {told:?}");
    assert_eq!([two_again, hi_again, two_in_quotes, two_once_more], [two, hi, two, two], "{told:?}");
    for part in ["there is no turn to forget", "no adapter was given", "/nonsense is not a command"] {
        assert_eq!(ran.stderr.matches(part).count(), 1, "{part} in {}", ran.stderr);
    }
}

#[test]
fn a_turn_that_cannot_be_answered_ends_no_conversation() {
    let home = tempfile::tempdir().unwrap();
    let long = "long ".repeat(60);
    let plain = answers(&chat(home.path(), &[], "Hi\nYou\n/again\n").succeeded());
    let ran = chat(home.path(), &[], &format!("Hi\n{long}\nYou\n/system {long}\nHi\n/reset\n/again\n"))
        .failed(
            1,
            &["more than the model's context of 256", "/undo and /reset", "turns without an answer: 2"],
        );
    assert_eq!(answers(&ran), plain[..2], "as if it had not been said");
    assert!(ran.stderr.contains("there is no turn to answer"), "{}", ran.stderr);
}

#[test]
fn a_conversation_grows_until_its_context_is_full() {
    let home = tempfile::tempdir().unwrap();
    let ran = chat(home.path(), &[], &"some words\n".repeat(8));
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let made = answers(&ran);
    assert!((4..8).contains(&made.len()), "{made:?}");
    assert!(made.is_sorted_by_key(|(_, prompt)| *prompt) && made.last().unwrap().1 <= 253, "{made:?}");
}

#[test]
fn adapters_are_switched_within_a_conversation() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let base = answers(&chat(home, &[], "Hello\n").succeeded());
    write_adapter(home, "one", 2.0);
    write_adapter(home, "other", -3.0);
    let [one, other] = ["one", "other"]
        .map(|name| answers(&chat(home, &["--adapter", name], "Hello\n").succeeded()).remove(0));
    let base = &base[0];
    assert!(*base != one && one != other && other != *base, "{base:?} {one:?} {other:?}");

    let turns = "/adapter both\nHello\n/undo\n/adapter off\nHello\n/undo\n/adapter on\nHello\n";
    let ran = chat(home, &["--adapter", "one"], turns).succeeded();
    assert_eq!(answers(&ran).iter().collect::<Vec<_>>(), [base, &one, base, &one]);
    assert!(ran.stderr.contains("base: adapter: "), "{}", ran.stderr);

    let two = ["--adapter", "one", "--adapter", "other"];
    let turns = "/adapter b\nHello\n/undo\n/adapter both\nHello\n/undo\n/adapter a\nHello\n/adapter c\n";
    let ran = chat(home, &two, turns).succeeded();
    assert_eq!(answers(&ran).iter().collect::<Vec<_>>(), [&other, base, &one, &other, &one]);
    for part in ["base: adapter a: adapter b: ", "/adapter takes a, b, on, off or both"] {
        assert!(ran.stderr.contains(part), "{part} in {}", ran.stderr);
    }
    qlora(home, MODEL.iter().chain(&["--prompt", "Hello"]).chain(&two))
        .failed(2, &["--adapter was given 2 times"]);
}

#[test]
fn an_answer_that_does_not_fit_takes_no_memory() {
    let home = tempfile::tempdir().unwrap();
    tiny_model::write_with_tokenizer(home.path());
    let prompt = ["--prompt", "Hi", "--max-tokens", "1000000000000"];
    qlora(home.path(), MODEL.iter().chain(&prompt)).failed(1, &["more than the model's context of 256"]);
}

#[test]
fn the_context_is_that_of_rotary_scaling() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let config = tiny_model::write(home).join("config.json");
    let mut keys: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    keys["rope_scaling"] = json!({"rope_type": "yarn", "factor": 2.0,
        "original_max_position_embeddings": tiny_model::CONTEXT});
    fs::write(config, keys.to_string()).unwrap();
    let logits = |count: usize| {
        fs::write(home.join("ids.json"), json!({"input_ids": [vec![1; count]]}).to_string()).unwrap();
        let _ = fs::remove_file(home.join("l.safetensors"));
        qlora(home, ["logits", "--model", "model", "--ids", "ids.json", "--out", "l.safetensors"])
    };
    logits(2 * tiny_model::CONTEXT).succeeded();
    logits(2 * tiny_model::CONTEXT + 1).failed(1, &["the model's context is 64"]);
    crate::training::write_config(home, "");
    let ids: Vec<usize> = (0..60).map(|i| i % tiny_model::VOCABULARY).collect();
    let row = json!({"input_ids": ids, "labels": ids}).to_string();
    fs::write(home.join("train.jsonl"), format!("{row}\n").repeat(4)).unwrap();
    let ran = qlora(home, ["train", "run.toml", "--set", "train.steps=1"]).succeeded();
    assert!(ran.stderr.contains("lowered to the model's context of 64"), "{}", ran.stderr);
}
