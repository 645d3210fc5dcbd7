use std::fs;
use std::path::Path;

use qlora_text::{NAMED_TEMPLATES, NamedTemplate};
use serde_json::{Value, json};

use super::chat_format::{System, Turn};
use super::*;

/// A tokenizer of one letter, the special tokens and perhaps a chat template. llama.cpp puts `bos` in front of texts.
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
    let mut config = json!({"bos_token": bos, "eos_token": eos, "add_bos_token": true});
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

fn named(name: &str) -> ChatFormat {
    let folder = tempfile::tempdir().unwrap();
    let template = NamedTemplate::find(name).unwrap().source;
    ChatFormat::of(&tokenizer(Some(template), "<s>", "</s>", folder.path())).unwrap().unwrap()
}

/// The source of a template that a model came with.
fn golden(name: &str) -> Option<String> {
    let golden = qlora_testing::golden(&format!("chat_templates/{name}.json"))?;
    let golden: Value = serde_json::from_slice(&fs::read(golden).unwrap()).unwrap();
    Some(golden["template"].as_str().unwrap().to_owned())
}

const DERIVED: ModelfileTemplate = ModelfileTemplate::Derived { dated: false };

#[test]
fn every_named_template_is_derived() {
    for NamedTemplate { name, source, .. } in NAMED_TEMPLATES {
        assert_eq!(modelfile(Some(source), "<s>", "</s>").template, DERIVED, "{name}");
    }
    let turn = |before: &str, after: &str| Turn::new(before, after);
    assert_eq!(
        named("zephyr"),
        ChatFormat {
            start: String::new(),
            no_system: String::new(),
            system: System::Turn(turn("<|system|>\n", "</s>\n")),
            user: turn("<|user|>\n", "</s>\n"),
            assistant: turn("<|assistant|>\n", "</s>\n"),
            answer: "<|assistant|>\n".to_owned(),
        }
    );
    // An answer that is read has a space in front, one that is asked for brings its own.
    let mistral = named("mistral");
    assert_eq!(mistral.user, turn("[INST] ", " [/INST]"));
    assert_eq!((mistral.assistant, mistral.answer.as_str()), (turn(" ", "</s>"), ""));
    assert_eq!(mistral.system, System::BeforeFirstUser(turn("", "\n\n")));
    // The token at the beginning comes from llama.cpp, those between turns do not.
    let llama_2 = named("llama-2");
    assert_eq!((llama_2.user, llama_2.assistant), (turn("[INST] ", " [/INST]"), turn(" ", " </s><s>")));
    assert_eq!(llama_2.system, System::BeforeFirstUser(turn("<<SYS>>\n", "\n<</SYS>>\n\n")));
    let mut vicuna = named("vicuna");
    assert_eq!((vicuna.user.clone(), vicuna.answer.as_str()), (turn("USER: ", " ASSISTANT:"), ""));
    let system = vicuna.take_default_system().unwrap();
    assert!(system.starts_with("A chat between") && system.ends_with("questions."), "{system}");
    assert_eq!(vicuna.no_system, "");
    assert!(named("alpaca").take_default_system().unwrap().starts_with("Below is an instruction"));
}

#[test]
fn templates_of_models_are_derived() {
    for (name, bos, eos, dated) in [
        ("gemma3", "<bos>", "<end_of_turn>", false),
        ("gemma3_training", "<bos>", "<end_of_turn>", false),
        ("llama3", "<|begin_of_text|>", "<|eot_id|>", false),
        ("llama3_training", "<|begin_of_text|>", "<|eot_id|>", false),
        ("llama3_1", "<|begin_of_text|>", "<|eot_id|>", false),
        ("llama3_2", "<|begin_of_text|>", "<|eot_id|>", true),
        ("phi3", "<s>", "<|end|>", false),
        ("phi3_training", "<s>", "<|end|>", false),
        ("qwen2_5", "<|endoftext|>", "<|im_end|>", false),
        ("qwen2_5_training", "<|endoftext|>", "<|im_end|>", false),
        ("qwen3", "<|endoftext|>", "<|im_end|>", false),
        ("qwen3_training", "<|endoftext|>", "<|im_end|>", false),
    ] {
        let Some(source) = golden(name) else { return };
        let found = modelfile(Some(&source), bos, eos);
        assert_eq!(found.template, ModelfileTemplate::Derived { dated }, "{name}");
        assert!(found.text.contains(&format!("\nPARAMETER stop {eos:?}\n")), "{}", found.text);
        let (template, _) = found.text.split_once("\nPARAMETER").unwrap();
        assert!(
            template.starts_with("FROM ./model.gguf\n\nTEMPLATE \"\"\"") && !template.contains(bos),
            "{name}"
        );
        let system =
            "SYSTEM \"\"\"You are Qwen, created by Alibaba Cloud. You are a helpful assistant.\"\"\"";
        assert_eq!(found.text.contains(system), name.starts_with("qwen2_5"), "{}", found.text);
        assert_eq!(
            found.text.contains("Today Date: 26 Jul 2024"),
            ["llama3_1", "llama3_2"].contains(&name),
            "{name}"
        );
    }
}

