use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::*;

/// A tokenizer of single bytes with a chat template and an end token.
fn tokenizer(template: Option<&str>, bos: &str, eos: &str, folder: &Path) -> Tokenizer {
    let added = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false})
    };
    let definition = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [added(1, bos), added(2, eos)],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": {"a": 0, bos: 1, eos: 2}, "merges": []},
    });
    fs::write(folder.join("tokenizer.json"), definition.to_string()).unwrap();
    let mut config = json!({"bos_token": bos, "eos_token": eos});
    if let Some(template) = template {
        config["chat_template"] = template.into();
    }
    fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
    Tokenizer::from_directory(folder).unwrap()
}

fn modelfile(template: Option<&str>, bos: &str, eos: &str) -> Modelfile {
    let folder = tempfile::tempdir().unwrap();
    Modelfile::new(Some(&tokenizer(template, bos, eos, folder.path())), "model.gguf").unwrap()
}

#[test]
fn real_templates_are_recognised_by_what_they_render() {
    for (name, bos, eos, format) in [
        ("qwen2_5", "<|endoftext|>", "<|im_end|>", "chatml"),
        ("llama3", "<|begin_of_text|>", "<|eot_id|>", "llama3"),
        ("gemma3", "<bos>", "<end_of_turn>", "gemma"),
        ("phi3", "<s>", "<|end|>", "phi3"),
    ] {
        let Some(golden) = qlora_testing::golden(&format!("chat_templates/{name}.json")) else { return };
        let golden: Value = serde_json::from_slice(&fs::read(golden).unwrap()).unwrap();
        let found = modelfile(golden["template"].as_str(), bos, eos);
        assert_eq!(found.template, ModelfileTemplate::Format(format), "{name}");
        assert!(found.text.contains(&format!("\nPARAMETER stop {eos:?}\n")), "{}", found.text);
        assert!(found.text.starts_with("FROM ./model.gguf\n\nTEMPLATE \"\"\""));
        let system =
            "SYSTEM \"\"\"You are Qwen, created by Alibaba Cloud. You are a helpful assistant.\"\"\"";
        assert_eq!(found.text.contains(system), name == "qwen2_5", "{}", found.text);
    }
}

#[test]
fn a_beginning_token_may_begin_a_turn() {
    let smollm2 = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
                   {{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}\
                   {{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}\
                   {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let found = modelfile(Some(smollm2), "<|im_start|>", "<|im_end|>");
    assert_eq!(found.template, ModelfileTemplate::Format("chatml"));
    assert!(found.text.contains("\nSYSTEM \"\"\"Be kind.\"\"\"\n"), "{}", found.text);
}

#[test]
fn what_is_of_no_known_format_is_left_to_the_gguf_file() {
    let strange = "{% for m in messages %}{{ m.role }} says {{ m.content }};{% endfor %}";
    let found = modelfile(Some(strange), "<s>", "</s>");
    assert_eq!(found.template, ModelfileTemplate::Gguf);
    assert_eq!(found.text, "FROM ./model.gguf\n\nPARAMETER stop \"</s>\"\n");
    // A message that depends on its place: the probes with more turns differ.
    let almost = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
                  {% if loop.index == 2 %}!{% endif %}{% endfor %}<|im_start|>assistant\n";
    assert_eq!(modelfile(Some(almost), "<s>", "<|im_end|>").template, ModelfileTemplate::Gguf);
    assert_eq!(modelfile(None, "<s>", "</s>").template, ModelfileTemplate::None);
}

#[test]
fn chatml_in_go() {
    let chatml = &ChatFormat::ALL[0];
    assert_eq!(
        go_template::go_template(chatml),
        r#"{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}{{ "<|im_start|>user\n" }}{{ .Content }}{{ "<|im_end|>\n" }}
{{- else if eq .Role "system" }}{{ "<|im_start|>system\n" }}{{ .Content }}{{ "<|im_end|>\n" }}
{{- else if eq .Role "assistant" }}{{ "<|im_start|>assistant\n" }}{{ .Content }}{{ if not $last }}{{ "<|im_end|>\n" }}{{ end }}
{{- end }}
{{- if and $last (ne .Role "assistant") }}{{ "<|im_start|>assistant\n" }}{{ end }}
{{- end }}"#
    );
}
