//! The chat template that an adapter was trained with goes where the adapter goes.

use std::fs;
use std::path::Path;

use qlora_core::gguf::{Gguf, Metadata};
use qlora_core::text::{NamedTemplate, Tokenizer};
use serde_json::{Value, json};

use crate::program::qlora;
use crate::tiny_model;
use crate::training::write_config;

const END_OF_TEXT: u32 = 256;
const END_OF_TURN: u32 = 258;

/// A base model that has no chat template, and an adapter for it that was trained with ChatML, in `out/adapter`.
fn prepare(home: &Path) {
    tiny_model::write_with_tokenizer(home);
    write_config(home, "[lora]\nrank = 2\n");
    let row =
        json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]});
    fs::write(home.join("train.jsonl"), format!("{row}\n").repeat(4)).unwrap();
    qlora(home, ["train", "run.toml"]).failed(1, &["has no chat template"]);
    let _ = fs::remove_dir_all(home.join("out"));
    qlora(home, ["train", "run.toml", "--set", "data.template=chatml"]).succeeded();
}

fn chatml() -> &'static str {
    NamedTemplate::find("chatml").unwrap().source
}

fn json_file(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn export(home: &Path, form: &str, out: &str, more: &[&str]) -> String {
    let arguments = ["export", "--to", form, "--out", out];
    let model: &[&str] = if more.contains(&"--model") { &[] } else { &["--model", "model"] };
    qlora(home, arguments.iter().chain(model).chain(more)).succeeded().stdout
}

/// A directory's tokenizer writes ChatML and knows its end.
fn assert_chatml(directory: &Path) {
    let config = json_file(directory.join("tokenizer_config.json"));
    assert_eq!((&config["chat_template"], &config["eos_token"]), (&chatml().into(), &"<|im_end|>".into()));
    let tokenizer = Tokenizer::from_directory(directory).unwrap();
    assert!(tokenizer.eos().contains(&END_OF_TURN) && tokenizer.eos().contains(&END_OF_TEXT));
}

fn assert_chatml_in(metadata: &Metadata) {
    assert_eq!(metadata.string("tokenizer.chat_template").unwrap(), chatml());
    assert_eq!(metadata.u32("tokenizer.ggml.eos_token_id").unwrap(), END_OF_TEXT);
    assert_eq!(metadata.u32("tokenizer.ggml.eot_token_id").unwrap(), END_OF_TURN);
}

#[test]
fn every_export_has_the_template_of_the_training() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    prepare(home);
    assert_chatml(&home.join("out/adapter"));
    let adapter = ["--adapter", "out/adapter"];

    export(home, "peft", "peft", &adapter);
    assert_chatml(&home.join("peft"));

    let told = export(home, "safetensors", "merged", &adapter);
    assert!(told.contains("verified: 20 tensors"), "{told}");
    assert_chatml(&home.join("merged"));
    let stops = json!([END_OF_TEXT, END_OF_TURN]);
    assert_eq!(json_file(home.join("merged/config.json"))["eos_token_id"], stops);
    let generation = json_file(home.join("merged/generation_config.json"));
    assert_eq!((&generation["eos_token_id"], &generation["top_k"]), (&stops, &7.into()));

    export(home, "gguf:F32", "merged.gguf", &adapter);
    let merged = Gguf::open(home.join("merged.gguf")).unwrap();
    assert_chatml_in(merged.metadata());
    assert_eq!(merged.metadata().string("general.name").unwrap(), "model");

    export(home, "ollama:F32", "ollama", &adapter);
    let modelfile = fs::read_to_string(home.join("ollama/Modelfile")).unwrap();
    for part in [
        "{{ \"<|im_start|>user\\n\" }}",
        "\nPARAMETER stop \"<|im_end|>\"\n",
        "\nPARAMETER stop \"<|endoftext|>\"\n",
    ] {
        assert!(modelfile.contains(part), "{part} in {modelfile}");
    }
    let told = export(home, "gguf-lora", "lora.gguf", &adapter);
    assert!(told.contains("--chat-template-file"), "{told}");
}

#[test]
fn a_gguf_file_gets_the_template_too() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    prepare(home);
    export(home, "gguf:F32", "base-v1.5.gguf", &[]);
    let base = Gguf::open(home.join("base-v1.5.gguf")).unwrap();
    assert!(!base.metadata().contains("tokenizer.chat_template"));
    let from_file = ["--model", "base-v1.5.gguf", "--adapter", "out/adapter"];
    export(home, "gguf:F32", "merged.gguf", &from_file);
    assert_chatml_in(Gguf::open(home.join("merged.gguf")).unwrap().metadata());
    export(home, "safetensors", "merged", &from_file);
    assert_chatml(&home.join("merged"));
}

#[test]
fn answers_are_asked_for_by_the_template_of_the_adapter_or_by_another() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    prepare(home);
    let generate =
        ["generate", "--model", "model", "--prompt", "Hi", "--greedy", "--max-tokens", "3", "--json"];
    let ask = |more: &[&str]| qlora(home, generate.iter().chain(more));
    let prompt_tokens = |more: &[&str]| -> Value {
        serde_json::from_str::<Value>(&ask(more).succeeded().stdout).unwrap()["prompt_tokens"].clone()
    };
    ask(&[]).failed(1, &["has no chat template"]);
    // <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n, every letter a token.
    assert_eq!(prompt_tokens(&["--adapter", "out/adapter"]), 1 + 5 + 2 + 1 + 1 + 1 + 10);
    assert_eq!(prompt_tokens(&["--template", "chatml"]), 21);
    fs::write(home.join("short.jinja"), "{{ messages[-1].content }}?").unwrap();
    assert_eq!(prompt_tokens(&["--adapter", "out/adapter", "--template", "short.jinja"]), 3);
    ask(&["--template", "chatlm"]).failed(1, &["no chat template \"chatlm\"", "chatml"]);

    // As PEFT saves it since transformers has a file for it.
    fs::write(home.join("out/adapter/chat_template.jinja"), "{{ messages[-1].content }}!!").unwrap();
    assert_eq!(prompt_tokens(&["--adapter", "out/adapter"]), 4);
    export(home, "peft", "peft", &["--adapter", "out/adapter", "--template", "alpaca"]);
    let config = json_file(home.join("peft/tokenizer_config.json"));
    assert!(config["chat_template"].as_str().unwrap().contains("### Instruction"));
    // Answers in this template end with what a text ends with.
    assert_eq!(config["eos_token"], "<|endoftext|>");
}

#[test]
fn further_training_goes_on_with_the_template_of_the_adapter() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    prepare(home);
    write_config(home, "[lora]\ninit_from = 'out/adapter'\n");
    qlora(home, ["train", "run.toml", "--set", "output.dir=further"]).succeeded();
    assert_chatml(&home.join("further/adapter"));
}