#[test]
fn turns_are_found_whatever_marks_them() {
    for (before, after, assistant, answer) in [
        ("<|start_of_role|>{}<|end_of_role|>", "<|end_of_text|>\n", "assistant", ""),
        ("<|START_OF_TURN_TOKEN|><|{}_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "CHATBOT", ""),
        // A turn without an end, and an answer that begins with a thought that is not kept.
        ("<{}>", "", "Assistant", "<think>\n"),
    ] {
        let marked = |role: &str| before.replace("{}", role);
        let source = format!(
            "{{{{ bos_token }}}}{{% for m in messages %}}\
             {{% set role = '{assistant}' if m.role == 'assistant' else m.role %}}{}{{{{ m.content }}}}{after}\
             {{% endfor %}}{{% if add_generation_prompt %}}{{{{ '{}{answer}' }}}}{{% endif %}}",
            marked("{{ role }}"),
            marked(assistant),
        );
        let folder = tempfile::tempdir().unwrap();
        let format =
            ChatFormat::of(&tokenizer(Some(&source), "<s>", "</s>", folder.path())).unwrap().unwrap();
        let expected = ChatFormat {
            start: String::new(),
            no_system: String::new(),
            system: System::Turn(Turn::new(marked("system"), after)),
            user: Turn::new(marked("user"), after),
            assistant: Turn::new(marked(assistant), after),
            answer: format!("{}{answer}", marked(assistant)),
        };
        assert_eq!(format, expected);
    }
    // Mistral's, of version 7: the answer has no mark of its own.
    let source = "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}[SYSTEM_PROMPT]{{ m.content }}\
                  [/SYSTEM_PROMPT]{% elif m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}{{ m.content }}\
                  {{ eos_token }}{% endif %}{% endfor %}";
    let folder = tempfile::tempdir().unwrap();
    let format = ChatFormat::of(&tokenizer(Some(source), "<s>", "</s>", folder.path())).unwrap().unwrap();
    assert_eq!(format.system, System::Turn(Turn::new("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")));
    assert_eq!((format.user, format.assistant), (Turn::new("[INST]", "[/INST]"), Turn::new("", "</s>")));
}

#[test]
fn what_a_conversation_without_a_system_message_begins_with_is_kept() {
    let Some(source) = golden("llama3_2") else { return };
    let text = modelfile(Some(&source), "<|begin_of_text|>", "<|eot_id|>").text;
    let header = r#"<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"#;
    assert!(
        text.contains(&format!("{{{{- if not .System }}}}{{{{ \"{header}<|eot_id|>\" }}}}{{{{ end }}}}\n")),
        "{text}"
    );
    assert!(
        text.contains(&format!("eq .Role \"system\" }}}}{{{{ \"{header}\" }}}}{{{{ .Content }}}}")),
        "{text}"
    );
}

#[test]
fn a_beginning_token_stays_where_nobody_adds_it() {
    let folder = tempfile::tempdir().unwrap();
    let llama_3 = NamedTemplate::find("llama-3").unwrap().source;
    tokenizer(Some(llama_3), "<s>", "</s>", folder.path());
    let path = folder.path().join("tokenizer_config.json");
    fs::write(&path, fs::read_to_string(&path).unwrap().replace("true", "false")).unwrap();
    let format = ChatFormat::of(&Tokenizer::from_directory(folder.path()).unwrap()).unwrap().unwrap();
    assert_eq!(format, ChatFormat { start: "<s>".to_owned(), ..named("llama-3") });
    assert!(go_template::go_template(&format).starts_with("{{- \"<s>\" }}\n{{- range"));

    // The one of SmolLM2 begins each turn.
    let smollm2 = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
                   {{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}\
                   {{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}\
                   {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    tokenizer(Some(smollm2), "<|im_start|>", "<|im_end|>", folder.path());
    fs::write(&path, fs::read_to_string(&path).unwrap().replace("true", "false")).unwrap();
    let mut format = ChatFormat::of(&Tokenizer::from_directory(folder.path()).unwrap()).unwrap().unwrap();
    assert_eq!(format.take_default_system().as_deref(), Some("Be kind."));
    assert_eq!(format, named("chatml"));
}

#[test]
fn a_template_without_a_place_for_a_system_message_gets_one() {
    for refused in ["{{ raise_exception('no') }}", ""] {
        let source = format!(
            "{{% for m in messages %}}{{% if m.role == 'system' %}}{refused}{{% else %}}\
             <{{{{ m.role }}}}>{{{{ m.content }}}}</>{{% endif %}}{{% endfor %}}\
             {{% if add_generation_prompt %}}<assistant>{{% endif %}}"
        );
        let found = modelfile(Some(&source), "<s>", "</s>");
        assert_eq!(found.template, DERIVED);
        assert!(
            found.text.contains("{{ $.System }}{{ \"\\n\\n\" }}{{ end }}{{ .Content }}"),
            "{}",
            found.text
        );
    }
}

#[test]
fn what_cannot_be_said_in_turns_is_lost() {
    let numbered = "{% for m in messages %}{{ loop.index }} {{ m.role }}: {{ m.content }}\n{% endfor %}";
    let found = modelfile(Some(numbered), "<s>", "</s>");
    assert_eq!(found.template, ModelfileTemplate::Lost);
    assert_eq!(found.text, "FROM ./model.gguf\n\nPARAMETER stop \"</s>\"\n");
    for lost in [
        // A message that depends on its place: conversations with more turns differ.
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
         {% if loop.index == 2 %}!{% endif %}{% endfor %}<|im_start|>assistant\n",
        "{{ messages[-1].content }}",
        "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}\n{% endfor %}",
        "{{ raise_exception('never') }}",
    ] {
        assert_eq!(modelfile(Some(lost), "<s>", "</s>").template, ModelfileTemplate::Lost, "{lost}");
    }
}

#[test]
fn answers_end_with_tokens_or_with_text() {
    assert_eq!(
        modelfile(None, "<s>", "</s>").text,
        "FROM ./model.gguf\n\nTEMPLATE \"\"\"{{ .Prompt }}\"\"\"\n\nPARAMETER stop \"</s>\"\n"
    );
    // A vocabulary without the token spells it in pieces.
    let chatml = NamedTemplate::find("chatml").unwrap().source;
    let stops = |bos, eos| {
        let text = modelfile(Some(chatml), bos, eos).text;
        text.lines()
            .filter_map(|line| line.strip_prefix("PARAMETER stop "))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(stops("<s>", "</s>"), ["\"</s>\"", "\"<|im_end|>\""]);
    assert_eq!(stops("<s>", "<|im_end|>"), ["\"<|im_end|>\""]);
}

#[test]
fn chatml_in_go() {
    assert_eq!(
        go_template::go_template(&named("chatml")),
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

#[test]
fn llama_3_in_go() {
    assert_eq!(
        go_template::go_template(&named("llama-3")),
        r#"{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}{{ "<|start_header_id|>user<|end_header_id|>\n\n" }}{{ .Content }}{{ "<|eot_id|>" }}
{{- else if eq .Role "system" }}{{ "<|start_header_id|>system<|end_header_id|>\n\n" }}{{ .Content }}{{ "<|eot_id|>" }}
{{- else if eq .Role "assistant" }}{{ "<|start_header_id|>assistant<|end_header_id|>\n\n" }}{{ .Content }}{{ if not $last }}{{ "<|eot_id|>" }}{{ end }}
{{- end }}
{{- if and $last (ne .Role "assistant") }}{{ "<|start_header_id|>assistant<|end_header_id|>\n\n" }}{{ end }}
{{- end }}"#
    );
}

#[test]
fn gemma_in_go() {
    assert_eq!(
        go_template::go_template(&named("gemma")),
        r#"{{- $said := false }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}{{ "<start_of_turn>user\n" }}{{ if and $.System (not $said) }}{{ $said = true }}{{ $.System }}{{ "\n\n" }}{{ end }}{{ .Content }}{{ "<end_of_turn>\n" }}
{{- else if eq .Role "assistant" }}{{ "<start_of_turn>model\n" }}{{ .Content }}{{ if not $last }}{{ "<end_of_turn>\n" }}{{ end }}
{{- end }}
{{- if and $last (ne .Role "assistant") }}{{ "<start_of_turn>model\n" }}{{ end }}
{{- end }}"#
    );
}

#[test]
fn mistral_in_go() {
    assert_eq!(
        go_template::go_template(&named("mistral")),
        r#"{{- $said := false }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}{{ "[INST] " }}{{ if and $.System (not $said) }}{{ $said = true }}{{ $.System }}{{ "\n\n" }}{{ end }}{{ .Content }}{{ " [/INST]" }}
{{- else if eq .Role "assistant" }}{{ " " }}{{ .Content }}{{ if not $last }}{{ "</s>" }}{{ end }}
{{- end }}
{{- end }}"#
    );
}
